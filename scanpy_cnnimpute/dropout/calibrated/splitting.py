"""Split the molecules of every entry into two sets; the seed gives the same split again for any part of the data."""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse as sp
from numba import njit, prange

from ..._threads import parallel_kernel

TRAIN_SHARE = 0.65
"""Share of the molecules in the first set; tuned on the calibration of thinned real counts."""

# SplitMix64 (Steele, Lea and Flood 2014): a counter times the golden ratio, then a bijective mix of the bits.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
SHIFT_30, SHIFT_27, SHIFT_31, SHIFT_11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
TO_UNIT = 2.0**-53  # turns 53 random bits into a number in [0, 1)
# Counts above this are split by the normal approximation, whose error there is below one molecule in a thousand.
MAX_SINGLE_DRAWS = 1_000


@njit(cache=True)
def mix(state):  # type: ignore[no-untyped-def]
    """Mix the bits of a state."""
    state = (state ^ (state >> SHIFT_30)) * MIX_1
    state = (state ^ (state >> SHIFT_27)) * MIX_2
    return state ^ (state >> SHIFT_31)


@njit(cache=True)
def unit(state):  # type: ignore[no-untyped-def]
    """A number in [0, 1) from a state."""
    return np.float64(mix(state) >> SHIFT_11) * TO_UNIT


@parallel_kernel()
def draw_first(indptr, indices, data, cell_ids, gene_ids, seed, share, first):  # type: ignore[no-untyped-def]
    """Draw for each CSR entry the binomial number of molecules in the first set.

    Every entry has a stream of its own, made of the seed and the ids of its cell and gene.
    """
    for i in prange(indptr.size - 1):
        of_cell = mix(np.uint64(seed) + GOLDEN * np.uint64(cell_ids[i] + 1))
        for entry in range(indptr[i], indptr[i + 1]):
            state = mix(of_cell + GOLDEN * np.uint64(gene_ids[indices[entry]] + 1))
            n = data[entry]
            if n <= MAX_SINGLE_DRAWS:
                kept = 0
                for _ in range(n):
                    state += GOLDEN
                    kept += unit(state) < share
            else:
                radius = math.sqrt(-2.0 * math.log(1.0 - unit(state + GOLDEN)))
                normal = radius * math.cos(2.0 * math.pi * unit(state + GOLDEN + GOLDEN))
                kept = np.int64(np.rint(n * share + normal * math.sqrt(n * share * (1.0 - share))))
                kept = min(max(kept, 0), n)
            first[entry] = kept


def split_molecules(
    counts: sp.csr_array, cell_ids: np.ndarray, gene_ids: np.ndarray, random_state: int
) -> tuple[sp.csr_array, sp.csr_array]:
    """Split the molecules of each entry into two sets.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)``; rounded to whole numbers.
    cell_ids, gene_ids
        Ids of the cells and genes. An entry with the same count, ids and seed is always split alike, whatever other
        cells and genes are there.
    random_state
        Seed.

    Returns
    -------
    Two CSR arrays with the pattern of `counts`, which may store zeros; `TRAIN_SHARE` of the molecules is in the first.
    """
    whole = np.rint(counts.data)
    fits = float(whole.max(initial=0)) <= np.iinfo(np.int32).max  # in half the memory
    whole = whole.astype(np.int32 if fits else np.int64)
    first = np.empty_like(whole)
    draw_first(counts.indptr, counts.indices, whole, cell_ids, gene_ids, random_state, TRAIN_SHARE, first)
    train, test = (
        sp.csr_array((part, counts.indices, counts.indptr), shape=counts.shape) for part in (first, whole - first)
    )
    return train, test
