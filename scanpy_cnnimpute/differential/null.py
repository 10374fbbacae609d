"""The null distribution of scores, from those of decoys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.stats import gennorm, norm

WINDOW = 400
"""Decoys of similar mean whose scores give the scale; the quantile below is known to a tenth."""
N_POSITIONS = 20  # of the window, for each of its widths
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
    power
        Power of the exponent of the density, ``exp(-abs(score / scale) ** power)`` but for constants: 2 is normal.

    Notes
    -----
    The scale alone, as a standard deviation, does for t-tests of counts. Scores of rank tests of imputed values are as
    if from few cells, so that large ones are rarer than normal ones; a few genes that cells of one kind have alone give
    scores with heavy tails.
    """

    mean: np.ndarray
    scale: np.ndarray
    power: float

    @classmethod
    def fit(cls, mean: np.ndarray, scores: np.ndarray) -> Self:
        """Fit to the mean expression and the scores of decoys, ``(n_decoys,)`` each."""
        if not scores.size:
            return cls(mean=np.zeros(1), scale=np.ones(1), power=2.0)
        order = np.argsort(mean, kind="stable")
        size, sorted_mean, absolute = np.abs(scores).size, mean[order], np.abs(scores)[order]
        width = min(WINDOW, size)
        starts = np.arange(0, size - width + 1, max(1, width // N_POSITIONS))
        quantile = np.array([np.quantile(absolute[start : start + width], 1 - LEVEL) for start in starts])
        centre = np.array([sorted_mean[start : start + width].mean() for start in starts])
        scale = np.maximum(quantile / norm.isf(LEVEL / 2), 1.0)
        return cls(mean=centre, scale=scale, power=_power(absolute / np.interp(sorted_mean, centre, scale)))

    def scaled(self, mean: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The scores over their scale."""
        return scores / np.interp(mean, self.mean, self.scale)

    def p_values(self, mean: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Two-sided p-values of scores of genes with this mean expression."""
        size = np.abs(self.scaled(mean, scores))
        level = gennorm.isf(LEVEL / 2, self.power) / norm.isf(LEVEL / 2)
        return 2 * gennorm.sf(size * level, self.power)


def _power(size: np.ndarray) -> float:
    """The power whose quantiles at `TAIL` and `LEVEL` have the ratio of those of absolute scores."""
    ratio = np.quantile(size, 1 - TAIL) / max(np.quantile(size, 1 - LEVEL), 1e-12)
    of_power = gennorm.isf(TAIL / 2, POWERS) / gennorm.isf(LEVEL / 2, POWERS)  # falls with the power
    return float(np.interp(-ratio, -of_power, POWERS))
