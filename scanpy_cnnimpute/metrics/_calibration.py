"""Discrimination and calibration of stated probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .._checks import check_number, check_vector

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

N_BINS = 20  # of a reliability curve: bins 5 % wide, enough cases in each at the sizes of single-cell data


def _pair(truth: ArrayLike, probability: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    true = check_vector("truth", truth, numbers=False).ravel()
    stated = check_vector("probability", probability).ravel()
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
    """Area under the ROC curve: probability that a true case is ranked above a false one; 1 is best.

    Parameters
    ----------
    truth
        Outcome of each case, true or false.
    probability
        Stated probability of each case.

    Returns
    -------
    A float in [0, 1], 0.5 for uninformative probabilities; NaN if all cases have the same outcome.

    Raises
    ------
    ValueError
        If the sizes differ, there are no cases, an outcome is not 0 or 1, or a probability is outside [0, 1].

    Examples
    --------
    >>> auroc([False, True], [0.2, 0.7])
    1.0
    """
    from sklearn.metrics import roc_auc_score

    true, stated = _pair(truth, probability)
    return float(roc_auc_score(true, stated)) if 0 < true.sum() < true.size else float("nan")


def brier_score(truth: ArrayLike, probability: ArrayLike) -> float:
    """Mean squared difference between stated probability and outcome; 0 is best.

    Parameters
    ----------
    truth
        Outcome of each case, true or false.
    probability
        Stated probability of each case.

    Returns
    -------
    A float in [0, 1]. The best constant probability is the share q of true cases; it scores ``q (1 - q)``.

    Raises
    ------
    ValueError
        If the sizes differ, there are no cases, an outcome is not 0 or 1, or a probability is outside [0, 1].

    Examples
    --------
    >>> brier_score([False, True], [0.5, 0.5])
    0.25
    """
    true, stated = _pair(truth, probability)
    return float(np.mean((true - stated) ** 2))


def reliability_curve(truth: ArrayLike, probability: ArrayLike, *, n_bins: int = N_BINS) -> pd.DataFrame:
    """Mean stated probability and observed share of true cases, in bins of equal width.

    Parameters
    ----------
    truth
        Outcome of each case, true or false.
    probability
        Stated probability of each case.
    n_bins
        Number of bins between 0 and 1.

    Returns
    -------
    DataFrame with one row for each bin that has cases: ``probability`` (mean stated probability), ``share`` (of true
    cases) and ``n`` (number of cases).

    Raises
    ------
    ValueError
        If the sizes differ, there are no cases, an outcome is not 0 or 1, or a probability is outside [0, 1].

    Examples
    --------
    >>> reliability_curve([False, True, True], [0.1, 0.9, 0.9], n_bins=2)["share"].tolist()
    [0.0, 1.0]
    """
    check_number("n_bins", n_bins, int, 1)
    true, stated = _pair(truth, probability)
    bins = np.minimum((stated * n_bins).astype(np.int64), n_bins - 1)
    n = np.bincount(bins, minlength=n_bins)
    used = n > 0
    mean = np.bincount(bins, weights=stated, minlength=n_bins)[used] / n[used]
    share = np.bincount(bins, weights=true, minlength=n_bins)[used] / n[used]
    return pd.DataFrame({"probability": mean, "share": share, "n": n[used]})


def expected_calibration_error(truth: ArrayLike, probability: ArrayLike, *, n_bins: int = N_BINS) -> float:
    """Mean absolute difference between stated probability and observed share, over the cases; 0 is best.

    Parameters
    ----------
    truth
        Outcome of each case, true or false.
    probability
        Stated probability of each case.
    n_bins
        Number of bins of equal width between 0 and 1.

    Returns
    -------
    A float in [0, 1]: the absolute difference in each bin of :func:`reliability_curve`, weighted by its cases.

    Raises
    ------
    ValueError
        If the sizes differ, there are no cases, an outcome is not 0 or 1, or a probability is outside [0, 1].

    Examples
    --------
    >>> expected_calibration_error([False, True], [0.5, 0.5])
    0.0
    """
    curve = reliability_curve(truth, probability, n_bins=n_bins)
    return float(np.average((curve["probability"] - curve["share"]).abs(), weights=curve["n"]))
