"""Adaptive density peak detection with automatic centres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .kernels import densities, separations, silhouettes

if TYPE_CHECKING:
    from collections.abc import Sequence

DENSITY_QUANTILES = (0.1, 0.2, 0.3)
N_CLUSTERS = tuple(range(2, 11))
N_BANDWIDTHS = 10
FEWEST_CLUSTERS = 2
FEWEST_POINTS = 3
DENSITY_DECIMALS = 9  # that are compared; sums of up to n terms of at most 1


@dataclass(frozen=True, kw_only=True)
class DensityPeaks:
    """The clustering with the best mean silhouette, and every clustering tried.

    Attributes
    ----------
    labels
        ``(n,)`` int64, the nearest centre of each point, from 0.
    centers
        ``(n_clusters,)`` int64, indices of the centres, by falling separation.
    density, separation
        ``(n,)`` float64, f and delta at the chosen bandwidth, for the standardised coordinates.
    bandwidth, silhouette
        Of the chosen clustering.
    tested
        One array per column, one entry per combination tried: ``density_quantile``, ``density_cut``, ``n_clusters``,
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
    """Cluster points around density peaks; bandwidth, density cut and number of clusters by mean silhouette.

    Parameters
    ----------
    points
        ``(n, d)`` coordinates; standardised here by their sample standard deviation.
    n_clusters
        Numbers of clusters to try, each at least 2. Numbers for which too few points pass the density cut are skipped.
    density_quantiles
        Points below this quantile of the density cannot be centres.

    Returns
    -------
    The best clustering; the first of several equal ones. The same bits for any number of threads.

    Raises
    ------
    ValueError
        With fewer than three points, or no number of clusters that can be tried.

    Notes
    -----
    Wang & Xu, Stat Methods Med Res 26 (2017). The ten bandwidths run from h/3 to 3h around the AMISE value
    ``h = (4 / (d + 2))^(1 / (d + 4)) n^(-1 / (d + 4))``; density is the Gaussian kernel sum, separation the distance
    to the nearest point of higher density, centres the points of largest separation above the density cut.
    """
    points = np.asarray(points, dtype=np.float64)
    n, d = points.shape
    if n < FEWEST_POINTS:
        msg = f"Density peaks need at least {FEWEST_POINTS} points, got {n}."
        raise ValueError(msg)
    spread = points.std(axis=0, ddof=1)
    points = np.ascontiguousarray((points - points.mean(axis=0)) / np.where(spread > 0, spread, 1.0))

    amise = (4 / (d + 2)) ** (1 / (d + 4)) * n ** (-1 / (d + 4))
    bandwidths = np.linspace(amise / 3, amise * 3, N_BANDWIDTHS)
    density = densities(points, bandwidths)
    # Densities that are equal but for rounding are equal, whatever the points were scaled and shifted by.
    compared = density.round(DENSITY_DECIMALS)
    order = np.argsort(-compared, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(n)[None, :], axis=1)
    separation = separations(points, ranks)
    for row, densest in zip(separation, order[:, 0], strict=True):
        row[densest] = np.max(np.delete(row, densest))

    tested: dict[str, list[float]] = {
        key: [] for key in ("density_quantile", "density_cut", "n_clusters", "bandwidth", "silhouette")
    }
    candidates: list[tuple[int, np.ndarray]] = []
    for b, bandwidth in enumerate(bandwidths):
        for quantile in density_quantiles:
            cut = np.quantile(density[b], quantile)
            eligible = np.flatnonzero(compared[b] >= cut.round(DENSITY_DECIMALS))
            ranked = eligible[np.argsort(-separation[b, eligible], kind="stable")]
            for k in n_clusters:
                if not FEWEST_CLUSTERS <= k <= min(ranked.size, n - 1):
                    continue
                candidates.append((b, ranked[:k]))
                for key, value in zip(tested, (quantile, cut, k, bandwidth), strict=False):
                    tested[key].append(value)
    if not candidates:
        msg = f"n_clusters={list(n_clusters)} is not possible with {n} points; {FEWEST_CLUSTERS} to {n - 1} is."
        raise ValueError(msg)

    scores = _mean_silhouettes(points, [centers for _, centers in candidates])
    best = int(np.argmax(scores))
    b, centers = candidates[best]
    return DensityPeaks(
        labels=_nearest_center(points, centers),
        centers=centers,
        density=density[b],
        separation=separation[b],
        bandwidth=float(bandwidths[b]),
        silhouette=float(scores[best]),
        tested={key: np.asarray(values) for key, values in {**tested, "silhouette": list(scores)}.items()}
        | {"n_clusters": np.asarray(tested["n_clusters"], dtype=np.int64)},
    )


def _nearest_center(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    squared = ((points[:, None, :] - points[None, centers, :]) ** 2).sum(axis=2)
    return np.argmin(squared, axis=1)


def _mean_silhouettes(points: np.ndarray, center_sets: list[np.ndarray]) -> np.ndarray:
    """Mean silhouette of the nearest-centre labelling of each set of centres, in one pass over the distances."""
    keys = [tuple(sorted(centers.tolist())) for centers in center_sets]
    distinct = {key: t for t, key in enumerate(dict.fromkeys(keys))}
    labels = np.stack([_nearest_center(points, np.array(key)) for key in distinct], axis=1).astype(np.uint16)
    sizes = np.stack([np.bincount(column, minlength=int(labels.max()) + 1) for column in labels.T])
    atom_labels, atoms = np.unique(labels, axis=0, return_inverse=True)
    widths = silhouettes(points, atoms.ravel(), np.ascontiguousarray(atom_labels), sizes)
    means = widths.mean(axis=1)
    return np.array([means[distinct[key]] for key in keys])
