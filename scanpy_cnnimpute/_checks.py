"""Checks of argument values. An error names the value, what is allowed and how to mend it."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from ._logging import PACKAGE_NOTE

MAX_SEED = 2**32 - 1  # the largest seed that numpy, scikit-learn and igraph all accept
MAX_INT64 = 2**63 - 1  # the largest integer that h5ad and zarr store


def check_number(name: str, value: Any, kind: type, smallest: float | None = None, largest: float | None = None) -> Any:
    """Return the value as a finite plain Python number; NumPy scalars are accepted, a bool is not a number."""
    plain: Any = value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value
    allowed: Any = (float, int) if kind is float else kind
    if not isinstance(plain, allowed) or (kind is not bool and isinstance(plain, bool)):
        msg = f"{name}={value!r} has type {type(value).__name__}, expected {kind.__name__}."
        raise TypeError(msg)
    if isinstance(plain, float) and not math.isfinite(plain):
        msg = f"{name}={value!r} is not allowed: a finite number."
        raise ValueError(msg)
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


def check_share(name: str, value: Any) -> float:
    """Return the value as a plain number if it is between 0 and 1, both excluded."""
    plain = check_number(name, value, float)
    if not 0 < plain < 1:
        msg = f"{name}={value!r} is not allowed: between 0 and 1, both excluded."
        raise ValueError(msg)
    return plain


def is_list(value: Any) -> bool:
    """Whether a value is several in an order: no text, no set, no number."""
    no_list = str | bytes | set | frozenset
    return isinstance(value, Iterable) and not isinstance(value, no_list) and getattr(value, "ndim", 1) > 0


def check_names(name: str, value: Any, kinds: tuple[type, ...], expected: str) -> list[Any]:
    """Return no, one or several names as a list."""
    if value is None:
        return []
    if isinstance(value, set | frozenset):
        msg = f"{name} has type {type(value).__name__}, which has no order: pass a list."
        raise TypeError(msg)
    values = list(value) if is_list(value) else [value]
    for item in values:
        if not isinstance(item, kinds):
            kind = f"{type(value).__name__} of {type(item).__name__}" if is_list(value) else type(item).__name__
            msg = f"{name} has type {kind}, expected {expected}, or a list of these."
            raise TypeError(msg)
    return values


def check_vector(name: str, values: Any, *, numbers: bool = True) -> np.ndarray:
    """Return values as an array: of float64, unless they may be labels of any kind."""
    problem = None
    try:
        array = np.asarray(values)
    except ValueError:
        problem = "rows of different lengths"
    else:
        if isinstance(values, np.ma.MaskedArray):
            problem = "masked entries, which have no value: call .filled() on it first"
        elif numbers and array.dtype.kind not in "biuf":
            problem = f"type {type(values).__name__} and dtype {array.dtype}, expected real numbers"
        elif not array.ndim:
            problem = f"type {type(values).__name__}, expected an array or a list"
    if problem is not None:
        msg = f"{name} has {problem}."
        raise TypeError(msg)
    return array.astype(np.float64, copy=False) if numbers else array


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
