"""How many molecules were missed at a zero: a network that corrects expected counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .._threads import single_threaded_blas
from ._blocks import BlockNetworks, batches, correlated_genes, network_inputs, stacked

if TYPE_CHECKING:
    from collections.abc import Iterator

    import scipy.sparse as sp
    from tqdm import tqdm

    from ..presets import BlockSettings
    from ._blocks import PredictAt

N_CHANNELS = 3
N_OWN_FEATURES = 4
VALIDATION_SHARE = 0.1  # of the cells
FEWEST_VALIDATION_CELLS = 10
LOWEST_RATE = 1e-3  # added before a logarithm
FLOOR_VARIANCE = 0.01
RESIDUAL_RANGE = (-5.0, 8.0)
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
    """Counts, of all genes or of those of the network, and expectations, which inputs are made of."""

    counts: sp.csr_array
    scores: np.ndarray
    loadings: np.ndarray
    cells: np.ndarray  # features


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What inputs are made of: float32, ``(n_cells, n_network_genes, ...)``, `cells` ``(n_cells, n_features)``."""

    channels: np.ndarray
    own: np.ndarray
    cells: np.ndarray
    expected: np.ndarray


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
        self._shape = given.shape[self._genes]
        train = self._source(given.train, given.train_scores, given.train_loadings)
        # Chosen once: these cells are drawn again and again.
        train = replace(train, counts=given.train[:, self._genes])
        split = np.flatnonzero(np.isin(given.cells, cells))
        mean = train.scores[split].mean(axis=0) @ train.loadings.T
        level = np.log(mean + LOWEST_RATE)
        residuals = np.concatenate(
            [self._residuals(train, rows)[0] for rows in np.array_split(split, max(1, split.size // 256))]
        )
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

    def _residuals(self, source: _Source, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pearson residuals, counts and expectations, ``(n_rows, n_network_genes)`` float32."""
        part = source.counts[rows]
        part = part if part.shape[1] == self._genes.size else part[:, self._genes]
        counts = part.toarray().astype(np.float32)
        expected = source.scores[rows] @ source.loadings.T
        variance = expected + expected**2 / self._shape.astype(np.float32) + FLOOR_VARIANCE
        return np.clip((counts - expected) / np.sqrt(variance), *RESIDUAL_RANGE), counts, expected

    def _known(self, source: _Source, rows: np.ndarray) -> _Known:
        """What the inputs of these cells are made of."""
        residuals, counts, expected = self._residuals(source, rows)
        level = np.log(expected + np.float32(LOWEST_RATE))
        return _Known(
            channels=stacked(residuals, level),
            own=stacked(level, counts == 0, np.log1p(counts), residuals),
            cells=source.cells[rows],
            expected=expected,
        )

    def _inputs(
        self, known: _Known, cells: np.ndarray | None = None, targets: np.ndarray | None = None
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
        )
        return [blocks, of_gene, known.cells if cells is None else known.cells[cells]]

    def _network(self, weights: list[np.ndarray] | None = None, seed: int = 0, n_targets: int | None = None) -> Any:
        from ._block_model import build_block_network, held_out_deviance

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
        from ._block_model import train_block_network

        model = self._network(seed=int(rng.integers(2**30)))
        first, second = (part.sum(axis=1, dtype=np.float64) for part in (self.expected.train, self.expected.test))
        ratio = np.divide(second, first, out=np.zeros_like(first), where=first > 0)
        test = self.expected.test[:, self._genes]
        order = rng.permutation(split)
        n_validation = max(min(FEWEST_VALIDATION_CELLS, split.size // 2), int(VALIDATION_SHARE * split.size))

        def batch(rows: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
            known = self._known(source, rows)
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
            batch(self._check_rows(order[:n_validation])),
            self.settings,
        )
        self._remember(member, model, history)

    def predict(self, counts: sp.csr_array, cells: np.ndarray) -> Iterator[tuple[np.ndarray, PredictAt]]:
        """Blocks of cells with what predicts the log factor by which molecules expected after a zero are changed."""
        given = self.expected
        source = self._source(counts, given.scores, given.loadings)
        # Rows of few targets each, since those that are asked for differ from cell to cell.
        width = min(PREDICTED_TARGETS, self._genes.size)
        models = [self._network(weights, n_targets=width) for weights in self._weights]
        position = np.full(counts.shape[1], -1)
        position[self._genes] = np.arange(self._genes.size)
        height = max(1, PREDICTED_BLOCK // counts.shape[1])
        for start in range(0, cells.size, height):
            block = cells[start : start + height]

            def predict_at(
                indptr: np.ndarray, genes: np.ndarray, block: np.ndarray = block
            ) -> tuple[np.ndarray, np.ndarray]:
                found, target = np.zeros(genes.size, dtype=np.float32), position[genes]
                entries = np.flatnonzero(target >= 0)
                if models and entries.size:
                    sizes = np.diff(np.searchsorted(entries, indptr))
                    found[entries] = self._correct(models, source, block, sizes, target[entries], width)
                return found, np.zeros_like(found)

            yield block, predict_at

    def _correct(
        self,
        models: list[Any],
        source: _Source,
        cells: np.ndarray,
        sizes: np.ndarray,
        target: np.ndarray,
        width: int,
    ) -> np.ndarray:
        """Mean prediction for so many targets of each cell, which stand one after the other."""
        from ._block_model import LARGEST_CORRECTION

        n_rows = -(-sizes // width)  # of each cell; the last is filled up
        row_cell = np.repeat(np.arange(cells.size), n_rows)
        first_entry, first_row = np.cumsum(sizes) - sizes, np.cumsum(n_rows) - n_rows
        places = np.arange(target.size) + np.repeat(first_row * width - first_entry, sizes)
        targets = np.zeros((row_cell.size, width), dtype=np.int64)
        targets.ravel()[places] = target
        predicted = np.empty((row_cell.size, width), dtype=np.float32)
        with single_threaded_blas():
            known = self._known(source, cells)
        # Batches of few shapes: a new one is compiled anew.
        shape = max(1, PREDICTED_ENTRIES // width // PREDICTED_SHAPES)
        n_batches = -(-row_cell.size // (shape * PREDICTED_SHAPES))
        for rows in np.array_split(np.arange(row_cell.size), n_batches):
            padded = np.resize(rows, -(-rows.size // shape) * shape)
            batch = self._inputs(known, row_cell[padded], targets[padded])
            outputs = [np.asarray(model.predict_on_batch(batch))[: rows.size] for model in models]
            predicted[rows] = np.mean(outputs, axis=0)
        return np.clip(predicted.ravel()[places], -LARGEST_CORRECTION, LARGEST_CORRECTION)
