"""Data sets that come with the package."""

from __future__ import annotations

from ._five_cell_lines import five_cell_lines

__all__ = ["five_cell_lines"]
