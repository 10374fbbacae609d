"""``tl.cluster``: clusters of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .._anndata.counts import check_adata, get_counts
from .._anndata.results import Results, all_or_nothing, check_keys
from .._checks import check_key, check_number
from .._logging import logger
from ..clustering import Clusterer
from ._inputs import obsm_points

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData

    from ..clustering import Clustering, Method


def cluster(
    adata: AnnData,
    *,
    method: Method = "leiden",
    layer: str | None = None,
    use_rep: str | None = None,
    n_clusters: int | None = None,
    resolution: float = 1.0,
    random_state: int = 1,
    key_added: str = "cnn_cluster",
    copy: bool = False,
) -> AnnData | None:
    """Cluster the cells with Leiden, k-means or the method of the paper.

    Parameters
    ----------
    adata
        Annotated data with raw counts, unless `use_rep` is given.
    method
        All methods start from 50 principal components of log2(CPM + 1). ``"leiden"``: Leiden on the graph of shared
        nearest neighbours (10 neighbours, Jaccard index of at least 1/15). ``"kmeans"``: k-means. ``"adp"``: t-SNE in
        three dimensions, adaptive density peaks, then k-means started at the peaks (the paper).
    layer
        Layer with the counts. Default: `X`.
    use_rep
        Cluster these coordinates of `.obsm` instead of computing any from the counts.
    n_clusters
        Number of clusters. Required by ``"kmeans"``. Optional for ``"adp"``, which chooses from 2 to 10 by the mean
        silhouette. Not allowed for ``"leiden"``.
    resolution
        Resolution of ``"leiden"``; larger values give more clusters.
    random_state
        Seed of the draw, PCA, t-SNE, k-means and Leiden. NumPy's and Python's global random states are left alone.
    key_added
        Key of the results.
    copy
        Return a copy instead of changing `adata`.

    Returns
    -------
    ``None``, or the copy if ``copy=True``. Writes

    ``.obs[key_added]``
        Categorical: ``"0"``, ``"1"``, ...; missing for cells without counts. Leiden's ``"0"`` is the largest cluster,
        of many cells the largest in the draw. Fewer than ten cells, and cells that are all equal, are one cluster.
    ``.obsm["X_cnn_tsne"]``, ``.obsm["X_cnn_pca"]``
        float32, ``(n_obs, 3)`` t-SNE for ``"adp"``, ``(n_obs, <= 50)`` principal components otherwise; NaN for cells
        without counts. Of many cells, t-SNE is NaN for those that were not drawn. Not written with `use_rep`. With
        another `key_added`: ``X_{key_added}_tsne`` and ``X_{key_added}_pca``.
    ``.uns[key_added]``
        ``params`` and ``written``, the keys that this call wrote. For ``"adp"`` also ``density`` and ``separation``
        (float64, one per cell; NaN where t-SNE is NaN), ``centers`` (cell names), ``bandwidth``, ``silhouette`` and
        ``tested``, a DataFrame with every combination that was tried.

    Raises
    ------
    KeyError
        If `layer` or `use_rep` is not there.
    TypeError, ValueError
        For values that are no counts, unknown methods, and settings that are impossible or do not go with the method.

    Notes
    -----
    Many cells: if more than 20,000 cells have counts, principal components and clusters are found in a random draw of
    20,000 of them (5,000 for ``"adp"``, whose t-SNE is slow). The other cells are projected onto these components, and
    get the cluster of most of their ten nearest drawn cells; with `use_rep`, the nearest in the given coordinates,
    and density and separation are NaN for cells that were not drawn.
    Memory beyond the counts and the coordinates is that of the draw and of blocks of cells. A draw holds fewer cells of
    a rare type, which may then not be a cluster of its own.

    The clusters do not depend on the number of threads: BLAS and OpenMP run on one in each.

    Leiden: Traag, Waltman & van Eck, Sci Rep 9 (2019). Density peaks: Wang & Xu, Stat Methods Med Res 26 (2017).

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()
    >>> scnn.tl.cluster(adata, method="kmeans", n_clusters=5)
    >>> adata.obs["cnn_cluster"].nunique()
    5
    """
    check_adata(adata, caller="tl.cluster")
    clusterer = Clusterer(method=method, n_clusters=n_clusters, resolution=resolution, random_state=random_state)
    check_keys(key_added=key_added)
    if layer is not None:
        check_key("layer", layer)  # recorded, even where it is not read
    check_number("copy", copy, bool)
    adata = adata.copy() if copy else adata
    source = get_counts(adata, layer, caller="tl.cluster") if use_rep is None else check_key("use_rep", use_rep)
    with all_or_nothing(adata):
        _cluster_and_write(adata, source, clusterer, layer=layer, key_added=key_added)
    return adata if copy else None


def cluster_cells(adata: AnnData, counts: sp.csr_array, *, method: Method, layer: str | None, key_added: str) -> None:
    """:func:`cluster` with its defaults, for callers with validated counts, which are those of `layer`."""
    _cluster_and_write(adata, counts, Clusterer(method=method), layer=layer, key_added=key_added)


def _cluster_and_write(
    adata: AnnData, source: sp.csr_array | str, clusterer: Clusterer, *, layer: str | None, key_added: str
) -> None:
    """Cluster by counts or by the coordinates of that name."""
    use_rep = source if isinstance(source, str) else None
    embedding = "tsne" if clusterer.method == "adp" else "pca"
    obsm_key = f"X_{key_added.removesuffix('_cluster')}_{embedding}"
    keys = [("obs", key_added)] + ([("obsm", obsm_key)] if use_rep is None else [])
    results = Results(adata, function="tl.cluster", key=key_added, keys=keys)
    if isinstance(source, str):
        clustering = clusterer.cluster_points(obsm_points(adata, source))
    else:
        clustering = clusterer.cluster_counts(source)
        results.add("obsm", obsm_key, clustering.coordinates.astype(np.float32, copy=False))
    results.add("obs", key_added, _categorical(clustering.labels))
    results.write(
        _density_peak_record(clustering, adata.obs_names),
        {**clusterer.params(), "layer": layer, "use_rep": use_rep},
    )
    _log_sizes(np.bincount(clustering.labels[clustering.labels >= 0]))


def _categorical(labels: np.ndarray) -> pd.Categorical:
    """Clusters as text. Not a Series: pandas would align it by cell names, which need not be unique."""
    return pd.Categorical.from_codes(labels, categories=[str(label) for label in range(labels.max() + 1)])


def _density_peak_record(clustering: Clustering, cells: pd.Index) -> dict[str, Any]:
    peaks = clustering.peaks
    if peaks is None:
        return {}

    def of_all_cells(values: np.ndarray) -> np.ndarray:
        out = np.full(cells.size, np.nan)
        out[clustering.clustered] = values
        return out

    tested = pd.DataFrame(peaks.tested)
    return {
        "centers": np.asarray(cells[clustering.clustered[peaks.centers]], dtype=str),
        "bandwidth": peaks.bandwidth,
        "silhouette": peaks.silhouette,
        "tested": tested.set_axis(tested.index.astype(str)),
        "density": of_all_cells(peaks.density),
        "separation": of_all_cells(peaks.separation),
    }


def _log_sizes(sizes: np.ndarray) -> None:
    logger.info(
        "tl.cluster: %d clusters; the smallest has %d cells, the median %g, the largest %d",
        sizes.size,
        sizes.min(),
        np.median(sizes),
        sizes.max(),
    )
