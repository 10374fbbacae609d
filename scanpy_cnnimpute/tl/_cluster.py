"""``tl.cluster``: the cell clusters that the mixtures and the networks are fitted in."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .._anndata.counts import check_adata, get_counts
from .._anndata.results import Results, check_keys
from .._checks import check_number
from .._logging import logger
from .._matrix import log_normalised
from .._threads import single_threaded_blas, single_threaded_pool
from ..clustering.density_peaks import adaptive_density_peaks

if TYPE_CHECKING:
    from numpy.typing import NDArray

Method = Literal["adp", "leiden", "kmeans"]

N_COMPONENTS = 50
PERPLEXITY = 30
# Leiden: neighbours of a cell, itself among them, and the smallest Jaccard index of an edge (Seurat's).
N_NEIGHBORS = 10
LEAST_SHARED = 1 / 15
SEARCHED_CELLS = 2_560  # whose neighbours a thread searches at a time; scikit-learn takes 256 cells in a product
# Rtsne's eta of 200 in scikit-learn's definition, which is four times smaller.
LEARNING_RATE = 50
# Fewer cells than this are one cluster: there is no embedding to speak of.
FEWEST_CELLS = 10
# Where a cell has more non-zeros than this times the square of the number of genes, the components are found quicker
# in the covariance of the genes, which is held for up to so many.
COVARIANCE_DENSITY = 1 / 25_000
COVARIANCE_GENES = 5_000
COVARIANCE_CELLS = 1_000  # dense at a time
COVARIANCE_ROWS = 256  # a thread's at a time


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
    """Cluster the cells, as the paper does or with Leiden or k-means.

    Parameters
    ----------
    adata
        Annotated data with raw counts, unless `use_rep` is given.
    method
        ``"adp"``: log2(CPM + 1), 50 principal components, t-SNE in three dimensions, density peaks with automatic
        centres, then k-means started at the centres (the paper). ``"leiden"``: Leiden on the graph of shared
        nearest neighbours (10 by the principal components, Jaccard index from 1/15). ``"kmeans"``: k-means on the
        principal components.
    layer
        Layer with the counts. Default: `X`.
    use_rep
        Cluster these coordinates of `.obsm` instead of computing any from the counts.
    n_clusters
        Number of clusters. Required by ``"kmeans"``, optional for ``"adp"`` (default: the best of 2 to 10 by mean
        silhouette), not allowed for ``"leiden"``.
    resolution
        Resolution of ``"leiden"``.
    random_state
        Seed of PCA, t-SNE, k-means and Leiden.
    key_added
        Key of the results.
    copy
        Return a copy instead of changing `adata`.

    Returns
    -------
    ``None``, or the copy if ``copy=True``. Writes

    ``.obs[key_added]``
        Categorical: ``"0"``, ``"1"``, ...; missing for cells without counts.
    ``.obsm["X_cnn_tsne"]``, ``.obsm["X_cnn_pca"]``
        float32, ``(n_obs, 3)`` t-SNE for ``"adp"``, ``(n_obs, <= 50)`` principal components otherwise, NaN for cells
        without counts; not with `use_rep`. With another `key_added`, ``X_{key_added}_tsne``.
    ``.uns[key_added]``
        ``params``, ``written`` (the keys of this call); for ``"adp"`` also ``density`` and ``separation``
        (float64, one per cell), ``centers`` (cell names), ``bandwidth``, ``silhouette`` and ``tested``, a
        DataFrame with every combination tried.

    Raises
    ------
    ValueError, TypeError, KeyError
        For unusable counts, unknown methods or coordinates, impossible numbers of clusters.

    Notes
    -----
    BLAS and OpenMP run on one thread here, so that the clusters do not depend on the number of threads.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()
    >>> scnn.tl.cluster(adata, method="kmeans", n_clusters=5)
    >>> adata.obs["cnn_cluster"].nunique()
    5
    """
    check_adata(adata, caller="tl.cluster")
    check_method(method, n_clusters=n_clusters, resolution=resolution, random_state=random_state)
    check_keys(key_added=key_added)
    adata = adata.copy() if copy else adata
    cluster_cells(
        adata,
        get_counts(adata, layer, caller="tl.cluster") if use_rep is None else use_rep,
        method=method,
        layer=layer,
        n_clusters=n_clusters,
        resolution=resolution,
        random_state=random_state,
        key_added=key_added,
    )
    return adata if copy else None


def cluster_cells(
    adata: AnnData,
    source: sp.csr_array | str,
    *,
    method: Method,
    layer: str | None,
    n_clusters: int | None = None,
    resolution: float = 1.0,
    random_state: int = 1,
    key_added: str,
) -> None:
    """Cluster by the counts, which are those in `layer`, or by the coordinates of that name, and write."""
    stem = key_added.removesuffix("_cluster")
    obsm_key = f"X_{stem}_{'tsne' if method == 'adp' else 'pca'}"
    keys = [("obs", key_added)] + ([("obsm", obsm_key)] if not isinstance(source, str) else [])
    results = Results(adata, function="tl.cluster", key=key_added, keys=keys)
    if not isinstance(source, str):
        used = np.asarray(source.sum(axis=1)).ravel() > 0
        if not used.any():
            msg = "No cell has any counts: there is nothing to cluster."
            raise ValueError(msg)
        coordinates = embed(source if used.all() else source[used], method=method, random_state=random_state)
        embedding = np.full((adata.n_obs, coordinates.shape[1]), np.nan, dtype=np.float32)
        embedding[used] = coordinates
        results.add("obsm", obsm_key, embedding)
    else:
        coordinates = _representation(adata, source)
        used = np.ones(adata.n_obs, dtype=bool)

    clustering = cluster_coordinates(
        coordinates, method=method, n_clusters=n_clusters, resolution=resolution, random_state=random_state
    )
    labels = np.full(adata.n_obs, -1)
    labels[used] = clustering.labels
    names = [str(label) for label in range(clustering.labels.max() + 1)]
    # A plain Categorical: a Series would be aligned by cell name, which need not be unique.
    results.add("obs", key_added, pd.Categorical.from_codes(labels, categories=names))
    results.write(
        _density_peak_record(clustering, used, adata.obs_names),
        {
            "method": method,
            "layer": layer,
            "use_rep": source if isinstance(source, str) else None,
            "n_clusters": n_clusters,
            "resolution": resolution if method == "leiden" else None,
            "random_state": random_state,
        },
    )
    logger.info("tl.cluster: %d clusters of %s cells", len(names), np.bincount(clustering.labels).tolist())


@dataclass(frozen=True)
class Clustering:
    """Labels from 0 without gaps, and what density peaks found on the way."""

    labels: NDArray[np.int64]
    peaks: Any = None


def check_method(method: str, *, n_clusters: int | None, resolution: float, random_state: int) -> None:
    """Refuse unknown methods and settings that do not go with them."""
    if method not in get_args(Method):
        msg = f"method={method!r} is not known. Available: {list(get_args(Method))}."
        raise ValueError(msg)
    if n_clusters is not None:
        check_number("n_clusters", n_clusters, int, 1)
    check_number("resolution", resolution, float, 0)
    check_number("random_state", random_state, int, 0)
    if method == "kmeans" and n_clusters is None:
        msg = "method='kmeans' needs n_clusters=."
        raise ValueError(msg)
    if method == "leiden" and n_clusters is not None:
        msg = "method='leiden' chooses the number of clusters by resolution=; n_clusters= is not allowed."
        raise ValueError(msg)


def embed(counts: sp.csr_array, *, method: Method, random_state: int) -> np.ndarray:
    """Principal components of log2(CPM + 1), and for ``"adp"`` their t-SNE in three dimensions."""
    import scanpy as sc

    n_cells = counts.shape[0]
    genes = np.flatnonzero(counts.sum(axis=0))
    counts = counts if genes.size == counts.shape[1] else counts[:, genes]
    # Scanpy's normalisation compiles first.
    logged = log_normalised(counts.astype(np.float32, copy=False), 1e6)
    logged.data /= np.log(2)
    n_components = min(N_COMPONENTS, n_cells - 1, genes.size - 1)
    if n_components < 1:
        return logged.toarray()
    with single_threaded_blas():
        many = logged.nnz > COVARIANCE_DENSITY * n_cells * genes.size**2
        # t-SNE makes other clusters of rounding errors: the published ones stay.
        if method != "adp" and many and genes.size <= COVARIANCE_GENES:
            components = _components_of_covariance(logged, n_components, random_state)
        else:
            components = sc.pp.pca(sp.csr_matrix(logged), n_comps=n_components, random_state=random_state)
        if method != "adp" or n_cells < FEWEST_CELLS:
            return components
        from sklearn.manifold import TSNE

        perplexity = min(PERPLEXITY, (n_cells - 1) / 3)
        if perplexity < PERPLEXITY:
            logger.info("tl.cluster: t-SNE perplexity lowered to %.1f for %d cells", perplexity, n_cells)
        tsne = TSNE(
            n_components=3,
            perplexity=perplexity,
            init="random",
            learning_rate=LEARNING_RATE,
            random_state=random_state,
            n_jobs=1,
        )
        return tsne.fit_transform(components)


def _components_of_covariance(logged: sp.csr_array, n_components: int, random_state: int) -> np.ndarray:
    """Principal components as :func:`scanpy.pp.pca` finds them, which multiplies by the whole matrix hundreds of times.

    The covariance takes one pass over the cells, and the hundreds of products are with that.
    """
    from scipy.sparse.linalg import eigsh

    n_cells, n_genes = logged.shape
    mean = (logged.sum(axis=0, dtype=np.float64) / n_cells).astype(np.float32)
    covariance = np.zeros((n_genes, n_genes), dtype=np.float32)
    with single_threaded_pool() as pool:
        for start in range(0, n_cells, COVARIANCE_CELLS):
            # Centred before the product: most of it would cancel after.
            block = logged[start : start + COVARIANCE_CELLS].toarray() - mean

            def add(first: int, block: np.ndarray = block) -> None:
                covariance[first : first + COVARIANCE_ROWS, first:] += (
                    block[:, first : first + COVARIANCE_ROWS].T @ block[:, first:]
                )

            list(pool.map(add, range(0, n_genes, COVARIANCE_ROWS)))
    covariance = np.triu(covariance) + np.triu(covariance, 1).T
    guess = np.random.default_rng(random_state).uniform(-1, 1, n_genes).astype(np.float32)
    axes = eigsh(covariance, n_components, v0=guess)[1][:, ::-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(n_components)])
    return logged @ axes - mean @ axes


def cluster_coordinates(
    coordinates: np.ndarray, *, method: Method, n_clusters: int | None, resolution: float, random_state: int
) -> Clustering:
    """Cluster points by one of the three methods."""
    n_cells = coordinates.shape[0]
    if n_clusters is not None and n_clusters > n_cells:
        msg = f"n_clusters={n_clusters} is more than the {n_cells} cells to cluster."
        raise ValueError(msg)
    if n_clusters == 1 or (n_cells < FEWEST_CELLS and method != "kmeans"):
        logger.info("tl.cluster: %d cells are one cluster", n_cells)
        return Clustering(np.zeros(n_cells, dtype=np.int64))
    with single_threaded_blas():
        if method == "leiden":
            return Clustering(_leiden(coordinates, resolution=resolution, random_state=random_state))
        if method == "kmeans":
            return Clustering(_kmeans(coordinates, n_clusters, init="k-means++", n_init=10, random_state=random_state))
    peaks = adaptive_density_peaks(coordinates, **({} if n_clusters is None else {"n_clusters": [n_clusters]}))
    with single_threaded_blas():
        start = coordinates[peaks.centers]
        return Clustering(_kmeans(coordinates, len(start), init=start, n_init=1, random_state=random_state), peaks)


def _kmeans(points: np.ndarray, n_clusters: int | None, *, init: Any, n_init: int, random_state: int) -> np.ndarray:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    kmeans = KMeans(n_clusters, init=init, n_init=n_init, max_iter=1000, tol=0.0, random_state=random_state)
    with warnings.catch_warnings():
        # Equal cells can leave a cluster empty; the others are renumbered.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = kmeans.fit_predict(points.astype(np.float64))
    return np.unique(labels, return_inverse=True)[1]


def _leiden(points: np.ndarray, *, resolution: float, random_state: int) -> np.ndarray:
    import scanpy as sc
    from sklearn.neighbors import NearestNeighbors

    n_neighbors = min(N_NEIGHBORS, points.shape[0])  # a cell is the first of its own
    # Exact neighbours: the approximate search, which scanpy takes for many cells, depends on the number of threads. So
    # may ties here, if one search is left several: each searches for its own cells.
    search = NearestNeighbors(n_neighbors=n_neighbors).fit(points)
    parts = [points[start : start + SEARCHED_CELLS] for start in range(0, points.shape[0], SEARCHED_CELLS)]
    with single_threaded_pool() as pool:
        nearest = sp.vstack(list(pool.map(search.kneighbors_graph, parts)), format="csr")
    shared = sp.csr_array(nearest @ nearest.T)
    shared.data /= 2 * n_neighbors - shared.data
    shared.data[shared.data < LEAST_SHARED] = 0.0
    shared.setdiag(0.0)
    shared.eliminate_zeros()
    graph = AnnData(shape=(points.shape[0], 0))
    sc.tl.leiden(
        graph,
        resolution=resolution,
        flavor="igraph",
        n_iterations=2,
        directed=False,
        adjacency=shared,
        random_state=random_state,
    )
    return graph.obs["leiden"].cat.codes.to_numpy().astype(np.int64)


def _representation(adata: AnnData, use_rep: str) -> np.ndarray:
    if use_rep not in adata.obsm:
        msg = f"use_rep={use_rep!r} is not in adata.obsm. Available: {list(adata.obsm.keys())}."
        raise KeyError(msg)
    matrix = adata.obsm[use_rep]
    coordinates = matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)
    if coordinates.ndim != 2 or not np.issubdtype(coordinates.dtype, np.number):  # noqa: PLR2004
        msg = f"adata.obsm[{use_rep!r}] has shape {coordinates.shape} and dtype {coordinates.dtype}, expected numbers."
        raise TypeError(msg)
    if not np.isfinite(coordinates).all():
        msg = f"adata.obsm[{use_rep!r}] has NaN or infinite values."
        raise ValueError(msg)
    return coordinates


def _density_peak_record(clustering: Clustering, used: np.ndarray, cells: pd.Index) -> dict[str, Any]:
    peaks = clustering.peaks
    if peaks is None:
        return {}
    record: dict[str, Any] = {
        "centers": np.asarray(cells[np.flatnonzero(used)[peaks.centers]], dtype=str),
        "bandwidth": peaks.bandwidth,
        "silhouette": peaks.silhouette,
        "tested": pd.DataFrame(peaks.tested),
    }
    for name in ("density", "separation"):
        record[name] = np.full(used.size, np.nan)
        record[name][used] = getattr(peaks, name)
    record["tested"].index = record["tested"].index.astype(str)
    return record
