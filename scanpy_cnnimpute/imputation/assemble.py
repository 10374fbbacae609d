"""Put predictions into a copy of the counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numba import prange

from .._threads import parallel_kernel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .._counts import Counts
    from ..dropout import Dropout
    from .base import Imputed, Imputer


def put_in(
    counts: Counts,
    imputer: Imputer,
    dropout: Dropout,
    predictions: Iterable[Imputed],
    *,
    return_std: bool = False,
) -> tuple[Any, Any]:
    """A copy of the counts with predictions in it, and the standard deviations of these.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)``.
    imputer, dropout
        What the predictions are of: those of all entries make the results dense, as they leave no zeros.
    predictions
        Blocks of cells; cells in none stay as they are.
    return_std
        Also put the standard deviations together.

    Returns
    -------
    Two matrices, dense if the user's counts are dense, else CSR, a matrix or an array as these are. The dtype of the
    first holds both the counts and float32; counts without a prediction are bit-identical. The second is float32 and
    0 elsewhere; ``None`` without `return_std`.
    """
    dtype = result_dtype(counts.dtype)
    spread: list[_Part] = []

    def kept() -> Iterator[Imputed]:
        for part in predictions:
            if return_std and part.deviation is not None:
                spread.append(_Part(part.cells, part.deviation))
            yield part

    kind = result_container(counts, imputer)
    if kind is np.ndarray:
        dense = _fill_dense(counts.to_dense(dtype), imputer.kept_scale(dropout), kept())
        return dense, _spread_dense(spread, counts.shape) if return_std else None
    sparse = kind(_fill_sparse(counts, dtype, kept()))
    return sparse, kind(_scatter(spread, counts.shape, np.dtype(np.float32))) if return_std else None


def result_dtype(dtype: np.dtype) -> np.dtype:
    """The floating point type that holds counts of this type, and predictions."""
    return np.result_type(dtype, np.float32)


def result_container(counts: Counts, imputer: Imputer | type[Imputer]) -> type:
    """Kind of matrix that imputed counts become: that of the counts, but dense if all entries are predicted."""
    return np.ndarray if imputer.entries == "all" else counts.container


def imputed_columns(imputer: Imputer, counts: Counts, dropout: Dropout, genes: np.ndarray) -> np.ndarray:
    """Counts of some genes with predictions in them, ``(n_cells, genes.size)``; in any order, and more than once."""
    values = np.empty((counts.shape[0], genes.size), dtype=result_dtype(counts.dtype))
    scale, predicted = imputer.kept_scale(dropout), np.unique(genes)
    for rows, block in counts.blocks():
        own = dropout.of_block(counts, rows, block)
        known = block[:, genes].astype(values.dtype).toarray()
        if scale is not None:
            known *= scale[rows][:, None]
        for part in imputer.predict(block, own, genes=predicted):
            found = part.values[:, genes].toarray()
            known[part.cells] = np.where(found > 0, found, known[part.cells])
        values[rows] = known
    return values


class _Part:
    """Rows of the result: their positions, and their entries."""

    def __init__(self, cells: np.ndarray, entries: sp.csr_array) -> None:
        self.cells, self.entries = cells, entries


def _fill_dense(dense: np.ndarray, scale: np.ndarray | None, predictions: Iterable[Imputed]) -> np.ndarray:
    if scale is not None:
        dense *= scale[:, None]
    for part in predictions:
        values = part.values
        fill_rows(part.cells, values.indptr, values.indices, values.data, dense)
    return dense


def _spread_dense(parts: list[_Part], shape: tuple[int, int]) -> np.ndarray:
    dense = np.zeros(shape, dtype=np.float32)
    for part in parts:
        entries = part.entries
        fill_rows(part.cells, entries.indptr, entries.indices, entries.data, dense)
    return dense


def _fill_sparse(counts: Counts, dtype: np.dtype, predictions: Iterable[Imputed]) -> sp.csr_array:
    parts, rest = [], np.ones(counts.shape[0], dtype=bool)
    for part in predictions:
        own, new = part.counts, part.values
        indptr = own.indptr.astype(np.int64) + new.indptr
        indices, data = np.empty(indptr[-1], dtype=np.int32), np.empty(indptr[-1], dtype=dtype)
        merge_rows(own.indptr, own.indices, own.data, new.indptr, new.indices, new.data, indptr, indices, data)
        parts.append(_Part(part.cells, sp.csr_array((data, indices, indptr), shape=own.shape)))
        rest[part.cells] = False
    untouched = np.flatnonzero(rest)
    if untouched.size:
        parts.append(_Part(untouched, counts.rows(untouched).astype(dtype)))
    return _scatter(parts, counts.shape, dtype)


def _scatter(parts: list[_Part], shape: tuple[int, int], dtype: np.dtype) -> sp.csr_array:
    """Parts put together by position; each is let go of once it is copied, so that memory stays that of the result."""
    sizes = np.zeros(shape[0], dtype=np.int64)
    for part in parts:
        sizes[part.cells] = np.diff(part.entries.indptr)
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    width = np.int32 if max(indptr[-1], shape[1]) <= np.iinfo(np.int32).max else np.int64
    indices, data = np.empty(indptr[-1], dtype=width), np.empty(indptr[-1], dtype=dtype)
    parts.reverse()
    while parts:
        part = parts.pop()
        entries = part.entries
        copy_rows(part.cells, entries.indptr, entries.indices, entries.data, indptr, indices, data)
    return sp.csr_array((data, indices, indptr.astype(width)), shape=shape)


@parallel_kernel()
def fill_rows(cells, indptr, indices, values, out):  # type: ignore[no-untyped-def]
    """Write the CSR entries of row i into the dense row ``cells[i]``."""
    for i in prange(cells.size):
        for entry in range(indptr[i], indptr[i + 1]):
            out[cells[i], indices[entry]] = values[entry]


@parallel_kernel()
def copy_rows(cells, indptr, indices, values, starts, out_indices, out_values):  # type: ignore[no-untyped-def]
    """Copy the CSR entries of row i to row ``cells[i]`` of a larger CSR array, which begins at ``starts[cells[i]]``."""
    for i in prange(cells.size):
        place = starts[cells[i]]
        for entry in range(indptr[i], indptr[i + 1]):
            out_indices[place], out_values[place] = indices[entry], values[entry]
            place += 1


@parallel_kernel()
def merge_rows(  # type: ignore[no-untyped-def]
    indptr, indices, data, new_indptr, new_indices, new_data, out_indptr, out_indices, out_data
):
    """Merge the entries of two CSR arrays that share none, by rising column."""
    for i in prange(indptr.size - 1):
        a, b, place = indptr[i], new_indptr[i], out_indptr[i]
        while place < out_indptr[i + 1]:
            if b == new_indptr[i + 1] or (a < indptr[i + 1] and indices[a] < new_indices[b]):
                out_indices[place], out_data[place] = indices[a], data[a]
                a += 1
            else:
                out_indices[place], out_data[place] = new_indices[b], new_data[b]
                b += 1
            place += 1
