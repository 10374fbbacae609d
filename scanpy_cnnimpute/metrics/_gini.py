"""Gini coefficients of the expression of genes across cells."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from .._checks import check_number, check_vector
from .._matrix import to_csr, values_problem

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def gini(values: Any) -> float | np.ndarray:
    """Gini coefficient of each gene; 0 for equal expression in all cells, near 1 for expression in one cell only.

    Parameters
    ----------
    values
        Non-negative expression: a vector for one gene, or ``(n_cells, n_genes)``, dense or sparse.

    Returns
    -------
    A float for one gene, else a ``(n_genes,)`` float64 array. Values are in [0, 1 - 1 / n_cells], and NaN for a gene
    that no cell expresses.

    Raises
    ------
    ValueError
        If there are no cells, or a value is negative, NaN or infinite.

    Notes
    -----
    ``sum_ij |x_i - x_j| / (2 N^2 mean(x))`` over the N cells (the paper, "RNA FISH validation"). For values in
    ascending order this equals ``sum_i (2 i - N - 1) x_i / (N sum_i x_i)``, to which zeros contribute nothing. The
    coefficient does not depend on the unit of the values. To compare two techniques, take
    :func:`~scanpy_cnnimpute.metrics.mse` and :func:`~scanpy_cnnimpute.metrics.pcc` of their coefficients over genes.

    Examples
    --------
    >>> gini([0, 0, 0, 8])
    0.75
    >>> import numpy as np
    >>> gini(np.array([[0, 1], [2, 1]])).tolist()
    [0.5, 0.0]
    """
    table = values if sp.issparse(values) else check_vector("values", values, numbers=False)
    columns = to_csr(table.reshape(-1, 1) if table.ndim == 1 else table, where="values").tocsc()
    problem = "no cells" if columns.shape[0] == 0 else values_problem(columns)
    if problem is not None:
        msg = f"values has {problem}; the Gini coefficient needs at least one cell and no value below 0."
        raise ValueError(msg)
    n_cells, n_genes = columns.shape
    coefficients = np.full(n_genes, np.nan)
    for gene, (start, stop) in enumerate(pairwise(columns.indptr)):
        if stop > start:
            ascending = np.sort(columns.data[start:stop].astype(np.float64))
            # Zeros have the first ranks.
            rank = np.arange(n_cells - ascending.size + 1, n_cells + 1)
            coefficient = (2 * rank - n_cells - 1) @ ascending / (n_cells * ascending.sum())
            # Rounding can put constant values below 0.
            coefficients[gene] = max(coefficient, 0.0)
    return float(coefficients[0]) if table.ndim == 1 else coefficients


def housekeeping_normalize(
    counts: Any, housekeeping: ArrayLike, *, lower: float = 0.2, upper: float = 0.8
) -> tuple[Any, np.ndarray]:
    """Drop cells with extreme housekeeping expression and scale the others to equal housekeeping expression.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)``, dense or sparse.
    housekeeping
        Expression of the housekeeping gene in each cell.
    lower, upper
        Quantiles of `housekeeping`. Cells at or below `lower` and cells at or above `upper` are dropped.

    Returns
    -------
    Scaled counts of the kept cells, float64, dense or a CSR array as the input is, and a boolean mask of the kept
    cells.

    Raises
    ------
    ValueError
        If `housekeeping` is not a vector of one non-negative value for each cell, the quantiles are not in order, or no
        cell is left.

    Notes
    -----
    Each kept cell is multiplied by ``mean(housekeeping) / housekeeping`` (the paper, "RNA FISH validation"). The mean
    is over the kept cells: the paper removes outliers first and scales then. The mean is a common factor and does not
    change Gini coefficients. Kept cells lie above a quantile of non-negative values, so their housekeeping expression
    is positive.

    Examples
    --------
    >>> import numpy as np
    >>> counts, kept = housekeeping_normalize(np.ones((4, 1)), [0, 1, 3, 9])
    >>> counts.ravel().round(3).tolist(), kept.tolist()
    ([2.0, 0.667], [False, True, True, False])
    """
    matrix = to_csr(counts, where="counts") if sp.issparse(counts) else check_vector("counts", counts, numbers=False)
    expression = check_vector("housekeeping", housekeeping)
    if matrix.ndim != 2 or expression.shape != matrix.shape[:1]:  # noqa: PLR2004
        msg = (
            f"counts has shape {matrix.shape}, housekeeping {expression.shape}: "
            "cells x genes and one value for each cell are needed."
        )
        raise ValueError(msg)
    if not 0 <= check_number("lower", lower, float) < check_number("upper", upper, float) <= 1:
        msg = f"lower={lower!r}, upper={upper!r} is not allowed: 0 <= lower < upper <= 1."
        raise ValueError(msg)
    if not (np.isfinite(expression).all() and (expression >= 0).all()):
        msg = "housekeeping has values that are negative, NaN or infinite; expression is a finite number from 0."
        raise ValueError(msg)
    low, high = np.quantile(expression, [lower, upper]) if expression.size else (np.nan, np.nan)
    kept = (expression > low) & (expression < high)
    if not kept.any():
        msg = (
            f"No cell has housekeeping expression above {low:.3g} (quantile {lower}) and below {high:.3g} "
            f"(quantile {upper}). Take a gene with more counts, or wider quantiles."
        )
        raise ValueError(msg)
    factor = expression[kept].mean() / expression[kept]
    return sp.diags_array(factor) @ matrix[kept] if sp.issparse(matrix) else matrix[kept] * factor[:, None], kept
