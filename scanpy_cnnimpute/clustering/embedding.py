"""Coordinates of cells from their counts: log2(CPM + 1), principal components, t-SNE."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from .._logging import logger
from .._matrix import log_normalised
from .._threads import single_threaded_blas

if TYPE_CHECKING:
    from collections.abc import Callable

TARGET_SUM = 1e6  # counts per million, as in the paper
N_COMPONENTS = 50  # initial_dims of Rtsne, which the authors' program leaves at its default; also Scanpy's default
N_TSNE = 3  # dimensions, of the authors' program
PERPLEXITY = 30  # of the authors' program, and the default of scikit-learn
# Rtsne's eta of 200 in scikit-learn's definition, which is four times smaller.
LEARNING_RATE = 50


def log_cpm(counts: sp.csr_array) -> sp.csr_array:
    """log2(CPM + 1) of the genes that have counts, ``(n_cells, n_expressed_genes)`` float32."""
    genes = np.flatnonzero(counts.sum(axis=0))
    counts = counts if genes.size == counts.shape[1] else counts[:, genes]
    logged = log_normalised(counts.astype(np.float32, copy=False), TARGET_SUM)
    logged.data /= np.log(2)
    return logged


def principal_components(values: sp.csr_array, *, random_state: int) -> np.ndarray:
    """The first principal components of the cells, by falling variance.

    Parameters
    ----------
    values
        ``(n_cells, n_genes)``.
    random_state
        Seed of the starting vector and of the restarts of ARPACK.

    Returns
    -------
    ``(n_cells, min(50, n_cells - 1, n_genes - 1))`` in the dtype of `values`, or the dense values themselves if they
    have one row or one column. Components that are rounding errors are 0.

    Notes
    -----
    The arithmetic of :class:`sklearn.decomposition.PCA` with ``svd_solver="arpack"``, which is also that of
    :func:`scanpy.pp.pca`. Neither can seed the restarts of ARPACK, which happen if fewer than about 100 cells or genes
    are independent. SciPy can from 1.17 on.
    """
    n_components = min(N_COMPONENTS, min(values.shape) - 1)
    if n_components < 1:
        return values.toarray()
    with single_threaded_blas():
        return _truncated_svd(values, n_components, random_state)


def _truncated_svd(values: sp.csr_array, n_components: int, random_state: int) -> np.ndarray:
    """Left singular vectors of the centred values, times the singular values."""
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
        return np.zeros((values.shape[0], n_components), dtype=values.dtype)

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
    scores, _ = svd_flip(scores[:, ::-1], loadings[:, ::-1].T, u_based_decision=False)
    return scores * np.where(singular > negligible, singular, 0)


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
