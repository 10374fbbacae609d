"""The metrics of matrices that arrive in blocks and are never held as a whole."""

from __future__ import annotations

import numpy as np

from ._accuracy import poisson_deviance
from ._calibration import N_BINS

# Of the histogram for the area under the ROC curve. Ties within a bin count half, which moves the area by at most
# 1e-4 unless most probabilities fall into a few of the bins.
N_ROC_BINS = 2**16


class PairedScores:
    """:func:`~scanpy_cnnimpute.metrics.mse` and :func:`~scanpy_cnnimpute.metrics.pcc` of pairs that arrive in blocks.

    Means and co-moments of the blocks are merged as in Chan, Golub and LeVeque (Am Stat 1983), so that nothing cancels.
    """

    def __init__(self) -> None:
        self._n = 0
        self._squared_error = 0.0
        self._mean = np.zeros(2)
        self._moments = np.zeros((2, 2))
        self._range = np.array([[np.inf, -np.inf]] * 2)

    def add(self, truth: np.ndarray, estimate: np.ndarray) -> None:
        """Take in a block of pairs."""
        if truth.size == 0:
            return
        pair = np.stack([truth.ravel(), estimate.ravel()], dtype=np.float64)
        low, high = self._range.T
        self._range = np.stack([np.minimum(low, pair.min(axis=1)), np.maximum(high, pair.max(axis=1))], axis=1)
        difference = pair[0] - pair[1]
        self._squared_error += float(difference @ difference)
        mean = pair.mean(axis=1)
        pair -= mean[:, None]
        n, shift = self._n + truth.size, mean - self._mean
        self._moments += pair @ pair.T + np.outer(shift, shift) * (self._n * truth.size / n)
        self._mean += shift * (truth.size / n)
        self._n = n

    @property
    def mse(self) -> float:
        """Mean squared error; NaN if there was no pair."""
        return self._squared_error / self._n if self._n else float("nan")

    @property
    def pcc(self) -> float:
        """Pearson correlation; NaN if the truth or the estimate is constant, or there was no pair."""
        low, high = self._range.T
        if not (high > low).all():
            return float("nan")
        return float(self._moments[0, 1] / np.sqrt(self._moments[0, 0] * self._moments[1, 1]))


class Deviance:
    """:func:`~scanpy_cnnimpute.metrics.poisson_deviance` of counts and expectations that arrive in blocks."""

    def __init__(self) -> None:
        self._n = 0
        self._total = 0.0

    def add(self, observed: np.ndarray, expected: np.ndarray) -> None:
        """Take in a block of counts and their expectations."""
        if observed.size:
            self._total += poisson_deviance(observed, expected) * observed.size
            self._n += observed.size

    @property
    def mean(self) -> float:
        """Mean deviance; NaN if there was no entry."""
        return self._total / self._n if self._n else float("nan")


class Calibration:
    """Scores of probabilities that arrive in blocks.

    :func:`~scanpy_cnnimpute.metrics.brier_score` and :func:`~scanpy_cnnimpute.metrics.expected_calibration_error` are
    exact, :func:`~scanpy_cnnimpute.metrics.auroc` comes from a histogram of the probabilities.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((2, N_ROC_BINS), dtype=np.int64)  # false and true cases
        self._n, self._n_true, self._stated = np.zeros((3, N_BINS))
        self._squared_error = 0.0

    def add(self, truth: np.ndarray, probability: np.ndarray) -> None:
        """Take in a block: whether each case is true, and its stated probability."""
        stated = np.asarray(probability, dtype=np.float64)
        fine = np.minimum((stated * N_ROC_BINS).astype(np.int64), N_ROC_BINS - 1)
        for outcome in (False, True):
            self._counts[int(outcome)] += np.bincount(fine[truth == outcome], minlength=N_ROC_BINS)
        coarse = np.minimum((stated * N_BINS).astype(np.int64), N_BINS - 1)
        self._n += np.bincount(coarse, minlength=N_BINS)
        self._n_true += np.bincount(coarse, truth, minlength=N_BINS)
        self._stated += np.bincount(coarse, stated, minlength=N_BINS)
        difference = stated - truth
        self._squared_error += float(difference @ difference)

    @property
    def auroc(self) -> float:
        """Area under the ROC curve; NaN if all cases are alike."""
        false, true = self._counts
        pairs = float(false.sum()) * float(true.sum())
        lower = np.cumsum(false) - false
        return float(true @ (lower + false / 2)) / pairs if pairs else float("nan")

    @property
    def brier(self) -> float:
        """Brier score; NaN if there was no case."""
        n = self._n.sum()
        return float(self._squared_error / n) if n else float("nan")

    @property
    def ece(self) -> float:
        """Expected calibration error; NaN if there was no case."""
        n = self._n.sum()
        return float(np.abs(self._stated - self._n_true).sum() / n) if n else float("nan")
