"""How unequally a gene is expressed across the cells."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from .._matrix import to_csr, values_problem

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def gini(values: Any) -> float | np.ndarray:
    """Gini coefficient of every gene; 0 if all cells express it alike, near 1 if one cell has everything.

    Parameters
    ----------
    values
        Non-negative expression of one gene, or ``(n_cells, n_genes)``, dense or sparse.

    Returns
    -------
    A float for one gene, else a float64 array with one value per gene, in [0, 1 - 1 / n_cells]; NaN for a gene that
    no cell expresses.

    Raises
    ------
    ValueError
        For no cells, and for values that are negative, NaN or infinite.

    Notes
    -----
    ``sum_ij |x_i - x_j| / (2 N^2 mean(x))`` over the N cells (the paper, "RNA FISH validation"). With the values in
    ascending order that is ``sum_i (2 i - N - 1) x_i / (N sum_i x_i)``, where zeros contribute nothing. A common factor
    changes nothing. Agreement with another technique is :func:`~scanpy_cnnimpute.metrics.mse` and
    :func:`~scanpy_cnnimpute.metrics.pcc` of the two coefficients over the genes.

    Examples
    --------
    >>> gini([0, 0, 0, 8])
    0.75
    >>> import numpy as np
    >>> gini(np.array([[0, 1], [2, 1]])).tolist()
    [0.5, 0.0]
    """
    table = values if sp.issparse(values) else np.asarray(values)
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
            # The zeros come first, so the non-zeros have the last ranks.
            rank = np.arange(n_cells - ascending.size + 1, n_cells + 1)
            coefficient = (2 * rank - n_cells - 1) @ ascending / (n_cells * ascending.sum())
            # Constant values can come out a rounding error below 0.
            coefficients[gene] = max(coefficient, 0.0)
    return float(coefficients[0]) if table.ndim == 1 else coefficients


def housekeeping_normalize(
    counts: Any, housekeeping: ArrayLike, *, lower: float = 0.2, upper: float = 0.8
) -> tuple[Any, np.ndarray]:
    """Drop the cells with extreme housekeeping expression and bring the others to the same housekeeping expression.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)``, dense or sparse.
    housekeeping
        Expression of the housekeeping gene in each cell.
    lower, upper
        Quantiles of `housekeeping`; the cells at or below `lower`, and at or above `upper`, are dropped.

    Returns
    -------
    The rescaled counts of the kept cells, in float64, dense or a CSR array like the input, and the mask of kept cells.

    Raises
    ------
    ValueError
        If `housekeeping` is no vector of non-negative values, one for each cell, or no cell is left.

    Notes
    -----
    Each kept cell is multiplied by ``mean(housekeeping) / housekeeping`` (the paper, "RNA FISH validation"). The mean
    is over the kept cells, as the text of the paper has the order: first outliers go, then the others are rescaled.
    It is a common factor, which no Gini coefficient notices. Kept cells lie above a quantile of values that are not
    negative, so none has zero.

    Examples
    --------
    >>> import numpy as np
    >>> counts, kept = housekeeping_normalize(np.ones((4, 1)), [0, 1, 3, 9])
    >>> counts.ravel().round(3).tolist(), kept.tolist()
    ([2.0, 0.667], [False, True, True, False])
    """
    matrix = to_csr(counts, where="counts") if sp.issparse(counts) else np.asarray(counts)
    expression = np.asarray(housekeeping, dtype=np.float64)
    if matrix.ndim != 2 or expression.shape != matrix.shape[:1]:  # noqa: PLR2004
        msg = (
            f"counts has shape {matrix.shape}, housekeeping {expression.shape}: "
            "cells x genes and one value for each cell are needed."
        )
        raise ValueError(msg)
    if not 0 <= lower < upper <= 1:
        msg = f"lower={lower!r}, upper={upper!r} is not allowed: 0 <= lower < upper <= 1."
        raise ValueError(msg)
    if not (np.isfinite(expression).all() and (expression >= 0).all()):
        msg = "housekeeping has values that are negative, NaN or infinite; expression is neither."
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
