"""``tl.eval_clusters``: clusters against known cell types."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .. import metrics
from .._anndata.counts import check_adata, layer_matrices
from .._anndata.results import Results, check_keys, cluster_codes
from ..clustering import Clusterer
from ._inputs import layer_list, obs_column, obsm_points, use_rep_list

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from scipy.sparse import csr_array

    from ..clustering import Method

# Columns with fewer cells per value than this on average, such as barcodes or total counts, are no cell types.
MIN_CELLS_PER_LABEL = 2


def eval_clusters(
    adata: AnnData,
    *,
    label_key: str,
    cluster_key: str | None = None,
    layers: Sequence[str | None] | str | None = None,
    use_rep: Sequence[str] | str | None = None,
    method: Method = "leiden",
    n_clusters: int | None = None,
    resolution: float = 1.0,
    random_state: int = 1,
    key_added: str = "eval_clusters",
) -> pd.DataFrame:
    """Compare clusters with known labels: purity, entropy, adjusted Rand index, normalised mutual information.

    Parameters
    ----------
    adata
        Annotated data. Cells without a label and cells without a cluster are left out.
    label_key
        Column of `.obs` with the known cell types; categories, text or whole numbers, most of them in several cells.
    cluster_key
        Column of `.obs` with clusters to judge. Default: ``"cnn_cluster"`` if neither `layers` nor `use_rep` is given.
    layers
        Layers with counts, raw or imputed, to cluster and judge, each in a row. ``"X"`` or ``None`` in the sequence
        stands for `X`.
    use_rep
        Keys of `.obsm` whose coordinates are clustered and judged, each in a row.
    method
        How all layers and coordinates are clustered; see :func:`~scanpy_cnnimpute.tl.cluster`.
    n_clusters
        Number of clusters for ``"kmeans"``, and optionally for ``"adp"``.
    resolution
        Resolution of ``"leiden"``.
    random_state
        Seed of the clustering.
    key_added
        Key in `.uns`.

    Returns
    -------
    DataFrame with one row per clustering, also in ``.uns[key_added]["table"]``. Columns: ``purity``, ``ari`` and
    ``nmi`` (1 is best), ``entropy`` (0 is best), ``n_clusters``, ``n_cells``. Rows: ``obs:<key>``, ``X``,
    ``layer:<key>`` and ``obsm:<key>``.

    Raises
    ------
    KeyError
        If a column, layer or representation is not there.
    TypeError, ValueError
        For labels that are no cell types, layers that are no counts, and settings that
        :func:`~scanpy_cnnimpute.tl.cluster` refuses.

    Notes
    -----
    The definitions of the paper, "Cell clusters assessment"; see :mod:`scanpy_cnnimpute.metrics`. Imputed layers have
    less noise and give more clusters at the same `resolution`, which alone changes purity and ARI. Compare at several
    resolutions, or at the same `n_clusters`.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()
    >>> table = scnn.tl.eval_clusters(adata, label_key="cell_line", layers=[None], method="kmeans", n_clusters=5)
    >>> table.index.tolist()
    ['X']
    """
    check_adata(adata, caller="tl.eval_clusters")
    check_keys(key_added=key_added)
    results = Results(adata, function="tl.eval_clusters", key=key_added, keys=[])
    labels = _label_codes(adata, label_key)
    names, representations = layer_list(layers), use_rep_list(use_rep)
    params: dict[str, str | int | float | None] = {"label_key": label_key}
    clusterer = Clusterer(method=method, n_clusters=n_clusters, resolution=resolution, random_state=random_state)
    clusters: dict[str, np.ndarray] = {}
    if cluster_key is not None or not (names or representations):
        params["cluster_key"] = cluster_key = "cnn_cluster" if cluster_key is None else cluster_key
        obs_column(adata, "cluster_key", cluster_key)
        clusters[f"obs:{cluster_key}"] = cluster_codes(adata, cluster_key, caller="tl.eval_clusters")[0]
    if names or representations:
        # Everything is read before anything is clustered, so that a wrong name costs no time.
        points = {f"obsm:{key}": obsm_points(adata, key) for key in representations}
        matrices = layer_matrices(adata, names, caller="tl.eval_clusters")
        clusters |= {name: _cluster_counts(matrix, clusterer) for name, matrix in matrices.items()}
        clusters |= {name: clusterer.cluster_points(coordinates).labels for name, coordinates in points.items()}
        params |= clusterer.params()

    rows = {name: _judge(labels, codes, name, label_key) for name, codes in clusters.items()}
    table = pd.DataFrame.from_dict(rows, orient="index")
    results.write({"table": table}, params)
    return table.copy()


def _label_codes(adata: AnnData, label_key: str) -> np.ndarray:
    """Label of every cell as a number, -1 for cells without one."""
    column = obs_column(adata, "label_key", label_key)
    if pd.api.types.is_float_dtype(column) and not (column.dropna() % 1 == 0).all():
        msg = f"adata.obs[{label_key!r}] holds fractions, which are no labels: label_key= takes known cell types."
        raise ValueError(msg)
    labels = pd.Categorical(column).remove_unused_categories()
    n_labels, n_cells = len(labels.categories), int((labels.codes >= 0).sum())
    if n_cells < MIN_CELLS_PER_LABEL * n_labels:
        msg = (
            f"adata.obs[{label_key!r}] has {n_labels} labels for {n_cells} cells: label_key= takes known cell types, "
            f"at least {MIN_CELLS_PER_LABEL} cells each on average."
        )
        raise ValueError(msg)
    return labels.codes


def _cluster_counts(counts: csr_array, clusterer: Clusterer) -> np.ndarray:
    """Cluster of every cell, -1 for cells without counts."""
    return clusterer.cluster_counts(counts).labels if counts.nnz else np.full(counts.shape[0], -1)


def _judge(labels: np.ndarray, clusters: np.ndarray, name: str, label_key: str) -> dict[str, float | int]:
    """One row of the table."""
    known = (labels >= 0) & (clusters >= 0)
    if not known.any():
        msg = f"{name}: no cell has both a cluster and a label in adata.obs[{label_key!r}]."
        raise ValueError(msg)
    labels, clusters = labels[known], clusters[known]
    return {
        "purity": metrics.purity(labels, clusters),
        "entropy": metrics.entropy(labels, clusters),
        "ari": metrics.adjusted_rand_index(labels, clusters),
        "nmi": metrics.normalized_mutual_information(labels, clusters),
        "n_clusters": int(np.unique(clusters).size),
        "n_cells": int(known.sum()),
    }
