"""What the default networks read: which genes, their correlated genes, and the inputs of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..._logging import logger
from ..._threads import single_threaded_pool
from .kernels import gather_blocks, join_features

if TYPE_CHECKING:
    from collections.abc import Iterator

MIN_DETECTION = (
    0.05  # share of cells; rarer genes keep what is expected without a network, as their counts hardly exceed 1
)
MIN_CELLS_DETECTED = 3  # for data of few cells
CORRELATION_BYTES = 2**24  # of a block of genes x genes; sorting takes six times as much
MIN_SQUARES = 1e-6  # guards genes without any residual


def network_genes(n_detected: np.ndarray, n_cells: int) -> np.ndarray:
    """Positions of the genes that a network predicts and reads, from the number of cells that have each."""
    return np.flatnonzero(n_detected >= max(MIN_DETECTION * n_cells, MIN_CELLS_DETECTED))


def correlated_genes(
    residuals: np.ndarray, n_top: int, *, targets: np.ndarray | None = None, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """For each target the genes of highest absolute correlation, and the correlations; both ``(n_targets, n_top)``.

    Parameters
    ----------
    residuals
        ``(n_cells, n_genes)`` of the genes; entries that are hidden count as no residual.
    n_top
        Genes of each target. With too few genes, all positions and correlations are 0.
    targets
        ``(n_cells, n_targets)`` residuals of the targets. Default: the genes.
    own
        ``(n_targets,)`` position of the gene that a target must not get. Default: its own.
    """
    n_genes = residuals.shape[1]
    n_targets = n_genes if targets is None else targets.shape[1]
    excluded = np.arange(n_genes) if own is None else own
    neighbours = np.zeros((n_targets, n_top), dtype=np.int64)
    correlations = np.zeros((n_targets, n_top), dtype=np.float32)
    if n_genes <= n_top:
        return neighbours, correlations
    dense = _unit_length(residuals)
    rows = dense if targets is None else _unit_length(targets)
    width = max(1, CORRELATION_BYTES // (4 * n_genes))

    def choose(start: int) -> None:
        block = rows[:, start : start + width].T @ dense
        block[np.arange(block.shape[0]), excluded[start : start + width]] = 0  # a target is not among its own inputs
        strength = np.abs(block)
        top = np.argpartition(-strength, n_top - 1, axis=1)[:, :n_top]
        order = np.argsort(-np.take_along_axis(strength, top, axis=1), axis=1, kind="stable")
        top = np.take_along_axis(top, order, axis=1)
        neighbours[start : start + width] = top
        correlations[start : start + width] = np.take_along_axis(block, top, axis=1)

    # Every block is one product on one thread, so that the choice does not depend on the number of threads.
    with single_threaded_pool() as pool:
        list(pool.map(choose, range(0, n_targets, width)))
    return neighbours, correlations


def _unit_length(residuals: np.ndarray) -> np.ndarray:
    length = np.sqrt(np.maximum(np.einsum("ij,ij->j", residuals, residuals), MIN_SQUARES))
    return residuals / length.astype(residuals.dtype)


def check_network(neighbours: np.ndarray, weights: list[np.ndarray]) -> None:
    """Refuse targets without a network, as of a damaged file.

    Raises
    ------
    ValueError
        With what is wrong.
    """
    if neighbours.shape[1] == 0:
        msg = "the array 'neighbours' has no columns"
        raise ValueError(msg)
    n_targets = int((neighbours[:, 0] >= 0).sum())
    if n_targets and not weights:
        msg = f"the network of {n_targets} target genes has no weights"
        raise ValueError(msg)


@dataclass(frozen=True, kw_only=True)
class GeneLayout:
    """Genes that a network reads and predicts, as columns of the counts.

    Attributes
    ----------
    genes
        ``(n_read,)`` columns that are read, rising.
    neighbours, correlations
        ``(n_read, n_top)`` positions among `genes`, and correlations.
    read_position, target_position
        ``(n_genes,)`` position of each column among `genes`; -1 for columns that are not read, or not predicted.
    """

    genes: np.ndarray
    neighbours: np.ndarray
    correlations: np.ndarray
    read_position: np.ndarray
    target_position: np.ndarray


def layout_of(gene_ids: np.ndarray, neighbours: np.ndarray, correlations: np.ndarray, wanted: np.ndarray) -> GeneLayout:
    """The layout for some of a network's targets; a warning says how many have lost some of their inputs.

    Parameters
    ----------
    gene_ids
        ``(n_genes,)`` id of each column.
    neighbours, correlations
        ``(n_genes, n_top)`` ids of the correlated genes, -1 for genes that are no targets; and correlations.
    wanted
        Columns to predict, rising.

    Returns
    -------
    The layout of the wanted targets whose inputs are all among the columns.
    """
    n_genes = gene_ids.size
    targets = wanted[neighbours[wanted, 0] >= 0]
    inputs = pd.Index(gene_ids).get_indexer(neighbours[targets].ravel()).reshape(-1, neighbours.shape[1])
    complete = (inputs >= 0).all(axis=1)
    if not complete.all():
        logger.warning(
            "%d genes are imputed without the network: some of their %d correlated genes were dropped from the data. "
            "Impute before genes are dropped, or keep the layer.",
            int((~complete).sum()),
            neighbours.shape[1],
        )
    targets, inputs = targets[complete], inputs[complete]
    genes = np.union1d(targets, inputs)
    read_position, target_position = np.full((2, n_genes), -1, dtype=np.int32)
    read_position[genes] = np.arange(genes.size)
    target_position[targets] = read_position[targets]
    positions = np.zeros((genes.size, neighbours.shape[1]), dtype=np.int64)
    positions[read_position[targets]] = read_position[inputs]
    return GeneLayout(
        genes=genes,
        neighbours=positions,
        correlations=correlations[genes],
        read_position=read_position,
        target_position=target_position,
    )


@dataclass(frozen=True, kw_only=True)
class InputBuffers:
    """Arrays that inputs are written into, reused for every batch: allocating costs more than filling.

    Attributes
    ----------
    blocks
        ``(n_rows, n_targets * n_top, n_channels + 1)`` float32.
    genes
        ``(n_rows, n_targets, n_features)`` float32.
    """

    blocks: np.ndarray
    genes: np.ndarray

    @classmethod
    def allocate(cls, n_rows: int, n_targets: int, n_top: int, n_channels: int, n_features: int) -> InputBuffers:
        """Buffers for so many rows of targets."""
        return cls(
            blocks=np.empty((n_rows, n_targets * n_top, n_channels + 1), dtype=np.float32),
            genes=np.empty((n_rows, n_targets, n_features), dtype=np.float32),
        )


def network_inputs(
    layout: GeneLayout,
    channels: np.ndarray,
    weighted: int,
    own: np.ndarray,
    shared: np.ndarray,
    scores: np.ndarray,
    loadings: np.ndarray,
    rows: tuple[np.ndarray, np.ndarray] | None = None,
    buffers: InputBuffers | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of correlated genes and features of the targets, for a batch.

    Parameters
    ----------
    layout
        The genes.
    channels
        What is known of each gene in each cell, ``(n_cells, n_read, n_channels)``.
    weighted
        Which channel is also multiplied by the correlation.
    own, shared
        Features of a target: in each cell, ``(n_cells, n_read, n_own)``, and in all cells, ``(n_read, n_shared)``.
    scores, loadings
        Of the cells and the genes; their products, component by component, are features too.
    rows
        ``(n_rows,)`` cell of each row and ``(n_rows, n_targets)`` genes in it. Default: all genes of each cell.
    buffers
        Arrays to fill and return, with at least as many rows. Default: new ones.

    Returns
    -------
    Float32 arrays ``(n_rows, n_targets * n_top, n_channels + 1)`` and ``(n_rows, n_targets, n_features)``.
    """
    if rows is None:
        n_cells, n_genes = channels.shape[:2]
        rows = np.arange(n_cells), np.tile(np.arange(n_genes), (n_cells, 1))
    cells, targets = rows
    if buffers is None:
        n_features = own.shape[2] + shared.shape[1] + loadings.shape[1]
        sizes = *targets.shape, layout.neighbours.shape[1], channels.shape[2], n_features
        buffers = InputBuffers.allocate(*sizes)
    blocks, genes = buffers.blocks[: cells.size], buffers.genes[: cells.size]
    gather_blocks(channels, weighted, layout.neighbours, layout.correlations, cells, targets, blocks)
    join_features(own, shared.astype(np.float32), scores, loadings, cells, targets, genes)
    return blocks, genes


def batches(rng: np.random.Generator, cells: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Endless batches: the cells in one random order after the other."""
    order = np.empty(0, dtype=cells.dtype)
    while True:
        while order.size < size:
            order = np.concatenate([order, rng.permutation(cells)])
        yield order[:size]
        order = order[size:]
