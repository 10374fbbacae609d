"""Agreement of clusters with known cell types."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import xlogy

from .._checks import check_vector

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def _contingency(labels: ArrayLike, clusters: ArrayLike) -> np.ndarray:
    from sklearn.metrics.cluster import contingency_matrix

    labels = check_vector("labels", labels, numbers=False)
    clusters = check_vector("clusters", clusters, numbers=False)
    if labels.ndim != 1 or labels.shape != clusters.shape or labels.size == 0:
        msg = f"labels and clusters must be two vectors of one length, got shapes {labels.shape} and {clusters.shape}."
        raise ValueError(msg)
    for name, values in (("labels", labels), ("clusters", clusters)):
        if values.dtype.kind in "fc" and np.isnan(values).any():
            msg = f"{name} has NaN: leave cells without a label out."
            raise ValueError(msg)
    return contingency_matrix(clusters, labels)


def purity(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Share of cells with the most frequent label of their cluster; 1 is best.

    Parameters
    ----------
    labels, clusters
        Known type and cluster of each cell.

    Returns
    -------
    A float in (0, 1].

    Raises
    ------
    ValueError
        If the two are not vectors of the same, positive length.

    Notes
    -----
    The paper, "Cell clusters assessment".

    Examples
    --------
    >>> purity(["a", "a", "b", "b"], [0, 0, 0, 1])
    0.75
    """
    table = _contingency(labels, clusters)
    return float(table.max(axis=1).sum() / table.sum())


def entropy(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Mean entropy of the labels within clusters, relative to its maximum; 0 is best.

    Parameters
    ----------
    labels, clusters
        Known type and cluster of each cell.

    Returns
    -------
    A float in [0, 1]; 0 if there is only one label.

    Raises
    ------
    ValueError
        If the two are not vectors of the same, positive length.

    Notes
    -----
    ``-1 / (N log2 l) sum_ij n_ij log2(n_ij / n_i)`` over clusters i and the l labels j (the paper, "Cell clusters
    assessment").

    Examples
    --------
    >>> entropy(["a", "b", "a", "b"], [0, 0, 1, 1])
    1.0
    """
    table = _contingency(labels, clusters)
    n_labels = table.shape[1]
    if n_labels == 1:
        return 0.0
    shares = table / table.sum(axis=1, keepdims=True)
    # Adding zero turns -0.0 into 0.0.
    return float(-(xlogy(table, shares)).sum() / (table.sum() * np.log(n_labels))) + 0.0


def adjusted_rand_index(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Adjusted Rand index: agreement on pairs of cells, corrected for chance; 1 is best, 0 is expected by chance.

    Parameters
    ----------
    labels, clusters
        Known type and cluster of each cell.

    Returns
    -------
    A float in [-0.5, 1].

    Raises
    ------
    ValueError
        If the two are not vectors of the same, positive length.

    Notes
    -----
    ``(RI - E[RI]) / (max RI - E[RI])``. The paper prints as RI
    ``2 (TP TN - FP FN) / ((TP + FN)(FN + TN) + (TP + FP)(FP + TN))``, which is the adjusted index already, and as E[RI]
    it prints 1 - E[RI]. Combining the two as printed would correct for chance twice.

    Examples
    --------
    >>> adjusted_rand_index(["a", "a", "b", "b"], [1, 1, 0, 0])
    1.0
    """
    from sklearn.metrics import adjusted_rand_score

    _contingency(labels, clusters)
    return float(adjusted_rand_score(np.asarray(labels), np.asarray(clusters)))


def normalized_mutual_information(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Mutual information of labels and clusters, divided by the mean of their entropies; 1 is best.

    Parameters
    ----------
    labels, clusters
        Known type and cluster of each cell.

    Returns
    -------
    A float in [0, 1].

    Raises
    ------
    ValueError
        If the two are not vectors of the same, positive length.

    Examples
    --------
    >>> round(normalized_mutual_information(["a", "a", "b", "b"], [1, 1, 0, 0]), 6)
    1.0
    """
    from sklearn.metrics import normalized_mutual_info_score

    _contingency(labels, clusters)
    return float(normalized_mutual_info_score(np.asarray(labels), np.asarray(clusters)))
