"""Share counts among the factors of the Poisson factorisation."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from .kernels import allocate

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import ThreadPoolExecutor

# Share of non-zeros above which dense matrix products are faster than a loop over the entries (measured at 3,000
# cells).
DENSE_SHARE = 0.3
# Bytes of a dense float32 block: it stays in a core's second-level cache.
BLOCK_BYTES = 2**20
# Relative to the largest factor of a row: the product of two such numbers is still a single-precision number.
MIN_FACTOR = 1e-18


class Allocation:
    """Shares every count among the factors in proportion to their products, summed by cell or by gene.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)``, without stored zeros.
    pool
        Threads whose BLAS is single-threaded.

    Notes
    -----
    Counts with few zeros are shared as dense matrix products in single precision. The results do not depend on the
    number of threads.
    """

    def __init__(self, counts: sp.csr_array, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._dense = counts.nnz > DENSE_SHARE * counts.shape[0] * counts.shape[1]
        if self._dense:
            self._counts = counts.astype(np.float32).toarray()
        else:
            self._by_cell = sp.csr_array(counts, dtype=np.float64)

    @cached_property
    def _by_gene(self) -> sp.csr_array:
        return sp.csr_array(self._by_cell.T)

    def by_cell(self, scores: np.ndarray, loadings: np.ndarray) -> np.ndarray:
        """``a_ik = sum_j x_ij s_ik l_jk / sum_q s_iq l_jq``, ``(n_cells, n_factors)`` float64."""
        if self._dense:
            parts = self._products(scores, loadings, lambda ratio, own, other: own * (ratio @ other))
            return np.concatenate(parts, dtype=np.float64)
        return _allocate(self._by_cell, scores, loadings)

    def by_gene(self, scores: np.ndarray, loadings: np.ndarray) -> np.ndarray:
        """The same summed over cells instead of genes, ``(n_genes, n_factors)`` float64."""
        if self._dense:
            parts = self._products(scores, loadings, lambda ratio, own, other: other * (ratio.T @ own))
            return np.stack(parts).sum(axis=0, dtype=np.float64)
        return _allocate(self._by_gene, loadings, scores)

    def _products(
        self, scores: np.ndarray, loadings: np.ndarray, product: Callable[..., np.ndarray]
    ) -> list[np.ndarray]:
        """For each block of cells a product of counts over expectations, scores and loadings."""
        scores, loadings = _scaled(scores), _scaled(loadings)
        height = max(1, BLOCK_BYTES // (4 * max(len(loadings), 1)))

        def block(start: int) -> np.ndarray:
            own = scores[start : start + height]
            ratio = own @ loadings.T
            np.divide(self._counts[start : start + height], ratio, out=ratio)
            return product(ratio, own, loadings)

        return list(self._pool.map(block, range(0, len(scores), height)))


def _allocate(counts: sp.csr_array, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    out = np.empty(own.shape)
    allocate(counts.indptr, counts.indices, counts.data, own, other, out)
    return out


def _scaled(factors: np.ndarray) -> np.ndarray:
    """Rows divided by their largest elements, so that nothing underflows; the shares do not depend on the scale."""
    return np.maximum(factors / factors.max(axis=1, keepdims=True), MIN_FACTOR).astype(np.float32)
