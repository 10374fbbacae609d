"""The default preset: one network for all cells and genes."""

from __future__ import annotations

from .denoised import DenoisedImputer
from .molecules import MoleculeImputer
from .nonzero import NonzeroImputer

__all__ = ["DenoisedImputer", "MoleculeImputer", "NonzeroImputer"]
