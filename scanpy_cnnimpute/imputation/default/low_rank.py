"""A line per gene in log library size, and a low rank of the residuals: what is expected of a non-zero count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..._threads import single_threaded_blas
from .kernels import sum_rows

# Tuned on masked counts of real data.
ZERO_WEIGHT = 0.1  # of a zero, against 1 of a count: little was there, or it was missed
ZERO_VALUE = -1.0  # what a zero stands for, in standard deviations of the gene
N_ITERATIONS = 15  # from a singular value decomposition
N_REFIT_ITERATIONS = 3  # from a fit to almost the same entries
PRIOR_CELLS = 5.0  # weight of the common variance in that of a gene's residuals, in cells
PRIOR_NOISE = 10.0  # the same in that of its noise
MIN_SD = 1e-3


@dataclass(frozen=True, kw_only=True)
class GeneLines:
    """For each gene the mean of log1p(counts) of its non-zeros as a line in log library size; float32 vectors.

    Attributes
    ----------
    intercept, slope
        The line, at `depth` 0.
    sd
        Standard deviation of the residuals.
    depth_mean
        Mean log library size, where `depth` is 0.
    """

    intercept: np.ndarray
    slope: np.ndarray
    sd: np.ndarray
    depth_mean: float

    def depth(self, library_size: np.ndarray) -> np.ndarray:
        """Centred log library size, float32."""
        return (np.log(np.maximum(library_size, 1.0)) - self.depth_mean).astype(np.float32)

    def at(self, depth: np.ndarray) -> np.ndarray:
        """Values of the lines, ``(n_cells, n_genes)``."""
        return self.intercept + np.outer(depth, self.slope)

    def standardise(self, counts: sp.csr_array, depth: np.ndarray) -> sp.csr_array:
        """Residuals of the non-zeros in standard deviations of their gene; same pattern, float32."""
        rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
        genes = counts.indices
        line = self.intercept[genes] + depth[rows] * self.slope[genes]
        data = (np.log1p(counts.data.astype(np.float32)) - line) / self.sd[genes]
        return sp.csr_array((data, genes, counts.indptr), shape=counts.shape)


def fit_lines(counts: sp.csr_array, library_size: np.ndarray) -> GeneLines:
    """Fit the lines to the non-zeros; slopes are shrunk to a common one, as far as errors explain the scatter."""
    n_genes = counts.shape[1]
    depth_mean = float(np.log(np.maximum(library_size, 1.0)).mean())
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    x = (np.log(np.maximum(library_size, 1.0)) - depth_mean)[rows]
    y = np.log1p(counts.data.astype(np.float64))

    def total(values: np.ndarray | None) -> np.ndarray:
        return np.bincount(counts.indices, weights=values, minlength=n_genes)

    observed = total(None)
    n = np.maximum(observed, 1)
    x_mean, y_mean = total(x) / n, total(y) / n
    sxx = np.maximum(total(x * x) - n * x_mean**2, 1e-9)
    sxy = total(x * y) - n * x_mean * y_mean
    syy = np.maximum(total(y * y) - n * y_mean**2, 0)
    common = sxy.sum() / sxx.sum()
    slope = sxy / sxx
    error = np.maximum((syy - slope * sxy) / np.maximum(n - 2, 1), 1e-4) / sxx
    weights = np.maximum(observed, 1e-12)
    spread = max(np.average((slope - common) ** 2, weights=weights) - np.average(error, weights=weights), 1e-6)
    slope = common + (slope - common) * spread / (spread + error)
    squares = np.maximum(syy - 2 * slope * sxy + slope**2 * sxx, 0)
    variance = (squares + PRIOR_CELLS * squares.sum() / max(observed.sum(), 1)) / (n + PRIOR_CELLS)
    return GeneLines(
        intercept=(y_mean - slope * x_mean).astype(np.float32),
        slope=slope.astype(np.float32),
        sd=np.maximum(np.sqrt(variance), MIN_SD).astype(np.float32),
        depth_mean=depth_mean,
    )


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """Variational principal components of the standardised residuals.

    Attributes
    ----------
    loadings
        ``(n_genes, k)`` posterior means, float32.
    loading_moments
        ``(n_genes, k (k + 1) / 2)`` posterior means of their products, float32.
    precision
        ``(n_genes,)`` inverse variance of a gene's noise.
    """

    loadings: np.ndarray
    loading_moments: np.ndarray
    precision: np.ndarray

    def scores(self, residuals: sp.csr_array) -> tuple[np.ndarray, np.ndarray]:
        """Posterior means ``(n_cells, k)`` and second moments ``(n_cells, k (k + 1) / 2)`` of the cells' scores."""
        return _cell_scores(residuals, self.loadings, self.loading_moments, self.precision)


def fit_low_rank(residuals: sp.csr_array, n_components: int, start: LowRank | None = None) -> LowRank:
    """Fit the components to the observed residuals; zeros count as weak observations of `ZERO_VALUE`.

    Parameters
    ----------
    residuals
        ``(n_cells, n_genes)`` standardised residuals at the non-zeros.
    n_components
        Most components; those without support shrink to nothing.
    start
        Fit to go on from, such as one to more entries.

    Returns
    -------
    The components, which do not depend on the number of threads.

    Notes
    -----
    Variational principal component analysis with missing values and automatic relevance determination (Ilin and
    Raiko, 2010), a noise variance for each gene, shrunk to the common one.
    """
    n_cells, n_genes = residuals.shape
    n_components = max(1, min(n_components, n_cells - 1, n_genes - 1))
    by_gene = sp.csr_array(residuals.T)
    upper = np.triu_indices(n_components)
    diagonal = np.equal(*upper)
    n_observed = np.diff(by_gene.indptr)
    n_weighted = n_observed + ZERO_WEIGHT * (n_cells - n_observed)
    squares = np.asarray(by_gene.multiply(by_gene).sum(axis=1)).ravel()
    squares = squares + ZERO_WEIGHT * ZERO_VALUE**2 * (n_cells - n_observed)
    with single_threaded_blas():
        model = _start(residuals, n_components) if start is None else start
        for _ in range(N_ITERATIONS if start is None else N_REFIT_ITERATIONS):
            scores, moments = model.scores(residuals)
            relevance = n_genes / np.maximum(model.loading_moments[:, diagonal].sum(axis=0), 1e-8)
            weighted = _weighted_moments(by_gene, moments)
            products = _unpack(weighted, n_components)
            target = _weighted_values(by_gene, scores)
            covariance = np.linalg.inv(
                products * model.precision[:, None, None] + np.diag(relevance).astype(np.float32)
            ).astype(np.float32)
            loadings = np.einsum("gkl,gl->gk", covariance, target * model.precision[:, None])
            second = loadings[:, :, None] * loadings[:, None] + covariance
            error = squares - 2 * np.einsum("gk,gk->g", loadings, target) + np.einsum("gkl,gkl->g", products, second)
            common = PRIOR_NOISE * error.sum() / n_weighted.sum()
            precision = (n_weighted + PRIOR_NOISE) / np.maximum(error + common, 1e-3)
            model = LowRank(
                loadings=loadings.astype(np.float32),
                loading_moments=np.ascontiguousarray(second[:, upper[0], upper[1]], dtype=np.float32),
                precision=precision.astype(np.float32),
            )
    return model


def _start(residuals: sp.csr_array, n_components: int) -> LowRank:
    from sklearn.utils.extmath import randomized_svd

    filled = residuals.copy()
    filled.data = filled.data - np.float32(ZERO_WEIGHT * ZERO_VALUE)
    _, singular, vt = randomized_svd(filled, n_components, random_state=0)
    loadings = np.ascontiguousarray((vt * (singular / np.sqrt(residuals.shape[0]))[:, None]).T, dtype=np.float32)
    upper = np.triu_indices(n_components)
    return LowRank(
        loadings=loadings,
        loading_moments=loadings[:, upper[0]] * loadings[:, upper[1]],
        precision=np.ones(loadings.shape[0], dtype=np.float32),
    )


def _cell_scores(
    residuals: sp.csr_array, loadings: np.ndarray, loading_moments: np.ndarray, precision: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    n_components = loadings.shape[1]
    moments = _weighted_moments(residuals, loading_moments * precision[:, None])
    inverse = np.linalg.inv(_unpack(moments, n_components) + np.eye(n_components, dtype=np.float32))
    target = _weighted_values(residuals, loadings * precision[:, None])
    scores = np.einsum("nkl,nl->nk", inverse, target).astype(np.float32)
    upper = np.triu_indices(n_components)
    second = scores[:, upper[0]] * scores[:, upper[1]] + inverse[:, upper[0], upper[1]]
    return scores, np.ascontiguousarray(second, dtype=np.float32)


def _weighted_moments(residuals: sp.csr_array, moments: np.ndarray) -> np.ndarray:
    """Moments summed over each row, zeros with their weight."""
    out = np.empty((residuals.shape[0], moments.shape[1]), dtype=np.float32)
    sum_rows(residuals.indptr, residuals.indices, moments, out)
    return (1 - ZERO_WEIGHT) * out + ZERO_WEIGHT * moments.sum(axis=0, dtype=np.float64).astype(np.float32)


def _weighted_values(residuals: sp.csr_array, factors: np.ndarray) -> np.ndarray:
    """Products of each row with the factors, zeros with their weight and value."""
    shifted = sp.csr_array(
        (residuals.data - np.float32(ZERO_WEIGHT * ZERO_VALUE), residuals.indices, residuals.indptr),
        shape=residuals.shape,
    )
    zeros = ZERO_WEIGHT * ZERO_VALUE * factors.sum(axis=0, dtype=np.float64)
    return (shifted @ factors + zeros).astype(np.float32)


def _unpack(packed: np.ndarray, n_components: int) -> np.ndarray:
    """Symmetric matrices from their upper triangles."""
    full = np.empty((packed.shape[0], n_components, n_components), dtype=np.float32)
    rows, columns = np.triu_indices(n_components)
    full[:, rows, columns] = packed
    full[:, columns, rows] = packed
    return full
