"""How many molecules were missed at a zero: a network that corrects expected counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._threads import single_threaded_blas
from .features import BlockNetworks, batches, correlated_genes, network_inputs
from .kernels import count_targets, lay_known, lay_targets, take_predicted

if TYPE_CHECKING:
    from collections.abc import Iterator

    import scipy.sparse as sp
    from tqdm import tqdm

    from ...presets import BlockSettings
    from .features import PredictAt

N_CHANNELS = 3
N_OWN_FEATURES = 4
VALIDATION_SHARE = 0.1  # of the cells
FEWEST_VALIDATION_CELLS = 10
LOWEST_RATE = 1e-3  # added before a logarithm
FLOOR_VARIANCE = 0.01
RESIDUAL_RANGE = (-5.0, 8.0)
DESCRIBED_CELLS = 256  # at a time, for the correlations
PREDICTED_BLOCK = 1_000_000  # entries of cells x genes that are described at a time
PREDICTED_ENTRIES = 240_000  # of them, predicted at once: a call has a cost of its own
PREDICTED_SHAPES = 8
PREDICTED_TARGETS = 64


@dataclass(frozen=True, kw_only=True)
class ExpectedCounts:
    """What is expected of every count, and of each of two sets that the molecules of some cells were split into.

    Attributes
    ----------
    cells
        The cells that were split.
    train, test
        ``(cells.size, n_genes)`` counts of the two sets.
    train_scores, train_loadings
        ``(cells.size, k)`` and ``(n_genes, k)``; their product is expected of `train`, of which alone it was learnt.
    scores, loadings
        The same for all counts of all cells; factor by factor like those of `train`.
    shape
        ``(n_genes,)`` shapes of the negative binomial distributions around them.
    """

    cells: np.ndarray
    train: sp.csr_array
    test: sp.csr_array
    train_scores: np.ndarray
    train_loadings: np.ndarray
    scores: np.ndarray
    loadings: np.ndarray
    shape: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Counts and expectations, which inputs are made of, and features of the cells."""

    counts: sp.csr_array
    scores: np.ndarray
    loadings: np.ndarray  # of the network's genes
    cells: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What inputs are made of: float32, ``(n_cells, n_network_genes, ...)``, `cells` ``(n_cells, n_features)``.

    Filled again and again: memory that is new takes longer than what is written to it.
    """

    expected: np.ndarray
    level: np.ndarray
    channels: np.ndarray
    own: np.ndarray
    cells: np.ndarray

    @classmethod
    def room(cls, n_cells: int, n_genes: int, n_features: int) -> _Known:
        """For so many cells, to be filled."""
        shape = n_cells, n_genes
        return cls(
            expected=np.empty(shape, dtype=np.float32),
            level=np.empty(shape, dtype=np.float32),
            channels=np.empty((*shape, N_CHANNELS - 1), dtype=np.float32),
            own=np.empty((*shape, N_OWN_FEATURES), dtype=np.float32),
            cells=np.empty((n_cells, n_features), dtype=np.float32),
        )

    def first(self, n_cells: int) -> _Known:
        """Of the first cells."""
        return _Known(**{name: part[:n_cells] for name, part in vars(self).items()})


class RateNetworks(BlockNetworks):
    """Correct how many molecules are expected where none was counted.

    The network reads how far the counts of the genes most correlated with each target are from their expectations,
    the target's own count and expectation, and the cell's profile, all of one set of molecules; it learns the
    logarithm of what the other set holds over what was to be expected of it. The sets share no molecule, so that there
    is nothing to hide.

    Parameters
    ----------
    settings
        Of the preset.
    random_state
        Seed.
    expected
        Counts that were split, and their expectations.
    """

    # Half of what the conditional networks take: as accurate, in half of the time.
    batch_entries = 30_000
    largest_batch = 32

    def __init__(self, settings: BlockSettings, random_state: int, expected: ExpectedCounts) -> None:
        super().__init__(settings, random_state)
        self.expected = expected

    @property
    def n_stages(self) -> int:
        """Correlated genes, and the networks."""
        return 1 + self.settings.n_members

    def _fit(self, counts: sp.csr_array, cells: np.ndarray, bar: tqdm[Any]) -> None:
        """Train on the split counts of those of the cells that were split."""
        given = self.expected
        indices = counts.indices if cells.size == counts.shape[0] else counts[cells].indices
        # In parts, for they are cast.
        parts = np.array_split(indices, 1 + indices.size // 2**20)
        detected = np.sum([np.bincount(part, minlength=counts.shape[1]) for part in parts], axis=0)
        self._choose_genes(detected, cells.size)
        self._position = np.full(counts.shape[1], -1)
        self._position[self._genes] = np.arange(self._genes.size)
        self._shape = given.shape[self._genes]
        train = self._source(given.train, given.train_scores, given.train_loadings)
        split = np.flatnonzero(np.isin(given.cells, cells))
        mean = train.scores[split].mean(axis=0) @ train.loadings.T
        level = np.log(mean + LOWEST_RATE)
        residuals = np.empty((split.size, self._genes.size), dtype=np.float32)
        room = self._room(train, DESCRIBED_CELLS)
        for start in range(0, split.size, DESCRIBED_CELLS):
            part = slice(start, start + DESCRIBED_CELLS)
            residuals[part] = self._known(train, split[part], room).channels[..., 0]
        self._neighbours, self._correlations = correlated_genes(residuals, self.settings.n_top)
        self._features = np.column_stack([level - level.mean(), np.log(self._shape), self._correlations])
        bar.update()
        seeds = np.random.SeedSequence(self.random_state).spawn(self.settings.n_members)
        self.history, self._weights = [], []
        for member, seed in enumerate(seeds):
            if self._trainable:
                self._train(train, split, np.random.default_rng(seed), member)
            bar.update()

    def _source(self, counts: sp.csr_array, scores: np.ndarray, loadings: np.ndarray) -> _Source:
        depth = np.log(np.maximum(counts.sum(axis=1, dtype=np.float64), 1.0))
        profile = np.log(scores / np.maximum(scores.sum(axis=1, keepdims=True), 1e-12) + 1e-4)
        return _Source(
            counts=counts,
            scores=scores.astype(np.float32),
            loadings=loadings[self._genes].astype(np.float32),
            cells=np.column_stack([profile, depth - depth.mean()]).astype(np.float32),
        )

    def _room(self, source: _Source, n_cells: int) -> _Known:
        return _Known.room(n_cells, self._genes.size, source.cells.shape[1])

    def _known(self, source: _Source, rows: np.ndarray, room: _Known) -> _Known:
        """What the inputs of these cells are made of, in the first rows of the room for it."""
        known = room.first(rows.size)
        np.matmul(source.scores[rows], source.loadings.T, out=known.expected)
        np.add(known.expected, LOWEST_RATE, out=known.level)
        np.log(known.level, out=known.level)
        known.cells[:] = source.cells[rows]
        lay_known(
            source.counts.indptr,
            source.counts.indices,
            source.counts.data,
            rows,
            self._position,
            known.expected,
            known.level,
            self._shape.astype(np.float32),
            *np.array([FLOOR_VARIANCE, *RESIDUAL_RANGE], dtype=np.float32),
            known.channels,
            known.own,
        )
        return known

    def _inputs(
        self,
        known: _Known,
        cells: np.ndarray | None = None,
        targets: np.ndarray | None = None,
        room: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """Blocks of correlated genes, features of the targets and of the cells."""
        blocks, of_gene = network_inputs(
            known.channels,
            0,
            self._neighbours,
            self._correlations,
            known.own,
            self._features,
            # No components: the cell's profile is a feature of the cell alone.
            np.empty((len(known.cells), 0), dtype=np.float32),
            np.empty((self._genes.size, 0), dtype=np.float32),
            cells,
            targets,
            room,
        )
        return [blocks, of_gene, known.cells.copy() if cells is None else known.cells[cells]]

    def _input_room(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """For the inputs of as many rows of targets as are predicted at once."""
        n_rows = max(1, PREDICTED_ENTRIES // width // PREDICTED_SHAPES) * PREDICTED_SHAPES
        return (
            np.empty((n_rows, width * self.settings.n_top, N_CHANNELS), dtype=np.float32),
            np.empty((n_rows, width, N_OWN_FEATURES + self._features.shape[1]), dtype=np.float32),
        )

    def _network(self, weights: list[np.ndarray] | None = None, seed: int = 0, n_targets: int | None = None) -> Any:
        from .architecture import build_block_network, held_out_deviance

        sizes = (
            n_targets or self._genes.size,
            N_CHANNELS,
            N_OWN_FEATURES + self._features.shape[1],
            self.expected.scores.shape[1] + 1,
        )
        model = build_block_network(sizes, held_out_deviance, self.settings, seed)
        if weights is not None:
            model.set_weights(weights)
        return model

    def _train(self, source: _Source, split: np.ndarray, rng: np.random.Generator, member: int) -> None:
        """Train one network on most of these rows of the source; the others decide when it is best."""
        from .architecture import train_block_network

        model = self._network(seed=int(rng.integers(2**30)))
        first, second = (part.sum(axis=1, dtype=np.float64) for part in (self.expected.train, self.expected.test))
        ratio = np.divide(second, first, out=np.zeros_like(first), where=first > 0)
        test = self.expected.test[:, self._genes]
        order = rng.permutation(split)
        n_validation = max(min(FEWEST_VALIDATION_CELLS, split.size // 2), int(VALIDATION_SHARE * split.size))

        checked = self._check_rows(order[:n_validation])
        room = self._room(source, max(checked.size, self._batch_size()))

        def batch(rows: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
            known = self._known(source, rows, room)
            inputs = self._inputs(known)
            held_out = test[rows].toarray()
            # What is expected once the first set is known: all entries teach, though only zeros are imputed.
            factor = (self._shape + np.expm1(inputs[1][..., 2])) / (self._shape + known.expected)
            answer = np.stack([held_out, known.expected * ratio[rows][:, None] * factor], axis=-1)
            return inputs, answer.astype(np.float32)

        drawn = batches(rng, order[n_validation:], self._batch_size())
        history = train_block_network(
            model,
            lambda: batch(next(drawn)),
            batch(checked),
            self.settings,
        )
        self._remember(member, model, history)

    def predict(self, counts: sp.csr_array, cells: np.ndarray) -> Iterator[tuple[np.ndarray, PredictAt]]:
        """Blocks of cells with what predicts the log factor by which molecules expected after a zero are changed."""
        given = self.expected
        source = self._source(counts, given.scores, given.loadings)
        # Rows of few targets each, since those that are asked for differ from cell to cell.
        width = max(1, min(PREDICTED_TARGETS, self._genes.size))
        models = [self._network(weights, n_targets=width) for weights in self._weights]
        height = max(1, min(PREDICTED_BLOCK // counts.shape[1], cells.size))
        room = self._room(source, height), self._input_room(width)
        for start in range(0, cells.size, height):
            block = cells[start : start + height]

            def predict_at(
                indptr: np.ndarray, genes: np.ndarray, block: np.ndarray = block
            ) -> tuple[np.ndarray, np.ndarray]:
                found = np.zeros(genes.size, dtype=np.float32)
                if models:
                    self._correct(models, source, block, indptr, genes, room, found)
                return found, np.zeros_like(found)

            yield block, predict_at

    def _correct(
        self,
        models: list[Any],
        source: _Source,
        cells: np.ndarray,
        indptr: np.ndarray,
        genes: np.ndarray,
        room: tuple[_Known, tuple[np.ndarray, np.ndarray]],
        found: np.ndarray,
    ) -> None:
        """Write the mean prediction for entries of genes that the networks predict."""
        from .architecture import LARGEST_CORRECTION

        most_rows, width = room[1][1].shape[:2]
        sizes = np.empty(cells.size, dtype=np.int64)
        count_targets(indptr, genes, self._position, sizes)
        if not sizes.any():
            return
        # The targets of a cell stand one after the other; its last row is filled up.
        ends = np.cumsum(-(-sizes // width))
        first_row = np.concatenate([[0], ends[:-1]])
        row_cell, targets = np.empty(ends[-1], dtype=np.int64), np.empty((ends[-1], width), dtype=np.int64)
        lay_targets(indptr, genes, self._position, first_row, row_cell, targets)
        predicted = np.empty((row_cell.size, width), dtype=np.float32)
        with single_threaded_blas():
            known = self._known(source, cells, room[0])
        # Batches of few shapes: a new one is compiled anew.
        height = most_rows // PREDICTED_SHAPES
        for rows in np.array_split(np.arange(row_cell.size), -(-row_cell.size // most_rows)):
            padded = np.resize(rows, -(-rows.size // height) * height)
            blocks, of_gene = (part[: padded.size] for part in room[1])
            batch = self._inputs(known, row_cell[padded], targets[padded], (blocks, of_gene))
            outputs = [np.asarray(model.predict_on_batch(batch))[: rows.size] for model in models]
            predicted[rows] = np.mean(outputs, axis=0)
        np.clip(predicted, -LARGEST_CORRECTION, LARGEST_CORRECTION, out=predicted)
        take_predicted(indptr, genes, self._position, first_row, predicted, found)
