"""The calibrated dropout model: fit, describe, predict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from ..._matrix import evenly_spaced, positions_of
from ..._progress import progress_bar
from ..._records import ArrayRecord, array, column
from ..._threads import single_threaded_blas
from ...metrics import reliability_curve
from ..base import CALLED, MIN_EFFICIENCY, Clusters, DropoutFit, DropoutModel
from ..read_counts import estimate_reads, reads_of_cells, to_molecules
from .factorisation import N_STARTS, combine, describe_cells, factorise
from .held_out import HeldOut
from .kernels import (
    count_missed,
    denoise,
    dropout_probability,
    missed_of_probability,
    series_coefficients,
    take_missed,
    value_missed,
)
from .splitting import split_molecules

if TYPE_CHECKING:
    import scipy.sparse as sp

    from ..._counts import Counts

TARGET_SUM = 1e4
"""Library size that logarithms refer to: log1p(CP10k), as in Scanpy's usual steps."""

# The assumed depth of a deeper run; both tuned on recovered figures of thinned real counts.
MORE_MOLECULES = 4000.0
MAX_TIMES = 1.65

MAX_CELLS = 5_000
"""Cells that the model is fitted to, drawn at random; more cells changed no figure by more than 0.5 %."""
MAX_SHAPE_ENTRIES = 4_000_000  # entries that shapes are fitted to: 270 cells of 15,000 genes
MAX_READ_ENTRIES = 10_000_000  # of cells x genes that reads per molecule are estimated from: 500 cells of 20,000 genes
DESCRIBED_CELLS = 5_000  # described at a time
SUMMARY_CELLS = 2_000  # cells that the summary is taken over, evenly spaced within the clusters
TINY = float(np.finfo(np.float64).tiny)  # what is divided by is larger
SUMMARY_BLOCK = 64  # cells at a time


def depth_efficiency(library_size: np.ndarray) -> np.ndarray:
    """Share of the molecules that was counted, if the missed ones are those that a deeper run would count next.

    Parameters
    ----------
    library_size
        ``(n_cells,)`` total counts.

    Returns
    -------
    ``(n_cells,)`` float32, at least 1 / 2.65.

    Notes
    -----
    A deeper run counts 4,000 more molecules of the cell, but at most 1.65 times those that were counted. The share of
    *all* molecules of a cell cannot be told from its counts.
    """
    more = np.minimum(MORE_MOLECULES, MAX_TIMES * library_size)
    share = np.divide(library_size, library_size + more, out=np.ones(library_size.size), where=library_size > 0)
    return share.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class CalibratedCells(ArrayRecord):
    """What the calibrated model knows of some cells.

    Attributes
    ----------
    scores
        ``(n_cells, n_factors)``: their product with the loadings is the expected count.
    library_size
        ``(n_cells,)`` total counts.
    capture_efficiency
        ``(n_cells,)`` share of the molecules that was counted.
    reads_per_molecule
        ``(n_cells,)`` reads that the average molecule gives; None if molecules were counted.
    cell_ids
        ``(n_cells,)`` position of the cell in the data of the fit; -1 for other cells.
    """

    scores: np.ndarray = array("f4", "cells", "factors")
    library_size: np.ndarray = column("f8")
    capture_efficiency: np.ndarray = column("f4")
    cell_ids: np.ndarray = array("i4", "cells")
    reads_per_molecule: np.ndarray | None = column("f8", optional=True)

    def check_consistent(self) -> None:
        """Refuse values that no fit gives; see :meth:`ArrayRecord.check_consistent`."""
        self._check_range("scores", 0)
        self._check_range("cell_ids", -1)
        self._check_range("library_size", 0)
        self._check_range("capture_efficiency", MIN_EFFICIENCY / 2, 1)  # half: single precision rounds
        self._check_range("reads_per_molecule", TINY)

    @property
    def n_molecules(self) -> np.ndarray:
        """``(n_cells,)`` molecules that were counted."""
        return self.library_size if self.reads_per_molecule is None else self.library_size / self.reads_per_molecule


@dataclass(frozen=True, kw_only=True)
class CalibratedModel(DropoutModel):
    """Expected counts by Poisson factorisation, their spread by molecular cross-validation, and sampling.

    Attributes
    ----------
    loadings
        ``(n_genes, n_factors)``: their product with the scores of a cell is the expected count.
    shape
        ``(n_genes,)`` shape r of the negative binomial distribution of the counts around it; small is over-dispersed.
    gain
        ``(n_genes,)`` gain on held-out molecules over the gene's mean or, if larger, over leaving the zeros, in
        standard errors.
    train_loadings
        ``(n_genes, n_factors)`` loadings fitted to the first set of split molecules alone.
    reads_divisor
        ``(n_genes,)`` reads that a molecule of the gene gives, relative to the average molecule, to turn reads into
        molecules; see :func:`~scanpy_cnnimpute.dropout.read_counts.estimate_reads`. None if molecules were counted.
    reads_factor
        The same, to turn molecules into reads.
    molecule_share
        ``(n_genes,)`` share of the gene in the molecules, on the scale of the reads per molecule: of few genes it may
        be above 1. None if molecules were counted.
    gene_ids
        ``(n_genes,)`` position of the gene in the data of the fit.
    train_cells
        ``(n_train,)`` positions of the cells of the fit, rising.
    train_scores
        ``(n_train, n_factors)`` their scores in the first set.
    random_state
        Seed, by which the same molecules can be split off again.

    Notes
    -----
    The rate of a gene in a cell is gamma distributed with shape r around its expectation, of which the share c is
    counted, mu on average. After a count of zero the number of missed molecules is negative binomial with shape r and
    mean ``m = mu (1 / c - 1) r / (r + mu)``, and ``P(missed > 0) = 1 - (1 + m / r) ** -r``.
    """

    name: ClassVar[str] = "calibrated"
    cells_type: ClassVar[type[ArrayRecord]] = CalibratedCells
    needs_clusters: ClassVar[bool] = False
    counts_molecules: ClassVar[bool] = True

    loadings: np.ndarray = array("f4", "genes", "factors")
    shape: np.ndarray = array("f8", "genes")
    gain: np.ndarray = array("f8", "genes", may_be_nan=True)
    train_loadings: np.ndarray = array("f4", "genes", "factors")
    gene_ids: np.ndarray = array("i4", "genes")
    train_cells: np.ndarray = array("i4", "train")
    train_scores: np.ndarray = array("f4", "train", "factors")
    random_state: int = array("i8")
    reads_divisor: np.ndarray | None = array("f8", "genes", optional=True)
    reads_factor: np.ndarray | None = array("f8", "genes", optional=True)
    molecule_share: np.ndarray | None = array("f8", "genes", optional=True)

    @classmethod
    def fit(
        cls,
        counts: Counts,
        *,
        clusters: Clusters | None = None,
        capture_efficiency: np.ndarray | None = None,
        count_type: str = "umi",
        random_state: int = 0,
    ) -> DropoutFit:
        """Fit to at most `MAX_CELLS` cells and describe all; see :meth:`DropoutModel.fit`."""
        draw_seed, seeds, read_seed = _seeds(random_state)
        drawn = _draw_cells(counts.totals.n_genes > 0, np.random.default_rng(draw_seed))
        own = counts.rows(drawn)
        divisor = factor = share = None
        if count_type == "reads":
            divisor, factor, share = _estimate_reads(own, read_seed)
            own = to_molecules(own, reads_of_cells(own, counts.totals.library_size[drawn], share), divisor)
        gene_ids = np.arange(counts.shape[1], dtype=np.int32)
        train, test = split_molecules(own, drawn, gene_ids, random_state)

        starts = factorise(train, [np.random.default_rng(seed) for seed in seeds])
        train_scores, train_loadings = combine(starts)
        judged = evenly_spaced(drawn.size, max(1, MAX_SHAPE_ENTRIES // max(counts.shape[1], 1)))
        sample = HeldOut(train[judged], test[judged], train_scores[judged], train_loadings)
        shape = sample.shapes()
        stated, present = sample.calibration(shape)
        gain = HeldOut(train, test, train_scores, train_loadings).gain(shape)

        scores, loadings = combine(factorise(own, starts))
        model = cls(
            loadings=loadings,
            shape=shape,
            gain=gain,
            train_loadings=train_loadings,
            reads_divisor=divisor,
            reads_factor=factor,
            molecule_share=share,
            gene_ids=gene_ids,
            train_cells=drawn.astype(np.int32),
            train_scores=train_scores,
            random_state=random_state,
        )

        def of_block(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
            first, last = np.searchsorted(drawn, [rows[0], rows[-1] + 1])
            told = None if capture_efficiency is None else capture_efficiency[rows]
            return drawn[first:last] - rows[0], scores[first:last], told

        cells = CalibratedCells.joined(counts.map(model._describe, "Describing cells", by_cell=of_block))
        cells = replace(cells, cell_ids=np.arange(counts.shape[0], dtype=np.int32))
        curve = reliability_curve(present, stated) if stated.size else _NO_CURVE
        return DropoutFit(model=model, cells=cells, tables={"reliability": curve})

    def check_consistent(self) -> None:
        """Refuse values that no fit gives; see :meth:`ArrayRecord.check_consistent`."""
        for name in ("loadings", "train_loadings", "train_scores", "random_state", "gene_ids", "train_cells"):
            self._check_range(name, 0)
        self._check_range("molecule_share", 0)
        for name in ("shape", "reads_divisor", "reads_factor"):
            self._check_range(name, TINY)
        if (np.diff(self.train_cells) <= 0).any():
            msg = "the array 'train_cells' does not rise"
            raise ValueError(msg)

    def describe(
        self,
        counts: sp.csr_array,
        *,
        clusters: Clusters | None = None,
        capture_efficiency: np.ndarray | None = None,
    ) -> CalibratedCells:
        """Scores of any cells from their own counts, the loadings fixed."""
        none = np.empty(0, dtype=np.int64), np.empty((0, self.loadings.shape[1]), dtype=np.float32)
        return self._describe(counts, (*none, capture_efficiency))

    def _describe(
        self, counts: sp.csr_array, of_cells: tuple[np.ndarray, np.ndarray, np.ndarray | None]
    ) -> CalibratedCells:
        """Describe cells, of which some are known, with their scores; and the capture efficiency of all, if known."""
        known, known_scores, capture_efficiency = of_cells
        library_size = counts.sum(axis=1, dtype=np.float64)
        per_molecule = None
        if self.reads_divisor is not None and self.molecule_share is not None:
            per_molecule = reads_of_cells(counts, library_size, self.molecule_share)
            counts = to_molecules(counts, per_molecule, self.reads_divisor)
        return CalibratedCells(
            scores=self._scores(counts, known, known_scores),
            cell_ids=np.full(counts.shape[0], -1, dtype=np.int32),
            **_sampling(library_size, per_molecule, capture_efficiency),
        )

    def molecules(self, counts: sp.csr_array, cells: CalibratedCells) -> sp.csr_array:
        """The counts of these cells as molecules; the same object if molecules were counted."""
        if self.reads_divisor is None or cells.reads_per_molecule is None:
            return counts
        return to_molecules(counts, cells.reads_per_molecule, self.reads_divisor)

    def _scores(self, counts: sp.csr_array, known: np.ndarray, known_scores: np.ndarray) -> np.ndarray:
        """Scores of all cells: those known, the others described."""
        scores = np.empty((counts.shape[0], self.loadings.shape[1]), dtype=np.float32)
        scores[known] = known_scores
        others = np.setdiff1d(np.arange(counts.shape[0]), known)
        with progress_bar("Describing cells", others.size, unit="cells") as bar:
            for start in range(0, others.size, DESCRIBED_CELLS):
                part = others[start : start + DESCRIBED_CELLS]
                scores[part] = describe_cells(counts[part], self.loadings)
                bar.update(part.size)
        return scores

    @property
    def count_type(self) -> str:
        """``"umi"`` if molecules were counted, ``"reads"`` if reads were."""
        return "umi" if self.reads_factor is None else "reads"

    @property
    def modelled(self) -> np.ndarray:
        """Genes with a count in the cells of the fit, ``(n_genes, 1)``."""
        return (self.loadings != 0).any(axis=1, keepdims=True)

    @cached_property
    def _loadings_by_factor(self) -> np.ndarray:
        return np.ascontiguousarray(self.loadings.T)

    @cached_property
    def _series(self) -> np.ndarray:
        return series_coefficients(self.shape)

    def probability(self, counts: sp.csr_array, cells: CalibratedCells) -> np.ndarray:
        """Probability that a zero hides a molecule; 0 where something was counted."""
        out = np.empty((cells.library_size.size, self.shape.size), dtype=np.float32)
        dropout_probability(
            counts.indptr,
            counts.indices,
            cells.scores,
            self._loadings_by_factor,
            self.shape,
            cells.capture_efficiency,
            out,
        )
        return out

    def missed_molecules(
        self, counts: sp.csr_array, cells: CalibratedCells, wanted: np.ndarray, threshold: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Zeros whose dropout probability exceeds a threshold, with the expected number of missed molecules.

        Parameters
        ----------
        counts
            ``(n_cells, n_genes)`` counts of the cells.
        cells
            Their description.
        wanted
            Genes to look at, rising.
        threshold
            Dropout probability.

        Returns
        -------
        ``indptr``, genes and molecules of the entries in the order of CSR.
        """
        shape = self.shape[wanted].astype(np.float32)
        arguments = (
            counts.indptr,
            counts.indices,
            positions_of(wanted, self.shape.size),
            cells.scores,
            self._loadings_by_factor if wanted.size == self.shape.size else self.loadings[wanted].T.copy(),
            shape,
            _times(cells),
            _missed_at(threshold, shape),
        )
        sizes = np.empty(counts.shape[0], dtype=np.int64)
        count_missed(*arguments, sizes)
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        genes, missed = np.empty(indptr[-1], dtype=np.int32), np.empty(indptr[-1], dtype=np.float32)
        take_missed(*arguments, wanted, indptr, genes, missed)
        return indptr, genes, missed

    def missed_from(
        self, cells: CalibratedCells, indptr: np.ndarray, genes: np.ndarray, probability: np.ndarray
    ) -> np.ndarray:
        """Expected number of missed molecules that given dropout probabilities of CSR entries imply, float32."""
        missed = np.empty(genes.size, dtype=np.float32)
        missed_of_probability(indptr, genes, probability, self.shape, _times(cells), missed)
        return missed

    def posterior_mean(
        self,
        cells: CalibratedCells,
        indptr: np.ndarray,
        genes: np.ndarray,
        missed: np.ndarray,
        correction: np.ndarray,
        *,
        logarithmic: bool,
        return_std: bool = False,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """What a count of zero is expected to be worth, were all molecules counted.

        Parameters
        ----------
        cells, indptr, genes
            Entries whose count is zero: those of cell i are in the genes ``genes[indptr[i]:indptr[i + 1]]``.
        missed
            Their expected numbers of missed molecules.
        correction
            Logarithms of the factors that these numbers are multiplied by.
        logarithmic
            Take the mean of log1p(CP10k) and turn it back into counts, rather than the mean of the counts.
        return_std
            Also return standard deviations.

        Returns
        -------
        Counts, or reads, at the library size of the cell and, or ``None``, the standard deviation of log1p(CP10k),
        float32.

        Notes
        -----
        With N missed molecules, each worth ``s = 10,000 c / L`` per 10,000: the mean of log1p(s N), which is the
        probability that there are any times the mean given that there are. The mean of the logarithms minimises the
        squared error of log-normalised data, the mean of the counts the deviance of counts.
        """
        values = np.empty(genes.size, dtype=np.float32)
        deviation = np.empty(genes.size if return_std else 0, dtype=np.float32)
        of_cells = cells.capture_efficiency, cells.n_molecules
        value_missed(
            indptr,
            genes,
            missed,
            correction,
            self.shape,
            self._series,
            *of_cells,
            TARGET_SUM,
            logarithmic,
            values,
            deviation,
        )
        self._to_counts(values, cells, indptr, genes)
        return values, deviation if return_std else None

    def denoised(
        self,
        counts: sp.csr_array,
        cells: CalibratedCells,
        wanted: np.ndarray,
        correction: np.ndarray,
        *,
        logarithmic: bool,
        depth: float | None = None,
        return_std: bool = False,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """What every entry of some genes is expected to be, given its own count.

        Parameters
        ----------
        counts, cells
            ``(n_cells, n_genes)`` counts of the cells, and their description.
        wanted
            The genes, rising.
        correction
            ``(n_cells * wanted.size,)`` logarithms of the factors that what is expected is multiplied by.
        logarithmic
            Take the mean of log1p(CP10k) and turn it back into counts, rather than the mean of the counts.
        depth
            Library size of the new counts that are meant. Default: that of the cell.
        return_std
            Also return standard deviations.

        Returns
        -------
        ``(n_cells * wanted.size,)`` float32: counts, or reads, at library size `depth`, and, or ``None``, the standard
        deviation of log1p(CP10k) of new counts there.

        Notes
        -----
        Given the count y, the rate is gamma distributed with shape ``r + y`` and mean ``(r + y) / (r + mu) mu``. New
        counts at the depth d of a cell with library size L are negative binomial with that shape and d / L times that
        mean.
        """
        molecules = self.molecules(counts, cells)
        own_depth = np.maximum(cells.n_molecules, 1.0)
        values = np.empty(correction.size, dtype=np.float32)
        deviation = np.empty(correction.size if return_std else 0, dtype=np.float32)
        denoise(
            molecules.indptr,
            molecules.indices,
            molecules.data.astype(np.float32, copy=False),
            positions_of(wanted, self.shape.size),
            cells.scores,
            self._loadings_by_factor if wanted.size == self.shape.size else self.loadings[wanted].T.copy(),
            self.shape[wanted],
            correction,
            own_depth,
            own_depth if depth is None else depth * own_depth / np.maximum(cells.library_size, 1.0),
            TARGET_SUM,
            logarithmic,
            values,
            deviation,
        )
        genes = np.tile(wanted, counts.shape[0])
        self._to_counts(values, cells, np.arange(counts.shape[0] + 1) * wanted.size, genes)
        return values, deviation if return_std else None

    def _to_counts(self, values: np.ndarray, cells: CalibratedCells, indptr: np.ndarray, genes: np.ndarray) -> None:
        """Turn the molecules of CSR entries into counts of the kind that the model was fitted to, in place."""
        if self.reads_factor is not None and cells.reads_per_molecule is not None:
            values *= np.repeat(cells.reads_per_molecule, np.diff(indptr)).astype(np.float32)
            values *= self.reads_factor.astype(np.float32)[genes]

    def summary(self, counts: Counts, cells: CalibratedCells, clusters: Clusters) -> pd.DataFrame:
        """Cells, modelled genes, zeros called dropouts, mean probability of the zeros, and genes that gain.

        The zeros are those of at most `SUMMARY_CELLS` cells, evenly spaced within the clusters.
        """
        members = [np.flatnonzero(clusters.codes == code) for code in range(len(clusters.names))]
        share = SUMMARY_CELLS / max(sum(each.size for each in members), 1)
        gain = (self.gain > 0).sum() / max(np.isfinite(self.gain).sum(), 1)
        samples = [each[evenly_spaced(each.size, max(1, round(share * each.size)))] for each in members]
        sampled = np.unique(np.concatenate(samples))
        counts_of_sample, cells_of_sample = counts.rows(sampled), cells.take(cells=sampled)
        rows = []
        for each, sample in zip(members, samples, strict=True):
            n_zeros, n_called, total = 0, 0, 0.0
            for start in range(0, sample.size, SUMMARY_BLOCK):
                part = np.searchsorted(sampled, sample[start : start + SUMMARY_BLOCK])
                own = counts_of_sample[part]
                block = self.probability(own, cells_of_sample.take(cells=part))
                n_zeros += block.size - own.nnz
                n_called += int((block > CALLED).sum())
                total += float(block.sum(dtype=np.float64))
            rows.append(
                {
                    "n_cells": each.size,
                    "n_modelled": int(self.modelled.sum()),
                    "zeros_called": n_called / max(n_zeros, 1),
                    "dropouts": total / max(n_zeros, 1),
                    "gain": gain,
                }
            )
        return pd.DataFrame(rows)


_NO_CURVE = pd.DataFrame({"probability": [], "share": [], "n": []})


def molecules_of(reads: sp.csr_array, random_state: int) -> sp.csr_array:
    """The molecules that a model fitted to these reads with this seed works on."""
    draw_seed, _, read_seed = _seeds(random_state)
    drawn = _draw_cells(np.diff(reads.indptr) > 0, np.random.default_rng(draw_seed))
    divisor, _, share = _estimate_reads(reads[drawn], read_seed)
    return to_molecules(reads, reads_of_cells(reads, reads.sum(axis=1, dtype=np.float64), share), divisor)


def _seeds(random_state: int) -> tuple[np.random.SeedSequence, list[np.random.SeedSequence], np.random.SeedSequence]:
    """Seeds of the draw of cells, of the random starts, and of reads per molecule."""
    draw_seed, *seeds, read_seed = np.random.SeedSequence(random_state).spawn(2 + N_STARTS)
    return draw_seed, seeds, read_seed


def _estimate_reads(reads: sp.csr_array, seed: np.random.SeedSequence) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """See :func:`~scanpy_cnnimpute.dropout.read_counts.estimate_reads`; what is expected is of one factorisation."""

    def expect(molecules: sp.csr_array) -> np.ndarray:
        scores, loadings = combine(factorise(molecules, [np.random.default_rng(seed)]))
        return loadings @ scores.T

    reads = reads[np.diff(reads.indptr) > 0]
    sample = evenly_spaced(reads.shape[0], max(1, MAX_READ_ENTRIES // max(reads.shape[1], 1)))
    with single_threaded_blas():
        return estimate_reads(reads, expect, sample)


def _sampling(
    library_size: np.ndarray, per_molecule: np.ndarray | None, capture_efficiency: np.ndarray | None
) -> dict[str, Any]:
    """Library sizes, reads per molecule, and the capture efficiency as given or assumed."""
    molecules = library_size if per_molecule is None else library_size / per_molecule
    efficiency = depth_efficiency(molecules) if capture_efficiency is None else capture_efficiency
    return {
        "library_size": library_size,
        "capture_efficiency": np.asarray(efficiency, dtype=np.float32),
        "reads_per_molecule": per_molecule,
    }


def _draw_cells(usable: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Positions of the cells to fit, rising: all, or a random draw of those with counts."""
    if usable.size <= MAX_CELLS:
        return np.arange(usable.size)
    return np.sort(rng.permutation(np.flatnonzero(usable))[:MAX_CELLS])


def _times(cells: CalibratedCells) -> np.ndarray:
    """Missed over counted molecules of each cell, ``1 / c - 1``, float32."""
    return (1.0 / cells.capture_efficiency.astype(np.float64) - 1.0).astype(np.float32)


def _missed_at(threshold: float, shape: np.ndarray) -> np.ndarray:
    """Expected missed molecules at which the dropout probability is the threshold."""
    with np.errstate(over="ignore"):  # no number of missed molecules may be enough
        return (shape * np.expm1(-np.log1p(-threshold) / shape)).astype(np.float32)
