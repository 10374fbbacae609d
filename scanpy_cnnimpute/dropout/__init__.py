"""Dropout models, the paper's gamma-normal mixture and the calibrated one: arrays in, arrays out."""

from __future__ import annotations

from .calibrated.model import (
    CalibratedFit,
    CalibratedModel,
    depth_efficiency,
    fit_calibrated,
)
from .gamma_normal.model import (
    PARAMETERS,
    STATUSES,
    ZERO,
    GammaNormalMixture,
    fit_mixture,
    gamma_normal_posterior,
    log10_cpm,
)

__all__ = [
    "PARAMETERS",
    "STATUSES",
    "ZERO",
    "CalibratedFit",
    "CalibratedModel",
    "GammaNormalMixture",
    "depth_efficiency",
    "fit_calibrated",
    "fit_mixture",
    "gamma_normal_posterior",
    "log10_cpm",
]
