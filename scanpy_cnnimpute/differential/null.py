"""The null distribution of scores, from those of decoys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from scipy.stats import gennorm, norm

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW = 400
"""Decoys of similar mean whose scores give the scale; the quantile below is known to a tenth."""
TAIL_WINDOW = 2_000
"""Decoys whose scores give the tails: twenty of them are beyond the outer quantile."""
MIN_TAIL_DECOYS = 1_000  # fewer say nothing of tails, which are then normal
N_POSITIONS = 20  # of a window, for each of its widths
LEVEL = 0.05  # two-sided p-value at which scale and tails are fitted
TAIL = 0.01  # two-sided p-value at which tails are fitted
# Powers of the exponent that are tried: 2 is normal, smaller are heavier tails. Rank tests of few cells have light
# ones; beyond 4, a score just above those of all decoys would have any p-value.
POWERS = np.linspace(0.7, 4.0, 100)


@dataclass(frozen=True, kw_only=True)
class DecoyNull:
    """Scores of genes that do not differ: a generalised normal distribution, scaled by the mean expression.

    Attributes
    ----------
    mean, scale
        Mean expression of decoys, rising, and the scale there, at least 1: the 95 % quantile of their absolute scores
        over that of the normal distribution.
    tail_mean, power
        Mean expression of decoys, rising, and the power of the exponent of the density there, which is
        ``exp(-abs(score / scale) ** power)`` but for constants: 2 is normal.

    Notes
    -----
    The scale alone, as a standard deviation, does for t-tests of counts. Scores of rank tests of imputed values are as
    if from few cells, so that large ones are rarer than normal ones; a few genes that cells of one kind have alone give
    scores with heavy tails.
    """

    mean: np.ndarray
    scale: np.ndarray
    tail_mean: np.ndarray
    power: np.ndarray

    @classmethod
    def fit(cls, mean: np.ndarray, scores: np.ndarray) -> Self:
        """Fit to the mean expression and the scores of decoys, ``(n_decoys,)`` each."""
        order = np.argsort(mean, kind="stable")
        mean, size = mean[order], np.abs(scores)[order]
        if not size.size:
            return cls(mean=np.zeros(1), scale=np.ones(1), tail_mean=np.zeros(1), power=np.full(1, 2.0))
        centre, quantile = _running(mean, size, WINDOW, lambda part: float(np.quantile(part, 1 - LEVEL)))
        scale = np.maximum(quantile / norm.isf(LEVEL / 2), 1.0)
        if size.size < MIN_TAIL_DECOYS:
            return cls(mean=centre, scale=scale, tail_mean=centre, power=np.full(centre.size, 2.0))
        tail_centre, power = _running(mean, size / np.interp(mean, centre, scale), TAIL_WINDOW, _power)
        return cls(mean=centre, scale=scale, tail_mean=tail_centre, power=power)

    def scaled(self, mean: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The scores over their scale."""
        return scores / np.interp(mean, self.mean, self.scale)

    def p_values(self, mean: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Two-sided p-values of scores of genes with this mean expression."""
        size, power = np.abs(self.scaled(mean, scores)), np.interp(mean, self.tail_mean, self.power)
        return 2 * gennorm.sf(size * (gennorm.isf(LEVEL / 2, power) / norm.isf(LEVEL / 2)), power)


def _running(
    mean: np.ndarray, values: np.ndarray, window: int, statistic: Callable[[np.ndarray], float]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean expression and a statistic of the values in windows over decoys by rising mean, the last one included."""
    width = min(window, values.size)
    starts = np.unique([*range(0, values.size - width, max(1, width // N_POSITIONS)), values.size - width])
    parts = [slice(start, start + width) for start in starts]
    return np.array([mean[part].mean() for part in parts]), np.array([statistic(values[part]) for part in parts])


def _power(size: np.ndarray) -> float:
    """The power whose quantiles at `TAIL` and `LEVEL` have the ratio of those of absolute scores."""
    ratio = np.quantile(size, 1 - TAIL) / max(np.quantile(size, 1 - LEVEL), 1e-12)
    of_power = gennorm.isf(TAIL / 2, POWERS) / gennorm.isf(LEVEL / 2, POWERS)  # falls with the power
    return float(np.interp(-ratio, -of_power, POWERS))
