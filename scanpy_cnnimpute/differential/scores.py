"""Tests of two groups of cells, gene by gene, as normal scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm, rankdata, t

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PSEUDOCOUNT = 1e-9
"""Of fold changes, as in Scanpy."""
MIN_TAIL = 1e-300  # p-values below this are not told apart in double precision


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Two groups of cells, as positions."""

    group: np.ndarray
    reference: np.ndarray


def welch_scores(values: np.ndarray, contrasts: Sequence[Contrast]) -> np.ndarray:
    """Scores of Welch's t-test; see `TESTS`."""
    scores = np.zeros((len(contrasts), values.shape[1]))
    for row, contrast in enumerate(contrasts):
        parts = values[contrast.group], values[contrast.reference]
        difference = parts[0].mean(axis=0, dtype=np.float64) - parts[1].mean(axis=0, dtype=np.float64)
        errors = [part.var(axis=0, ddof=1, dtype=np.float64) / len(part) for part in parts]
        total = errors[0] + errors[1]
        varies = total > 0
        statistic = np.divide(difference, np.sqrt(total), out=np.zeros_like(total), where=varies)
        spread = sum(error**2 / (len(part) - 1) for error, part in zip(errors, parts, strict=True))
        freedom = np.divide(total**2, spread, out=np.ones_like(total), where=varies)
        scores[row] = np.where(varies, np.sign(statistic) * _normal_size(np.abs(statistic), freedom), 0.0)
    return scores


def _normal_size(statistic: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """Size of the normal score with the p-value of a t statistic; where that is next to 0, by Wallace's formula (1959).

    Scores of the strongest genes thus keep their order.
    """
    tail = t.sf(statistic, freedom)
    wallace = (8 * freedom + 1) / (8 * freedom + 3) * np.sqrt(freedom * np.log1p(statistic**2 / freedom))
    return np.where(tail > MIN_TAIL, norm.isf(np.maximum(tail, MIN_TAIL)), np.maximum(wallace, norm.isf(MIN_TAIL)))


def wilcoxon_scores(values: np.ndarray, contrasts: Sequence[Contrast]) -> np.ndarray:
    """Scores of the rank-sum test with correction for ties; see `TESTS`."""
    n_cells = values.shape[0]
    ranks = rankdata(values, axis=0)
    variance = ranks.var(axis=0, ddof=1)  # which holds the ties
    scores = np.zeros((len(contrasts), values.shape[1]))
    for row, contrast in enumerate(contrasts):
        n_group = contrast.group.size
        centred = ranks[contrast.group].sum(axis=0) - n_group * (n_cells + 1) / 2
        scale = np.sqrt(n_group * (n_cells - n_group) / n_cells * variance)
        np.divide(centred, scale, out=scores[row], where=variance > 0)
    return scores


TESTS: dict[str, Callable[[np.ndarray, Sequence[Contrast]], np.ndarray]] = {
    "wilcoxon": wilcoxon_scores,
    "t-test": welch_scores,
}
"""Tests by name. They take ``(n_cells, n_genes)`` values and contrasts that each divide all of these cells in two, and
give normal scores ``(n_contrasts, n_genes)``, positive where the group is higher, 0 for genes that do not vary."""


def log2_fold_changes(values: np.ndarray, contrast: Contrast) -> np.ndarray:
    """Scanpy's fold changes of log1p values: of the exponentials of the means."""
    group, reference = (
        np.expm1(values[cells].mean(axis=0, dtype=np.float64)) for cells in (contrast.group, contrast.reference)
    )
    return np.log2((group + PSEUDOCOUNT) / (reference + PSEUDOCOUNT))
