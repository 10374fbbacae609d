"""Checks of argument values. An error names the value, what is allowed and how to mend it."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from ._logging import PACKAGE_NOTE

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_SEED = 2**32 - 1  # the largest seed that numpy, scikit-learn and igraph all accept
MAX_INT64 = 2**63 - 1  # the largest integer that h5ad and zarr store


def check_number(name: str, value: Any, kind: type, smallest: float | None = None, largest: float | None = None) -> Any:
    """Return the value as a plain Python number; NumPy scalars are accepted, a bool is not a number."""
    plain: Any = value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value
    allowed: Any = (float, int) if kind is float else kind
    if not isinstance(plain, allowed) or (kind is not bool and isinstance(plain, bool)):
        msg = f"{name}={value!r} has type {type(value).__name__}, expected {kind.__name__}."
        raise TypeError(msg)
    if smallest is not None and not plain >= smallest:
        msg = f"{name}={value!r} is not allowed: at least {smallest}."
        raise ValueError(msg)
    if largest is None and isinstance(plain, int):
        largest = MAX_INT64
    if largest is not None and not plain <= largest:
        msg = f"{name}={value!r} is not allowed: at most {largest}."
        raise ValueError(msg)
    return plain


def check_seed(random_state: Any) -> int:
    """Return the seed as a plain int that every library accepts."""
    return check_number("random_state", random_state, int, 0, MAX_SEED)


def check_choice(name: str, value: Any, available: Iterable[str]) -> str:
    """Return the value if it is one of those available."""
    names = list(available)
    if not isinstance(value, str) or value not in names:
        msg = f"{name}={value!r} is not known. Available: {names}."
        raise ValueError(msg)
    return value


def check_key(name: str, value: Any) -> str:
    """Return the value if it is text, as keys of an AnnData are."""
    if not isinstance(value, str):
        msg = f"{name} has type {type(value).__name__}, expected str: the name of a key, not its values."
        raise TypeError(msg)
    return value


def quote_some(names: Iterable[object], n_shown: int = 5) -> str:
    """The first names, quoted, and how many more there are."""
    listed = list(names)
    shown = ", ".join(repr(name) for name in listed[:n_shown])
    return shown + (f" and {len(listed) - n_shown} more" if len(listed) > n_shown else "")


def warn_user(message: str) -> None:
    """Issue a UserWarning at the innermost line outside this package."""
    package = __name__.partition(".")[0]
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    warning = UserWarning(message)
    warning.add_note(PACKAGE_NOTE)
    warnings.warn(warning, stacklevel=level)
