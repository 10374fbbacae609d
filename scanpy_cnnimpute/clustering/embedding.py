"""Coordinates of cells from their counts: log2(CPM + 1), principal components, t-SNE."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp

from .._logging import logger
from .._matrix import log_normalised
from .._threads import single_threaded_blas
from .blocks import map_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

TARGET_SUM = 1e6  # counts per million, as in the paper
N_COMPONENTS = 50  # initial_dims of Rtsne, which the authors' program leaves at its default; also Scanpy's default
N_TSNE = 3  # dimensions, of the authors' program
PERPLEXITY = 30  # of the authors' program, and the default of scikit-learn
# Rtsne's eta of 200 in scikit-learn's definition, which is four times smaller.
LEARNING_RATE = 50


class Components(NamedTuple):
    """Principal components.

    Attributes
    ----------
    scores
        ``(n_cells, n_components)`` coordinates of the cells, by falling variance.
    loadings
        ``(n_genes, n_components)``.
    mean
        ``(n_genes,)`` of the cells.
    """

    scores: np.ndarray
    loadings: np.ndarray | sp.csr_array
    mean: np.ndarray

    def project(self, values: sp.csr_array) -> np.ndarray:
        """Coordinates of other cells; of the same cells they are `scores`, up to rounding."""
        with single_threaded_blas():
            return values @ self.loadings - self.mean @ self.loadings


def embed(counts: sp.csr_array, fitted: np.ndarray, *, random_state: int) -> np.ndarray:
    """Principal components of log2(CPM + 1), fitted on some cells; the others are projected onto them.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)``, canonical, without stored zeros.
    fitted
        Positions of the cells to fit, rising. All must have counts.
    random_state
        As in :func:`principal_components`.

    Returns
    -------
    ``(n_cells, n_components)`` float32; NaN for cells without counts. Genes without counts in the fitted cells are left
    out.
    """
    sample = counts if fitted.size == counts.shape[0] else counts[fitted]
    genes = np.flatnonzero(sample.sum(axis=0))
    components = principal_components(log_cpm(sample, genes), random_state=random_state)
    points = np.full((counts.shape[0], components.scores.shape[1]), np.nan, dtype=np.float32)
    points[fitted] = components.scores

    def project(cells: np.ndarray) -> None:
        points[cells] = components.project(log_cpm(counts[cells], genes))

    map_blocks(project, np.setdiff1d(np.flatnonzero(np.diff(counts.indptr)), fitted, assume_unique=True))
    return points


def log_cpm(counts: sp.csr_array, genes: np.ndarray) -> sp.csr_array:
    """log2(CPM + 1) of some genes, ``(n_cells, genes.size)`` float32; the counts of all genes make up the million."""
    logged = log_normalised(counts.astype(np.float32, copy=False), TARGET_SUM)
    logged.data /= np.log(2)
    return logged if genes.size == counts.shape[1] else logged[:, genes]


def principal_components(values: sp.csr_array, *, random_state: int) -> Components:
    """The first ``min(50, n_cells - 1, n_genes - 1)`` principal components, in the dtype of the values.

    Parameters
    ----------
    values
        ``(n_cells, n_genes)``. If there is one row or one column, the scores are the dense values themselves.
    random_state
        Seed of the starting vector and of the restarts of ARPACK.

    Returns
    -------
    Scores, loadings and mean. Components that are rounding errors are 0.

    Notes
    -----
    The arithmetic of :class:`sklearn.decomposition.PCA` with ``svd_solver="arpack"``, which is also that of
    :func:`scanpy.pp.pca`. Neither can seed the restarts of ARPACK, which happen if fewer than about 100 cells or genes
    are independent. SciPy can from 1.17 on.
    """
    n_components = min(N_COMPONENTS, min(values.shape) - 1)
    n_genes = values.shape[1]
    if n_components < 1:
        identity = sp.csr_array(sp.eye_array(n_genes, dtype=values.dtype))
        return Components(values.toarray(), identity, np.zeros(n_genes, dtype=values.dtype))
    with single_threaded_blas():
        return _truncated_svd(values, n_components, random_state)


def _truncated_svd(values: sp.csr_array, n_components: int, random_state: int) -> Components:
    """Scores are the left singular vectors of the centred values times the singular values, loadings the right ones."""
    from scipy.linalg import svd
    from scipy.sparse.linalg import LinearOperator, eigsh
    from sklearn.utils.extmath import svd_flip
    from sklearn.utils.sparsefuncs import mean_variance_axis

    matrix, transposed = sp.csr_matrix(values), sp.csr_matrix(values).T
    mean, variance = mean_variance_axis(matrix, axis=0)
    # Rounding errors of the products with the matrix: random walks of as many steps as it has rows or columns. On equal
    # cells they stay below a third of this bound; components of real data exceed it a thousandfold.
    rounding = np.finfo(values.dtype).eps * np.sqrt(max(values.shape))
    negligible = rounding * np.linalg.norm(values.data.astype(np.float64))
    if np.sqrt(variance.sum(dtype=np.float64) * values.shape[0]) <= negligible:
        scores, loadings = (np.zeros((n, n_components), dtype=values.dtype) for n in values.shape)
        return Components(scores, loadings, mean)

    def multiply(x: np.ndarray) -> np.ndarray:
        return matrix @ x - mean[None, :] @ x

    def multiply_transposed(x: np.ndarray) -> np.ndarray:
        total = x.sum(axis=0)
        return transposed @ x - (mean * total if x.ndim == 1 else mean[:, None] @ total[None, :])

    wide = values.shape[0] < values.shape[1]
    inner, outer = (multiply_transposed, multiply) if wide else (multiply, multiply_transposed)
    size = min(values.shape)
    gram = LinearOperator((size, size), matvec=lambda x: outer(inner(x)), dtype=values.dtype)
    start = np.random.RandomState(random_state).uniform(-1, 1, size).astype(values.dtype)
    vectors = eigsh(gram, n_components, v0=start, **_seeded_restarts(eigsh, random_state))[1]
    vectors = np.linalg.qr(vectors)[0]
    left, singular, right = svd(inner(vectors), full_matrices=False)
    # By rising variance in the product: its last bits depend on the order of the columns.
    left, right = left[:, ::-1], vectors @ right[::-1].T
    scores, loadings = (right, left) if wide else (left, right)
    scores, transposed_loadings = svd_flip(scores[:, ::-1], loadings[:, ::-1].T, u_based_decision=False)
    kept = singular > negligible
    return Components(scores * np.where(kept, singular, 0), transposed_loadings.T * kept, mean)


def _seeded_restarts(solver: Callable, random_state: int) -> dict[str, int]:
    """The keyword that seeds the restarts, where this SciPy has it."""
    return {"rng": random_state} if "rng" in inspect.signature(solver).parameters else {}


def tsne(points: np.ndarray, *, random_state: int) -> np.ndarray:
    """t-SNE of the points in three dimensions, ``(n_points, 3)`` float32."""
    from sklearn.manifold import TSNE

    # scikit-learn needs fewer neighbours (three times the perplexity) than points.
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    if perplexity < PERPLEXITY:
        logger.info("tl.cluster: t-SNE perplexity lowered to %.1f for %d cells", perplexity, len(points))
    with single_threaded_blas():
        return TSNE(
            n_components=N_TSNE,
            perplexity=perplexity,
            init="random",
            learning_rate=LEARNING_RATE,
            random_state=random_state,
            n_jobs=1,
        ).fit_transform(points)
