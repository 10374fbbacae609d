"""Read counts: tell them from counts of molecules, and turn them into molecules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import scipy.sparse as sp
from numba import prange

from .._checks import warn_user
from .._logging import logger
from .._threads import parallel_kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._counts import Counts

CountType = Literal["auto", "umi", "reads"]

MIN_READS = 10.0
"""Reads per molecule from which counts are reads: the middle, on a logarithmic scale, between 1.1 to 2.4 on 24 public
data sets with UMIs and 37 to 172 on six without."""
UNCLEAR = 1.5  # factor around that within which a warning asks for count_type
TELLING_ZEROS = (0.15, 0.85)  # share of zeros of a gene that tells how they fall with the mean
MIN_TELLING_GENES = 10  # with fewer, rarer genes are asked, too; with fewer even so, counts are not taken for reads

N_ROUNDS = 6  # of cells and genes in turn; molecules move by less than 0.1 % after four
N_GRID = 500  # points of a detection curve, over some ten decades
MAX_DETECTED = 0.98  # share of the cells above which detecting a gene says nothing about its molecules
MAX_NEWTON = 50  # steps; ten are usual
NEWTON_TOLERANCE = 1e-6  # relative


def reads_per_molecule(counts: Counts) -> float:
    """How zeros fall with the mean: about 1 for molecules, tens for reads.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)``.

    Returns
    -------
    The median over genes with 15 to 85 % zeros of the mean count over ``-log(share of zeros)``, which for Poisson
    distributed molecules is the mean number of reads of one. NaN if fewer than ten genes tell.
    """
    zeros = 1.0 - counts.totals.n_cells / max(counts.shape[0], 1)
    low, high = TELLING_ZEROS
    telling = (zeros >= low) & (zeros <= high)
    if telling.sum() < MIN_TELLING_GENES:
        telling = (zeros >= low) & (zeros < 1)
    if telling.sum() < MIN_TELLING_GENES:
        return float("nan")
    mean = counts.totals.gene_total[telling] / counts.shape[0]
    return float(np.median(mean / -np.log(zeros[telling])))


def resolve_count_type(counts: Counts, count_type: CountType, *, caller: str) -> Literal["umi", "reads"]:
    """The type as given or, for ``"auto"``, as the counts look; the log has the decision and the figure."""
    if count_type != "auto":
        return count_type
    figure = reads_per_molecule(counts)
    if np.isnan(figure):
        logger.info("%s: too few genes tell reads from molecules; the counts are taken for molecules", caller)
        return "umi"
    decided: Literal["umi", "reads"] = "reads" if figure >= MIN_READS else "umi"
    if decided == "reads":
        logger.info(
            "%s: the counts are taken for reads: zeros fall with the mean as if a molecule gave %.0f (with UMIs 1 to "
            "3). Pass count_type='umi' if they are not.",
            caller,
            figure,
        )
    else:
        logger.info("%s: the counts are taken for molecules (%.2g reads per molecule)", caller, figure)
    if MIN_READS / UNCLEAR < figure < MIN_READS * UNCLEAR:
        warn_user(
            f"{caller}: zeros fall with the mean as if a molecule gave {figure:.1f} reads, many for UMIs and few for "
            f"reads; the counts are taken for {decided!r}. Pass count_type='umi' or 'reads'."
        )
    return decided


def to_molecules(reads: sp.csr_array, per_molecule: np.ndarray, divisor: np.ndarray) -> sp.csr_array:
    """Whole numbers of molecules, at least 1 where there are reads.

    Parameters
    ----------
    reads
        ``(n_cells, n_genes)``, without stored zeros.
    per_molecule, divisor
        ``(n_cells,)`` and ``(n_genes,)``: a molecule of gene j gives ``per_molecule[i] * divisor[j]`` reads in cell i.

    Returns
    -------
    float32 CSR array that shares its pattern with `reads`.
    """
    values = np.repeat(1.0 / per_molecule, np.diff(reads.indptr))
    values *= reads.data
    values /= divisor[reads.indices]
    np.maximum(np.rint(values, out=values), 1.0, out=values)
    return sp.csr_array((values.astype(np.float32), reads.indices, reads.indptr), shape=reads.shape)


def reads_of_cells(reads: sp.csr_array, library_size: np.ndarray, molecule_share: np.ndarray) -> np.ndarray:
    """Reads per molecule of any cells, from the number of genes that they show: ``(n_cells,)`` float64, at least 1.

    Parameters
    ----------
    reads
        ``(n_cells, n_genes)``, without stored zeros.
    library_size
        ``(n_cells,)`` total reads.
    molecule_share
        As :func:`estimate_reads` gives it.
    """
    molecules = _invert_detection(molecule_share, np.diff(reads.indptr))
    return np.maximum(library_size / molecules, 1.0)


def estimate_reads(
    reads: sp.csr_array, expect: Callable[[sp.csr_array], np.ndarray], sample: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimate how many reads a molecule gives from how zeros fall with what is expected.

    Parameters
    ----------
    reads
        ``(n_cells, n_genes)``, without stored zeros and without cells that have no reads.
    expect
        Gives for the molecules of some cells what is expected of each entry, ``(n_genes, n_cells)``.
    sample
        Positions of the cells for whose molecules it is asked.

    Returns
    -------
    divisor
        ``(n_genes,)`` reads that a molecule of the gene gives, relative to the average: genes differ in length.
    factor
        The same, so that the molecules of a gene give its reads: smaller, as few reads count as a molecule, too.
    molecule_share
        ``(n_genes,)`` share of the gene in the molecules of an average cell, on the scale on which
        :func:`reads_of_cells` counts molecules.

    Notes
    -----
    A gene is seen in a cell if at least one of its molecules is there, whatever number of reads that gives. Of n
    molecules, the share q of which are the gene's, one is there with the probability ``1 - exp(-n q)``. The number of
    genes that a cell shows thus gives its n, and the number of cells that show a gene its q. Reads over molecules are
    the reads per molecule. Genes that differ between cells have more zeros than that, and seem to give more reads than
    they do: they are estimated again, with what is expected of each entry instead of n q. What remains of such
    differences makes the numbers too large, by a few per cent to a tenth on thinned real data.
    """
    library_size, total = reads.sum(axis=1, dtype=np.float64), reads.sum(axis=0, dtype=np.float64)
    shown = np.diff(reads.indptr)
    seen, telling = _seen(reads)
    molecules, divisor = shown.astype(np.float64), np.ones(total.size)
    for _ in range(N_ROUNDS):
        divisor[telling] = total[telling] / (_invert_detection(molecules, seen[telling]) * library_size.sum())
        divisor[~telling] = _median(divisor[telling])
        share = total / (divisor * library_size.sum())
        # Remove the scale ambiguity between molecules and shares.
        divisor, share = divisor * share.sum(), share / share.sum()
        molecules = _invert_detection(share, shown)
    per_molecule = library_size / molecules
    level, divisor = _balanced(reads, per_molecule, divisor)

    own, per_own = reads[sample], level * per_molecule[sample]
    seen, telling = _seen(own)
    expected = expect(to_molecules(own, per_own, divisor)).astype(np.float64)
    # What is expected of a gene adds up to its reads, over those that a molecule of the average gene would give.
    worth = own.T @ (1.0 / per_own)
    expected *= np.divide(worth, expected.sum(axis=1), out=np.zeros_like(worth), where=worth > 0)[:, None]
    solved = np.empty(int(telling.sum()))
    solve_detection(expected[telling], seen[telling], solved)
    divisor[telling] = 1.0 / solved
    divisor[~telling & (seen > 0)] = _median(divisor[telling])
    change, divisor = _balanced(reads, level * per_molecule, divisor)

    per_molecule *= level * change
    given = to_molecules(reads, per_molecule, divisor).T @ per_molecule
    factor = np.divide(total, given, out=divisor.copy(), where=given > 0)
    return divisor, factor, share * (level * change)


def _seen(reads: sp.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Number of cells that show each gene, and whether that says something about the gene's molecules."""
    seen = np.bincount(reads.indices, minlength=reads.shape[1]).astype(np.float64)
    return seen, (seen > 0) & (seen < MAX_DETECTED * reads.shape[0])


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if values.size else 1.0


def _balanced(reads: sp.csr_array, per_molecule: np.ndarray, divisor: np.ndarray) -> tuple[float, np.ndarray]:
    """Shift a scale from the genes to the cells, so that the average molecule of all cells gives what cells say.

    Returns what `per_molecule` is to be multiplied by, and the new divisors.
    """
    molecules = to_molecules(reads, per_molecule, divisor).sum(axis=1, dtype=np.float64)
    scale = reads.sum(dtype=np.float64) / float(molecules @ per_molecule)
    return scale, divisor / scale


def _invert_detection(weights: np.ndarray, detected: np.ndarray) -> np.ndarray:
    """The x at which ``sum_j (1 - exp(-x weights_j))`` is each of the numbers detected."""
    weights = weights[weights > 0]
    grid = np.geomspace(0.01 / weights.sum(), 50.0 / weights.min(), N_GRID)
    curve = np.array([-np.expm1(-x * weights).sum() for x in grid])
    return np.exp(np.interp(np.minimum(detected, weights.size - 0.5), curve, np.log(grid)))


@parallel_kernel()
def solve_detection(expected, detected, out):  # type: ignore[no-untyped-def]
    """The x of each gene at which ``sum_i (1 - exp(-x expected[g, i]))`` is ``detected[g]``, by Newton's method.

    The sum is concave in x, so that steps from the left never go beyond the root.
    """
    for g in prange(expected.shape[0]):
        total = 0.0
        for i in range(expected.shape[1]):
            total += expected[g, i]
        x = detected[g] / total
        for _ in range(MAX_NEWTON):
            value, slope = 0.0, 0.0
            for i in range(expected.shape[1]):
                nothing = np.exp(-x * expected[g, i])
                value += 1.0 - nothing
                slope += expected[g, i] * nothing
            step = (detected[g] - value) / slope
            x += step
            if step < NEWTON_TOLERANCE * x:
                break
        out[g] = x
