"""Which genes a network predicts, and from which genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import get_num_threads, prange

from ..._threads import parallel_kernel, single_threaded_blas

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scipy.sparse import csc_array

    from ...dropout import Dropout
    from ...presets import PaperSettings

BLOCK_BYTES = 2**26  # of a dense float64 block of cells x genes


def gene_blocks(genes: np.ndarray, n_cells: int) -> Iterator[np.ndarray]:
    """Split gene indices so that a float64 block of all cells stays within `BLOCK_BYTES`."""
    width = max(1, BLOCK_BYTES // (8 * max(n_cells, 1)))
    for start in range(0, genes.size, width):
        yield genes[start : start + width]


def missing_entries(
    values: csc_array, cells: np.ndarray, genes: np.ndarray, dropout: Dropout, threshold: float
) -> np.ndarray:
    """Which entries of a block are called dropouts: zeros whose probability exceeds the threshold.

    `values` holds the rows `cells` of the data, `dropout` is asked with indices into the whole of it.
    """
    return (dropout.block(cells, genes) > threshold) & (values[:, genes].toarray() == 0)


def dropout_shares(values: csc_array, cells: np.ndarray, dropout: Dropout, threshold: float) -> np.ndarray:
    """Share of the cells of a cluster in which each gene is called a dropout, ``(n_genes,)`` float64."""
    n_cells, n_genes = values.shape
    shares = np.empty(n_genes)
    for genes in gene_blocks(np.arange(n_genes), n_cells):
        shares[genes] = missing_entries(values, cells, genes, dropout, threshold).mean(axis=0)
    return shares


def is_constant(values: csc_array) -> np.ndarray:
    """Genes with one value in all cells, ``(n_genes,)`` bool."""
    highest = values.max(axis=0).toarray().ravel()
    lowest = values.min(axis=0).toarray().ravel()
    return highest == lowest


def subsets(targets: np.ndarray, settings: PaperSettings) -> list[np.ndarray]:
    """Target genes in the order of the data, cut into subsets for one network each."""
    return [targets[start : start + settings.n_targets] for start in range(0, targets.size, settings.n_targets)]


def select_inputs(values: csc_array, targets: np.ndarray, candidates: np.ndarray, n_top: int) -> np.ndarray:
    """The `n_top` candidates of highest Pearson correlation with each target, without duplicates.

    Parameters
    ----------
    values
        ``(n_cells, n_genes)`` values of one cluster, as the network sees them.
    targets, candidates
        Gene indices; none constant. Candidates that are targets are left out.

    Returns
    -------
    Gene indices: target by target, falling correlation, each gene where it first occurs. The lower index wins a tie.

    Notes
    -----
    Correlations are computed block by block, never a gene x gene matrix. Every block is one product on one BLAS
    thread, several blocks at a time, so that the choice does not depend on the number of threads.
    """
    from joblib import Parallel, delayed

    candidates = np.setdiff1d(candidates, targets)
    best = np.full((targets.size, n_top), -np.inf)
    chosen = np.full((targets.size, n_top), -1)
    # The targets of one subset are one block: n_targets is the user's bound.
    standardised = values[:, targets].astype(np.float64).toarray()
    standardised -= standardised.mean(axis=0)
    standardised /= np.linalg.norm(standardised, axis=0)
    blocks = list(gene_blocks(candidates, values.shape[0]))
    with single_threaded_blas():
        products = Parallel(get_num_threads(), prefer="threads", return_as="generator")(
            delayed(_correlations)(standardised, values[:, block]) for block in blocks
        )
        for block, correlations in zip(blocks, products, strict=True):
            _keep_best(correlations, block, best, chosen)
    ordered = chosen.ravel()
    return np.array(list(dict.fromkeys(ordered[ordered >= 0].tolist())), dtype=np.int64)


def _correlations(standardised: np.ndarray, others: csc_array) -> np.ndarray:
    """Correlations of columns of mean 0 and length 1 with others, whose mean need not be taken off for that."""
    others = others.astype(np.float64)
    n_values = np.diff(others.indptr)
    mean = others.sum(axis=0) / others.shape[0]
    deviation = others.data - np.repeat(mean, n_values)
    gene = np.repeat(np.arange(n_values.size), n_values)
    squares = np.bincount(gene, deviation**2, n_values.size) + (others.shape[0] - n_values) * mean**2
    return standardised.T @ others.toarray() / np.sqrt(squares)


@parallel_kernel()
def _keep_best(correlations, genes, best, chosen):  # type: ignore[no-untyped-def]
    """Insert a block of correlations into the sorted lists of each target."""
    n_top = best.shape[1]
    for t in prange(correlations.shape[0]):
        for c in range(genes.size):
            value = correlations[t, c]
            if not value > best[t, n_top - 1]:
                continue
            place = n_top - 1
            while place > 0 and value > best[t, place - 1]:
                best[t, place] = best[t, place - 1]
                chosen[t, place] = chosen[t, place - 1]
                place -= 1
            best[t, place] = value
            chosen[t, place] = genes[c]
