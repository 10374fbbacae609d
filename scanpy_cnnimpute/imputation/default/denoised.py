"""Denoised counts: the posterior mean of every entry given its own count, corrected by the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...presets import DenoisedSettings
from .molecules import MoleculeImputer, calibrated

if TYPE_CHECKING:
    from ...dropout import Dropout
    from ...presets import Settings
    from ..base import Entries
    from .molecules import CellBlock, Correct


@dataclass(kw_only=True)
class DenoisedImputer(MoleculeImputer):
    """The same fit as for zeros, asked for all entries: the network has learnt from all of them."""

    entries: ClassVar[Entries] = "all"
    settings_type: ClassVar[type[Settings]] = DenoisedSettings

    settings: Any = field(default_factory=DenoisedSettings)

    def kept_scale(self, dropout: Dropout) -> np.ndarray | None:
        """Counts of genes that are left out are brought to the same depth as the others."""
        if self.settings.depth is None:
            return None
        return self.settings.depth / np.maximum(calibrated(dropout)[1].library_size, 1.0)

    def _estimate(
        self, dropout: Dropout, block: CellBlock, correct: Correct, *, return_std: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """All entries of the genes, and their posterior means."""
        model, n_cells = calibrated(dropout)[0], block.rows.size
        indptr = np.arange(n_cells + 1) * block.genes.size
        columns = np.tile(block.genes.astype(np.int32), n_cells)
        values, deviation = model.denoised(
            block.counts,
            block.cells,
            block.genes,
            correct(block, indptr, columns),
            logarithmic=self.estimate == "posterior_mean",
            depth=self.settings.depth,
            return_std=return_std,
        )
        return indptr, columns, values, deviation
