"""Numbers, names and reasons in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..imputation.base import (
    IMPUTED,
    MIN_CELLS,
    NO_GAIN,
    NO_INPUTS,
    NOT_MODELLED,
    NOT_SELECTED,
    NOTHING_MISSING,
    TOO_FEW_CELLS,
    TRAINING_FAILED,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

UNIT = "\N{NO-BREAK SPACE}%"
MAX_SHOWN = 200  # characters of a value in a table

REASONS = {
    IMPUTED: "Imputed: some zeros have a predicted value.",
    NOTHING_MISSING: "No zero has a dropout probability above the threshold.",
    NOT_MODELLED: "The dropout model has nothing to say of it, as of a gene without counts.",
    TOO_FEW_CELLS: f"Fewer than {MIN_CELLS} cells have counts.",
    NO_INPUTS: "No gene is left to predict it from.",
    TRAINING_FAILED: "The loss of its network was not finite.",
    NO_GAIN: "Held-out molecules were predicted worse than by the gene's mean and by zeros.",
    NOT_SELECTED: "Left out by mask_var=.",
}
DENOISED = "Denoised: every entry has a predicted value."


def percent(share: float) -> str:
    """A share as a percentage: one decimal below 10 %, where a difference of 1 % matters."""
    value = 100 * float(share)
    if not np.isfinite(value):
        return "unknown"
    if 0 < abs(value) < 0.1:  # noqa: PLR2004 - what one decimal can show
        return f"less than 0.1{UNIT}"
    return f"{value:.1f}{UNIT}" if abs(value) < 9.95 and value != round(value) else f"{value:.0f}{UNIT}"  # noqa: PLR2004


def score_text(value: float) -> str:
    """A score with the digits of the figures."""
    return f"{value:.3f}" if np.isfinite(value) else ""


def number(value: float) -> str:
    """A whole number with separators, any other with three digits."""
    if not np.isfinite(value):
        return "unknown"
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.3g}"


def spread(values: np.ndarray) -> str:
    """Median of numbers and, if they differ, the range of nine in ten."""
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    if low == high:
        return number(float(f"{middle:.3g}"))
    return "{} (nine of ten cells: {} to {})".format(*(number(float(f"{each:.3g}")) for each in (middle, low, high)))


def plain(value: Any) -> str:
    """Any value as text of one line, without characters that do not print."""
    if isinstance(value, float) and not value.is_integer():
        text = f"{value:.6g}"
    elif hasattr(value, "tolist"):
        text = str(value.tolist())
    else:
        text = str(value)
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def listed(names: Iterable[str]) -> str:
    """Names in a row: a, b and c."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
