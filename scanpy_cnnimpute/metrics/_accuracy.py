"""Accuracy of estimates against held-out values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import xlogy

from .._checks import check_number, check_vector

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def _pair(
    truth: ArrayLike, estimate: ArrayLike, names: tuple[str, str] = ("truth", "estimate")
) -> tuple[np.ndarray, np.ndarray]:
    truth, estimate = check_vector(names[0], truth), check_vector(names[1], estimate)
    if truth.shape != estimate.shape or truth.size == 0:
        shapes = f"got {truth.shape} and {estimate.shape}"
        msg = f"{names[0]} and {names[1]} must have the same shape and not be empty, {shapes}."
        raise ValueError(msg)
    return truth, estimate


def mse(truth: ArrayLike, estimate: ArrayLike) -> float:
    """Mean squared error; 0 is best.

    Parameters
    ----------
    truth, estimate
        Values of the same shape. The paper compares log1p(counts) at the masked entries.

    Returns
    -------
    A float in the squared units of the values.

    Raises
    ------
    ValueError
        If the shapes differ or are empty.

    Examples
    --------
    >>> mse([0.0, 2.0], [0.0, 1.0])
    0.5
    """
    true, estimated = _pair(truth, estimate)
    return float(np.mean((true - estimated) ** 2))


def pcc(truth: ArrayLike, estimate: ArrayLike) -> float:
    """Pearson correlation over all values; 1 is best.

    Parameters
    ----------
    truth, estimate
        Values of the same shape.

    Returns
    -------
    A float in [-1, 1]; NaN if either is constant.

    Raises
    ------
    ValueError
        If the shapes differ or are empty.

    Examples
    --------
    >>> round(pcc([0.0, 1.0, 2.0], [1.0, 2.0, 3.0]), 6)
    1.0
    """
    pair = _pair(truth, estimate)
    if any(np.ptp(values) == 0 for values in pair):
        return float("nan")
    x, y = (values.ravel() - values.mean() for values in pair)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def gene_pcc(truth: ArrayLike, estimate: ArrayLike, genes: ArrayLike, *, min_entries: int = 3) -> float:
    """Median over genes of the Pearson correlation within the gene; 1 is best.

    Parameters
    ----------
    truth, estimate
        Vectors of values.
    genes
        Gene of each value.
    min_entries
        Genes with fewer values are left out. Default: 3, because two values always correlate perfectly.

    Returns
    -------
    A float in [-1, 1]; NaN if no gene is left. A gene with a constant estimate counts as 0. A gene with a constant
    truth is left out.

    Raises
    ------
    ValueError
        If the three are not vectors of the same, positive length.

    Examples
    --------
    >>> round(gene_pcc([0.0, 1.0, 2.0], [1.0, 2.0, 3.0], ["a", "a", "a"]), 6)
    1.0
    """
    check_number("min_entries", min_entries, int, 1)
    true, estimated = _pair(truth, estimate)
    names, codes = np.unique(check_vector("genes", genes, numbers=False), return_inverse=True)
    if codes.shape != true.shape:
        msg = f"genes has shape {codes.shape}, truth {true.shape}: one gene for each value is needed."
        raise ValueError(msg)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(codes, weights=values, minlength=names.size)

    n = total(np.ones(true.size))
    true = true - (total(true) / n)[codes]
    estimated = estimated - (total(estimated) / n)[codes]
    spread, own_spread = total(true**2), total(estimated**2)
    judged = (n >= min_entries) & (spread > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.where(own_spread > 0, total(true * estimated) / np.sqrt(spread * own_spread), 0.0)
    return float(np.median(correlation[judged])) if judged.any() else float("nan")


def poisson_deviance(observed: ArrayLike, expected: ArrayLike) -> float:
    """Mean Poisson deviance of observed counts from expected counts; 0 is best.

    Parameters
    ----------
    observed
        Held-out counts.
    expected
        Predicted means, of the same shape.

    Returns
    -------
    A float: the mean of ``2 (y log(y / mu) - y + mu)`` for observed y and expected mu. It is infinite if a positive
    count has expectation 0.

    Raises
    ------
    ValueError
        If the shapes differ or are empty, or a value is negative.

    Examples
    --------
    >>> poisson_deviance([0, 1], [1.0, 1.0])
    1.0
    """
    seen, mean = _pair(observed, expected, ("observed", "expected"))
    if seen.min() < 0 or mean.min() < 0:
        msg = f"Counts are not negative; the smallest are {seen.min()} observed and {mean.min()} expected."
        raise ValueError(msg)
    with np.errstate(divide="ignore"):
        ratio = np.divide(seen, mean, out=np.ones_like(seen), where=seen > 0)
    return float(2 * np.mean(xlogy(seen, ratio) - seen + mean))
