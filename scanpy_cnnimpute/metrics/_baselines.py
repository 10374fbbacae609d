"""Simple imputation methods, a few lines each, as a yardstick for any other."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from .._checks import check_choice, check_seed, check_vector
from .._matrix import log_normalised, to_csr
from .._threads import single_threaded_blas

if TYPE_CHECKING:
    from collections.abc import Callable

TARGET_SUM = 1e4  # counts per cell after library size normalisation, as Scanpy's tutorials choose it
RANK = 15  # principal components of all entries; a fixed choice in the range that is usual for clustering
NONZERO_RANK = 8  # of the completion of the non-zeros; a fixed choice, lower because a gene has fewer of these
ITERATIONS = 50  # of that completion, from residuals of zero; a fixed choice that is part of the method
OVERSAMPLING = 10  # further dimensions of a randomised decomposition: scikit-learn's default (Halko 2011)
POWER_ITERATIONS = 20  # from a random start: the 15th singular value of PBMC 3k is then 0.1 % below the exact one
PRIOR_CELLS = 20  # weight of the common slope, as a number of cells of typical library sizes; a fixed choice
BLOCK_BYTES = 2**21  # of a dense float32 block of cells; tuned on PBMC 3k: larger ones leave the processor's cache
WARM_STEPS = 2  # of subspace iteration from the space before: on 90 x 70 simulated counts log1p then differs by < 0.03
MIN_VARIATION = 1e-12  # sum of squares of log library sizes that counts as zero: above rounding errors in float64


class Lines(NamedTuple):
    """One line per gene, ``intercept + slope * depth``, of log1p(counts) in centred log library size."""

    depth: np.ndarray  # of each cell
    intercept: np.ndarray  # of each gene
    slope: np.ndarray  # of each gene
    sd: np.ndarray  # of the residuals of each gene at its non-zeros, 1 where that is 0
    residuals: sp.csr_array  # at the non-zeros, in units of `sd`


class Baselines:
    """The methods of :data:`BASELINES`, fitted to one count matrix; a fit is made when it is first needed, and kept.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)`` counts, dense or sparse.
    clusters
        ``(n_cells,)`` labels; cells without one are a group of their own. Default: one group.
    random_state
        Seed of the decompositions.
    """

    def __init__(self, counts: Any, *, clusters: Any = None, random_state: int = 0) -> None:
        random_state = check_seed(random_state)
        self.counts = to_csr(counts, where="counts")
        self.dtype = np.result_type(self.counts.dtype, np.float32)
        n_cells = self.counts.shape[0]
        self._groups = np.zeros(n_cells, dtype=np.intp)
        if clusters is not None:
            clusters = check_vector("clusters", clusters, numbers=False)
            if len(clusters) != n_cells:
                msg = f"clusters has {len(clusters)} labels, counts {n_cells} cells: one label for each is needed."
                raise ValueError(msg)
            self._groups = np.unique(pd.Categorical(clusters).codes, return_inverse=True)[1]
        self._random_state = random_state

    def rows(self, method: str, rows: slice) -> np.ndarray:
        """Estimates of some cells.

        Parameters
        ----------
        method
            One of :data:`BASELINES`.
        rows
            Positions of the cells, without a step.

        Returns
        -------
        Dense counts, float32 where that holds the counts of the input, else float64.
        """
        predict, replaces_all = BASELINES[method]
        values = predict(self, rows).astype(self.dtype, copy=False)
        if not replaces_all:
            observed = self.counts[rows].tocoo()
            values[observed.row, observed.col] = observed.data
        return values

    def _zeros(self, rows: slice) -> np.ndarray:
        return np.zeros((rows.stop - rows.start, self.counts.shape[1]), dtype=self.dtype)

    def _gene_mean(self, rows: slice) -> np.ndarray:
        return self._size_factors[rows, None] * np.expm1(self._gene_means)

    def _cluster_mean(self, rows: slice) -> np.ndarray:
        return self._size_factors[rows, None] * self._cluster_means[self._groups[rows]]

    def _nonzero_mean(self, rows: slice) -> np.ndarray:
        return self._zeros(rows) + self._nonzero_means

    def _gene_line(self, rows: slice) -> np.ndarray:
        depth, intercept, slope, *_ = self._lines
        return np.expm1(np.maximum(intercept + depth[rows, None] * slope, 0))

    def _low_rank_nonzeros(self, rows: slice) -> np.ndarray:
        depth, intercept, slope, *_ = self._lines
        left, right = self._residual_factors
        return np.expm1(np.maximum(intercept + depth[rows, None] * slope + left[rows] @ right, 0))

    def _rank_k(self, rows: slice) -> np.ndarray:
        left, right = self._components
        return self._size_factors[rows, None] * np.expm1(np.maximum(self._gene_means + left[rows] @ right, 0))

    @cached_property
    def _size_factors(self) -> np.ndarray:
        """From counts per :data:`TARGET_SUM` to counts."""
        return (self.counts.sum(axis=1, dtype=np.float64) / TARGET_SUM).astype(self.dtype)

    @cached_property
    def _log_normalised(self) -> sp.csr_array:
        return log_normalised(self.counts, TARGET_SUM)

    @cached_property
    def _gene_means(self) -> np.ndarray:
        """Mean log1p(CP10k) of each gene."""
        return self._log_normalised.mean(axis=0, dtype=np.float64).astype(self.dtype)

    @cached_property
    def _cluster_means(self) -> np.ndarray:
        """Mean log1p(CP10k) of each gene in each group, back on the scale of counts."""
        n_cells = len(self._groups)
        member = sp.csr_array((np.ones(n_cells), (self._groups, np.arange(n_cells))))
        means = (member @ self._log_normalised).toarray() / member.sum(axis=1)[:, None]
        return np.expm1(means).astype(self.dtype)

    @cached_property
    def _nonzero_means(self) -> np.ndarray:
        """Mean log1p(counts) of the non-zeros of each gene, back on the scale of counts."""
        n, total = self._gene_sums(), self._gene_sums(np.log1p(self.counts.data))
        return np.expm1(total / np.maximum(n, 1)).astype(self.dtype)

    @cached_property
    def _lines(self) -> Lines:
        counts = self.counts
        depth = np.log(np.maximum(counts.sum(axis=1, dtype=np.float64), 1))
        depth -= depth.mean()
        gene, x, y = counts.indices, np.repeat(depth, np.diff(counts.indptr)), np.log1p(counts.data, dtype=np.float64)
        n = np.maximum(self._gene_sums(), 1)
        x_mean, y_mean = self._gene_sums(x) / n, self._gene_sums(y) / n
        x -= x_mean[gene]
        y -= y_mean[gene]
        sxx, sxy = self._gene_sums(x * x), self._gene_sums(x * y)
        common = sxy.sum() / max(sxx.sum(), MIN_VARIATION)
        prior = PRIOR_CELLS * depth.var()
        slope = (sxy + prior * common) / np.maximum(sxx + prior, MIN_VARIATION)
        y -= slope[gene] * x
        sd = np.sqrt(self._gene_sums(y * y) / n)
        sd[sd == 0] = 1.0
        residuals = sp.csr_array(((y / sd[gene]).astype(self.dtype), gene, counts.indptr), shape=counts.shape)
        depth, intercept, slope, sd = (v.astype(self.dtype) for v in (depth, y_mean - slope * x_mean, slope, sd))
        return Lines(depth, intercept, slope, sd, residuals)

    @cached_property
    def _residual_factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Low-rank completion of the residuals: the zeros take the values of the fit, and the fit is repeated.

        The completed matrix is the fit plus what it misses at the non-zeros, so it never becomes dense. Each fit starts
        from the space of the one before, where few steps of subspace iteration are enough.
        """
        residuals, rank = self._lines.residuals, min(NONZERO_RANK, *self.counts.shape)
        missed = residuals.copy()
        with single_threaded_blas():
            left, right = np.zeros((residuals.shape[0], 1), self.dtype), np.zeros((1, residuals.shape[1]), self.dtype)
            space = self._random_space(aslinearoperator(missed), rank)
            for _iteration in range(ITERATIONS):
                completed = aslinearoperator(missed) + aslinearoperator(left) @ aslinearoperator(right)
                for _ in range(WARM_STEPS):
                    left, right = _subspace_step(completed, space)
                    space = right.T
                left, right = left[:, :rank], right[:rank]
                missed.data = residuals.data - _entries(left, right, residuals)
        return left, right * self._lines.sd

    @cached_property
    def _components(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores and loadings of the principal components of log1p(CP10k), centred without making it dense."""
        values, rank = self._log_normalised, min(RANK, *self.counts.shape)
        minus_one = np.full((values.shape[0], 1), -1, dtype=self.dtype)
        centred = aslinearoperator(values) + aslinearoperator(minus_one) @ aslinearoperator(self._gene_means[None])
        with single_threaded_blas():
            left, right = _subspace_step(centred, self._random_space(centred, rank))
        return left[:, :rank], right[:rank]

    def _gene_sums(self, values: np.ndarray | None = None) -> np.ndarray:
        """Sums over the non-zeros of each gene; their number by default."""
        return np.bincount(self.counts.indices, values, minlength=self.counts.shape[1])

    def _random_space(self, matrix: LinearOperator, rank: int) -> np.ndarray:
        """A space that holds nearly all of the leading right singular vectors."""
        shape = (matrix.shape[1], min(rank + OVERSAMPLING, *matrix.shape))
        space = np.random.default_rng(self._random_state).standard_normal(shape).astype(self.dtype)
        for _ in range(POWER_ITERATIONS):
            space = _subspace_step(matrix, space)[1].T
        return space


def _subspace_step(matrix: LinearOperator, space: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors of the matrix, projected on the image of the space; the rows of the right one are orthonormal."""
    left = np.linalg.qr(matrix @ space)[0]
    u, s, right = np.linalg.svd((matrix.H @ left).T, full_matrices=False)
    return left @ (u * s), right


def _entries(left: np.ndarray, right: np.ndarray, where: sp.csr_array) -> np.ndarray:
    """``left @ right`` at the non-zeros of a matrix, in its order."""
    rows, loadings = np.repeat(np.arange(where.shape[0]), np.diff(where.indptr)), np.ascontiguousarray(right.T)
    values = np.empty(where.nnz, dtype=left.dtype)
    for part in row_blocks(where.nnz, left.shape[1]):
        values[part] = np.einsum("ek,ek->e", left[rows[part]], loadings[where.indices[part]])
    return values


class Baseline(NamedTuple):
    """One simple method."""

    predict: Callable[[Baselines, slice], np.ndarray]  # counts of some cells, for all genes
    replaces_all: bool = False  # whether the observed counts are replaced too


BASELINES: dict[str, Baseline] = {
    "none": Baseline(Baselines._zeros),
    "gene_mean": Baseline(Baselines._gene_mean),
    "cluster_mean": Baseline(Baselines._cluster_mean),
    "nonzero_mean": Baseline(Baselines._nonzero_mean),
    "gene_line": Baseline(Baselines._gene_line),
    "low_rank_nonzeros": Baseline(Baselines._low_rank_nonzeros),
    "rank_k_zeros": Baseline(Baselines._rank_k),
    "rank_k": Baseline(Baselines._rank_k, replaces_all=True),
}
"""The simple methods by name; :func:`baseline_estimates` describes them."""


def row_blocks(n_rows: int, n_columns: int) -> list[slice]:
    """Blocks of rows whose dense float32 values fit into the cache of a processor core."""
    height = max(1, BLOCK_BYTES // (4 * max(n_columns, 1)))
    return [slice(start, min(start + height, n_rows)) for start in range(0, n_rows, height)]


def baseline_estimates(counts: Any, method: str, *, clusters: Any = None, random_state: int = 0) -> np.ndarray:
    """Complete a count matrix by one of the simple methods of :data:`~scanpy_cnnimpute.metrics.BASELINES`.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)`` counts, dense or sparse.
    method
        What replaces the zeros:

        - ``"none"``: nothing;
        - ``"gene_mean"``: the mean log1p(CP10k) of the gene;
        - ``"cluster_mean"``: the mean log1p(CP10k) of the gene in the cluster of the cell;
        - ``"nonzero_mean"``: the mean log1p(counts) of the non-zeros of the gene;
        - ``"gene_line"``: a regression of log1p(counts) on the log library size, fitted to the non-zeros of the gene;
          its slope is shrunk towards the common slope of all genes;
        - ``"low_rank_nonzeros"``: that line plus a low-rank completion (rank 8) of the residuals, found by an iterated
          singular value decomposition;
        - ``"rank_k_zeros"``: the first 15 principal components of log1p(CP10k).

        ``"rank_k"``: those components replace all entries, not only the zeros.
    clusters
        ``(n_cells,)`` labels for ``"cluster_mean"``. Cells without a label are a group of their own. Default: one
        cluster.
    random_state
        Seed of the decompositions.

    Returns
    -------
    ``(n_cells, n_genes)`` float64 array, in counts.

    Raises
    ------
    ValueError
        If the method is not known, or `clusters` has another length than `counts`.

    Notes
    -----
    Only the returned array is dense. The iterated decomposition is hard-impute (Mazumder, Hastie and Tibshirani,
    J Mach Learn Res 2010), with 50 iterations.

    Examples
    --------
    >>> import numpy as np
    >>> baseline_estimates(np.array([[2, 0], [2, 2]]), "nonzero_mean").round(6).tolist()
    [[2.0, 2.0], [2.0, 2.0]]
    """
    check_choice("method", method, BASELINES)
    baselines = Baselines(counts, clusters=clusters, random_state=random_state)
    estimates = np.empty(baselines.counts.shape)
    for rows in row_blocks(*estimates.shape):
        estimates[rows] = baselines.rows(method, rows)
    return estimates
