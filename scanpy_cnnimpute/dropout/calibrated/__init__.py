"""The calibrated dropout model: expected expression, its spread, and how much of it was sampled."""

from __future__ import annotations

from .model import CalibratedCells, CalibratedModel, depth_efficiency

__all__ = ["CalibratedCells", "CalibratedModel", "depth_efficiency"]
