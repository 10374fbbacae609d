"""The default preset: one network for all cells and genes."""

from __future__ import annotations

from .molecules import MoleculeImputer
from .nonzero import NonzeroImputer

__all__ = ["MoleculeImputer", "NonzeroImputer"]
