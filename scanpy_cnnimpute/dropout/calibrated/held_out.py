"""What held-out molecules say of the expected counts: their spread, their calibration, and whether a gene gains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from ..._threads import single_threaded_blas
from .kernels import held_out_gain, held_out_probability, shape_likelihood

if TYPE_CHECKING:
    from collections.abc import Iterator

SHAPES = np.geomspace(0.1, 200.0, 15)  # grid: far over-dispersed to Poisson for the counts of today's protocols
N_SHAPE_ITERATIONS = 50  # of EM over the genes; the mean moves by less than 1e-3 after 20
MIN_SHAPE_SD = 0.1  # of the log shapes over the genes, so that the prior never becomes a point
BLOCK_BYTES = 2**23  # of a dense float64 block of genes x cells


class HeldOut:
    """Molecules of some cells split in two, and what is expected of the first set.

    Parameters
    ----------
    train, test
        ``(n_cells, n_genes)`` the two sets.
    scores, loadings
        Their product is expected of `train`.
    """

    def __init__(self, train: sp.csr_array, test: sp.csr_array, scores: np.ndarray, loadings: np.ndarray) -> None:
        self._scores, self._loadings = scores, loadings
        self.library_size = train.sum(axis=1, dtype=np.float64)
        rest = test.sum(axis=1, dtype=np.float64)
        # Turns expected counts of the first set of a cell into those of the second.
        self.ratio = np.divide(rest, self.library_size, out=np.zeros_like(rest), where=self.library_size > 0)
        self._first, self._second = _by_gene(train), _by_gene(test)

    def shapes(self) -> np.ndarray:
        """Shape of the negative binomial distribution of each gene around what is expected, ``(n_genes,)`` float64.

        Notes
        -----
        The likelihood of the second set given the first, so that the shape also holds what the model does not know.
        Shapes are log-normal over the genes; their geometric posterior means by expectation-maximisation.
        """
        likelihood = np.empty((self._first.shape[0], SHAPES.size))
        for genes, first, second, expected in self._blocks():
            shape_likelihood(first, second, expected, self.ratio, SHAPES, likelihood[genes])
        likelihood = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
        grid = np.log(SHAPES)
        mean, sd = grid.mean(), grid.std()
        for _ in range(N_SHAPE_ITERATIONS):
            posterior = likelihood * np.exp(-0.5 * ((grid - mean) / sd) ** 2)
            posterior /= posterior.sum(axis=1, keepdims=True)
            share = posterior.mean(axis=0)
            mean = float(share @ grid)
            sd = max(float(np.sqrt(share @ (grid - mean) ** 2)), MIN_SHAPE_SD)
        return np.exp(posterior @ grid)

    def calibration(self, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stated probability, and whether the second set has a molecule, at the zeros of the first: two vectors."""
        stated, present = [], []
        for genes, first, second, expected in self._blocks():
            probability = np.empty(first.shape, dtype=np.float32)
            held_out_probability(first, expected, self.ratio, shape[genes], probability)
            zero = probability >= 0
            stated.append(probability[zero])
            present.append(second[zero] > 0)
        return np.concatenate(stated), np.concatenate(present)

    def gain(self, shape: np.ndarray) -> np.ndarray:
        """Gain of the model on the second set where the first is zero, ``(n_genes,)`` float64, in standard errors.

        The larger of two gains: in Poisson deviance over the gene's mean rate, and in squared error over leaving the
        zeros. NaN where there is nothing to compare.
        """
        rates = self._first.sum(axis=1, dtype=np.float64) / max(self.library_size.sum(), 1.0)
        over_mean, over_zero = np.empty((2, self._first.shape[0], 2))
        held_out_gain(
            self._first.indptr,
            self._first.indices,
            self._second.indptr,
            self._second.indices,
            self._second.data,
            np.ascontiguousarray(self._scores.T),
            self._loadings,
            self.library_size,
            rates,
            self.ratio,
            shape,
            over_mean,
            over_zero,
        )
        return np.fmax(_in_standard_errors(*over_mean.T), _in_standard_errors(*over_zero.T))

    def _blocks(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
        """Slices of genes with dense counts of both sets and expected counts of the first, ``(n_block, n_cells)``."""
        n_genes, n_cells = self._first.shape
        width = max(1, BLOCK_BYTES // (8 * max(n_cells, 1)))
        for start in range(0, n_genes, width):
            genes = slice(start, min(start + width, n_genes))
            with single_threaded_blas():
                expected = self._loadings[genes] @ self._scores.T
            yield genes, self._first[genes].toarray(), self._second[genes].toarray(), expected


def _by_gene(counts: sp.csr_array) -> sp.csr_array:
    transposed = sp.csr_array(counts.T)
    transposed.eliminate_zeros()
    return transposed


def _in_standard_errors(gain: np.ndarray, squares: np.ndarray) -> np.ndarray:
    return np.divide(gain, np.sqrt(squares), out=np.full_like(gain, np.nan), where=squares > 0)
