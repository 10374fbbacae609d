"""Denoised counts: the posterior mean of every entry given its own count, corrected by the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...presets import DenoisedSettings
from ..base import Entries, Imputed
from .features import layout_of
from .molecules import BLOCK_ENTRIES, MAX_BLOCK_CELLS, MoleculeImputer, calibrated, csr_entries

if TYPE_CHECKING:
    from collections.abc import Iterator

    import scipy.sparse as sp

    from ...dropout import Clusters, Dropout
    from ...presets import Settings


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

    def predict(
        self,
        counts: sp.csr_array,
        dropout: Dropout,
        *,
        clusters: Clusters | None = None,
        genes: np.ndarray | None = None,
        return_std: bool = False,
    ) -> Iterator[Imputed]:
        """Posterior means of all entries of the genes; see :meth:`Imputer.predict`."""
        model, cells = calibrated(dropout)
        wanted = self.imputable(genes)
        correct = self.corrector(
            counts, model, cells, layout_of(self.gene_ids, self.neighbours, self.correlations, wanted)
        )
        height = max(1, min(MAX_BLOCK_CELLS, BLOCK_ENTRIES // max(wanted.size, 1)))
        for start in range(0, counts.shape[0] if wanted.size else 0, height):
            rows = np.arange(start, min(start + height, counts.shape[0]))
            own = counts[rows]
            indptr = np.arange(rows.size + 1) * wanted.size
            columns = np.tile(wanted.astype(np.int32), rows.size)
            values, deviation = model.denoised(
                own,
                cells.take(cells=rows),
                wanted,
                correct(rows, indptr, columns),
                logarithmic=self.estimate == "posterior_mean",
                depth=self.settings.depth,
                return_std=return_std,
            )
            yield Imputed(
                cells=rows,
                values=csr_entries(values, columns, indptr, own.shape),
                deviation=None if deviation is None else csr_entries(deviation, columns, indptr, own.shape),
            )
