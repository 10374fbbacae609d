"""Assign cells to known clusters by their mean expression profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from .._matrix import log_normalised

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_LENGTH = 1e-12  # guards profiles that are constant


def mean_profiles(counts: sp.csr_array, codes: np.ndarray, n_clusters: int) -> np.ndarray:
    """Mean log1p(CP10k) of each gene in each cluster, ``(n_genes, n_clusters)`` float32; 0 for empty clusters."""
    used = np.flatnonzero(codes >= 0)
    sizes = np.bincount(codes[used], minlength=n_clusters)
    weights = 1.0 / np.maximum(sizes, 1)[codes[used]]
    members = sp.csr_array((weights, (codes[used], used)), shape=(n_clusters, counts.shape[0]))
    return (members @ log_normalised(counts)).toarray().T.astype(np.float32)


def nearest_profiles(counts: sp.csr_array, profiles: np.ndarray) -> np.ndarray:
    """Cluster whose profile each cell's log1p(CP10k) is most correlated with; -1 for cells without counts."""
    centred = profiles - profiles.mean(axis=0)
    centred /= np.maximum(np.linalg.norm(centred, axis=0), MIN_LENGTH)
    # Mean and length of the cell are the same for all profiles, so the product alone decides.
    nearest = np.argmax(log_normalised(counts) @ centred.astype(np.float64), axis=1)
    return np.where(np.diff(counts.indptr) > 0, nearest, -1)


def codes_of(names: Sequence[str], known: Sequence[str], codes: np.ndarray) -> np.ndarray:
    """Translate codes for some names into positions among the known names.

    Raises
    ------
    ValueError
        If a name is unknown.
    """
    unknown = sorted(set(names) - set(known))
    if unknown:
        msg = f"clusters {unknown[:5]} are unknown. Fitted: {list(known)[:5]}."
        raise ValueError(msg)
    # The code -1 picks the last element, which stands for no cluster.
    return np.array([*(list(known).index(name) for name in names), -1])[codes]
