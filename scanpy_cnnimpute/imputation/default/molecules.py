"""Estimates of what was missed: the calibrated model's missed molecules, corrected by a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.special import expm1

from ..._logging import logger
from ..._matrix import positions_of
from ..._progress import progress_bar
from ..._records import array, array_list
from ..._threads import single_threaded_blas
from ...dropout.calibrated.splitting import split_molecules
from ...presets import DefaultSettings
from ..base import MIN_CELLS, Imputed, Imputer, gene_status
from .architecture import MAX_CORRECTION, held_out_deviance, shared_network
from .features import (
    GeneLayout,
    InputBuffers,
    batches,
    check_network,
    correlated_genes,
    layout_of,
    network_genes,
    network_inputs,
)
from .kernels import arrange_targets, collect_predictions, count_targets, describe_counts
from .selection import above_threshold
from .training import train_network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..._counts import Counts
    from ...dropout import Clusters, Dropout, ModelledDropout
    from ...dropout.calibrated import CalibratedCells, CalibratedModel
    from ...presets import Settings
    from ..base import FitOptions

N_CHANNELS = 2  # of each correlated gene: residual and level
N_OWN_FEATURES = 4  # of a target in a cell: level, whether its count is zero, log1p(count), residual
MIN_RATE = 1e-3  # added to expected counts before a logarithm
FLOOR_VARIANCE = 0.01  # of a count, so that the residual of a single unexpected molecule stays finite
RESIDUAL_RANGE = (-5.0, 8.0)  # beyond, residuals are clipped
MIN_SCORES = 1e-12  # guards cells without counts
MIN_PROFILE = 1e-4  # added to the shares of a cell's profile before the logarithm
# Batch sizes: half of the conditional network's, as accurate in half of the time.
BATCH_ENTRIES = 30_000
MIN_BATCH, MAX_BATCH = 2, 32
VALIDATION_SHARE = 0.1  # of the cells
MIN_VALIDATION_CELLS = 10
VALIDATION_ENTRIES = 300_000  # of cells x genes at most
DESCRIBED_CELLS = 256  # whose residuals are computed at a time
MAX_BLOCK_CELLS = 2_000  # cells whose counts are copied at a time
BLOCK_ENTRIES = 4_000_000  # of cells x genes that are predicted at a time, before those above the threshold are chosen
# Entries in one call of the network, in rows of so many targets; the number of rows takes one of so many values.
CALL_ENTRIES = 240_000
CALL_TARGETS = 64
CALL_SHAPES = 8


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Counts of some cells, their expectations, and features of the cells, for a network's genes."""

    counts: sp.csr_array
    scores: np.ndarray
    loadings: np.ndarray  # (n_read, n_factors)
    shape: np.ndarray  # (n_read,) float32
    shared: np.ndarray  # (n_read, n_features)
    depth: np.ndarray  # (n_cells,) centred log library size

    @property
    def n_cell_features(self) -> int:
        """Number of features of a cell."""
        return self.scores.shape[1] + 1

    def cell_features(self, rows: np.ndarray) -> np.ndarray:
        """Log profile and depth of some cells, ``(rows.size, n_cell_features)`` float32."""
        scores = self.scores[rows]
        profile = np.log(scores / np.maximum(scores.sum(axis=1, keepdims=True), MIN_SCORES) + MIN_PROFILE)
        return np.column_stack([profile, self.depth[rows]]).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class _Described:
    """Counts as a network sees them, ``(n_cells, n_read, ...)`` float32; buffers that are reused for every block."""

    expected: np.ndarray
    level: np.ndarray
    channels: np.ndarray
    own: np.ndarray

    @classmethod
    def allocate(cls, n_cells: int, n_genes: int) -> _Described:
        shape = n_cells, n_genes
        return cls(
            expected=np.empty(shape, dtype=np.float32),
            level=np.empty(shape, dtype=np.float32),
            channels=np.empty((*shape, N_CHANNELS), dtype=np.float32),
            own=np.empty((*shape, N_OWN_FEATURES), dtype=np.float32),
        )

    def fill(self, source: _Source, rows: np.ndarray, read_position: np.ndarray) -> _Described:
        """Describe these rows of the source in the first rows of the buffers; see :class:`GeneLayout`."""
        described = _Described(**{name: buffer[: rows.size] for name, buffer in vars(self).items()})
        with single_threaded_blas():
            np.matmul(source.scores[rows], source.loadings.T, out=described.expected)
        np.add(described.expected, MIN_RATE, out=described.level)
        np.log(described.level, out=described.level)
        describe_counts(
            source.counts.indptr,
            source.counts.indices,
            source.counts.data,
            rows,
            read_position,
            described.expected,
            described.level,
            source.shape,
            *np.array([FLOOR_VARIANCE, *RESIDUAL_RANGE], dtype=np.float32),
            described.channels,
            described.own,
        )
        return described


class CellBlock(NamedTuple):
    """Cells that are predicted together: positions, counts, description; and the wanted genes."""

    rows: np.ndarray
    counts: sp.csr_array
    cells: CalibratedCells
    genes: np.ndarray


Correct = Callable[[CellBlock, np.ndarray, np.ndarray], np.ndarray]
"""Gives the network's correction of CSR entries of a block, from their ``indptr`` and columns, float32."""


@dataclass(kw_only=True)
class MoleculeImputer(Imputer):
    """Predicts what zeros are worth from the number of molecules that were missed.

    The calibrated model says how many molecules are expected to be missed at a zero. A network corrects this number: it
    reads how far the counts of the genes most correlated with each target are from their expectations, the
    target's own count and expectation, and the cell's profile, all of one set of split molecules; it learns the
    logarithm of what the other set holds over its expectation.

    Attributes
    ----------
    gene_ids
        ``(n_genes,)`` ids that `neighbours` refers to.
    neighbours, correlations
        ``(n_genes, n_top)`` ids of the most correlated genes, -1 for genes without a network; and correlations.
    level
        ``(n_genes,)`` centred log expected count.
    status
        ``(n_genes, 1)`` positions in :data:`STATUSES`.
    depth_mean
        Mean log library size, where the feature of a cell is 0.
    weights
        Of the network; none if it was not trained.
    """

    preset: ClassVar[str] = "default"
    estimates: ClassVar[tuple[str, ...]] = ("posterior_mean", "expected_count")
    settings_type: ClassVar[type[Settings]] = DefaultSettings
    std_units: ClassVar[str | None] = "log1p(CP10k)"
    needs_calibrated: ClassVar[bool] = True
    dropout_model: ClassVar[str] = "calibrated"

    gene_ids: np.ndarray = array("i4", "genes")
    neighbours: np.ndarray = array("i4", "genes", "top")
    correlations: np.ndarray = array("f4", "genes", "top")
    level: np.ndarray = array("f4", "genes")
    status: np.ndarray = array("i1", "genes", "columns")
    depth_mean: float = array("f8")
    weights: list[np.ndarray] = array_list("f4")
    settings: Any = field(default_factory=DefaultSettings)
    estimate: str = "posterior_mean"
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def fit(cls, counts: Counts, dropout: Dropout, options: FitOptions) -> MoleculeImputer:
        """Choose the correlated genes and train the network on the cells that the dropout model was fitted to."""
        model, cells = calibrated(dropout)
        settings: Any = options.settings
        n_used = int((counts.totals.n_genes > 0).sum())
        status = gene_status(options, n_used)
        n_top = settings.n_top
        imputer = cls(
            gene_ids=model.gene_ids,
            neighbours=np.full((counts.shape[1], n_top), -1, dtype=np.int32),
            correlations=np.zeros((counts.shape[1], n_top), dtype=np.float32),
            level=np.zeros(counts.shape[1], dtype=np.float32),
            status=status,
            depth_mean=0.0,
            weights=[],
            settings=settings,
            estimate=options.estimate,
        )
        if n_used < MIN_CELLS:
            logger.info("%d cells have counts, fewer than the %d it takes to train a network", n_used, MIN_CELLS)
            return imputer
        with progress_bar("Fitting the imputer", 2, unit="steps") as bar:
            imputer._fit(counts, model, cells, options.random_state, bar)
        return imputer

    def _fit(self, counts: Counts, model: CalibratedModel, cells: CalibratedCells, random_state: int, bar: Any) -> None:
        genes = network_genes(counts.totals.n_cells, counts.shape[0])
        # Cells of the fit that are still there, and their scores in the first set of molecules.
        rows = np.flatnonzero(np.isin(cells.cell_ids, model.train_cells))
        ids = cells.cell_ids[rows]
        train_scores = model.train_scores[np.searchsorted(model.train_cells, ids)]
        own = model.molecules(counts.rows(rows), cells.take(cells=rows))
        train, test = split_molecules(own, ids, model.gene_ids, model.random_state)
        self.depth_mean = float(_log_depth(cells.n_molecules[rows]).mean()) if rows.size else 0.0
        mean = train_scores.mean(axis=0) @ model.train_loadings[genes].T if rows.size else np.ones(genes.size)
        level = np.log(mean + MIN_RATE)
        self.level[genes] = level - level.mean() if genes.size else level
        residuals = pearson_residuals(train, train_scores, model.train_loadings, model.shape, genes)
        neighbours, correlations = correlated_genes(residuals, self.settings.n_top)
        bar.update()
        n_used = int((np.diff(own.indptr) > 0).sum())
        if genes.size <= self.settings.n_top or n_used < MIN_CELLS:
            logger.warning(
                "The network is not trained, so that nothing corrects the dropout model: %d of the cells that the "
                "model was fitted to are left (at least %d are needed), and %d genes are seen in enough of them (more "
                "than n_top=%d). If cells were dropped since, run pp.dropout_prob again.",
                n_used,
                MIN_CELLS,
                genes.size,
                self.settings.n_top,
            )
        else:
            self.neighbours[genes], self.correlations[genes] = self.gene_ids[genes[neighbours]], correlations
            layout = layout_of(self.gene_ids, self.neighbours, self.correlations, genes)
            source = self._source(train, train_scores, model.train_loadings, model.shape, layout)
            self._train(source, test, layout, np.random.default_rng(random_state))
        bar.update()

    def _source(
        self,
        counts: sp.csr_array,
        scores: np.ndarray,
        loadings: np.ndarray,
        shape: np.ndarray,
        layout: GeneLayout,
        depth: np.ndarray | None = None,
    ) -> _Source:
        """Describe cells by their counts; default: depths are those of the counts, centred."""
        if depth is None:
            depth = _log_depth(counts.sum(axis=1, dtype=np.float64))
            depth -= depth.mean() if depth.size else 0.0
        genes = layout.genes
        return _Source(
            counts=counts,
            scores=scores,
            loadings=np.ascontiguousarray(loadings[genes]),
            shape=shape[genes].astype(np.float32),
            shared=np.column_stack([self.level[genes], np.log(shape[genes]), layout.correlations]),
            depth=depth,
        )

    def _inputs(
        self,
        source: _Source,
        described: _Described,
        of_cells: np.ndarray,
        layout: GeneLayout,
        rows: tuple[np.ndarray, np.ndarray] | None = None,
        buffers: InputBuffers | None = None,
    ) -> list[np.ndarray]:
        """Blocks of correlated genes, features of the targets and of the cells."""
        # No components: the cell's profile is a feature of the cell alone.
        none = np.empty((len(of_cells), 0), dtype=np.float32), np.empty((layout.genes.size, 0), dtype=np.float32)
        blocks, genes = network_inputs(
            layout, described.channels, 0, described.own, source.shared, *none, rows, buffers
        )
        return [blocks, genes, of_cells if rows is None else of_cells[rows[0]]]

    def _sizes(self, n_targets: int, n_cell_features: int) -> tuple[int, int, int, int]:
        return n_targets, N_CHANNELS + 1, N_OWN_FEATURES + 2 + self.neighbours.shape[1], n_cell_features

    def _train(self, source: _Source, test: sp.csr_array, layout: GeneLayout, rng: np.random.Generator) -> None:
        """Train on most cells; the others decide when the network is best."""
        n_cells, n_genes = source.counts.shape[0], layout.genes.size
        seed = int(rng.integers(2**30))
        first, second = (part.sum(axis=1, dtype=np.float64) for part in (source.counts, test))
        ratio = np.divide(second, first, out=np.zeros_like(first), where=first > 0)
        held_out = test[:, layout.genes]
        order = rng.permutation(n_cells)
        n_validation = max(min(MIN_VALIDATION_CELLS, n_cells // 2), int(VALIDATION_SHARE * n_cells))
        size = int(np.clip(BATCH_ENTRIES // n_genes, MIN_BATCH, MAX_BATCH))
        checked = order[:n_validation][: max(1, VALIDATION_ENTRIES // n_genes)]
        buffers = _Described.allocate(max(checked.size, size), n_genes)

        def batch(rows: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
            described = buffers.fill(source, rows, layout.read_position)
            inputs = self._inputs(source, described, source.cell_features(rows), layout)
            # What is expected once the first set is known: all entries teach.
            factor = (source.shape + expm1(inputs[1][..., 2])) / (source.shape + described.expected)
            expected = described.expected * ratio[rows][:, None] * factor
            answer = np.stack([held_out[rows].toarray(), expected], axis=-1)
            return inputs, answer.astype(np.float32)

        drawn = batches(rng, order[n_validation:], size)
        sizes = self._sizes(n_genes, source.n_cell_features)
        self.weights, history = train_network(
            sizes, held_out_deviance, lambda: batch(next(drawn)), batch(checked), self.settings, seed
        )
        self.history.append({"cluster": "all", "subset": 0, "n_targets": n_genes, "n_inputs": n_genes, **history})

    def check_consistent(self) -> None:
        """Refuse arrays that do not go together; see :meth:`Imputer.check_consistent`."""
        super().check_consistent()
        check_network(self.neighbours, self.weights)

    def predict(
        self,
        counts: sp.csr_array,
        dropout: Dropout,
        *,
        clusters: Clusters | None = None,
        genes: np.ndarray | None = None,
        return_std: bool = False,
    ) -> Iterator[Imputed]:
        """Posterior means of the entries that the imputer is for; see :meth:`Imputer.predict`."""
        model, cells = calibrated(dropout)
        wanted = self.imputable(genes)
        layout = layout_of(self.gene_ids, self.neighbours, self.correlations, wanted)
        correct = self._corrector(model, layout)
        height = max(1, min(MAX_BLOCK_CELLS, BLOCK_ENTRIES // max(wanted.size, layout.genes.size, 1)))
        for start in range(0, counts.shape[0] if wanted.size else 0, height):
            rows = np.arange(start, min(start + height, counts.shape[0]))
            block = CellBlock(rows, counts[rows], cells.take(cells=rows), wanted)
            indptr, columns, values, deviation = self._estimate(dropout, block, correct, return_std=return_std)
            yield Imputed(
                cells=rows,
                counts=block.counts,
                values=_csr_entries(values, columns, indptr, block.counts.shape),
                deviation=None if deviation is None else _csr_entries(deviation, columns, indptr, block.counts.shape),
            )

    def _estimate(
        self, dropout: Dropout, block: CellBlock, correct: Correct, *, return_std: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Entries of a block of cells that are predicted, as ``indptr`` and columns; values; standard deviations."""
        model, threshold = calibrated(dropout)[0], self.settings.threshold
        changed = dropout.changed(block.rows)  # type: ignore[attr-defined]
        if changed is None:
            indptr, columns, missed = model.missed_molecules(block.counts, block.cells, block.genes, threshold)
        else:
            indptr, columns, probability = above_threshold(block.counts, changed, block.genes, threshold)
            missed = model.missed_from(block.cells, indptr, columns, probability)
        values, deviation = model.posterior_mean(
            block.cells,
            indptr,
            columns,
            missed,
            correct(block, indptr, columns),
            logarithmic=self.estimate == "posterior_mean",
            return_std=return_std,
        )
        return indptr, columns, values, deviation

    def _corrector(self, model: CalibratedModel, layout: GeneLayout) -> Correct:
        """The network's correction of any block."""
        if not self.weights or not layout.genes.size:
            return lambda _block, _indptr, columns: np.zeros(columns.size, dtype=np.float32)
        width, n_rows = CALL_TARGETS, CALL_ENTRIES // CALL_TARGETS // CALL_SHAPES * CALL_SHAPES
        n_cell_features = model.loadings.shape[1] + 1
        network = shared_network(self._sizes(width, n_cell_features), self.neighbours.shape[1], held_out_deviance)
        n_features = N_OWN_FEATURES + 2 + self.neighbours.shape[1]
        buffers = InputBuffers.allocate(n_rows, width, self.neighbours.shape[1], N_CHANNELS, n_features)
        described: list[_Described] = []

        def correct(block: CellBlock, indptr: np.ndarray, columns: np.ndarray) -> np.ndarray:
            cells, rows = block.cells, np.arange(block.rows.size)
            correction = np.zeros(columns.size, dtype=np.float32)
            sizes = np.empty(rows.size, dtype=np.int64)
            count_targets(indptr, columns, layout.target_position, sizes)
            if not sizes.any():
                return correction
            # The targets of a cell stand one after the other.
            ends = np.cumsum(-(-sizes // width))
            first_row = np.concatenate([[0], ends[:-1]])
            row_cell, targets = np.empty(ends[-1], dtype=np.int64), np.empty((ends[-1], width), dtype=np.int64)
            arrange_targets(indptr, columns, layout.target_position, first_row, row_cell, targets)
            if not described:
                described.append(_Described.allocate(rows.size, layout.genes.size))
            # Depths of all genes, also of those that were dropped from the data since.
            depth = _log_depth(cells.n_molecules) - self.depth_mean
            molecules = model.molecules(block.counts, cells)
            source = self._source(molecules, cells.scores, model.loadings, model.shape, layout, depth)
            known = described[0].fill(source, rows, layout.read_position)
            of_cells = source.cell_features(rows)
            predicted = np.empty((row_cell.size, width), dtype=np.float32)
            height = n_rows // CALL_SHAPES
            for part in np.array_split(np.arange(row_cell.size), -(-row_cell.size // n_rows)):
                # Batches of few shapes: a new one is compiled anew.
                padded = np.resize(part, -(-part.size // height) * height)
                inputs = self._inputs(source, known, of_cells, layout, (row_cell[padded], targets[padded]), buffers)
                predicted[part] = network.predict(self.weights, inputs)[: part.size]
            np.clip(predicted, -MAX_CORRECTION, MAX_CORRECTION, out=predicted)
            collect_predictions(indptr, columns, layout.target_position, first_row, predicted, correction)
            return correction

        return correct


def calibrated(dropout: Dropout) -> tuple[CalibratedModel, CalibratedCells]:
    """The calibrated model behind the probabilities, and its description of the cells."""
    modelled: ModelledDropout = dropout  # type: ignore[assignment]
    return modelled.model, modelled.cells  # type: ignore[return-value]


def pearson_residuals(
    molecules: sp.csr_array, scores: np.ndarray, loadings: np.ndarray, shape: np.ndarray, genes: np.ndarray
) -> np.ndarray:
    """Residuals of some genes as the network reads them, ``(n_cells, genes.size)`` float32."""
    n_cells = molecules.shape[0]
    source = _Source(
        counts=molecules,
        scores=scores,
        loadings=np.ascontiguousarray(loadings[genes]),
        shape=shape[genes].astype(np.float32),
        # Residuals need no features.
        shared=np.empty((genes.size, 0)),
        depth=np.zeros(n_cells),
    )
    residuals = np.empty((n_cells, genes.size), dtype=np.float32)
    buffers = _Described.allocate(min(DESCRIBED_CELLS, n_cells), genes.size)
    read_position = positions_of(genes, molecules.shape[1])
    for start in range(0, n_cells, DESCRIBED_CELLS):
        part = np.arange(start, min(start + DESCRIBED_CELLS, n_cells))
        residuals[part] = buffers.fill(source, part, read_position).channels[..., 0]
    return residuals


def _csr_entries(values: np.ndarray, columns: np.ndarray, indptr: np.ndarray, shape: tuple[int, int]) -> sp.csr_array:
    """A CSR array of these entries."""
    return sp.csr_array((values, columns, indptr.astype(np.int32 if indptr[-1] < 2**31 else np.int64)), shape=shape)


def _log_depth(library_size: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(library_size, 1.0))
