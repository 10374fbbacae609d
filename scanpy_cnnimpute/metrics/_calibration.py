"""Whether probabilities mean what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def _pair(truth: ArrayLike, probability: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    true, stated = np.asarray(truth).ravel(), np.asarray(probability, dtype=np.float64).ravel()
    if true.shape != stated.shape or true.size == 0:
        msg = f"truth and probability must have one size and not be empty, got {true.size} and {stated.size}."
        raise ValueError(msg)
    if true.dtype != bool and not np.isin(true, (0, 1)).all():
        msg = "truth must be True or False (1 or 0)."
        raise ValueError(msg)
    if not (stated.min() >= 0 and stated.max() <= 1):
        msg = f"probability has values outside [0, 1]: from {stated.min()} to {stated.max()}."
        raise ValueError(msg)
    return true.astype(bool), stated


def auroc(truth: ArrayLike, probability: ArrayLike) -> float:
    """Area under the ROC curve: how often a true case has the higher probability than a false one; 1 is best.

    Parameters
    ----------
    truth
        Whether each case is true.
    probability
        Stated probabilities of the same size.

    Returns
    -------
    A float in [0, 1], 0.5 for probabilities that tell nothing; NaN if all cases are alike.

    Raises
    ------
    ValueError
        For sizes that differ, no cases, and values that are no truth or no probability.

    Examples
    --------
    >>> auroc([False, True], [0.2, 0.7])
    1.0
    """
    from sklearn.metrics import roc_auc_score

    true, stated = _pair(truth, probability)
    return float(roc_auc_score(true, stated)) if 0 < true.sum() < true.size else float("nan")


def brier_score(truth: ArrayLike, probability: ArrayLike) -> float:
    """Mean squared difference of probability and outcome; 0 is best.

    Parameters
    ----------
    truth
        Whether each case is true.
    probability
        Stated probabilities of the same size.

    Returns
    -------
    A float in [0, 1]. The best constant, the share q of true cases, has ``q (1 - q)``.

    Raises
    ------
    ValueError
        For sizes that differ, no cases, and values that are no truth or no probability.

    Examples
    --------
    >>> brier_score([False, True], [0.5, 0.5])
    0.25
    """
    true, stated = _pair(truth, probability)
    return float(np.mean((true - stated) ** 2))


def reliability_curve(truth: ArrayLike, probability: ArrayLike, *, n_bins: int = 20) -> pd.DataFrame:
    """Stated probability against the observed share of true cases, in bins of equal width.

    Parameters
    ----------
    truth
        Whether each case is true.
    probability
        Stated probabilities of the same size.
    n_bins
        Number of bins between 0 and 1.

    Returns
    -------
    DataFrame with a row for each bin that has cases: ``probability`` (mean stated), ``share`` (of true cases), ``n``.

    Raises
    ------
    ValueError
        For sizes that differ, no cases, and values that are no truth or no probability.

    Examples
    --------
    >>> reliability_curve([False, True, True], [0.1, 0.9, 0.9], n_bins=2)["share"].tolist()
    [0.0, 1.0]
    """
    true, stated = _pair(truth, probability)
    bins = np.minimum((stated * n_bins).astype(np.int64), n_bins - 1)
    n = np.bincount(bins, minlength=n_bins)
    used = n > 0
    mean = np.bincount(bins, weights=stated, minlength=n_bins)[used] / n[used]
    share = np.bincount(bins, weights=true, minlength=n_bins)[used] / n[used]
    return pd.DataFrame({"probability": mean, "share": share, "n": n[used]})


def expected_calibration_error(truth: ArrayLike, probability: ArrayLike, *, n_bins: int = 20) -> float:
    """Mean distance between stated probability and observed share, over bins weighted by their cases; 0 is best.

    Parameters
    ----------
    truth
        Whether each case is true.
    probability
        Stated probabilities of the same size.
    n_bins
        Number of bins of equal width.

    Returns
    -------
    A float in [0, 1].

    Raises
    ------
    ValueError
        For sizes that differ, no cases, and values that are no truth or no probability.

    Examples
    --------
    >>> expected_calibration_error([False, True], [0.5, 0.5])
    0.0
    """
    curve = reliability_curve(truth, probability, n_bins=n_bins)
    return float(np.average((curve["probability"] - curve["share"]).abs(), weights=curve["n"]))
