"""Adaptive density peak clustering, as in the R package ADPclust."""

from __future__ import annotations

from .adaptive import DensityPeaks, adaptive_density_peaks

__all__ = ["DensityPeaks", "adaptive_density_peaks"]
