"""Gamma-normal mixture (equations 1 and 2 of the paper): arrays in, arrays out."""

from __future__ import annotations

from ._gamma_normal import (
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
    "GammaNormalMixture",
    "fit_mixture",
    "gamma_normal_posterior",
    "log10_cpm",
]
