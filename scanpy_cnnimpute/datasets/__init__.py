"""Bundled and simulated data sets."""

from __future__ import annotations

from ._five_cell_lines import five_cell_lines
from ._simulate import simulate

__all__ = ["five_cell_lines", "simulate"]
