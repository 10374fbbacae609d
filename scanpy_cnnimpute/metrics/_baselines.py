"""What anyone can write in a few lines: every imputation has to beat these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .._matrix import to_csr
from .._threads import single_threaded_blas

if TYPE_CHECKING:
    from collections.abc import Callable

RANK = 15  # of all entries
NONZERO_RANK = 8  # of the non-zeros
ITERATIONS = 50
SCALE = 1e4


def baseline_estimates(counts: Any, method: str, *, clusters: Any = None, random_state: int = 0) -> np.ndarray:
    """Complete a count matrix by one of the simple methods of :data:`BASELINES`.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)`` counts, dense or sparse; made dense here.
    method
        ``"none"``: the counts as they are. Zeros replaced: ``"gene_mean"``, by the gene's mean log1p(CP10k);
        ``"cluster_mean"``, by that of the cell's cluster; ``"nonzero_mean"``, by the mean log1p(counts) of the gene's
        non-zeros; ``"gene_line"``, by a line per gene in log library size, fitted to its non-zeros, the slope shrunk to
        the common one; ``"low_rank_nonzeros"``, by an iterative singular value decomposition of the residuals to
        those lines (rank 8); ``"rank_k_zeros"``, by a singular value decomposition of log1p(CP10k) of all entries
        (rank 15). ``"rank_k"`` replaces all entries by the latter.
    clusters
        ``(n_cells,)`` labels. Default: one cluster.
    random_state
        Seed of the decompositions.

    Returns
    -------
    ``(n_cells, n_genes)`` float64, counts.

    Raises
    ------
    ValueError
        If the method is not known.

    Examples
    --------
    >>> import numpy as np
    >>> baseline_estimates(np.array([[2, 0], [2, 2]]), "nonzero_mean").round(6).tolist()
    [[2.0, 2.0], [2.0, 2.0]]
    """
    if method not in BASELINES:
        msg = f"method={method!r} is not known. Available: {list(BASELINES)}."
        raise ValueError(msg)
    dense = to_csr(counts).toarray().astype(np.float64)
    # Cells without a label are a group of their own.
    labels = np.zeros(dense.shape[0]) if clusters is None else pd.Categorical(clusters).codes
    return BASELINES[method](dense, labels, random_state)


def _log_normalised(counts: np.ndarray) -> np.ndarray:
    return np.log1p(counts * (SCALE / np.maximum(counts.sum(axis=1), 1))[:, None])


def _to_counts(counts: np.ndarray, log_normalised: np.ndarray) -> np.ndarray:
    return np.expm1(np.maximum(log_normalised, 0)) * (counts.sum(axis=1) / SCALE)[:, None]


def _none(counts: np.ndarray, *_: Any) -> np.ndarray:
    return counts


def _gene_mean(counts: np.ndarray, *_: Any) -> np.ndarray:
    return np.where(counts > 0, counts, _to_counts(counts, _log_normalised(counts).mean(axis=0)[None]))


def _cluster_mean(counts: np.ndarray, labels: np.ndarray, _: int) -> np.ndarray:
    values = _log_normalised(counts)
    means = np.empty_like(values)
    for label in np.unique(labels):
        means[labels == label] = values[labels == label].mean(axis=0)
    return np.where(counts > 0, counts, _to_counts(counts, means))


def _nonzero_mean(counts: np.ndarray, *_: Any) -> np.ndarray:
    observed = counts > 0
    means = np.log1p(counts).sum(axis=0) / np.maximum(observed.sum(axis=0), 1)
    return np.where(observed, counts, np.expm1(means))


def _lines(counts: np.ndarray) -> np.ndarray:
    """Per gene a line of log1p(counts) in log library size, fitted to the non-zeros: its values in all cells."""
    observed = counts > 0
    y = np.where(observed, np.log1p(counts), 0.0)
    depth = np.log(np.maximum(counts.sum(axis=1), 1))
    depth = (depth - depth.mean())[:, None]
    n = np.maximum(observed.sum(axis=0), 1)
    x_mean, y_mean = (observed * depth).sum(axis=0) / n, y.sum(axis=0) / n
    sxx = (observed * (depth - x_mean) ** 2).sum(axis=0)
    sxy = (observed * (depth - x_mean) * (y - y_mean)).sum(axis=0)
    common = sxy.sum() / max(sxx.sum(), 1e-12)
    # The weight of the common slope: that of as many cells as a gene needs for a slope of its own.
    prior = 20 * depth.var()
    slope = (sxy + prior * common) / np.maximum(sxx + prior, 1e-12)
    return y_mean + slope * (depth - x_mean)


def _gene_line(counts: np.ndarray, *_: Any) -> np.ndarray:
    return np.where(counts > 0, counts, np.expm1(np.maximum(_lines(counts), 0)))


def _low_rank_nonzeros(counts: np.ndarray, _: np.ndarray, random_state: int) -> np.ndarray:
    observed = counts > 0
    lines = _lines(counts)
    residuals = np.where(observed, np.log1p(counts) - lines, 0.0)
    sd = np.sqrt((residuals**2).sum(axis=0) / np.maximum(observed.sum(axis=0), 1))
    sd[sd == 0] = 1.0
    residuals /= sd
    fit = np.zeros_like(residuals)
    for _iteration in range(ITERATIONS):
        fit = _truncated(np.where(observed, residuals, fit), NONZERO_RANK, random_state)
    return np.where(observed, counts, np.expm1(np.maximum(lines + fit * sd, 0)))


def _rank_k(counts: np.ndarray, _: np.ndarray, random_state: int) -> np.ndarray:
    values = _log_normalised(counts)
    mean = values.mean(axis=0)
    return _to_counts(counts, mean + _truncated(values - mean, RANK, random_state))


def _rank_k_zeros(counts: np.ndarray, labels: np.ndarray, random_state: int) -> np.ndarray:
    return np.where(counts > 0, counts, _rank_k(counts, labels, random_state))


def _truncated(matrix: np.ndarray, rank: int, random_state: int) -> np.ndarray:
    """The matrix, or its best approximation of this rank where that is lower."""
    from sklearn.utils.extmath import randomized_svd

    if rank >= min(matrix.shape):
        return matrix
    with single_threaded_blas():
        u, s, vt = randomized_svd(matrix, rank, n_iter=4, random_state=random_state)
        return (u * s) @ vt


BASELINES: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "none": _none,
    "gene_mean": _gene_mean,
    "cluster_mean": _cluster_mean,
    "nonzero_mean": _nonzero_mean,
    "gene_line": _gene_line,
    "low_rank_nonzeros": _low_rank_nonzeros,
    "rank_k_zeros": _rank_k_zeros,
    "rank_k": _rank_k,
}
"""The simple methods by name."""
