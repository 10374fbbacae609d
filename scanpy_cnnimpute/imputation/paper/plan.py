"""What there is to train in a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..._logging import logger
from ..base import MIN_CELLS, NOT_MODELLED, NOTHING_MISSING, TOO_FEW_CELLS
from . import inputs

if TYPE_CHECKING:
    import scipy.sparse as sp

    from ...dropout import Dropout
    from ...presets import PaperSettings


@dataclass(frozen=True)
class Plan:
    """The subsets of target genes of a cluster, and the genes that may be inputs."""

    subsets: list[np.ndarray]
    candidates: np.ndarray


def plan_cluster(
    name: str,
    cells: np.ndarray,
    counts: sp.csr_array,
    dropout: Dropout,
    modelled: np.ndarray,
    selected: np.ndarray,
    settings: PaperSettings,
) -> tuple[Plan, np.ndarray]:
    """Plan the networks of a cluster; also returns the status of its genes before any training.

    Only `modelled` genes may be targets or inputs, and only `selected` ones targets.
    """
    status = np.full(counts.shape[1], NOTHING_MISSING, dtype=np.int8)
    if cells.size < MIN_CELLS:
        logger.info("cluster %s has %d cells, fewer than the %d it takes to train", name, cells.size, MIN_CELLS)
        status[:] = TOO_FEW_CELLS
        return Plan([], np.empty(0, dtype=np.int64)), status
    by_gene = counts[cells].tocsc()
    usable = modelled & ~inputs.is_constant(by_gene)
    shares = inputs.dropout_shares(by_gene, cells, dropout, settings.threshold)
    status[~modelled | ((shares > 0) & ~usable)] = NOT_MODELLED
    targets = np.flatnonzero((shares > 0) & usable & selected)
    candidates = np.flatnonzero((shares <= settings.max_dropout) & usable)
    return Plan(inputs.subsets(targets, settings), candidates), status
