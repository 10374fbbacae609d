"""Imputers on arrays: the default preset's and the paper's. Keras loads when a network is built."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from .base import (
    IMPUTERS,
    STATUSES,
    Entries,
    FitOptions,
    Imputed,
    Imputer,
    Targets,
    find_imputer,
    presets,
    resolve_settings,
)

__all__ = [
    "IMPUTERS",
    "STATUSES",
    "Entries",
    "FitOptions",
    "Imputed",
    "Imputer",
    "Targets",
    "find_imputer",
    "presets",
    "resolve_settings",
]

# An imputer registers itself when its package is imported: a new folder here is all that a new one takes.
for _module in iter_modules(__path__):
    if _module.ispkg:
        import_module(f"{__name__}.{_module.name}")
