"""Adaptive density peak detection with automatic centres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .kernels import densities, separations, silhouettes

if TYPE_CHECKING:
    from collections.abc import Sequence

# Defaults of ADPclust: f.cut, nclust, and the number of bandwidths tried.
DENSITY_QUANTILES = (0.1, 0.2, 0.3)
N_CLUSTERS = tuple(range(2, 11))
N_BANDWIDTHS = 10
BANDWIDTH_RANGE = 3.0  # the bandwidths run from the AMISE value divided by this to its product with it; of ADPclust
MIN_CLUSTERS = 2  # a silhouette needs two
MIN_POINTS = 3  # so that one of two clusters has more than one point
# Decimals in which densities are compared. A density is a sum of up to n terms of at most 1 in float64; equal ones can
# differ in later decimals by the order of summation.
DENSITY_DECIMALS = 9


@dataclass(frozen=True, kw_only=True)
class DensityPeaks:
    """The clustering with the largest mean silhouette, and the scores of all that were tried.

    Attributes
    ----------
    labels
        ``(n,)`` int64, the nearest centre of each point, from 0.
    centers
        ``(n_clusters,)`` int64, indices of the centres, by falling separation.
    density, separation
        ``(n,)`` float64, f and delta of the standardised points at the chosen bandwidth.
    bandwidth, silhouette
        Bandwidth and mean silhouette of the chosen clustering.
    tested
        Columns with one entry per combination tried: ``density_quantile``, ``density_cut``, ``n_clusters``,
        ``bandwidth``, ``silhouette``.
    """

    labels: np.ndarray
    centers: np.ndarray
    density: np.ndarray
    separation: np.ndarray
    bandwidth: float
    silhouette: float
    tested: dict[str, np.ndarray]


def adaptive_density_peaks(
    points: np.ndarray,
    *,
    n_clusters: Sequence[int] = N_CLUSTERS,
    density_quantiles: Sequence[float] = DENSITY_QUANTILES,
) -> DensityPeaks:
    """Cluster points around density peaks.

    Bandwidth, density cut and number of clusters are those with the largest mean silhouette.

    Parameters
    ----------
    points
        ``(n, d)`` coordinates. They are divided by their sample standard deviations.
    n_clusters
        Numbers of clusters to try, each at least 2. A number is skipped if fewer points pass the density cut.
    density_quantiles
        Quantiles of the density to try as cut. Points below the cut are no centres.

    Returns
    -------
    The best clustering, the first of equally good ones. The number of threads does not change a bit.

    Raises
    ------
    ValueError
        For fewer than three points, and if no number of clusters is possible.

    Notes
    -----
    Wang & Xu, Stat Methods Med Res 26 (2017). The ten bandwidths run from h/3 to 3h around the AMISE value
    ``h = (4 / (d + 2))^(1 / (d + 4)) n^(-1 / (d + 4))``; density is the Gaussian kernel sum, separation the distance
    to the nearest point of higher density, centres the points of largest separation above the density cut.
    """
    points = np.asarray(points, dtype=np.float64)
    n, d = points.shape
    if n < MIN_POINTS:
        msg = f"Density peaks need at least {MIN_POINTS} points, got {n}."
        raise ValueError(msg)
    points = _standardise(points)
    amise = (4 / (d + 2)) ** (1 / (d + 4)) * n ** (-1 / (d + 4))
    bandwidths = np.linspace(amise / BANDWIDTH_RANGE, amise * BANDWIDTH_RANGE, N_BANDWIDTHS)
    density = densities(points, bandwidths)
    separation = _separations(points, density)

    combinations = [
        (b, quantile, cut, centers)
        for b in range(N_BANDWIDTHS)
        for quantile in density_quantiles
        for cut, centers in _center_sets(density[b], separation[b], quantile, n_clusters)
    ]
    if not combinations:
        msg = f"n_clusters={list(n_clusters)} is not possible with {n} points; {MIN_CLUSTERS} to {n - 1} is."
        raise ValueError(msg)
    rows, quantiles, cuts, center_sets = zip(*combinations, strict=True)
    scores = _mean_silhouettes(points, center_sets)
    best = int(np.argmax(scores))
    return DensityPeaks(
        labels=_nearest_center(points, center_sets[best]),
        centers=center_sets[best],
        density=density[rows[best]],
        separation=separation[rows[best]],
        bandwidth=float(bandwidths[rows[best]]),
        silhouette=float(scores[best]),
        tested={
            "density_quantile": np.array(quantiles),
            "density_cut": np.array(cuts),
            "n_clusters": np.array([len(centers) for centers in center_sets], dtype=np.int64),
            "bandwidth": bandwidths[list(rows)],
            "silhouette": scores,
        },
    )


def _standardise(points: np.ndarray) -> np.ndarray:
    """Coordinates with mean 0 and sample standard deviation 1; constant ones become 0."""
    spread = points.std(axis=0, ddof=1)
    return np.ascontiguousarray((points - points.mean(axis=0)) / np.where(spread > 0, spread, 1.0))


def _separations(points: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Distance to the nearest denser point; at the densest point the largest of these distances."""
    order = np.argsort(-density.round(DENSITY_DECIMALS), axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(len(points))[None, :], axis=1)
    separation = separations(points, ranks)
    for row, densest in zip(separation, order[:, 0], strict=True):
        row[densest] = np.max(np.delete(row, densest))
    return separation


def _center_sets(
    density: np.ndarray, separation: np.ndarray, quantile: float, n_clusters: Sequence[int]
) -> list[tuple[float, np.ndarray]]:
    """The density cut and, for each possible number of clusters, the points above it with the largest separations."""
    cut = np.quantile(density, quantile)
    eligible = np.flatnonzero(density.round(DENSITY_DECIMALS) >= cut.round(DENSITY_DECIMALS))
    ranked = eligible[np.argsort(-separation[eligible], kind="stable")]
    largest = min(ranked.size, density.size - 1)
    return [(cut, ranked[:k]) for k in n_clusters if MIN_CLUSTERS <= k <= largest]


def _nearest_center(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    squared = ((points[:, None, :] - points[None, centers, :]) ** 2).sum(axis=2)
    return np.argmin(squared, axis=1)


def _mean_silhouettes(points: np.ndarray, center_sets: Sequence[np.ndarray]) -> np.ndarray:
    """Mean silhouette of the nearest-centre labels of each set of centres, in one pass over the distances."""
    keys = [tuple(sorted(centers.tolist())) for centers in center_sets]
    distinct = {key: position for position, key in enumerate(dict.fromkeys(keys))}
    labels = np.stack([_nearest_center(points, np.array(key)) for key in distinct], axis=1).astype(np.uint16)
    sizes = np.stack([np.bincount(column, minlength=int(labels.max()) + 1) for column in labels.T])
    atom_labels, atoms = np.unique(labels, axis=0, return_inverse=True)
    means = silhouettes(points, atoms.ravel(), np.ascontiguousarray(atom_labels), sizes).mean(axis=1)
    return np.array([means[distinct[key]] for key in keys])
