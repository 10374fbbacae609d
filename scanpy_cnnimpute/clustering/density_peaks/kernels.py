"""Numba kernels of density peak clustering.

Parallel over points and serial within a point, so that the number of threads does not change a result. Distances are
computed in each of the three kernels instead of stored: memory grows with n, not with its square.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from ..._threads import parallel_kernel

# exp(-45) = 3e-20 is less than half of the last bit of the point's own contribution of 1.
NEGLIGIBLE_EXPONENT = 45.0


@njit(cache=True)
def _squared_distance(a, b):  # type: ignore[no-untyped-def]
    total = 0.0
    for d in range(a.size):
        total += (a[d] - b[d]) ** 2
    return total


@parallel_kernel()
def densities(points, bandwidths):  # type: ignore[no-untyped-def]
    """Gaussian kernel sum at every point, ``(n_bandwidths, n)``; the bandwidths ascend."""
    n = points.shape[0]
    n_bandwidths = bandwidths.size
    scale = 0.5 / bandwidths**2
    out = np.empty((n_bandwidths, n))
    for i in prange(n):
        total = np.zeros(n_bandwidths)
        for j in range(n):
            square = _squared_distance(points[i], points[j])
            # Exponents rise as bandwidths fall: stop at the first that is negligible.
            for b in range(n_bandwidths - 1, -1, -1):
                exponent = square * scale[b]
                if exponent > NEGLIGIBLE_EXPONENT:
                    break
                total[b] += math.exp(-exponent)
        out[:, i] = total
    return out


@parallel_kernel()
def separations(points, ranks):  # type: ignore[no-untyped-def]
    """Distance to the nearest point of lower rank, which is denser, ``(n_rankings, n)``; inf at the densest point."""
    n_rankings, n = ranks.shape
    by_point = np.ascontiguousarray(ranks.T)
    out = np.empty((n_rankings, n))
    for i in prange(n):
        nearest = np.full(n_rankings, np.inf)
        for j in range(n):
            square = _squared_distance(points[i], points[j])
            for b in range(n_rankings):
                if by_point[j, b] < by_point[i, b] and square < nearest[b]:
                    nearest[b] = square
        out[:, i] = np.sqrt(nearest)
    return out


@parallel_kernel()
def silhouettes(points, atoms, atom_labels, sizes):  # type: ignore[no-untyped-def]
    """Silhouette width of every point under every labelling, ``(n_labellings, n)``.

    `atoms` (n,) numbers the groups of points that have the same labels in all labellings. `atom_labels` (n_atoms,
    n_labellings) holds these labels, `sizes` (n_labellings, n_clusters) the cluster sizes. Summing distances by group
    first makes a point cost n distances and n_atoms x n_labellings additions.
    """
    n = points.shape[0]
    n_atoms, n_labellings = atom_labels.shape
    n_clusters = sizes.shape[1]
    out = np.empty((n_labellings, n))
    for i in prange(n):
        to_atoms = np.zeros(n_atoms)
        for j in range(n):
            to_atoms[atoms[j]] += math.sqrt(_squared_distance(points[i], points[j]))
        to_clusters = np.zeros((n_labellings, n_clusters))
        for a in range(n_atoms):
            distance = to_atoms[a]
            for t in range(n_labellings):
                to_clusters[t, atom_labels[a, t]] += distance
        for t in range(n_labellings):
            own = atom_labels[atoms[i], t]
            if sizes[t, own] == 1 or sizes[t, own] == n:  # 0 by convention: a cluster of one, or a single cluster
                out[t, i] = 0.0
                continue
            within = to_clusters[t, own] / (sizes[t, own] - 1)
            between = np.inf
            for c in range(n_clusters):
                if c != own and sizes[t, c] > 0:
                    between = min(between, to_clusters[t, c] / sizes[t, c])
            largest = max(within, between)
            out[t, i] = (between - within) / largest if largest > 0.0 else 0.0
    return out
