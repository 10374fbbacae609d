"""Data sets that come with the package, and simulated ones."""

from __future__ import annotations

from ._five_cell_lines import five_cell_lines
from ._simulate import simulate

__all__ = ["five_cell_lines", "simulate"]
