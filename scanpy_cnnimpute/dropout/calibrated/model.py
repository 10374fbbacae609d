"""How probable it is that a transcript was present where none was counted: expected expression and sampling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from scipy.special import digamma

from ..._threads import single_threaded_blas, single_threaded_pool
from .allocation import Allocation
from .kernels import (
    held_out_gain,
    held_out_probability,
    missed_probability,
    shape_likelihood,
    worth_of_zeros,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SCALE = 1e4  # CP10k
MORE_MOLECULES = 4000.0
MOST_TIMES = 1.65

MOST_CELLS = 5_000  # that the factors are learnt from; they describe the others
N_FACTORS = 10
N_STARTS = 2
N_ITERATIONS = 50  # on part of the molecules
N_MORE_ITERATIONS = 30  # from there on all of them
N_CELL_ITERATIONS = 15  # for a cell that the factors were not learnt from
FEWEST_ITERATIONS = 5  # before steps are lengthened and the prior of the loadings is fitted
LAST_ITERATIONS = 2  # whose steps are not lengthened
STEP = 1.8  # of the logarithms, in steps of the plain algorithm; from 2 on it need not converge
PRIOR_EVERY = 5
CELL_SHAPE = 1.0  # of the gamma prior of a cell's scores
LOADING_SHAPES = (0.05, 200.0)  # between which that of the loadings is fitted
TRAIN_SHARE = 0.65
SHAPES = np.geomspace(0.1, 200.0, 15)
SHAPE_ENTRIES = 4_000_000  # that the shapes are fitted to, at most
SHAPE_ITERATIONS = 50
SMALLEST_SHAPE_SD = 0.1
BLOCK_BYTES = 2**23


def depth_efficiency(library_size: np.ndarray) -> np.ndarray:
    """Share of the molecules that was counted, if those that could be sampled next are the missed ones.

    These are 4,000 more molecules of the cell, but at most 1.65 times those that were counted: how far the data are
    extrapolated. What share of *all* its molecules a cell's counts are, counts alone cannot tell.

    Parameters
    ----------
    library_size
        ``(n_cells,)`` total counts.

    Returns
    -------
    ``(n_cells,)`` float64, at least 1 / 2.65.
    """
    more = np.minimum(MORE_MOLECULES, MOST_TIMES * library_size)
    return np.divide(library_size, library_size + more, out=np.ones(library_size.size), where=library_size > 0)


@dataclass(frozen=True, kw_only=True)
class CalibratedModel:
    """Expected counts, their spread, and the share of molecules that was counted.

    Attributes
    ----------
    scores, loadings
        ``(n_cells, n_factors)`` and ``(n_genes, n_factors)`` float32; their product is the expected count.
    shape
        ``(n_genes,)`` float64: shape r of the negative binomial distribution of the counts around it.
    capture_efficiency
        ``(n_cells,)`` float64: share of the molecules of a cell that was counted.
    """

    scores: np.ndarray
    loadings: np.ndarray
    shape: np.ndarray
    capture_efficiency: np.ndarray

    def take(self, cells: np.ndarray | slice, genes: np.ndarray | slice) -> CalibratedModel:
        """The model of some cells and genes, in the order given."""
        return CalibratedModel(
            scores=self.scores[cells],
            loadings=self.loadings[genes],
            shape=self.shape[genes],
            capture_efficiency=self.capture_efficiency[cells],
        )

    def expected(self) -> np.ndarray:
        """Expected counts of all entries, ``(n_cells, n_genes)`` float32."""
        with single_threaded_blas():
            return self.scores @ self.loadings.T

    def probability(self, counts: sp.csr_array) -> np.ndarray:
        """Probability that the transcript was present though none was counted.

        Parameters
        ----------
        counts
            ``(n_cells, n_genes)`` counts of the model's cells and genes, without stored zeros.

        Returns
        -------
        ``(n_cells, n_genes)`` float32; 0 where something was counted.

        Notes
        -----
        The rate of a gene in a cell is gamma distributed with shape r around its expectation, of which the share c is
        counted, mu on average. After a count of zero the missed molecules are negative binomial, and
        ``P = 1 - ((r + mu) / (r + mu / c)) ** r``.
        """
        block = self.expected()
        missed_probability(counts.indptr, counts.indices, self.shape, self.capture_efficiency, block)
        return block

    def posterior_mean(
        self,
        cells: np.ndarray,
        indptr: np.ndarray,
        genes: np.ndarray,
        probability: np.ndarray,
        correction: np.ndarray,
        library_size: np.ndarray,
        *,
        logarithmic: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        """What a count of zero is expected to be worth, were all molecules counted.

        Parameters
        ----------
        cells, indptr, genes
            Entries whose count is zero: those of ``cells[i]`` are in the genes ``genes[indptr[i]:indptr[i + 1]]``.
        probability
            Their dropout probabilities: the model's, or others.
        correction
            Logarithms of what the molecules missed there, as the probabilities imply them, are multiplied by.
        library_size
            ``(n_cells,)`` total counts.
        logarithmic
            Take the mean of log1p(CP10k) and turn it back into counts, rather than the mean of the counts.

        Returns
        -------
        Two float32 vectors: counts at the library size of the cell, and the standard deviation of log1p(CP10k).

        Notes
        -----
        With N missed molecules, each worth ``s = 10,000 c / L`` per 10,000: the mean of log1p(s N), as the
        probability that there are any times the mean given that there are. The mean of the logarithms minimises the
        squared error of log-normalised data, the mean of the counts the deviance of counts.
        """
        worth, spread = np.empty((2, genes.size), dtype=np.float32)
        of_cells = self.capture_efficiency[cells], library_size[cells]
        outputs = worth, spread
        worth_of_zeros(indptr, genes, probability, correction, self.shape, *of_cells, SCALE, logarithmic, *outputs)
        return worth, spread


@dataclass(frozen=True, kw_only=True)
class CalibratedFit:
    """What :func:`fit_calibrated` finds.

    Attributes
    ----------
    model
        The model of all counts.
    gain
        ``(n_genes, n_clusters)`` float64: by how much the model lowers the Poisson deviance of held-out molecules at
        zeros, against the mean of the cluster, in standard errors; NaN where nothing could be compared.
    total_gain
        ``(n_genes,)``: the same over all clusters, or the gain over leaving the zeros, in squared error, if that is
        larger.
    cells
        The cells that the factors were learnt from, rising: all, or `MOST_CELLS` drawn from them.
    train, test
        The two sets that the molecules of these cells were split into for this.
    train_scores, train_loadings
        Whose product is expected of `train`, fitted to it alone; the model's factors are theirs, fitted further.
    stated, present
        The probabilities stated from part of the molecules, and whether the others held the transcript, at zeros of
        the cells that the shapes were fitted to.
    """

    model: CalibratedModel
    gain: np.ndarray
    total_gain: np.ndarray
    cells: np.ndarray
    train: sp.csr_array
    test: sp.csr_array
    train_scores: np.ndarray
    train_loadings: np.ndarray
    stated: np.ndarray
    present: np.ndarray


def fit_calibrated(
    counts: sp.csr_array,
    clusters: np.ndarray,
    n_clusters: int,
    *,
    capture_efficiency: np.ndarray,
    random_state: int,
) -> CalibratedFit:
    """Fit the expected counts by Bayesian Poisson factorisation and their spread by molecular cross-validation.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)``, non-negative, without stored zeros.
    clusters
        ``(n_cells,)`` cluster of each cell, from 0; -1 for none. The model does not depend on them; `gain` does.
    n_clusters
        Number of clusters.
    capture_efficiency
        ``(n_cells,)`` share of the molecules that was counted, in (0, 1].
    random_state
        Seed.

    Returns
    -------
    The fit. It does not depend on the number of threads.

    Notes
    -----
    Counts are Poisson with mean ``L_i p_j sum_k theta_ik beta_jk`` (L_i library size, p_j share of the gene), with
    gamma priors whose means make it ``L_i p_j``; that of beta is fitted, so that data without structure give no more
    than the gene's mean. Mean-field variational inference (Gopalan, Hofman and Blei, 2015) with over-relaxed steps
    (Salakhutdinov and Roweis, 2003), geometric means of the factors, averaged over `N_STARTS` starts. The shapes r_j
    come from the likelihood of part of the molecules given the other part, and so hold what the model does not know,
    too; they are shrunk to each other.

    Of more than `MOST_CELLS` cells so many are drawn, and everything is learnt from these but the scores of the others.
    A gene that none of them has is not modelled.
    """
    split_seed, *seeds = np.random.SeedSequence(random_state).spawn(1 + N_STARTS)
    rng = np.random.default_rng(split_seed)
    used, others = _draw_cells(clusters, rng)
    counts, all_counts = (sp.csr_array(counts[used]), counts) if others.size else (counts, counts)
    data = np.rint(counts.data).astype(np.int64)
    kept = rng.binomial(data, TRAIN_SHARE)
    if data.max(initial=0) <= np.iinfo(np.int32).max:  # half the memory
        data, kept = data.astype(np.int32), kept.astype(np.int32)
    train, test = (
        sp.csr_array((part, counts.indices, counts.indptr), shape=counts.shape) for part in (kept, data - kept)
    )
    parts = _factorise(train, [np.random.default_rng(seed) for seed in seeds])
    scores, loadings = _average(parts)
    judged = np.sort(rng.permutation(counts.shape[0])[: max(1, SHAPE_ENTRIES // max(counts.shape[1], 1))])
    split = train[judged], test[judged], scores[judged], loadings
    shape = _fit_shapes(*split)
    stated, present = _held_out(*split, shape)
    gain, total_gain = _gain(train, test, scores, loadings, shape, clusters[used], n_clusters)

    complete = _factorise(counts, parts)
    found, all_loadings = _average(complete)
    all_scores = np.empty((all_counts.shape[0], found.shape[1]), dtype=np.float32)
    all_scores[used] = found
    for start in range(0, others.size, MOST_CELLS):
        cells = others[start : start + MOST_CELLS]
        rest = sp.csr_array(all_counts[cells])
        all_scores[cells] = _average(_describe_cells(rest, complete))[0]
    model = CalibratedModel(
        scores=all_scores,
        loadings=all_loadings.astype(np.float32),
        shape=shape,
        capture_efficiency=capture_efficiency,
    )
    return CalibratedFit(
        model=model,
        gain=gain,
        total_gain=total_gain,
        cells=used,
        train=train,
        test=test,
        train_scores=scores,
        train_loadings=loadings,
        stated=stated,
        present=present,
    )


def _draw_cells(clusters: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cells to learn from, and the others; those without a cluster, which nothing is imputed in, come last."""
    if clusters.size <= MOST_CELLS:
        return np.arange(clusters.size), np.empty(0, dtype=np.int64)
    order = rng.permutation(clusters.size)
    order = order[np.argsort(clusters[order] < 0, kind="stable")]
    return np.sort(order[:MOST_CELLS]), np.sort(order[MOST_CELLS:])


@dataclass(frozen=True, kw_only=True)
class _Factors:
    """Posterior of one factorisation: means of the loadings, geometric means of both, the prior's shape, exposures."""

    loadings: np.ndarray
    log_scores: np.ndarray
    log_loadings: np.ndarray
    prior: float
    library_size: np.ndarray
    share: np.ndarray


def _average(parts: list[_Factors]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and loadings whose product is the mean of the parts' expected counts.

    A part's expected counts add up to the library size of each cell, which geometric means alone do not in cells of few
    molecules.
    """
    scores, loadings = [], []
    for part in parts:
        own, other = np.exp(part.log_scores), part.share[:, None] * np.exp(part.log_loadings)
        total = np.einsum("ik,k->i", own, other.sum(axis=0))
        share = np.divide(part.library_size, total * len(parts), out=np.zeros_like(total), where=total > 0)
        scores.append(share[:, None] * own)
        loadings.append(other)
    return np.concatenate(scores, axis=1), np.concatenate(loadings, axis=1)


def _factorise(counts: sp.csr_array, starts: Sequence[np.random.Generator | _Factors]) -> list[_Factors]:
    """Fits from random starts, or going on from other fits."""
    library_size = counts.sum(axis=1, dtype=np.float64)
    share = counts.sum(axis=0, dtype=np.float64) / max(library_size.sum(), 1.0)
    with single_threaded_pool() as pool:
        allocation = Allocation(counts, pool)
        return [_factorise_from(start, allocation, library_size, share) for start in starts]


def _factorise_from(
    start: np.random.Generator | _Factors, allocation: Allocation, library_size: np.ndarray, share: np.ndarray
) -> _Factors:
    n_cells, n_genes = library_size.size, share.size
    if isinstance(start, np.random.Generator):
        # Near their prior means, far enough from them to part.
        log_scores = np.log(start.gamma(10.0, 0.1 / N_FACTORS, size=(n_cells, N_FACTORS)))
        loadings = start.gamma(10.0, 0.1, size=(n_genes, N_FACTORS))
        log_loadings, prior, n_iterations, first_prior = np.log(loadings), 1.0, N_ITERATIONS, FEWEST_ITERATIONS
    else:
        log_scores, loadings, log_loadings = start.log_scores, start.loadings, start.log_loadings
        prior, n_iterations, first_prior = start.prior, N_MORE_ITERATIONS, 0
    for iteration in range(n_iterations):
        step = STEP if FEWEST_ITERATIONS <= iteration < n_iterations - LAST_ITERATIONS else 1.0
        own, other = np.exp(log_scores), np.exp(log_loadings)
        exposure = library_size[:, None] * _weighted_sum(share, loadings)
        scores, target = _cell_scores(allocation, own, other, exposure)
        log_scores = log_scores + step * (target - log_scores)
        alpha = prior + allocation.of_genes(np.exp(log_scores), other)
        beta = prior + share[:, None] * _weighted_sum(library_size, scores)
        loadings = alpha / beta
        log_loadings = log_loadings + step * (digamma(alpha) - np.log(beta) - log_loadings)
        # The scale that the two could trade: a factor's loadings average to 1 over the molecules.
        scale = np.maximum(_weighted_sum(share, loadings), 1e-12)
        loadings, log_loadings = loadings / scale, log_loadings - np.log(scale)
        log_scores = log_scores + np.log(scale)
        if iteration >= first_prior and iteration % PRIOR_EVERY == 0:
            prior = _prior_shape(loadings, log_loadings)
    return _Factors(
        loadings=loadings,
        log_scores=log_scores,
        log_loadings=log_loadings,
        prior=prior,
        library_size=library_size,
        share=share,
    )


def _describe_cells(counts: sp.csr_array, parts: list[_Factors]) -> list[_Factors]:
    """Scores of other cells, with the loadings as they are."""
    library_size = counts.sum(axis=1, dtype=np.float64)
    with single_threaded_pool() as pool:
        allocation = Allocation(counts, pool)
        return [_describe_cells_by(part, allocation, library_size) for part in parts]


def _describe_cells_by(part: _Factors, allocation: Allocation, library_size: np.ndarray) -> _Factors:
    other = np.exp(part.log_loadings)
    exposure = library_size[:, None] * _weighted_sum(part.share, part.loadings)
    own = np.full((library_size.size, N_FACTORS), 1 / N_FACTORS)
    log_scores = np.log(own)
    for iteration in range(N_CELL_ITERATIONS):
        step = STEP if iteration < N_CELL_ITERATIONS - LAST_ITERATIONS else 1.0
        _, target = _cell_scores(allocation, own, other, exposure)
        log_scores = log_scores + step * (target - log_scores)
        own = np.exp(log_scores)
    return replace(part, log_scores=log_scores, library_size=library_size)


def _cell_scores(
    allocation: Allocation, own: np.ndarray, other: np.ndarray, exposure: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One update of the cells: means of their scores, and of the logarithms."""
    alpha, beta = CELL_SHAPE + allocation.of_cells(own, other), CELL_SHAPE * N_FACTORS + exposure
    return alpha / beta, digamma(alpha) - np.log(beta)


def _weighted_sum(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``weights @ values`` without BLAS, whose order of summation depends on its threads."""
    return np.einsum("i,ik->k", weights, values)


def _prior_shape(loadings: np.ndarray, log_loadings: np.ndarray) -> float:
    """Most likely shape of the gamma prior of mean 1 from which the loadings came, by bisection."""
    excess = float(np.mean(log_loadings - loadings)) + 1.0
    low, high = LOADING_SHAPES
    for _ in range(40):
        middle = np.sqrt(low * high)
        # Falls with the shape.
        if np.log(middle) - digamma(middle) + excess > 0:
            low = middle
        else:
            high = middle
    return float(np.sqrt(low * high))


def _gene_blocks(n_cells: int, n_genes: int) -> Iterator[slice]:
    width = max(1, BLOCK_BYTES // (8 * max(n_cells, 1)))
    for start in range(0, n_genes, width):
        yield slice(start, min(start + width, n_genes))


def _ratio(train: sp.csr_array, test: sp.csr_array) -> np.ndarray:
    """What turns expected counts of the first half of a cell's molecules into those of the second."""
    first, second = (part.sum(axis=1, dtype=np.float64) for part in (train, test))
    return np.divide(second, first, out=np.zeros_like(first), where=first > 0)


def _blocks(
    train: sp.csr_array, test: sp.csr_array, scores: np.ndarray, loadings: np.ndarray
) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
    """Slices of genes with dense counts of both parts and expected counts of the first, ``(n_block, n_cells)``."""
    # A gene's cells side by side: the kernels take one gene after the other.
    first, second = sp.csr_array(train.T), sp.csr_array(test.T)
    for genes in _gene_blocks(*train.shape):
        with single_threaded_blas():
            expected = loadings[genes] @ scores.T
        yield genes, first[genes].toarray(), second[genes].toarray(), expected


def _fit_shapes(train: sp.csr_array, test: sp.csr_array, scores: np.ndarray, loadings: np.ndarray) -> np.ndarray:
    """Shape of each gene: its geometric mean a posteriori, if shapes are log-normal over the genes; by EM."""
    ratio = _ratio(train, test)
    likelihood = np.empty((train.shape[1], SHAPES.size))
    for genes, first, second, expected in _blocks(train, test, scores, loadings):
        shape_likelihood(first, second, expected, ratio, SHAPES, likelihood[genes])
    likelihood = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
    grid = np.log(SHAPES)
    mean, sd = grid.mean(), grid.std()
    for _ in range(SHAPE_ITERATIONS):
        posterior = likelihood * np.exp(-0.5 * ((grid - mean) / sd) ** 2)
        posterior /= posterior.sum(axis=1, keepdims=True)
        share = posterior.mean(axis=0)
        mean = float(share @ grid)
        sd = max(float(np.sqrt(share @ (grid - mean) ** 2)), SMALLEST_SHAPE_SD)
    return np.exp(posterior @ grid)


def _held_out(
    train: sp.csr_array, test: sp.csr_array, scores: np.ndarray, loadings: np.ndarray, shape: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Stated probability and outcome at the zeros of the first part, two vectors."""
    ratio = _ratio(train, test)
    stated, present = [], []
    for genes, first, second, expected in _blocks(train, test, scores, loadings):
        probability = np.empty(first.shape, dtype=np.float32)
        held_out_probability(first, expected, ratio, shape[genes], probability)
        zero = probability >= 0
        stated.append(probability[zero])
        present.append(second[zero] > 0)
    return np.concatenate(stated), np.concatenate(present)


def _gain(
    train: sp.csr_array,
    test: sp.csr_array,
    scores: np.ndarray,
    loadings: np.ndarray,
    shape: np.ndarray,
    clusters: np.ndarray,
    n_clusters: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Gain of the model over the cluster mean in standard errors, ``(n_genes, n_clusters)`` and ``(n_genes,)``.

    Clusters of all molecules know the held-out ones, so that their means may be hard to beat: the second is the gain
    over leaving the zeros where that is larger.
    """
    library_size = train.sum(axis=1, dtype=np.float64)
    ratio = _ratio(train, test)
    used = np.flatnonzero(clusters >= 0)
    member = sp.csr_array((np.ones(used.size), (clusters[used], used)), shape=(n_clusters, clusters.size))
    rates = (member @ train).toarray() / np.maximum(member @ library_size, 1.0)[:, None]
    rates = np.ascontiguousarray(rates.T)
    over_mean, over_zero = np.empty((2, train.shape[1], n_clusters)), np.empty((2, train.shape[1]))
    for genes, first, second, expected in _blocks(train, test, scores, loadings):
        outputs = over_mean[:, genes], over_zero[:, genes]
        held_out_gain(first, second, expected, library_size, rates[genes], ratio, shape[genes], clusters, *outputs)

    def in_standard_errors(gain: np.ndarray, squares: np.ndarray) -> np.ndarray:
        return np.divide(gain, np.sqrt(squares), out=np.full_like(gain, np.nan), where=squares > 0)

    total = in_standard_errors(*over_mean.sum(axis=2))
    return in_standard_errors(*over_mean), np.maximum(total, in_standard_errors(*over_zero))
