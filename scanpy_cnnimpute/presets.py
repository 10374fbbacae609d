"""Named, frozen sets of keyword values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Every number of the imputation step; :data:`PRESETS` holds the named sets.

    Attributes
    ----------
    threshold
        A zero is called a dropout, and predicted, above this probability (T).
    n_targets
        Target genes of one network (N).
    n_top
        Input genes chosen for each target gene.
    max_dropout
        Largest share of a cluster's cells in which an input gene may be called a dropout (P).
    log
        Train on log1p(counts); otherwise on counts (the paper's cnnImpute_nl).
    learning_rate
        Adam's learning rate (1e-4).
    batch_size
        Cells in a training batch (32).
    max_epochs
        Most epochs a network is trained for (150).
    patience
        Epochs without a better validation loss before training stops (5).
    validation_fraction
        Share of the cells of a cluster kept for the validation loss (0.1).
    """

    threshold: float = 0.5
    n_targets: int = 512
    n_top: int = 5
    max_dropout: float = 0.5
    log: bool = True
    learning_rate: float = 1e-4
    batch_size: int = 32
    max_epochs: int = 150
    patience: int = 5
    validation_fraction: float = 0.1

    def __post_init__(self) -> None:
        checks = {
            "threshold": (0 <= self.threshold < 1, "0 <= threshold < 1"),
            "n_targets": (self.n_targets >= 1, "at least 1"),
            "n_top": (self.n_top >= 1, "at least 1"),
            "max_dropout": (0 <= self.max_dropout <= 1, "between 0 and 1"),
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "max_epochs": (self.max_epochs >= 1, "at least 1"),
            "patience": (self.patience >= 0, "at least 0"),
            "validation_fraction": (0 < self.validation_fraction < 1, "between 0 and 1, both excluded"),
        }
        for name, (valid, allowed) in checks.items():
            if not valid:
                msg = f"{name}={getattr(self, name)!r} is not allowed: {allowed}."
                raise ValueError(msg)

    def as_dict(self) -> dict[str, Any]:
        """The values by name, for `uns` and JSON."""
        return asdict(self)


PRESETS: dict[str, NetworkSettings] = {"paper": NetworkSettings()}
"""``"paper"``: the published numbers; they never change."""


def resolve(preset: str, **overrides: Any) -> NetworkSettings:
    """The settings of a preset with the overrides that are not None; errors name what came and what is allowed."""
    if not isinstance(preset, str) or preset not in PRESETS:
        msg = f"preset={preset!r} is not known. Available: {sorted(PRESETS)}."
        raise ValueError(msg)
    given = {name: value for name, value in overrides.items() if value is not None}
    for field in fields(NetworkSettings):
        if field.name in given:
            kind: type = {"float": float, "int": int, "bool": bool}[str(field.type)]
            given[field.name] = check_number(field.name, given[field.name], kind)
    return NetworkSettings(**{**PRESETS[preset].as_dict(), **given})


def check_number(name: str, value: Any, kind: type, smallest: float | None = None) -> Any:
    """The value as a plain Python number, or an error that names it; NumPy scalars are welcome, a bool is no number."""
    plain: Any = value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value
    allowed = (float, int) if kind is float else kind
    fits = isinstance(plain, allowed) and (kind is bool or not isinstance(plain, bool))
    if not fits:
        msg = f"{name}={value!r} has type {type(value).__name__}, expected {kind.__name__}."
        raise TypeError(msg)
    if smallest is not None and not plain >= smallest:
        msg = f"{name}={value!r} is not allowed: at least {smallest}."
        raise ValueError(msg)
    return plain
