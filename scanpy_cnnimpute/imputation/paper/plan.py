"""What there is to train in a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..._logging import logger
from . import inputs as _inputs

if TYPE_CHECKING:
    import scipy.sparse as sp

    from ...presets import NetworkSettings
    from .inputs import DropoutBlock

STATUSES = (
    "imputed",
    "nothing missing",
    "not modelled",
    "too few cells",
    "no input genes",
    "training failed",
    "no gain",
)
"""What happened to a gene in a cluster; the codes are the positions. Only ``"imputed"`` changes values."""

IMPUTED, NOTHING_MISSING, NOT_MODELLED, TOO_FEW_CELLS, NO_INPUTS, TRAINING_FAILED, NO_GAIN = range(len(STATUSES))

# Nine cells to learn from and one to validate on.
FEWEST_CELLS = 10


@dataclass
class Task:
    """One network: the target genes of one subset in one cluster, and what it predicts them from."""

    cluster: int
    subset: int
    targets: np.ndarray
    inputs: np.ndarray
    weights: list[np.ndarray] | None = None


@dataclass(frozen=True)
class Plan:
    """The subsets of target genes of a cluster, and the genes that may be inputs."""

    subsets: list[np.ndarray]
    candidates: np.ndarray


def plan(
    name: str,
    cells: np.ndarray,
    counts: sp.csr_array,
    dropout: DropoutBlock,
    trusted: np.ndarray,
    settings: NetworkSettings,
) -> tuple[Plan, np.ndarray]:
    """Plan the networks of a cluster; also returns the codes of the status of its genes before any training."""
    status = np.full(counts.shape[1], NOTHING_MISSING, dtype=np.int8)
    if cells.size < FEWEST_CELLS:
        logger.info("cluster %s has %d cells, fewer than the %d it takes to train", name, cells.size, FEWEST_CELLS)
        status[:] = TOO_FEW_CELLS
        return Plan([], np.empty(0, dtype=np.int64)), status
    by_gene = counts[cells].tocsc()
    usable = trusted & ~_inputs.is_constant(by_gene)
    shares = _inputs.dropout_shares(by_gene, cells, dropout, settings.threshold)
    status[~trusted | ((shares > 0) & ~usable)] = NOT_MODELLED
    targets = np.flatnonzero((shares > 0) & usable)
    candidates = np.flatnonzero((shares <= settings.max_dropout) & usable)
    return Plan(_inputs.subsets(targets, settings), candidates), status
