"""Which zeros are imputed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .kernels import mark_missing, take_missing

if TYPE_CHECKING:
    import scipy.sparse as sp


def above_threshold(
    counts: sp.csr_array, probability: np.ndarray, wanted: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Zeros of the wanted genes whose probability exceeds the threshold, compared in the dtype of the probabilities.

    Returns ``indptr``, genes and probabilities of the entries in the order of CSR.
    """
    usable = np.zeros(counts.shape[1], dtype=bool)
    usable[wanted] = True
    missing, sizes = np.empty(counts.shape, dtype=bool), np.empty(counts.shape[0], dtype=np.int64)
    mark_missing(counts.indptr, counts.indices, probability, usable, probability.dtype.type(threshold), missing, sizes)
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    genes, probabilities = np.empty(indptr[-1], dtype=np.int32), np.empty(indptr[-1], dtype=np.float32)
    take_missing(missing, indptr, probability, genes, probabilities)
    return indptr, genes, probabilities
