"""What the networks of the default preset have in common: where they fill, and the genes they read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import scipy.sparse as sp

from ..._logging import logger
from ..._threads import single_threaded_blas
from ..paper.plan import FEWEST_CELLS, IMPUTED, NO_GAIN, NOT_MODELLED, NOTHING_MISSING, TOO_FEW_CELLS
from .kernels import join_features, lay_blocks, mark_missing, take_missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tqdm import tqdm

    from ...presets import BlockSettings
    from ..arrays import Predicted
    from ..paper.inputs import DropoutBlock

    PredictAt = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    """Takes, in the order of CSR, `indptr` and genes of some entries; gives predictions and their standard deviations,
    float32 vectors."""
    Estimate = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    """Takes cells and, in the order of CSR, their `indptr`, genes, predictions and dropout probabilities; gives counts
    and standard deviations."""

ALL = "all"
"""What stands for all clusters in the history of a network."""

MIN_DETECTION = 0.05  # rarer genes keep what is expected without a network: their counts hardly exceed 1
FEWEST_COUNTS = 3
PREDICTION_ENTRIES = 240_000  # predicted at once: a call has a cost of its own
LARGEST_PREDICTION = 256
VALIDATION_ENTRIES = 300_000
CORRELATION_BYTES = 2**27


class BlockNetworks(ABC):
    """Networks for all cells and genes.

    Parameters
    ----------
    settings
        Of the preset.
    random_state
        Seed.
    """

    batch_entries: ClassVar[int]
    """Of cells x genes in a training batch."""
    largest_batch: ClassVar[int]
    """Cells in it at most."""

    def __init__(self, settings: BlockSettings, random_state: int) -> None:
        self.settings = settings
        self.random_state = random_state
        self.history: list[dict[str, Any]] = []
        self.deviations: list[tuple[np.ndarray, sp.csr_array]] = []
        self._weights: list[list[np.ndarray]] = []

    @property
    @abstractmethod
    def n_stages(self) -> int:
        """Stages of the training, for the progress bar."""

    @abstractmethod
    def _fit(self, counts: sp.csr_array, cells: np.ndarray, bar: tqdm[Any]) -> None:
        """Train on some of the cells."""

    @abstractmethod
    def _network(self, weights: list[np.ndarray] | None = None, seed: int = 0) -> Any:
        """Build a network."""

    @abstractmethod
    def predict(self, counts: sp.csr_array, cells: np.ndarray) -> Iterator[tuple[np.ndarray, PredictAt]]:
        """Some of the cells, block by block, with what predicts their entries."""

    def fit_fill(
        self,
        counts: sp.csr_array,
        codes: np.ndarray,
        names: list[str],
        trusted: list[np.ndarray],
        block: DropoutBlock,
        *,
        closed: list[np.ndarray],
        estimate: Estimate | None = None,
        return_std: bool = False,
        verbose: bool = False,
    ) -> Iterator[tuple[np.ndarray, list[Predicted]]]:
        """Train on all cells that have a cluster; yields cells and what is predicted for them."""
        from tqdm.auto import tqdm

        cells = np.flatnonzero(codes >= 0)
        if cells.size < FEWEST_CELLS:
            logger.info("%d cells, fewer than the %d it takes to train", cells.size, FEWEST_CELLS)
            self.status = np.full((counts.shape[1], len(names)), TOO_FEW_CELLS, dtype=np.int8)
            return
        self.status = np.where(np.stack(closed, axis=1), NO_GAIN, NOTHING_MISSING).astype(np.int8)
        self.status[~np.stack(trusted, axis=1)] = NOT_MODELLED
        bar = tqdm(total=self.n_stages, desc="cnnImpute", unit="stage", disable=None if verbose else True)
        # The products of a batch are small, and threads that wait for the next take Keras' time.
        with bar, single_threaded_blas():
            self._fit(counts, cells, bar)
        yield from self.fill(counts, codes, block, estimate, return_std=return_std)

    def fill(
        self,
        counts: sp.csr_array,
        codes: np.ndarray,
        block: DropoutBlock,
        estimate: Estimate | None = None,
        *,
        return_std: bool = False,
    ) -> Iterator[tuple[np.ndarray, list[Predicted]]]:
        """Predict the missing entries of cells that have a cluster; yields blocks of cells.

        With `return_std`, `deviations` then holds the standard deviations of the same entries.
        """
        usable = ~np.isin(self.status.T, (NOT_MODELLED, NO_GAIN, TOO_FEW_CELLS))
        genes = np.arange(counts.shape[1])
        members = np.flatnonzero((codes >= 0) & np.asarray(usable.any(axis=1))[codes])
        self.deviations, imputed = [], np.zeros(usable.shape, dtype=bool)
        for cells, predict_at in self.predict(counts, members):
            probability = block(cells, genes)
            own, clusters = counts[cells], codes[cells]
            missing, sizes = np.empty(probability.shape, dtype=bool), np.empty(cells.size, dtype=np.int32)
            threshold = probability.dtype.type(self.settings.threshold)  # what equals it is not above it
            which = usable, clusters, threshold
            mark_missing(own.indptr, own.indices, probability, *which, missing, sizes, imputed)
            ends = np.concatenate([[0], np.cumsum(sizes)], dtype=np.int32)
            columns = np.empty(ends[-1], dtype=np.int32)
            probable = np.empty(ends[-1], dtype=np.float32)
            take_missing(missing, ends, probability, columns, probable)
            found, spread = predict_at(ends, columns)
            if estimate is not None:
                values, spread = estimate(cells, ends, columns, found, probable)
            else:
                values = np.expm1(found)
            if return_std:
                self.deviations.append((cells, sp.csr_array((spread, columns, ends), shape=missing.shape)))
            yield cells, [(genes, sp.csr_array((values, columns, ends), shape=missing.shape))]
        self.status[imputed.T] = IMPUTED

    def _choose_genes(self, detected: np.ndarray, n_cells: int) -> None:
        """Genes that a network predicts and reads."""
        self._genes = np.flatnonzero(detected >= max(MIN_DETECTION * n_cells, FEWEST_COUNTS))

    @property
    def _trainable(self) -> bool:
        return self._genes.size > self.settings.n_top

    def _batch_size(self) -> int:
        return int(np.clip(self.batch_entries // max(self._genes.size, 1), 2, self.largest_batch))

    def _prediction_size(self) -> int:
        return int(np.clip(PREDICTION_ENTRIES // max(self._genes.size, 1), 8, LARGEST_PREDICTION))

    def _check_rows(self, cells: np.ndarray) -> np.ndarray:
        """The first of these cells, for the validation loss."""
        return cells[: max(1, VALIDATION_ENTRIES // self._genes.size)]

    def _run_models(self, models: list[Any], rows: np.ndarray, inputs: Callable[[np.ndarray], list[np.ndarray]]) -> Any:
        """Mean prediction of the networks for a batch of at most the size for it; 0 without networks."""
        if not models:
            return np.float32(0)
        # One shape for all batches: a new one would be compiled anew.
        padded = np.resize(rows, self._prediction_size())
        with single_threaded_blas():
            batch = inputs(padded)
        return np.mean([np.asarray(model.predict_on_batch(batch))[: rows.size] for model in models], axis=0)

    def _remember(self, member: int, model: Any, history: dict[str, list[float]]) -> None:
        sizes = {"n_targets": int(self._genes.size), "n_inputs": int(self._genes.size)}
        self.history.append({"cluster": ALL, "subset": member, **sizes, **history})
        self._weights.append(model.get_weights())


def network_inputs(
    channels: np.ndarray,
    weighted: int,
    neighbours: np.ndarray,
    correlations: np.ndarray,
    own: np.ndarray,
    shared: np.ndarray,
    scores: np.ndarray,
    loadings: np.ndarray,
    cells: np.ndarray | None = None,
    targets: np.ndarray | None = None,
    room: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of correlated genes and features of the targets, for a batch.

    Parameters
    ----------
    channels
        What is known of each gene in each cell, ``(n_cells, n_genes, n_channels)``.
    weighted
        Which of them is also multiplied by the correlation.
    neighbours, correlations
        Of each target, ``(n_genes, n_top)``.
    own, shared
        Features of a target: in each cell, ``(n_cells, n_genes, n_own)``, and in all cells, ``(n_genes, n_shared)``.
    scores, loadings
        Of the cells and the genes; their products, component by component, are features too.
    cells, targets
        ``(n_rows,)`` cell of each row and ``(n_rows, n_targets)`` genes in it. Default: all genes of each cell.
    room
        What to return, to be filled. Default: new arrays.

    Returns
    -------
    Float32 arrays ``(n_rows, n_targets * n_top, n_channels + 1)`` and ``(n_rows, n_targets, n_features)``.
    """
    if cells is None or targets is None:
        n_cells, n_genes = channels.shape[:2]
        cells, targets = np.arange(n_cells), np.tile(np.arange(n_genes), (n_cells, 1))
    n_rows, n_targets = targets.shape
    if room is None:
        n_features = own.shape[2] + shared.shape[1] + loadings.shape[1]
        room = (
            np.empty((n_rows, n_targets * neighbours.shape[1], channels.shape[2] + 1), dtype=np.float32),
            np.empty((n_rows, n_targets, n_features), dtype=np.float32),
        )
    blocks, of_gene = room
    lay_blocks(channels, weighted, neighbours, correlations, cells, targets, blocks)
    join_features(own, shared.astype(np.float32), scores, loadings, cells, targets, of_gene)
    return blocks, of_gene


def stacked(*parts: np.ndarray) -> np.ndarray:
    """Channels or features side by side in the last dimension, float32."""
    return np.stack(parts, axis=-1, dtype=np.float32, casting="same_kind")


def batches(rng: np.random.Generator, cells: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Endless batches: the cells in one random order after the other."""
    order = np.empty(0, dtype=cells.dtype)
    while True:
        while order.size < size:
            order = np.concatenate([order, rng.permutation(cells)])
        yield order[:size]
        order = order[size:]


def correlated_genes(residuals: np.ndarray, n_top: int) -> tuple[np.ndarray, np.ndarray]:
    """For each gene the others of highest absolute correlation, and the correlations; both ``(n_genes, n_top)``.

    Entries that are not visible count as no residual.
    """
    n_genes = residuals.shape[1]
    if n_genes <= n_top:
        return np.zeros((n_genes, n_top), dtype=np.int64), np.zeros((n_genes, n_top), dtype=np.float32)
    dense = residuals / np.sqrt(np.maximum((residuals**2).sum(axis=0), 1e-6))
    neighbours = np.empty((n_genes, n_top), dtype=np.int64)
    correlations = np.empty((n_genes, n_top), dtype=np.float32)
    width = max(1, CORRELATION_BYTES // (4 * n_genes))
    for start in range(0, n_genes, width):
        block = dense[:, start : start + width].T @ dense
        own = np.arange(block.shape[0])
        block[own, start + own] = 0  # a target is not among its own inputs
        strength = np.abs(block)
        top = np.argpartition(-strength, n_top - 1, axis=1)[:, :n_top]
        order = np.argsort(-np.take_along_axis(strength, top, axis=1), axis=1, kind="stable")
        top = np.take_along_axis(top, order, axis=1)
        neighbours[start : start + width] = top
        correlations[start : start + width] = np.take_along_axis(block, top, axis=1)
    return neighbours, correlations
