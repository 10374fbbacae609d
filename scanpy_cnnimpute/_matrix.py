"""Count matrices without AnnData: conversion, checks of structure and values, normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Callable

# Bytes of a dense block that is converted or compared at once. Tuned on dense float32 counts: the block and its
# temporaries stay in the second-level cache.
BLOCK_BYTES = 2**19
# float64, and so every sum and every network, holds whole numbers below this exactly.
MAX_COUNT = 2.0**53
# Logarithms of counts per million stay below this, log2(1e6 + 1) = 20; the largest raw count hardly ever does.
MAX_LOGGED = 25.0
# Cells, evenly spaced, in which transformed values are recognised. Tuned on 12 public single-cell data sets: every
# transformation of the tests is recognised in each, no count matrix is refused.
N_SAMPLED_CELLS = 200
# Inverses of the transformations that count matrices commonly went through. The exponentials are only tried on values
# that can be logarithms (below MAX_LOGGED).
INVERSES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "square roots": np.square,
    "natural logarithms (log1p)": np.expm1,
    "binary logarithms, log2(x + 1)": lambda values: np.exp2(values) - 1,
    "decimal logarithms, log10(x + 1)": lambda values: np.power(10.0, values) - 1,
}
# A value below MAX_WHOLE counts as whole within this distance. float16, the coarsest dtype, keeps the logarithms of
# such values to less than half of it.
WHOLE_TOLERANCE = 0.02
MAX_WHOLE = 10.0


def to_csr(matrix: Any, *, where: str = "X") -> sp.csr_array:
    """Convert a matrix of numbers to a canonical CSR array without stored zeros.

    Parameters
    ----------
    matrix
        ``(n_cells, n_genes)`` NumPy array or SciPy sparse matrix or array of any format. Duplicate entries are summed.
    where
        What error messages call the matrix.

    Returns
    -------
    A CSR array that shares its memory with `matrix` where that is canonical. bool, float16 and foreign byte orders
    become native floats that hold the values; other dtypes stay.

    Raises
    ------
    TypeError
        For other containers and dtypes.
    ValueError
        For other dimensions than two, and for sparse matrices whose indices do not fit their shape.
    """
    matrix = _native(check_matrix(matrix, where))
    if isinstance(matrix, np.ndarray):
        csr = _from_dense(matrix)
    elif matrix.format == "csr":
        # By its arrays: SciPy remembers that indices are sorted, also if they were changed since.
        csr = sp.csr_array((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)
    else:
        csr = sp.csr_array(matrix)
    if not csr.has_canonical_format or (csr.data == 0).any():
        csr = csr.copy()
        csr.sum_duplicates()
        csr.eliminate_zeros()
    return csr


def check_matrix(matrix: Any, where: str) -> Any:
    """Refuse containers, dtypes, dimensions and sparse structures that compiled code cannot read safely."""
    hints = {
        "dask": " Call .compute() on it first.",
        "pandas": " Call .to_numpy() on it first.",
        "MaskedArray": " Masked entries have no value: call .filled() on it first.",
        "matrix": " Call numpy.asarray() on it first.",
    }
    kind, module = type(matrix).__name__, type(matrix).__module__.split(".")[0]
    if isinstance(matrix, np.ma.MaskedArray | np.matrix) or not (isinstance(matrix, np.ndarray) or sp.issparse(matrix)):
        msg = (
            f"{where} is a {module} {kind}, which is not supported: a numpy array or a scipy sparse matrix or array is."
            f"{hints.get(kind, hints.get(module, ''))}"
        )
        raise TypeError(msg)
    if matrix.ndim != 2:  # noqa: PLR2004
        msg = f"{where} has {matrix.ndim} dimensions, expected 2: cells x genes."
        raise ValueError(msg)
    if matrix.dtype.kind not in "iufb" or matrix.dtype.itemsize > np.dtype(np.float64).itemsize:
        msg = f"{where} has dtype {matrix.dtype}, expected numbers: bool, integers or floats of at most 64 bits."
        raise TypeError(msg)
    if sp.issparse(matrix):
        if matrix.format not in {"csr", "csc", "bsr", "coo"}:
            matrix = matrix.tocsr()
        problem = _structure_problem(matrix)
        if problem is not None:
            msg = f"{where} is a damaged sparse matrix: {problem}."
            raise ValueError(msg)
    return matrix


def _structure_problem(matrix: Any) -> str | None:
    """Why the arrays of a sparse matrix do not describe its shape, in words; None if they do.

    SciPy does not look at every index when it converts a matrix, and its check on request changes the matrix.
    """
    height, width = matrix.shape
    if matrix.format == "coo":
        if not (len(matrix.row) == len(matrix.col) == len(matrix.data)):
            return f"{len(matrix.row)} row and {len(matrix.col)} column indices for {len(matrix.data)} values"
        return _range_problem("row", matrix.row, height) or _range_problem("column", matrix.col, width)
    if matrix.format == "csc":
        return _compressed_problem(matrix, width, "row", height)
    if matrix.format == "bsr":
        height, width = height // matrix.blocksize[0], width // matrix.blocksize[1]
    return _compressed_problem(matrix, height, "column", width)


def _compressed_problem(matrix: Any, n_slices: int, axis: str, size: int) -> str | None:
    """As above, for `indptr` that cuts indices of an axis of this size into slices."""
    indptr, indices, n_entries = matrix.indptr, matrix.indices, len(matrix.data)
    if indptr.dtype.kind not in "iu" or indices.dtype.kind not in "iu":
        return f"indptr and indices have dtypes {indptr.dtype} and {indices.dtype}, expected integers"
    if indices.shape != (n_entries,):
        return f"indices have shape {indices.shape}, expected ({n_entries},), the number of values"
    return indptr_problem(indptr, n_slices, n_entries) or _range_problem(axis, indices, size)


def indptr_problem(indptr: np.ndarray, n_slices: int, n_entries: int) -> str | None:
    """Why `indptr` does not cut so many entries into so many slices, in words; None if it does."""
    if indptr.shape != (n_slices + 1,):
        return f"indptr has shape {indptr.shape}, expected ({n_slices + 1},)"
    if indptr[0] != 0 or indptr[-1] != n_entries:
        return f"indptr goes from {indptr[0]} to {indptr[-1]}, expected from 0 to {n_entries}, the number of values"
    if (indptr[1:] < indptr[:-1]).any():
        return "indptr falls"
    return None


def _range_problem(name: str, indices: np.ndarray, size: int) -> str | None:
    if indices.size and (indices.min() < 0 or indices.max() >= size):
        return f"{name} indices go from {indices.min()} to {indices.max()}, allowed are 0 to {size - 1}"
    return None


def _native(matrix: Any) -> Any:
    """The matrix in a dtype that SciPy and compiled code read: no bool, float16 or foreign byte order."""
    if matrix.dtype.kind == "b" or matrix.dtype == np.float16 or not matrix.dtype.isnative:
        return matrix.astype(np.promote_types(matrix.dtype, np.float32))
    return matrix


def _from_dense(matrix: np.ndarray) -> sp.csr_array:
    """Convert like SciPy, by blocks of cells: up to 15 times as fast, without 16 bytes of indices an entry."""
    n_rows, n_columns = matrix.shape
    height = max(1, BLOCK_BYTES // (matrix.itemsize * max(n_columns, 1)))
    blocks = [slice(start, min(start + height, n_rows)) for start in range(0, n_rows, height)]
    sizes = np.zeros(n_rows, dtype=np.int64)
    for rows in blocks:
        sizes[rows] = np.count_nonzero(matrix[rows], axis=1)
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    width = np.int32 if max(indptr[-1], n_columns) <= np.iinfo(np.int32).max else np.int64
    indices, data = np.empty(indptr[-1], dtype=width), np.empty(indptr[-1], dtype=matrix.dtype)
    for rows in blocks:
        block, entries = matrix[rows], slice(indptr[rows.start], indptr[rows.stop])
        places = np.flatnonzero(block != 0)
        data[entries] = block.ravel()[places]
        indices[entries] = places - np.repeat(np.arange(len(block)) * n_columns, sizes[rows])
    return sp.csr_array((data, indices, indptr.astype(width)), shape=matrix.shape)


def check_probabilities(matrix: Any, *, where: str) -> np.ndarray | sp.csr_array:
    """Return a matrix of probabilities ready to use.

    Parameters
    ----------
    matrix
        ``(n_cells, n_genes)`` NumPy array or SciPy sparse matrix or array. bool and integers stand for 0 and 1.
    where
        What error messages call the matrix.

    Returns
    -------
    A NumPy array for an array, else a canonical CSR array; native float32 or float64. Shares memory where possible.

    Raises
    ------
    TypeError, ValueError
        As :func:`to_csr`, and for NaN and values outside [0, 1].
    """
    checked = check_matrix(matrix, where)
    probabilities = np.asarray(_native(checked)) if isinstance(checked, np.ndarray) else to_csr(checked, where=where)
    if probabilities.dtype.kind != "f":
        # Compared before the cast, which would round integers.
        _check_unit_interval(probabilities, where)
        return probabilities.astype(np.float32)
    _check_unit_interval(probabilities, where)
    return probabilities


def _check_unit_interval(matrix: Any, where: str) -> None:
    values = matrix.data if sp.issparse(matrix) else matrix
    if values.size and not (values.min() >= 0 and values.max() <= 1):  # NaN fails both
        msg = f"{where} has values outside [0, 1] or NaN, which are no probabilities."
        raise ValueError(msg)


def values_problem(counts: sp.csr_array) -> str | None:
    """What is wrong with the values of a count matrix, in words; None if nothing is."""
    data = counts.data
    if not data.size:
        return None
    smallest, largest = data.min(), data.max()  # NaN if there is one
    if data.dtype.kind == "f" and not np.isfinite([smallest, largest]).all():
        missing, infinite = int(np.isnan(data).sum()), int(np.isinf(data).sum())
        return f"{missing} NaN and {infinite} infinite values"
    if smallest < 0:
        return f"negative values (smallest {smallest:.3g})"
    if largest >= MAX_COUNT:
        return f"values of 2**53 or more (largest {float(largest):.3g}), which floating point does not count exactly"
    return None


def is_integer(data: np.ndarray) -> bool:
    """Whether all values are whole numbers."""
    size = max(1, BLOCK_BYTES // data.itemsize)
    parts = (data[start : start + size] for start in range(0, data.size, size))
    return data.dtype.kind in "iu" or all(bool((part == np.rint(part)).all()) for part in parts)


def transformation(counts: sp.csr_array, *, scaling: bool = True) -> str | None:
    """The transformation that the values of a count matrix went through, in words; None if none is recognised.

    Square roots and logarithms are recognised by their inverse, which gives whole numbers or normalised counts.
    Normalised counts have the same total in all cells, or are multiples of a different number in each cell. With
    ``scaling=False``, normalisation alone is accepted.
    """
    filled = np.flatnonzero(np.diff(counts.indptr))
    rows = filled[evenly_spaced(filled.size, N_SAMPLED_CELLS)]
    sample = counts[rows]
    values = sample.data.astype(np.float64)
    fractions = values != np.rint(values)
    if not fractions.any():
        return None
    if _is_normalised(values, fractions, sample.indptr):
        return "normalised (cells were scaled to a common library size)" if scaling else None
    for name, inverse in INVERSES.items():
        if inverse is not np.square and values.max() >= MAX_LOGGED:
            continue
        restored = inverse(values)
        kind = "root-transformed" if inverse is np.square else "log-transformed"
        if _are_whole(restored[fractions]):
            return f"{kind} (its values are {name} of whole numbers)"
        if _is_normalised(restored, fractions, sample.indptr):
            return f"{kind} (its values are {name} of normalised counts)"
    return None


def _are_whole(values: np.ndarray) -> bool:
    """Whether the values that are small enough to tell are positive whole numbers."""
    values = values[values < MAX_WHOLE]
    nearest = np.maximum(np.rint(values), 1)
    # Each value passes with probability 2 * WHOLE_TOLERANCE by chance: ten values exclude that.
    return values.size >= 10 and bool(np.mean(np.abs(values - nearest) < WHOLE_TOLERANCE) > 0.99)  # noqa: PLR2004


def _is_normalised(values: np.ndarray, fractions: np.ndarray, indptr: np.ndarray) -> bool:
    """Whether all cells have the same total, or each cell holds multiples of a number of its own."""
    totals = np.add.reduceat(values, indptr[:-1])
    low, middle, high = np.quantile(totals, [0.05, 0.5, 0.95])
    # Sums of float16 differ by less than this.
    if totals.size > 1 and high - low <= 1e-3 * middle:
        return True
    smallest = np.minimum.reduceat(values, indptr[:-1])
    row = np.repeat(np.arange(len(smallest)), np.diff(indptr))
    ratio = values / smallest[row]
    # The smallest value itself tells nothing.
    telling = fractions & (ratio > 1.5) & (ratio < MAX_WHOLE)  # noqa: PLR2004
    row, ratio = row[telling], ratio[telling]
    n_telling = np.bincount(row, minlength=len(smallest))
    n_whole = np.bincount(row[np.abs(ratio - np.rint(ratio)) < WHOLE_TOLERANCE], minlength=len(smallest))
    # Three values are multiples by chance in (2 * WHOLE_TOLERANCE)**3 = 6e-5 of the cells.
    multiples = (n_telling >= 3) & (n_whole > 0.95 * n_telling)  # noqa: PLR2004
    # Values that were rounded to decimals are multiples of few numbers; every cell has a size factor of its own.
    units = np.unique(np.float32(smallest[multiples]).round(4))
    # A fifth of the cells: with deep sequencing or selected genes, a cell may have no count of one.
    return bool(multiples.sum() > max(1, 0.2 * np.sum(n_telling >= 3)) and units.size > 0.5 * multiples.sum())  # noqa: PLR2004


def log_normalised(counts: sp.csr_array, target_sum: float = 1e4) -> sp.csr_array:
    """log1p of the counts scaled to `target_sum` per cell, in float; shares the indices with `counts`."""
    size_factor = counts.sum(axis=1, dtype=np.float64) / target_sum
    values = np.repeat(size_factor.astype(np.result_type(counts.dtype, np.float32)), np.diff(counts.indptr))
    np.log1p(np.divide(counts.data, values, out=values), out=values)
    return sp.csr_array((values, counts.indices, counts.indptr), shape=counts.shape)


def positions_of(chosen: np.ndarray, n: int) -> np.ndarray:
    """Position of each of n columns among the chosen ones, -1 for the others."""
    positions = np.full(n, -1, dtype=np.int32)
    positions[chosen] = np.arange(chosen.size)
    return positions


def evenly_spaced(n: int, n_chosen: int) -> np.ndarray:
    """At most so many positions out of n, at equal distances."""
    return np.arange(n) if n <= n_chosen else np.linspace(0, n - 1, n_chosen).round().astype(np.int64)
