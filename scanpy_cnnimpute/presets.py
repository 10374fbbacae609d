"""The settings of each preset: frozen values, described in :func:`scanpy_cnnimpute.pp.cnn_impute`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from ._checks import check_number

if TYPE_CHECKING:
    from collections.abc import Mapping


MAX_TOP = 1_000  # correlated genes of a target: far more than help, and few enough to be stored
MAX_FOLDS = 100  # each takes a factorisation; what is hidden at a time is then a hundredth
MAX_DEPTH = 1e12  # counts of a cell: far more than any, and within single precision


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of the settings: known fields, checked values."""

    def _check(self, **checks: tuple[bool, str]) -> None:
        for name, (valid, allowed) in checks.items():
            if not valid:
                msg = f"{name}={getattr(self, name)!r} is not allowed: {allowed}."
                raise ValueError(msg)

    @classmethod
    def names(cls) -> list[str]:
        """Names of the settings."""
        return [field.name for field in fields(cls)]

    @classmethod
    def has(cls, overrides: Mapping[str, Any]) -> bool:
        """Whether all overrides are settings of this kind."""
        return set(overrides) <= set(cls.names())

    @classmethod
    def from_overrides(cls, overrides: Mapping[str, Any]) -> Self:
        """The preset's values with the overrides that are not None, as plain Python numbers."""
        kinds = {
            field.name: {"float": float, "int": int, "bool": bool}[str(field.type).removesuffix(" | None")]
            for field in fields(cls)
        }
        given = {name: check_number(name, value, kinds[name]) for name, value in overrides.items() if value is not None}
        return cls(**given)

    def as_dict(self) -> dict[str, Any]:
        """The values by name, for `uns` and JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(Settings):
    """Settings of the default preset's network; tuned on recovered and masked figures (benchmarks/accuracy)."""

    n_top: int = 5  # the paper's number of inputs for each target
    n_steps: int = 300
    learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        self._check(
            n_top=(1 <= self.n_top <= MAX_TOP, f"1 to {MAX_TOP}"),
            n_steps=(self.n_steps >= 1, "at least 1"),
            learning_rate=(0 < self.learning_rate <= 1, "above 0, at most 1"),
        )


@dataclass(frozen=True, kw_only=True)
class DefaultSettings(NetworkSettings):
    """Settings of the default preset for zeros."""

    threshold: float = 0.01  # rarer dropouts stay 0, which keeps sparse data sparse

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(threshold=(0 <= self.threshold < 1, "0 <= threshold < 1"))


@dataclass(frozen=True, kw_only=True)
class DenoisedSettings(NetworkSettings):
    """Settings of the default preset for all entries."""

    depth: float | None = None  # the cell's own library size

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(depth=(self.depth is None or 0 < self.depth < MAX_DEPTH, f"above 0 and below {MAX_DEPTH:g}"))


@dataclass(frozen=True, kw_only=True)
class ConditionalSettings(DefaultSettings):
    """Settings of the default preset's conditional estimate."""

    threshold: float = 0.5  # the paper's
    n_components: int = 30
    n_folds: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(
            n_components=(self.n_components >= 1, "at least 1"),
            n_folds=(2 <= self.n_folds <= MAX_FOLDS, f"2 to {MAX_FOLDS}"),  # noqa: PLR2004 - one to hide, one to learn from
        )


@dataclass(frozen=True, kw_only=True)
class PaperSettings(Settings):
    """Settings of the published procedure (the paper, "CNN-based model construction"); they never change."""

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
            learning_rate=(0 < self.learning_rate <= 1, "above 0, at most 1"),
            batch_size=(self.batch_size >= 1, "at least 1"),
            max_epochs=(self.max_epochs >= 1, "at least 1"),
            patience=(self.patience >= 0, "at least 0"),
            validation_fraction=(0 < self.validation_fraction < 1, "between 0 and 1, both excluded"),
        )
