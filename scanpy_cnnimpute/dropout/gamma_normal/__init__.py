"""The paper's dropout model: a gamma-normal mixture per gene and cluster."""

from __future__ import annotations

from .model import GammaNormalCells, GammaNormalModel, fit_mixture, gamma_normal_posterior, log10_cpm

__all__ = ["GammaNormalCells", "GammaNormalModel", "fit_mixture", "gamma_normal_posterior", "log10_cpm"]
