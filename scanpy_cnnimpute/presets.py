"""Named, frozen sets of keyword values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from ._checks import check_number


class _Settings:
    def _check(self, **checks: tuple[bool, str]) -> None:
        for name, (valid, allowed) in checks.items():
            if not valid:
                msg = f"{name}={getattr(self, name)!r} is not allowed: {allowed}."
                raise ValueError(msg)

    def as_dict(self) -> dict[str, Any]:
        """The values by name, for `uns` and JSON."""
        return asdict(self)  # type: ignore[call-overload]


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(_Settings):
    """Every number of the published imputation step.

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
        self._check(
            threshold=(0 <= self.threshold < 1, "0 <= threshold < 1"),
            n_targets=(self.n_targets >= 1, "at least 1"),
            n_top=(self.n_top >= 1, "at least 1"),
            max_dropout=(0 <= self.max_dropout <= 1, "between 0 and 1"),
            learning_rate=(self.learning_rate > 0, "above 0"),
            batch_size=(self.batch_size >= 1, "at least 1"),
            max_epochs=(self.max_epochs >= 1, "at least 1"),
            patience=(self.patience >= 0, "at least 0"),
            validation_fraction=(0 < self.validation_fraction < 1, "between 0 and 1, both excluded"),
        )


@dataclass(frozen=True, kw_only=True)
class BlockSettings(_Settings):
    """Every number of the recommended imputation step.

    Attributes
    ----------
    threshold
        A zero is imputed above this dropout probability.
    n_top
        Correlated genes that stand side by side for each target gene.
    n_components
        Most components of the low rank.
    n_folds
        Parts of the non-zeros; each is hidden once, for the network to learn to predict it.
    n_members
        Networks that are averaged.
    n_steps
        Batches a network is trained on.
    learning_rate
        AdamW's learning rate at the first step; it falls as a cosine to 0.
    """

    threshold: float = 0.01
    n_top: int = 5
    n_components: int = 30
    n_folds: int = 5
    n_members: int = 1
    n_steps: int = 300
    learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        self._check(
            threshold=(0 <= self.threshold < 1, "0 <= threshold < 1"),
            n_top=(self.n_top >= 1, "at least 1"),
            n_components=(self.n_components >= 1, "at least 1"),
            n_folds=(self.n_folds >= 2, "at least 2"),  # noqa: PLR2004
            n_members=(self.n_members >= 1, "at least 1"),
            n_steps=(self.n_steps >= 1, "at least 1"),
            learning_rate=(self.learning_rate > 0, "above 0"),
        )


Settings = NetworkSettings | BlockSettings

PRESETS: dict[str, Settings] = {"default": BlockSettings(), "paper": NetworkSettings()}
"""``"default"``: what is recommended; ``"paper"``: the published numbers, which never change."""


def resolve(preset: str, **overrides: Any) -> Settings:
    """The settings of a preset with the overrides that are not None; errors name what came and what is allowed."""
    if not isinstance(preset, str) or preset not in PRESETS:
        msg = f"preset={preset!r} is not known. Available: {sorted(PRESETS)}."
        raise ValueError(msg)
    settings = PRESETS[preset]
    kinds = {field.name: {"float": float, "int": int, "bool": bool}[str(field.type)] for field in fields(settings)}
    given = {}
    for name, value in overrides.items():
        if value is None:
            continue
        if name not in kinds:
            owners = [other for other, of in PRESETS.items() if name in of.as_dict()]
            msg = (
                f"{name}={value!r} is not a setting of preset={preset!r}, which has {sorted(kinds)}; "
                f"it is one of {owners}."
            )
            raise ValueError(msg)
        given[name] = check_number(name, value, kinds[name])
    return type(settings)(**{**settings.as_dict(), **given})
