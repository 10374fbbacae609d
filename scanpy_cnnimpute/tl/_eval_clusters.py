"""``tl.eval_clusters``: judge clusters, or layers by the clusters they give, against known labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .. import metrics
from .._anndata.counts import check_adata, layer_matrices
from .._anndata.results import Results, check_keys, cluster_codes
from ._cluster import Method, _representation, check_method, cluster_coordinates, embed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


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
        Annotated data; cells without a label, and cells without a cluster, are left out.
    label_key
        Column of `.obs` with the known cell types.
    cluster_key
        Column of `.obs` with clusters to judge. Default: ``"cnn_cluster"`` if neither `layers` nor `use_rep` is given.
    layers
        Layers to cluster and judge, each in a row; ``"X"`` or ``None`` in the sequence stands for `X`.
    use_rep
        Coordinates of `.obsm` to cluster and judge.
    method
        How layers and coordinates are clustered, all in the same way; see :func:`~scanpy_cnnimpute.tl.cluster`.
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
    DataFrame with one row per clustering, also in ``.uns[key_added]["table"]``: ``purity`` and ``ari``, ``nmi`` (1 is
    best), ``entropy`` (0 is best), ``n_clusters``, ``n_cells``. Rows are named ``obs:<key>``, ``X``, ``layer:<key>``
    and ``obsm:<key>``.

    Raises
    ------
    KeyError, TypeError, ValueError
        For keys that are not there and layers that cannot be clustered.

    Notes
    -----
    The definitions of the paper, "Cell clusters assessment"; see :mod:`scanpy_cnnimpute.metrics`. Imputed layers have
    less noise and fall into more clusters at the same `resolution`, so that purity and ARI change by that alone:
    compare at several, or at the same `n_clusters`.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()
    >>> table = scnn.tl.eval_clusters(adata, label_key="cell_line", layers=[None], method="kmeans", n_clusters=5)
    >>> table.index.tolist()
    ['X']
    """
    check_adata(adata, caller="tl.eval_clusters")
    if label_key not in adata.obs:
        msg = f"label_key={label_key!r} is not in adata.obs. Available: {list(adata.obs.columns)}."
        raise KeyError(msg)
    check_keys(key_added=key_added)
    results = Results(adata, function="tl.eval_clusters", key=key_added, keys=[])
    representations = [use_rep] if isinstance(use_rep, str) else list(use_rep or [])
    if cluster_key is None and not layers and not representations:
        cluster_key = "cnn_cluster"
    if layers or representations:
        check_method(method, n_clusters=n_clusters, resolution=resolution, random_state=random_state)

    clusterings: dict[str, np.ndarray] = {}
    if cluster_key is not None:
        clusterings[f"obs:{cluster_key}"] = cluster_codes(adata, cluster_key, caller="tl.eval_clusters")[0]
    # Everything is read before anything is clustered, so that a wrong name costs no time.
    matrices = layer_matrices(adata, layers, caller="tl.eval_clusters")
    coordinates = {f"obsm:{key}": _representation(adata, key) for key in representations}
    settings = {"method": method, "n_clusters": n_clusters, "resolution": resolution, "random_state": random_state}
    for name, matrix in matrices.items():
        used = np.asarray(matrix.sum(axis=1)).ravel() > 0
        clusterings[name] = np.full(adata.n_obs, -1)
        if used.any():
            embedding = embed(matrix[used], method=method, random_state=random_state)
            clusterings[name][used] = cluster_coordinates(embedding, **settings).labels  # type: ignore[arg-type]
    for name, points in coordinates.items():
        clusterings[name] = cluster_coordinates(points, **settings).labels  # type: ignore[arg-type]

    labels = pd.Categorical(adata.obs[label_key]).codes
    rows = {name: _judge(labels, clusters, name, label_key) for name, clusters in clusterings.items()}
    table = pd.DataFrame.from_dict(rows, orient="index")
    clustered = bool(layers or representations)
    results.write(
        {"table": table},
        {"label_key": label_key, "cluster_key": cluster_key, **(settings if clustered else {})},
    )
    return table.copy()


def _judge(labels: np.ndarray, clusters: np.ndarray, name: str, label_key: str) -> dict[str, float | int]:
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
