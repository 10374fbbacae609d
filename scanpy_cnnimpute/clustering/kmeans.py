"""k-means clusters."""

from __future__ import annotations

import warnings

import numpy as np

from .._threads import single_threaded_blas

N_STARTS = 10  # by k-means++; scikit-learn's default until 1.3
MAX_ITERATIONS = 1000  # never reached in practice: k-means ends when no label changes


def kmeans(points: np.ndarray, *, n_clusters: int, random_state: int, centers: np.ndarray | None = None) -> np.ndarray:
    """k-means clusters of points, ``(n_points,)`` int64 from 0 without gaps.

    Parameters
    ----------
    points
        ``(n_points, n_dimensions)``.
    n_clusters
        Number of clusters; equal points can leave some of them empty.
    random_state
        Seed of k-means++.
    centers
        ``(n_clusters, n_dimensions)`` to start at. Default: the best of ten starts by k-means++.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    model = KMeans(
        n_clusters,
        init="k-means++" if centers is None else centers,
        n_init=N_STARTS if centers is None else 1,
        max_iter=MAX_ITERATIONS,
        tol=0.0,
        random_state=random_state,
    )
    with single_threaded_blas(), warnings.catch_warnings():
        # scikit-learn warns of empty clusters.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = model.fit_predict(points.astype(np.float64))
    return np.unique(labels, return_inverse=True)[1]
