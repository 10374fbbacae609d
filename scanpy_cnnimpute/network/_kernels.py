"""Compiled loops of the low-rank model of the non-zeros."""

from __future__ import annotations

from numba import njit, prange


@njit(parallel=True, cache=True)
def sum_rows(indptr, indices, rows, out):  # type: ignore[no-untyped-def]
    """``out[i] = sum of rows[j]`` over the stored entries (i, j) of a CSR pattern; float32, summed in float64."""
    width = rows.shape[1]
    for i in prange(out.shape[0]):
        for t in range(width):
            out[i, t] = 0.0
        for entry in range(indptr[i], indptr[i + 1]):
            j = indices[entry]
            for t in range(width):
                out[i, t] += rows[j, t]
