"""Bayesian Poisson factorisation: what is expected of every gene in every cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from scipy.optimize import brentq
from scipy.special import digamma

from ..._progress import progress_bar
from ..._threads import single_threaded_pool
from .allocation import Allocation

if TYPE_CHECKING:
    from collections.abc import Sequence

# Tuned on recovered and calibration figures of thinned real counts; more factors or starts gained less than 0.5 %.
N_FACTORS = 10
N_STARTS = 2
N_ITERATIONS = 50  # from a random start
N_MORE_ITERATIONS = 30  # going on from another fit
N_CELL_ITERATIONS = 15  # for cells with the loadings fixed
N_GENE_ITERATIONS = 20  # for genes with the scores fixed
# Over-relaxed steps in the logarithms (Salakhutdinov and Roweis 2003); convergence is guaranteed below 2.
STEP = 1.8
N_FIRST_PLAIN = 5  # plain iterations before steps are lengthened and the prior is fitted
N_LAST_PLAIN = 2  # plain iterations at the end, so that means and geometric means agree
PRIOR_EVERY = 5  # iterations between fits of the prior
CELL_SHAPE = 1.0  # shape of the gamma prior of the scores (Gopalan, Hofman and Blei 2015)
LOADING_SHAPE = 0.3  # the same of genes fitted alone (that paper's): fixed, so that they do not depend on each other
LOADING_SHAPES = (0.05, 200.0)  # range of the fitted shape of the prior of the loadings: sparse to constant
START_SHAPE = 10.0  # of the gamma distribution of a random start: near the prior mean, apart enough to diverge
MIN_SCALE = 1e-12  # guards a factor that has died out


@dataclass(frozen=True, kw_only=True)
class Factors:
    """Posterior of one factorisation.

    Attributes
    ----------
    loadings, log_loadings
        ``(n_genes, n_factors)`` means, and means of the logarithms.
    log_scores
        ``(n_cells, n_factors)`` means of the logarithms.
    prior
        Fitted shape of the prior of the loadings.
    library_size, share
        ``(n_cells,)`` and ``(n_genes,)`` exposures: total counts, and the gene's share of all of them.
    """

    loadings: np.ndarray
    log_scores: np.ndarray
    log_loadings: np.ndarray
    prior: float
    library_size: np.ndarray
    share: np.ndarray


def factorise(counts: sp.csr_array, starts: Sequence[np.random.Generator | Factors]) -> list[Factors]:
    """Fit the counts from random starts, or going on from other fits; one thread or many give the same bits.

    Notes
    -----
    Counts are Poisson with mean ``L_i p_j sum_k theta_ik beta_jk`` (L_i library size, p_j share of the gene), with
    gamma priors whose means make it ``L_i p_j``. The shape of the prior of beta is fitted, so that data without
    structure give the gene's mean. Mean-field variational inference (Gopalan, Hofman and Blei 2015).
    """
    library_size = counts.sum(axis=1, dtype=np.float64)
    share = counts.sum(axis=0, dtype=np.float64) / max(library_size.sum(), 1.0)
    n_iterations = sum(N_MORE_ITERATIONS if isinstance(start, Factors) else N_ITERATIONS for start in starts)
    bar = progress_bar("Fitting the dropout model", n_iterations, unit="iterations")
    with bar, single_threaded_pool() as pool:
        allocation = Allocation(counts, pool)
        return [_factorise_from(start, allocation, library_size, share, bar) for start in starts]


def _factorise_from(
    start: np.random.Generator | Factors, allocation: Allocation, library_size: np.ndarray, share: np.ndarray, bar: Any
) -> Factors:
    n_cells, n_genes = library_size.size, share.size
    if isinstance(start, np.random.Generator):
        log_scores = np.log(start.gamma(START_SHAPE, 1 / (START_SHAPE * N_FACTORS), size=(n_cells, N_FACTORS)))
        loadings = start.gamma(START_SHAPE, 1 / START_SHAPE, size=(n_genes, N_FACTORS))
        log_loadings, prior, n_iterations, first_prior = np.log(loadings), 1.0, N_ITERATIONS, N_FIRST_PLAIN
    else:
        log_scores, loadings, log_loadings = start.log_scores, start.loadings, start.log_loadings
        prior, n_iterations, first_prior = start.prior, N_MORE_ITERATIONS, 0
    for iteration in range(n_iterations):
        step = STEP if N_FIRST_PLAIN <= iteration < n_iterations - N_LAST_PLAIN else 1.0
        own, other = np.exp(log_scores), np.exp(log_loadings)
        exposure = library_size[:, None] * _weighted_sum(share, loadings)
        scores, target = _update_scores(allocation, own, other, exposure)
        log_scores = log_scores + step * (target - log_scores)
        alpha = prior + allocation.by_gene(np.exp(log_scores), other)
        beta = prior + share[:, None] * _weighted_sum(library_size, scores)
        loadings = alpha / beta
        log_loadings = log_loadings + step * (digamma(alpha) - np.log(beta) - log_loadings)
        # Remove the scale ambiguity between scores and loadings: the loadings of a factor average to 1 over molecules.
        scale = np.maximum(_weighted_sum(share, loadings), MIN_SCALE)
        loadings, log_loadings = loadings / scale, log_loadings - np.log(scale)
        log_scores = log_scores + np.log(scale)
        if iteration >= first_prior and iteration % PRIOR_EVERY == 0:
            prior = _prior_shape(loadings, log_loadings)
        bar.update()
    return Factors(
        loadings=loadings,
        log_scores=log_scores,
        log_loadings=log_loadings,
        prior=prior,
        library_size=library_size,
        share=share,
    )


def combine(parts: Sequence[Factors]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and loadings, float32, whose product is the mean of the expected counts of several factorisations.

    Notes
    -----
    The expected counts of a cell are scaled to add up to its library size, which geometric means alone do not do in
    cells of few molecules.
    """
    loadings = [part.share[:, None] * np.exp(part.log_loadings) for part in parts]
    scores = [
        _scaled_scores(np.exp(part.log_scores), own, part.library_size)
        for part, own in zip(parts, loadings, strict=True)
    ]
    return np.concatenate(scores, axis=1, dtype=np.float32), np.concatenate(loadings, axis=1, dtype=np.float32)


def fit_loadings(counts: sp.csr_array, scores: np.ndarray) -> np.ndarray:
    """Loadings of genes with the scores of the cells fixed.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)``, without stored zeros.
    scores
        ``(n_cells, N_STARTS * N_FACTORS)`` as :func:`combine` gives them.

    Returns
    -------
    ``(n_genes, N_STARTS * N_FACTORS)`` float32.
    """
    used = np.flatnonzero(scores.any(axis=1))
    counts, scores = sp.csr_array(counts[used]), scores[used]
    total, loadings = counts.sum(axis=0, dtype=np.float64), []
    with single_threaded_pool() as pool:
        allocation = Allocation(counts, pool)
        for start in range(0, scores.shape[1], N_FACTORS):
            own = scores[:, start : start + N_FACTORS].astype(np.float64) * N_STARTS
            share = total / max(own.sum(), MIN_SCALE)
            log_loadings = np.zeros((total.size, N_FACTORS))
            for iteration in range(N_GENE_ITERATIONS):
                step = STEP if iteration < N_GENE_ITERATIONS - N_LAST_PLAIN else 1.0
                alpha = LOADING_SHAPE + allocation.by_gene(own, np.exp(log_loadings))
                beta = LOADING_SHAPE + share[:, None] * own.sum(axis=0)
                log_loadings = log_loadings + step * (digamma(alpha) - np.log(beta) - log_loadings)
            loadings.append(share[:, None] * np.exp(log_loadings))
    return np.concatenate(loadings, axis=1, dtype=np.float32)


def describe_cells(counts: sp.csr_array, loadings: np.ndarray) -> np.ndarray:
    """Scores of cells with the loadings fixed.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)``, without stored zeros.
    loadings
        ``(n_genes, N_STARTS * N_FACTORS)`` as :func:`combine` gives them.

    Returns
    -------
    ``(n_cells, N_STARTS * N_FACTORS)`` float32.
    """
    library_size = counts.sum(axis=1, dtype=np.float64)
    # A gene that no cell of the fit had says nothing about the factors.
    known = np.where(loadings.any(axis=1, keepdims=True), loadings, 1.0).astype(np.float64)
    scores = []
    with single_threaded_pool() as pool:
        allocation = Allocation(counts, pool)
        for start in range(0, loadings.shape[1], N_FACTORS):
            part = slice(start, start + N_FACTORS)
            own = _cell_scores(allocation, np.ascontiguousarray(known[:, part]), library_size)
            scores.append(_scaled_scores(own, loadings[:, part].astype(np.float64), library_size))
    return np.concatenate(scores, axis=1, dtype=np.float32)


def _cell_scores(allocation: Allocation, other: np.ndarray, library_size: np.ndarray) -> np.ndarray:
    # The loadings of a factor average to 1 over the molecules, so the exposure of each is the library size.
    exposure = np.repeat(library_size[:, None], N_FACTORS, axis=1)
    log_scores = np.full(exposure.shape, -np.log(N_FACTORS))
    for iteration in range(N_CELL_ITERATIONS):
        step = STEP if iteration < N_CELL_ITERATIONS - N_LAST_PLAIN else 1.0
        _, target = _update_scores(allocation, np.exp(log_scores), other, exposure)
        log_scores = log_scores + step * (target - log_scores)
    return np.exp(log_scores)


def _scaled_scores(scores: np.ndarray, loadings: np.ndarray, library_size: np.ndarray) -> np.ndarray:
    """Scores scaled so that the expected counts of one start add up to its part of the library size."""
    total = np.einsum("ik,k->i", scores, loadings.sum(axis=0))
    factor = np.divide(library_size, total * N_STARTS, out=np.zeros_like(total), where=total > 0)
    return factor[:, None] * scores


def _update_scores(
    allocation: Allocation, own: np.ndarray, other: np.ndarray, exposure: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Means of the scores, and of their logarithms, after one update."""
    alpha, beta = CELL_SHAPE + allocation.by_cell(own, other), CELL_SHAPE * N_FACTORS + exposure
    return alpha / beta, digamma(alpha) - np.log(beta)


def _weighted_sum(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``weights @ values`` without BLAS, whose order of summation depends on its threads."""
    return np.einsum("i,ik->k", weights, values)


def _prior_shape(loadings: np.ndarray, log_loadings: np.ndarray) -> float:
    """Most likely shape, within `LOADING_SHAPES`, of a gamma prior of mean 1 for these loadings."""
    excess = float(np.mean(log_loadings - loadings)) + 1.0

    def slope(log_shape: float) -> float:
        """Derivative of the log likelihood, which falls with the shape."""
        return log_shape - float(digamma(np.exp(log_shape))) + excess

    low, high = np.log(LOADING_SHAPES)
    if slope(low) <= 0:
        return LOADING_SHAPES[0]
    if slope(high) >= 0:
        return LOADING_SHAPES[1]
    return float(np.exp(brentq(slope, low, high)))
