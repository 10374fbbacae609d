"""Dropout models on arrays: the calibrated one and the paper's gamma-normal mixture."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from .base import (
    MODELS,
    AllMissing,
    BlockProbabilities,
    Clusters,
    Dropout,
    DropoutFit,
    DropoutModel,
    GivenProbabilities,
    ModelledDropout,
    check_efficiency,
)

__all__ = [
    "MODELS",
    "AllMissing",
    "BlockProbabilities",
    "Clusters",
    "Dropout",
    "DropoutFit",
    "DropoutModel",
    "GivenProbabilities",
    "ModelledDropout",
    "check_efficiency",
]

# A model registers itself when its module is imported: a new file here is all that a new model takes.
for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
