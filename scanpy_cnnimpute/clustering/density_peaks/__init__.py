"""Adaptive density peak clustering (ADPclust): arrays in, arrays out."""

from __future__ import annotations

from .adaptive import DensityPeaks, adaptive_density_peaks

__all__ = ["DensityPeaks", "adaptive_density_peaks"]
