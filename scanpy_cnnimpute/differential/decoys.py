"""Decoys: genes whose counts are permuted among the cells that are compared."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numba import prange

from .._threads import parallel_kernel
from ..dropout.calibrated.splitting import GOLDEN, mix, unit

CELLS_PER_BIN = 15
"""Cells of similar library size among which counts are permuted: enough for many orders."""
MAX_BINS = 4


def library_size_bins(library_size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells by rising library size, ``(n_cells,)``, and where each bin of them starts and the last ends."""
    n_bins = int(np.clip(library_size.size // CELLS_PER_BIN, 1, MAX_BINS))
    order = np.argsort(library_size, kind="stable")
    return order, np.linspace(0, order.size, n_bins + 1).astype(np.int64)


@parallel_kernel()
def permute_rows(values, order, starts, gene_ids, seed, out):  # type: ignore[no-untyped-def]
    """Permute each row of ``(n_genes, n_cells)`` values within bins of cells, by Fisher and Yates.

    Every gene has a stream of random numbers of its own, made of the seed and its id.
    """
    for g in prange(values.shape[0]):
        state = mix(np.uint64(seed) + GOLDEN * np.uint64(gene_ids[g] + 1))
        for b in range(starts.size - 1):
            first = starts[b]
            for k in range(first, starts[b + 1]):
                out[g, order[k]] = values[g, order[k]]
            for k in range(starts[b + 1] - 1, first, -1):
                state += GOLDEN
                other = first + np.int64(unit(state) * (k - first + 1))
                i, j = order[k], order[other]
                out[g, i], out[g, j] = out[g, j], out[g, i]


def permute_counts(values: np.ndarray, library_size: np.ndarray, gene_ids: np.ndarray, random_state: int) -> np.ndarray:
    """Decoys of genes: their values permuted among cells of similar library size.

    Parameters
    ----------
    values
        ``(n_genes, n_cells)`` counts of the cells that are compared.
    library_size
        ``(n_cells,)``, by which the cells are binned.
    gene_ids
        ``(n_genes,)``; a gene with the same id, values and seed always has the same decoy.
    random_state
        Seed.

    Returns
    -------
    Array like `values`.
    """
    order, starts = library_size_bins(library_size)
    out = np.empty_like(values)
    permute_rows(np.ascontiguousarray(values), order, starts, gene_ids, random_state, out)
    return out


def decoys_of(
    values: np.ndarray, library_size: np.ndarray, gene_ids: np.ndarray, random_state: int, n_decoys: int
) -> np.ndarray:
    """Decoys of the genes of ``(n_cells, n_genes)`` values, one set after the other along the second axis.

    The seeds of the sets follow `random_state`; see :func:`permute_counts`.
    """
    seeds = range(random_state, random_state + n_decoys)
    permuted = [permute_counts(values.T, library_size, gene_ids, seed).T for seed in seeds]
    return np.concatenate([values[:, :0], *permuted], axis=1)


def mixing(library_size: np.ndarray, in_group: np.ndarray) -> float:
    """How well two groups mix in the bins: 1 as if at random, 0 if every bin holds cells of one group alone."""
    order, starts = library_size_bins(library_size)
    share = in_group.mean()
    within = [in_group[order[first:last]] for first, last in pairwise(starts)]
    mixed = sum(part.size * part.mean() * (1 - part.mean()) for part in within)
    return float(mixed / max(in_group.size * share * (1 - share), 1e-12))
