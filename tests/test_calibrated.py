"""The calibrated dropout model: kernels against plain Python, recovery and calibration on simulated truth, storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numba
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scipy.special
import scipy.stats
from helpers import assert_only_added, simulate

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import CNNImputer, metrics
from scanpy_cnnimpute._counts import Counts
from scanpy_cnnimpute._threads import single_threaded_pool
from scanpy_cnnimpute.dropout.calibrated import CalibratedCells, CalibratedModel, allocation, depth_efficiency, kernels
from scanpy_cnnimpute.dropout.calibrated import model as calibrated
from scanpy_cnnimpute.dropout.calibrated.held_out import HeldOut
from scanpy_cnnimpute.dropout.calibrated.splitting import split_molecules

if TYPE_CHECKING:
    from scanpy_cnnimpute.dropout import DropoutFit

WRITTEN = {
    ("layers", "dropout_prob"),
    ("obsm", "dropout_prob_scores"),
    ("obsm", "dropout_prob_cell_ids"),
    ("obsm", "dropout_prob_fit"),
    ("varm", "dropout_prob_loadings"),
    ("varm", "dropout_prob_shape"),
    ("varm", "dropout_prob_gain"),
    ("varm", "dropout_prob_train_loadings"),
    ("varm", "dropout_prob_gene_ids"),
    ("varm", "dropout_prob_fit"),
    ("varm", "dropout_prob_total"),
    ("obs", "dropout_prob_capture_efficiency"),
    ("obs", "dropout_prob_library_size"),
    ("uns", "dropout_prob"),
}


def planted(n_cells: int = 400, n_genes: int = 250, shape: float = 3.0, seed: int = 0) -> np.ndarray:
    """Counts of all molecules: programs of genes, over-dispersed."""
    rng = np.random.default_rng(seed)
    programs = rng.dirichlet(np.full(n_genes, 0.3), size=4) * n_genes
    weights = rng.dirichlet(np.full(4, 0.4), size=n_cells)
    mean = weights @ programs * rng.gamma(4, 0.5, size=(n_cells, 1))
    return rng.poisson(mean * rng.gamma(shape, 1 / shape, size=mean.shape))


def fitted(counts: Any, efficiency: float, **options: Any) -> DropoutFit:
    counts = sp.csr_array(counts, dtype=np.float32)
    return CalibratedModel.fit(Counts.of(counts), capture_efficiency=np.full(counts.shape[0], efficiency), **options)


def expected(fit: DropoutFit) -> np.ndarray:
    """Expected counts of the cells of the fit."""
    return fit.cells.scores @ fit.model.loadings.T


def built(loadings: Any, shape: Any) -> CalibratedModel:
    """A model that was not fitted."""
    loadings = np.array(loadings, dtype=np.float32)
    n_genes, n_factors = loadings.shape
    return CalibratedModel(
        loadings=loadings,
        shape=np.array(shape, dtype=np.float64),
        gain=np.zeros(n_genes),
        train_loadings=loadings,
        gene_ids=np.arange(n_genes, dtype=np.int32),
        train_cells=np.empty(0, dtype=np.int32),
        train_scores=np.empty((0, n_factors), dtype=np.float32),
        random_state=0,
    )


def described(scores: Any, efficiency: Any, library_size: Any) -> CalibratedCells:
    scores = np.array(scores, dtype=np.float32)
    return CalibratedCells(
        scores=scores,
        library_size=np.array(library_size, dtype=np.float64),
        capture_efficiency=np.array(efficiency, dtype=np.float32),
        cell_ids=np.arange(len(scores), dtype=np.int32),
    )


@pytest.mark.parametrize("density", [0.1, 0.9])  # entry by entry, and as products
def test_allocation_against_plain_python(density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "BLOCK_BYTES", 4 * 35 * 4)  # four cells
    rng = np.random.default_rng(0)
    counts = sp.csr_array(rng.poisson(3.0, size=(26, 35)) * (rng.uniform(size=(26, 35)) < density))
    scores, loadings = rng.gamma(1, 1, size=(26, 3)), rng.gamma(1, 1, size=(35, 3))
    # Cells and genes of any size; a factor that a gene has next to nothing of, where double precision still tells.
    scores *= np.geomspace(1e-60, 1e60, 26)[:, None]
    loadings *= np.geomspace(1e-60, 1e60, 35)[:, None]
    loadings[:, 1] *= 1e-50
    loadings[3] = [0.0, 1e-80, 0.0]
    shares = scores[:, None, :] * loadings[None]
    shares = counts.toarray()[:, :, None] * shares / shares.sum(axis=2, keepdims=True)
    with single_threaded_pool() as pool:
        shared = allocation.Allocation(counts, pool)
        of_cells, of_genes = shared.by_cell(scores, loadings), shared.by_gene(scores, loadings)
    np.testing.assert_allclose(of_cells, shares.sum(axis=1), rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(of_genes, shares.sum(axis=0), rtol=1e-5, atol=1e-12)
    assert of_cells.dtype == of_genes.dtype == np.float64
    assert of_cells.sum() == pytest.approx(counts.sum())
    assert of_genes.sum() == pytest.approx(counts.sum())


@pytest.mark.parametrize("scale", [1, 40])  # factors multiplied, and gamma functions
def test_shape_likelihood_is_the_negative_binomial(scale: int) -> None:
    rng = np.random.default_rng(0)
    # So many cells that the products must be begun anew on the way.
    expected = scale * rng.gamma(2, 1, size=(3, 5000))
    ratio = rng.uniform(0.5, 1.5, size=5000)
    train, test = rng.poisson(expected), rng.poisson(expected * ratio)
    expected[0, :50] = 0.0  # nothing is learnt there, whatever was counted
    shapes = np.array([0.01, 0.5, 4.0, 1000.0])
    out = np.empty((3, 4))
    kernels.shape_likelihood(train, test, expected, ratio, shapes, out)
    for s, r in enumerate(shapes):
        # Of the posterior rate: gamma with shape r + a and mean (r + a) / (r + mu).
        mean = expected * ratio * (r + train) / (r + expected)
        size = r + train
        exact = scipy.stats.nbinom.logpmf(test, size, size / (size + mean)) + scipy.special.gammaln(test + 1)
        np.testing.assert_allclose(out[:, s], exact.sum(axis=1, where=expected > 0), rtol=1e-9)


def test_held_out_probability_is_the_negative_binomial() -> None:
    rng = np.random.default_rng(0)
    expected = rng.gamma(2, 1, size=(3, 50))
    expected[0, :5] = 0.0
    train, ratio, shape = rng.poisson(expected), rng.uniform(0.5, 1.5, size=50), np.array([0.3, 2.0, 50.0])
    out = np.empty((3, 50), dtype=np.float32)
    kernels.held_out_probability(train, expected, ratio, shape, out)
    zero = (train == 0) & (expected > 0)
    assert (out[~zero] < 0).all()
    r = shape[:, None]
    exact = 1 - scipy.stats.nbinom.pmf(0, r, (r + expected) / (r + expected + ratio * expected))
    np.testing.assert_allclose(out[zero], exact[zero], rtol=1e-5)


def test_held_out_gain_against_plain_python() -> None:
    rng = np.random.default_rng(0)
    scores, loadings = rng.gamma(2, 1, size=(3, 6)).astype(np.float32), rng.gamma(1, 1, size=(4, 3)).astype(np.float32)
    loadings[3] = 0.0  # nothing is expected
    exposure, ratio, shape = rng.uniform(5, 20, size=6), rng.uniform(0.5, 1.5, size=6), np.array([0.5, 4.0, 1.0, 2.0])
    exposure[5] = 0.0  # a cell without first molecules takes no part
    rates = rng.uniform(0.01, 0.1, size=4)
    rates[2] = 0.0  # never seen
    first, second = rng.poisson(0.7, size=(2, 4, 6))
    over_mean, over_zero = np.full((2, 4, 2), np.nan)
    one, two = sp.csr_array(first), sp.csr_array(second)
    kernels.held_out_gain(
        one.indptr, one.indices, two.indptr, two.indices, two.data, scores, loadings, exposure, rates, ratio, shape,
        over_mean, over_zero,
    )  # fmt: skip
    exact_over_mean, exact_over_zero = np.zeros((2, 4, 2))
    for g, i in zip(*np.nonzero(first == 0), strict=True):
        if exposure[i] == 0:
            continue
        mu, mean = float(loadings[g].astype(float) @ scores[:, i]), exposure[i] * rates[g]
        model, average = (ratio[i] * each * shape[g] / (shape[g] + each) for each in (mu, mean))
        lower_error = second[g, i] ** 2 - (second[g, i] - model) ** 2
        exact_over_zero[g] += lower_error, lower_error**2
        if mean > 0 and mu > 0:
            deviance = 2 * (scipy.special.xlogy(second[g, i], model / average) - (model - average))
            exact_over_mean[g] += deviance, deviance**2
    np.testing.assert_allclose(over_mean, exact_over_mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(over_zero, exact_over_zero, rtol=1e-4, atol=1e-5)
    assert not over_mean[2:].any()
    assert (over_zero[:3, 1] > 0).all()


@pytest.mark.parametrize(
    ("mean", "shape"),
    [(1e-9, 2.0), (0.02, 0.3), (1.5, 5.0), (20.0, 1.0), (49.0, 100.0), (51.0, 0.1), (60.0, 0.5), (700.0, 3.0)],
)
@pytest.mark.parametrize("scale", [0.01, 2.0])
def test_moments_of_missed_molecules_against_sums(mean: float, shape: float, scale: float) -> None:
    n = np.arange(1, 50_000)
    mass = scipy.stats.nbinom.pmf(n, shape, shape / (shape + mean))
    mass /= mass.sum()
    logs = np.log1p(scale * np.arange(kernels.N_SINGLE_TERMS + 1))
    present, first, second = kernels.log_moments(mean, shape, scale, logs)
    assert present == pytest.approx(1 - (shape / (shape + mean)) ** shape, rel=1e-6)
    assert first == pytest.approx((mass * np.log1p(scale * n)).sum(), rel=2e-3)
    assert second == pytest.approx((mass * np.log1p(scale * n) ** 2).sum(), rel=4e-3)


def test_dropout_probability_is_the_negative_binomial() -> None:
    rng = np.random.default_rng(0)
    counts = sp.csr_array(rng.poisson(0.5, size=(9, 30)))
    scores, loadings = rng.gamma(1, 1, size=(9, 7)), rng.gamma(0.3, 1, size=(30, 7))
    loadings[4] = 0.0  # a gene that was never seen
    shape, efficiency = rng.uniform(0.2, 50, size=30), np.append(rng.uniform(0.05, 0.9, size=8), 1.0)
    model, cells = built(loadings, shape), described(scores, efficiency, np.full(9, 100))
    mu = model.loadings.astype(float) @ cells.scores.astype(float).T
    c, r = cells.capture_efficiency.astype(float), shape[:, None]
    # Of the molecules that were not counted, given that none was: shape r and mean (1 / c - 1) mu r / (r + mu).
    mean = (1 / c - 1) * mu * r / (r + mu)
    exact = 1 - scipy.stats.nbinom.pmf(0, r, r / (r + mean))
    exact = np.where(counts.toarray() > 0, 0, exact.T)
    found = model.probability(counts, cells)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-7)
    assert (found[counts.toarray() > 0] == 0).all()
    assert not found[8].any()
    assert not found[:, 4].any()


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.5, 0.95])
@pytest.mark.parametrize("wanted", [np.arange(30), np.array([0, 4, 5, 17, 29]), np.empty(0, dtype=np.int64)])
def test_missed_molecules_against_plain_numpy(threshold: float, wanted: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    counts = sp.csr_array(rng.poisson(0.5, size=(9, 30)))
    scores, loadings = rng.gamma(1, 1, size=(9, 6)), rng.gamma(0.3, 1, size=(30, 6))
    loadings[4] = 0.0
    shape, efficiency = rng.uniform(0.2, 50, size=30), np.append(rng.uniform(0.05, 0.9, size=8), 1.0)
    model, cells = built(loadings, shape), described(scores, efficiency, np.full(9, 100))
    mu = cells.scores.astype(float) @ model.loadings.astype(float).T
    mean = (1 / cells.capture_efficiency.astype(float) - 1)[:, None] * mu * shape / (shape + mu)
    probability = 1 - (1 + mean / shape) ** -shape
    assert np.abs(probability[probability > 0] - threshold).min() > 1e-5  # no tie that rounding would decide
    chosen = (counts.toarray() == 0) & (probability > threshold) & np.isin(np.arange(30), wanted)
    indptr, genes, missed = model.missed_molecules(counts, cells, wanted, threshold)
    np.testing.assert_array_equal(indptr, np.append(0, chosen.sum(axis=1).cumsum()))
    np.testing.assert_array_equal(genes, np.nonzero(chosen)[1])
    np.testing.assert_allclose(missed, mean[chosen], rtol=1e-5)
    assert (genes.dtype, missed.dtype) == (np.int32, np.float32)


def test_probabilities_imply_missed_molecules() -> None:
    rng = np.random.default_rng(2)
    shape = rng.uniform(0.3, 30, size=12)
    cells = described(rng.gamma(1, 1, size=(5, 4)), rng.uniform(0.1, 0.9, size=5), np.full(5, 100))
    model, counts = built(rng.gamma(1, 1, size=(12, 4)), shape), sp.csr_array((5, 12))
    indptr, genes, missed = model.missed_molecules(counts, cells, np.arange(12), 0.0)
    probability = model.probability(counts, cells)[np.repeat(np.arange(5), np.diff(indptr)), genes]
    # The model's own probabilities give back what they were made of.
    np.testing.assert_allclose(model.missed_from(cells, indptr, genes, probability), missed, rtol=1e-4)
    # Certainty would be any number: it is at most what a gene of any expression can have missed.
    largest = shape[genes] * (1 / cells.capture_efficiency.astype(float) - 1)[np.repeat(np.arange(5), np.diff(indptr))]
    certain = model.missed_from(cells, indptr, genes, np.ones_like(probability))
    implied = shape[genes] * ((1 - kernels.MAX_PROBABILITY) ** (-1 / shape[genes]) - 1)
    np.testing.assert_allclose(certain, np.minimum(implied, largest), rtol=1e-4)
    np.testing.assert_array_equal(model.missed_from(cells, indptr, genes, np.zeros_like(probability)), 0)


def test_series_coefficients_by_hand() -> None:
    found = kernels.series_coefficients(np.array([0.5, 4.0]))
    assert found.shape == (2, kernels.N_SERIES)
    # prod_j (1 + j / r) / k! for j < k.
    np.testing.assert_allclose(found[0, :4], [1, 3 / 2, 3 * 5 / 6, 3 * 5 * 7 / 24])
    np.testing.assert_allclose(found[1, :3], [1, 1.25 / 2, 1.25 * 1.5 / 6])


@pytest.mark.parametrize("shape", [0.1, 0.8, 5.0, 200.0])
@pytest.mark.parametrize("efficiency", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("library_size", [50.0, 3000.0, 200_000.0])
def test_values_of_missed_molecules_against_exact_sums(shape: float, efficiency: float, library_size: float) -> None:
    bound = kernels.SERIES_RANGE * min(1.0, shape)
    # From few to many missed molecules, and both sides of where the series ends.
    missed = np.array([1e-7, 1e-3, 0.3 * bound, 0.999 * bound, 1.001 * bound, 2.0, 30.0, 400.0], dtype=np.float32)
    model, cells = built([[1.0]], [shape]), described([[1.0]], [efficiency], [library_size])
    entries = np.array([0, missed.size]), np.zeros(missed.size, dtype=np.int64)
    nothing = np.zeros(missed.size, dtype=np.float32)
    arguments = (cells, *entries, missed, nothing)
    plain, none = model.posterior_mean(*arguments, logarithmic=True)
    assert none is None
    moments, deviation = model.posterior_mean(*arguments, logarithmic=True, return_std=True)
    assert deviation is not None
    scale = 1e4 * float(np.float32(efficiency)) / library_size
    n = np.arange(1, 60_000)
    mean = missed.astype(float)[:, None]
    mass = scipy.stats.nbinom.pmf(n, shape, shape / (shape + mean))
    first, second = (mass * np.log1p(scale * n)).sum(axis=1), (mass * np.log1p(scale * n) ** 2).sum(axis=1)
    found = np.log1p(plain.astype(float) * 1e4 / library_size)
    few = missed < bound
    assert few.sum() == 4
    np.testing.assert_allclose(found[few], first[few], rtol=2e-5)
    np.testing.assert_allclose(found[~few], first[~few], rtol=2e-3)
    # Standard deviations need the sums, which change no value.
    np.testing.assert_array_equal(moments, plain)
    np.testing.assert_allclose(deviation, np.sqrt(second - first**2), rtol=4e-3)
    # Of counts, the mean is a product; corrections multiply the missed molecules in both.
    counts, _ = model.posterior_mean(*arguments, logarithmic=False)
    np.testing.assert_allclose(counts, missed * efficiency, rtol=1e-6)
    correction = np.full(missed.size, np.log(1.7), dtype=np.float32)
    corrected, _ = model.posterior_mean(cells, *entries, missed, correction, logarithmic=True)
    multiplied, _ = model.posterior_mean(cells, *entries, np.float32(1.7) * missed, nothing, logarithmic=True)
    np.testing.assert_allclose(corrected, multiplied, rtol=3e-3)


def test_probabilities_of_the_users_own_stay_within_the_model(adata: ad.AnnData) -> None:
    scnn.pp.dropout_prob(adata, cluster_key="type", capture_efficiency=0.2)
    adata.layers["dropout_prob"][adata.X.toarray() == 0] = 1.0
    scnn.pp.cnn_impute(adata, estimate="expected_count", n_steps=2, verbose=False)
    assert adata.layers["cnn_imputed"].max() <= adata.X.max() + adata.varm["dropout_prob_shape"].max() * 5


def test_probability_by_hand() -> None:
    model = built([[0.5], [3.0], [0.0]], [1.0, 2.0, 5.0])
    cells = described([[2.0], [1.0]], [0.5, 0.25], [100.0, 100.0])
    counts = sp.csr_array(np.array([[0, 4, 0], [0, 0, 0]]))
    probability = model.probability(counts, cells)
    assert probability.dtype == np.float32
    # mu = 1, r = 1, c = 1/2: 1 - (2 / 3); mu = .5, c = 1/4: 1 - 1.5 / 3; mu = 3, r = 2: 1 - (5 / 14)^2.
    np.testing.assert_allclose(probability, [[1 / 3, 0, 0], [1 / 2, 1 - (5 / 14) ** 2, 0]], rtol=1e-6)
    np.testing.assert_array_equal(model.modelled, [[True], [True], [False]])
    indptr, genes, missed = model.missed_molecules(counts, cells, np.arange(3), 0.0)
    np.testing.assert_array_equal(indptr, [0, 1, 3])
    np.testing.assert_array_equal(genes, [0, 0, 1])
    arguments = (cells, indptr, genes, missed, np.zeros(3, dtype=np.float32))
    counts_, _ = model.posterior_mean(*arguments, logarithmic=False)
    # (1 / c - 1) mu r / (r + mu) molecules, of which each counts c.
    np.testing.assert_allclose(counts_, [0.5 * 0.5, 3 * (0.5 / 1.5) * 0.25, 3 * 3 * (2 / 5) * 0.25], rtol=1e-5)
    logarithmic, deviation = model.posterior_mean(*arguments, logarithmic=True, return_std=True)
    assert deviation is not None
    assert (logarithmic < counts_).all()
    assert (deviation > 0).all()


@pytest.mark.parametrize(("efficiency", "best_brier"), [(0.2, 0.85), (0.5, 0.85), (0.8, 0.95)])
def test_calibrated_against_the_truth(efficiency: float, best_brier: float) -> None:
    truth = planted()
    counts = metrics.thin_counts(truth, capture_efficiency=efficiency)
    fit = fitted(counts, efficiency)
    zero = counts.toarray() == 0
    probability, dropout = fit.model.probability(counts, fit.cells)[zero], truth[zero] > 0
    constant = dropout.mean() * (1 - dropout.mean())
    assert metrics.expected_calibration_error(dropout, probability) < 0.03
    assert metrics.brier_score(dropout, probability) < best_brier * constant
    assert metrics.auroc(dropout, probability) > 0.75
    # What it says of itself, without the truth: the expected calibration error of held-out molecules.
    curve = fit.tables["reliability"]
    assert np.average((curve["probability"] - curve["share"]).abs(), weights=curve["n"]) < 0.03


def test_many_cells_are_described_by_what_some_of_them_taught(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = planted()
    counts = metrics.thin_counts(truth, capture_efficiency=0.5)
    full = fitted(counts, 0.5)
    np.testing.assert_array_equal(full.model.train_cells, np.arange(400))
    monkeypatch.setattr(calibrated, "MAX_CELLS", 300)
    fit, again = fitted(counts, 0.5), fitted(counts, 0.5)
    np.testing.assert_array_equal(fit.cells.scores, again.cells.scores)
    cells = fit.model.train_cells
    assert cells.size == fit.model.train_scores.shape[0] == 300
    assert (np.diff(cells) > 0).all()
    np.testing.assert_array_equal(fit.cells.cell_ids, np.arange(400))
    others = np.setdiff1d(np.arange(400), cells)
    assert metrics.pcc(np.log(expected(full)[others] + 0.1), np.log(expected(fit)[others] + 0.1)) > 0.98
    # The cells that were not drawn are described as new cells are.
    new = fit.model.describe(counts[others], capture_efficiency=np.full(100, 0.5))
    np.testing.assert_allclose(new.scores, fit.cells.scores[others], rtol=1e-4, atol=1e-6)
    assert (new.cell_ids == -1).all()
    zero = counts.toarray()[others] == 0
    dropout = truth[others][zero] > 0
    probability = fit.model.probability(counts, fit.cells)[others][zero]
    assert metrics.expected_calibration_error(dropout, probability) < 0.04
    assert metrics.auroc(dropout, probability) > 0.73


def test_empty_cells_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrated, "MAX_CELLS", 60)
    counts = planted(80, 40)
    counts[:40:2] = 0
    fit = fitted(counts, 0.5)
    np.testing.assert_array_equal(fit.model.train_cells, np.flatnonzero(counts.any(axis=1)))
    assert not fit.model.probability(sp.csr_array(counts), fit.cells)[:40:2].any()


def test_training_cells_are_described_as_they_were_fitted() -> None:
    counts = metrics.thin_counts(planted(), capture_efficiency=0.5)
    fit = fitted(counts, 0.5)
    again = fit.model.describe(counts, capture_efficiency=np.full(400, 0.5))
    np.testing.assert_array_equal(again.library_size, fit.cells.library_size)
    np.testing.assert_array_equal(again.capture_efficiency, fit.cells.capture_efficiency)
    theirs, ours = expected(fit), again.scores @ fit.model.loadings.T
    assert metrics.pcc(np.log(theirs + 0.1), np.log(ours + 0.1)) > 0.99
    np.testing.assert_allclose(ours.sum(axis=1), counts.sum(axis=1), rtol=1e-4)
    # Each cell alone, in any order.
    some = np.array([17, 3, 250])
    alone = fit.model.describe(counts[some])
    np.testing.assert_allclose(alone.scores, again.scores[some], rtol=1e-5, atol=1e-7)


def test_new_cells_of_less_depth_are_imputed_as_if_they_had_been_there() -> None:
    truth = planted(500)
    train = metrics.thin_counts(truth[:400], capture_efficiency=0.8)
    new = metrics.thin_counts(truth[400:], capture_efficiency=0.8 * 0.4, random_state=1)
    zero = new.toarray() == 0
    depth = truth[400:].sum(axis=1, keepdims=True)
    answer = np.log1p(truth[400:] * 1e4 / depth)[zero]

    def error(imputed: Any) -> float:
        # Imputed values stand at the library size of the cell.
        scaled = np.log1p(imputed.toarray() * 1e4 / new.sum(axis=1)[:, None])[zero]
        return metrics.mse(answer, scaled)

    settings = {"n_steps": 60, "verbose": False, "threshold": 0}
    efficiency = np.repeat([0.8, 0.8 * 0.4], [400, 100])
    apart = CNNImputer(**settings).fit(train, capture_efficiency=0.8).transform(new, capture_efficiency=0.8 * 0.4)
    together = CNNImputer(**settings).fit_transform(sp.vstack([train, new]), capture_efficiency=efficiency)[400:]
    assert error(apart) < 0.7 * error(new)
    assert error(apart) < 1.03 * error(together)


def test_genes_predicted_worse_than_by_zeros_are_closed() -> None:
    counts = metrics.thin_counts(planted(), capture_efficiency=0.3)
    model = fitted(counts, 0.3).model
    train, test = split_molecules(counts, model.train_cells, model.gene_ids, model.random_state)
    own = HeldOut(train, test, model.train_scores, model.train_loadings)
    np.testing.assert_allclose(own.gain(model.shape), model.gain, rtol=1e-5)
    bad = HeldOut(train, test, model.train_scores, 30 * model.train_loadings)
    assert (bad.gain(np.full(250, 200.0)) < -5).mean() > 0.9
    assert (model.gain > -5).all()


def test_dispersion_is_recovered() -> None:
    shapes = []
    for shape in (1.0, 20.0):
        counts = planted(shape=shape)
        fit = fitted(counts, 0.5)
        shapes.append(np.median(fit.model.shape[counts.mean(axis=0) > 0.5]))
    assert 0.5 < shapes[0] < 2
    assert shapes[1] > 5


def test_data_without_structure_give_gene_means() -> None:
    rng = np.random.default_rng(0)
    mean = rng.gamma(1, 1, size=100)
    counts = rng.poisson(np.broadcast_to(mean, (300, 100)))
    library_size = counts.sum(axis=1)
    flat = library_size[:, None] * (counts.sum(axis=0) / library_size.sum())
    ratio = (expected(fitted(counts, 0.5)) / flat)[:, mean > 0.3]
    assert np.quantile(np.abs(np.log(ratio)), 0.9) < 0.15


def test_expected_counts_add_up_to_the_library_size() -> None:
    counts = planted(120, 80)
    counts[3] = 0
    np.testing.assert_allclose(expected(fitted(counts, 0.5)).sum(axis=1), counts.sum(axis=1), rtol=1e-4)


def test_genes_of_a_part_keep_their_probabilities() -> None:
    counts = metrics.thin_counts(planted(60, 50), capture_efficiency=0.4)
    fit = fitted(counts, 0.4)
    whole = fit.model.probability(counts, fit.cells)
    cells, genes = np.array([7, 3, 59]), np.array([40, 2, 11, 0])
    part = sp.csr_array(counts[cells][:, genes])
    found = fit.model.take(genes=genes).probability(part, fit.cells.take(cells=cells))
    np.testing.assert_allclose(found, whole[np.ix_(cells, genes)], rtol=1e-5)


def test_same_bits_for_any_number_of_threads() -> None:
    counts = planted(100, 60)
    threads = numba.get_num_threads()
    parallel = fitted(counts, 0.5)
    try:
        numba.set_num_threads(1)
        serial = fitted(counts, 0.5)
    finally:
        numba.set_num_threads(threads)
    for one, other in ((parallel.model, serial.model), (parallel.cells, serial.cells)):
        for name, value in one.to_arrays().items():
            np.testing.assert_array_equal(value, other.to_arrays()[name], err_msg=name)


def test_summary_of_clusters() -> None:
    counts = metrics.thin_counts(planted(60, 50), capture_efficiency=0.3)
    fit = fitted(counts, 0.3)
    clusters = scnn.dropout.Clusters(codes=np.repeat([0, 1], [20, 40]), names=["a", "b"])
    summary = fit.model.summary(Counts.of(counts), fit.cells, clusters)
    probability, zero = fit.model.probability(counts, fit.cells), counts.toarray() == 0
    assert summary["n_cells"].tolist() == [20, 40]
    for row, cells in enumerate((slice(0, 20), slice(20, 60))):
        zeros = probability[cells][zero[cells]]
        assert summary["zeros_called"][row] == pytest.approx((zeros > 0.5).mean())
        assert summary["dropouts"][row] == pytest.approx(zeros.mean(), rel=1e-5)


def test_depth_efficiency() -> None:
    library_size = np.array([0.0, 100.0, 4000.0, 1e6])
    np.testing.assert_allclose(depth_efficiency(library_size), [1, 1 / 2.65, 0.5, 1e6 / 1.004e6])


def test_what_is_written_and_read_back(adata: ad.AnnData, tmp_path: Any) -> None:
    before = adata.copy()
    scnn.pp.dropout_prob(adata, cluster_key="type", capture_efficiency=0.3)
    assert_only_added(before, adata, WRITTEN)
    assert set(adata.obs["dropout_prob_capture_efficiency"]) == {np.float32(0.3)}
    assert adata.varm["dropout_prob_shape"].shape == adata.varm["dropout_prob_gain"].shape == (50, 1)
    assert adata.uns["dropout_prob"]["summary"].index.tolist() == ["a", "b"]
    layer = adata.layers["dropout_prob"]
    assert layer.dtype == np.float32
    assert (layer[adata.X.toarray() > 0] == 0).all()
    assert ((layer >= 0) & (layer <= 1)).all()
    for suffix, read in (("h5ad", ad.read_h5ad), ("zarr", ad.read_zarr)):
        path = tmp_path / f"x.{suffix}"
        getattr(adata, f"write_{suffix}")(path)
        again = read(path)
        np.testing.assert_array_equal(scnn.get.dropout_prob(again), layer)
        part = again[5:30, [7, 3, 20]].copy()
        np.testing.assert_allclose(scnn.get.dropout_prob(part), layer[5:30][:, [7, 3, 20]], rtol=1e-5)


def test_efficiency_of_every_cell_from_obs(adata: ad.AnnData) -> None:
    adata.obs["spike_ins"] = np.where(np.arange(60) < 30, 0.1, 0.6)
    scnn.pp.dropout_prob(adata, cluster_key="type", capture_efficiency="spike_ins")
    mine = adata.layers["dropout_prob"]
    scnn.pp.dropout_prob(adata, cluster_key="type", capture_efficiency=0.1)
    np.testing.assert_array_equal(adata.layers["dropout_prob"][:30], mine[:30])
    zero = adata.X.toarray()[30:] == 0
    assert (adata.layers["dropout_prob"][30:][zero] > mine[30:][zero]).all()


def test_everything_counted_leaves_no_dropouts(adata: ad.AnnData) -> None:
    scnn.pp.dropout_prob(adata, cluster_key="type", capture_efficiency=1)
    assert not adata.layers["dropout_prob"].any()
    scnn.pp.cnn_impute(adata, n_steps=2, verbose=False)
    np.testing.assert_array_equal(adata.layers["cnn_imputed"].toarray(), adata.X.toarray())


def test_models_replace_each_other_completely(adata: ad.AnnData) -> None:
    scnn.pp.dropout_prob(adata, cluster_key="type")
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type")
    assert "dropout_prob_scores" not in adata.obsm
    assert "dropout_prob_shape" not in adata.varm
    scnn.pp.dropout_prob(adata, cluster_key="type")
    assert "dropout_prob_rate" not in adata.varm


def test_degenerate_counts() -> None:
    counts = np.zeros((12, 6), dtype=np.float32)
    counts[:11, 0] = 3  # constant but for an empty cell
    counts[3, 1] = 1  # one count
    counts[:6, 2] = np.arange(6)
    adata = ad.AnnData(sp.csr_matrix(counts))
    adata.obs["one"] = pd.Categorical(["x"] * 12)
    scnn.pp.dropout_prob(adata, cluster_key="one")
    layer = adata.layers["dropout_prob"]
    assert np.isfinite(layer).all()
    assert not layer[11].any()
    assert not layer[:, 3:].any()
    scnn.pp.cnn_impute(adata, n_steps=2, verbose=False)
    imputed = adata.layers["cnn_imputed"].toarray()
    assert np.isfinite(imputed).all()
    np.testing.assert_array_equal(imputed[11], 0)


def test_refusals(adata: ad.AnnData) -> None:
    adata.obs["bad"] = np.linspace(0, 1, 60)
    adata.obs["text"] = "a"
    for value in (0, 1.5, -0.1, "bad"):
        with pytest.raises(ValueError, match=r"is not allowed.*: a share of the molecules, above 0 and at most 1"):
            scnn.pp.dropout_prob(adata, cluster_key="type", capture_efficiency=value)
    with pytest.raises(KeyError, match=r"capture_efficiency='none' is not in adata.obs. Available: \['type'"):
        scnn.pp.dropout_prob(adata, cluster_key="type", capture_efficiency="none")
    with pytest.raises(TypeError, match=r"adata.obs\['text'\] has dtype"):
        scnn.pp.dropout_prob(adata, cluster_key="type", capture_efficiency="text")
    with pytest.raises(ValueError, match="means nothing to model='gamma_normal'"):
        scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type", capture_efficiency=0.5)
    with pytest.raises(ValueError, match="random_state=-1 is not allowed"):
        scnn.pp.dropout_prob(adata, cluster_key="type", random_state=-1)
    assert "dropout_prob" not in adata.uns


def test_collapse_is_said_loudly(caplog: pytest.LogCaptureFixture) -> None:
    adata = scnn.datasets.five_cell_lines()[:, :400].copy()
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="cell_line")
    assert "the gamma of most genes has collapsed onto the zeros" in caplog.text


def test_same_seed_same_bits_and_clusters_do_not_matter() -> None:
    adata = simulate()
    scnn.pp.dropout_prob(adata, cluster_key="type")
    first = adata.layers["dropout_prob"].copy()
    adata.obs["other"] = pd.Categorical(np.arange(60) % 3)
    scnn.pp.dropout_prob(adata, cluster_key="other")
    np.testing.assert_array_equal(adata.layers["dropout_prob"], first)
    scnn.pp.dropout_prob(adata, cluster_key="type", random_state=1)
    assert (adata.layers["dropout_prob"] != first).any()
