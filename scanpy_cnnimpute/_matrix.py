"""Matrices of counts, without AnnData."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

BLOCK_BYTES = 2**19


def to_csr(matrix: Any, *, where: str = "X") -> sp.csr_array:
    """A canonical CSR array without stored zeros; the data is shared with the input where that is possible."""
    if isinstance(matrix, np.ndarray):
        if matrix.ndim != 2:  # noqa: PLR2004
            msg = f"{where} has {matrix.ndim} dimensions, expected 2: cells x genes."
            raise ValueError(msg)
    elif not sp.issparse(matrix):
        module = type(matrix).__module__.split(".")[0]
        hint = " Call .compute() on it first." if module == "dask" else ""
        msg = (
            f"{where} is a {module} {type(matrix).__name__}, which is not supported: "
            f"a numpy array or a scipy sparse matrix or array is.{hint}"
        )
        raise TypeError(msg)
    kind = matrix.dtype.kind
    if kind not in "iufb":
        msg = f"{where} has dtype {matrix.dtype}, expected numbers."
        raise TypeError(msg)
    if kind == "b" or matrix.dtype == np.float16 or not matrix.dtype.isnative:
        # Native floats that hold the values: scipy knows no half precision and no foreign byte order.
        matrix = matrix.astype(np.promote_types(matrix.dtype, np.float32))
    csr = _from_dense(matrix) if isinstance(matrix, np.ndarray) else sp.csr_array(matrix)
    if not csr.has_canonical_format or (csr.data == 0).any():
        csr = csr.copy()
        csr.sum_duplicates()
        csr.eliminate_zeros()
    return csr


def _from_dense(matrix: np.ndarray) -> sp.csr_array:
    """As scipy converts it, block by block of cells: up to fifteen times as fast, and no index of 16 bytes an entry."""
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


def check_probabilities(matrix: Any, *, where: str) -> None:
    """Refuse what is no matrix of probabilities."""
    if not (sp.issparse(matrix) or (isinstance(matrix, np.ndarray) and matrix.ndim == 2)):  # noqa: PLR2004
        msg = f"{where} is a {type(matrix).__name__}, expected a matrix: a numpy array or a scipy sparse one."
        raise TypeError(msg)
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
    return f"negative values (smallest {smallest:.3g})" if smallest < 0 else None


def is_integer(data: np.ndarray) -> bool:
    """Whether all values are whole numbers."""
    parts = (data[start : start + BLOCK_BYTES] for start in range(0, data.size, BLOCK_BYTES))
    return data.dtype.kind in "iu" or all(bool((part == np.rint(part)).all()) for part in parts)


def log_normalised(counts: sp.csr_array, target_sum: float = 1e4) -> sp.csr_array:
    """log1p of the counts of each cell scaled to a sum, float; shares the indices with `counts`."""
    size = counts.sum(axis=1, dtype=np.float64) / target_sum
    values = np.repeat(size.astype(np.result_type(counts.dtype, np.float32)), np.diff(counts.indptr))
    np.log1p(np.divide(counts.data, values, out=values), out=values)
    return sp.csr_array((values, counts.indices, counts.indptr), shape=counts.shape)
