"""The calibrated dropout model: kernels against plain Python, recovery and calibration on simulated truth, storage."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scipy.stats
from helpers import assert_only_added, simulate

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import metrics
from scanpy_cnnimpute._threads import single_threaded_pool
from scanpy_cnnimpute.dropout import (
    CalibratedModel,
    _allocation,
    _calibrated,
    depth_efficiency,
    fit_calibrated,
)
from scanpy_cnnimpute.dropout import _factor_kernels as kernels

WRITTEN = {
    ("layers", "dropout_prob"),
    ("obsm", "dropout_prob_scores"),
    ("varm", "dropout_prob_loadings"),
    ("varm", "dropout_prob_gain"),
    ("var", "dropout_prob_gain"),
    ("var", "dropout_prob_shape"),
    ("obs", "dropout_prob_capture_efficiency"),
    ("obs", "dropout_prob_library_size"),
    ("obs", "dropout_prob_cluster"),
    ("uns", "dropout_prob"),
}


def planted(n_cells: int = 400, n_genes: int = 250, shape: float = 3.0, seed: int = 0) -> np.ndarray:
    """Counts of all molecules: programs of genes, over-dispersed."""
    rng = np.random.default_rng(seed)
    programs = rng.dirichlet(np.full(n_genes, 0.3), size=4) * n_genes
    weights = rng.dirichlet(np.full(4, 0.4), size=n_cells)
    mean = weights @ programs * rng.gamma(4, 0.5, size=(n_cells, 1))
    return rng.poisson(mean * rng.gamma(shape, 1 / shape, size=mean.shape))


@pytest.mark.parametrize("density", [0.1, 0.9])  # entry by entry, and as products
def test_allocation_against_plain_python(density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_allocation, "BLOCK_BYTES", 4 * 35 * 4)  # four cells
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
        allocation = _allocation.Allocation(counts, pool)
        of_cells, of_genes = allocation.of_cells(scores, loadings), allocation.of_genes(scores, loadings)
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
    clusters = np.array([0, 1, -1, 0, 1, 1])
    expected, library_size = rng.gamma(2, 1, size=(2, 6)), rng.uniform(5, 20, size=6)
    train, test = rng.poisson(0.7, size=(2, 2, 6))
    rates, ratio, shape = rng.uniform(0.01, 0.1, size=(2, 2)), rng.uniform(0.5, 1.5, size=6), np.array([0.5, 4.0])
    rates[1, 1] = 0.0  # never seen there
    gain, over_zero = np.full((2, 2, 2), np.nan), np.full((2, 2), np.nan)
    kernels.held_out_gain(train, test, expected, library_size, rates, ratio, shape, clusters, gain, over_zero)
    exact, exact_over_zero = np.zeros((2, 2, 2)), np.zeros((2, 2))
    for g, i in zip(*np.nonzero((train == 0) & (clusters >= 0)), strict=True):
        of_mean = library_size[i] * rates[g, clusters[i]]
        model, average = (ratio[i] * mu * shape[g] / (shape[g] + mu) for mu in (expected[g, i], of_mean))
        lower_error = test[g, i] ** 2 - (test[g, i] - model) ** 2
        exact_over_zero[:, g] += lower_error, lower_error**2
        if of_mean > 0:
            deviance = 2 * (scipy.special.xlogy(test[g, i], model / average) - (model - average))
            exact[:, g, clusters[i]] += deviance, deviance**2
    np.testing.assert_allclose(gain, exact)
    np.testing.assert_allclose(over_zero, exact_over_zero)
    assert (gain[1, 0] > 0).all()


@pytest.mark.parametrize(
    ("mean", "shape"),
    [(1e-9, 2.0), (0.02, 0.3), (1.5, 5.0), (20.0, 1.0), (49.0, 100.0), (51.0, 0.1), (60.0, 0.5), (700.0, 3.0)],
)
@pytest.mark.parametrize("scale", [0.01, 2.0])
def test_moments_of_missed_molecules_against_sums(mean: float, shape: float, scale: float) -> None:
    n = np.arange(1, 50_000)
    mass = scipy.stats.nbinom.pmf(n, shape, shape / (shape + mean))
    mass /= mass.sum()
    logs = np.log1p(scale * np.arange(kernels.SINGLE_TERMS + 1))
    present, first, second = kernels.log_moments(mean, shape, scale, logs)
    assert present == pytest.approx(1 - (shape / (shape + mean)) ** shape, rel=1e-6)
    assert first == pytest.approx((mass * np.log1p(scale * n)).sum(), rel=2e-3)
    assert second == pytest.approx((mass * np.log1p(scale * n) ** 2).sum(), rel=4e-3)


def test_probabilities_of_the_users_own_stay_within_the_model(adata: ad.AnnData) -> None:
    scnn.pp.dropout_prob(adata, cluster_key="type", capture_efficiency=0.2)
    adata.layers["dropout_prob"][adata.X.toarray() == 0] = 1.0
    scnn.pp.cnn_impute(adata, estimate="expected_count", n_steps=2, verbose=False)
    assert adata.layers["cnn_imputed"].max() <= adata.X.max() + adata.var["dropout_prob_shape"].max() * 5


def test_probability_by_hand() -> None:
    model = CalibratedModel(
        scores=np.array([[2.0], [1.0]], dtype=np.float32),
        loadings=np.array([[0.5], [3.0], [0.0]], dtype=np.float32),
        shape=np.array([1.0, 2.0, 5.0]),
        capture_efficiency=np.array([0.5, 0.25]),
    )
    counts = sp.csr_array(np.array([[0, 4, 0], [0, 0, 0]]))
    probability = model.probability(counts)
    assert probability.dtype == np.float32
    # mu = 1, r = 1, c = 1/2: 1 - (2 / 3); mu = .5, c = 1/4: 1 - 1.5 / 3; mu = 3, r = 2: 1 - (5 / 14)^2.
    np.testing.assert_allclose(probability, [[1 / 3, 0, 0], [1 / 2, 1 - (5 / 14) ** 2, 0]], rtol=1e-6)
    of_entry, genes = np.array([0, 1, 1]), np.array([0, 0, 1])
    entries = np.arange(2), np.array([0, 1, 3]), genes
    arguments = (*entries, probability[of_entry, genes], np.zeros(3), np.array([100.0, 100.0]))
    counts_, _ = model.posterior_mean(*arguments, logarithmic=False)
    # (1 / c - 1) mu r / (r + mu) molecules, of which each counts c.
    np.testing.assert_allclose(counts_, [0.5 * 0.5, 3 * (0.5 / 1.5) * 0.25, 3 * 3 * (2 / 5) * 0.25], rtol=1e-5)
    logarithmic, deviation = model.posterior_mean(*arguments, logarithmic=True)
    assert (logarithmic < counts_).all()
    assert (deviation > 0).all()


@pytest.mark.parametrize(("efficiency", "best_brier"), [(0.2, 0.85), (0.5, 0.85), (0.8, 0.95)])
def test_calibrated_against_the_truth(efficiency: float, best_brier: float) -> None:
    truth = planted()
    counts = metrics.thin_counts(truth, capture_efficiency=efficiency).astype(np.float32)
    fit = fit_calibrated(
        counts,
        np.zeros(400, dtype=np.int64),
        1,
        capture_efficiency=np.full(400, efficiency),
        random_state=0,
    )
    zero = counts.toarray() == 0
    probability, dropout = fit.model.probability(counts)[zero], truth[zero] > 0
    constant = dropout.mean() * (1 - dropout.mean())
    assert metrics.expected_calibration_error(dropout, probability) < 0.03
    assert metrics.brier_score(dropout, probability) < best_brier * constant
    assert metrics.auroc(dropout, probability) > 0.75
    # What it says of itself, without the truth.
    assert metrics.expected_calibration_error(fit.present, fit.stated) < 0.03


def test_many_cells_are_described_by_what_some_of_them_taught(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = planted()
    counts = metrics.thin_counts(truth, capture_efficiency=0.5).astype(np.float32)
    options = {"capture_efficiency": np.full(400, 0.5), "random_state": 0}
    full = fit_calibrated(counts, np.zeros(400, dtype=np.int64), 1, **options)
    np.testing.assert_array_equal(full.cells, np.arange(400))
    monkeypatch.setattr(_calibrated, "MOST_CELLS", 300)
    fit = fit_calibrated(counts, np.zeros(400, dtype=np.int64), 1, **options)
    again = fit_calibrated(counts, np.zeros(400, dtype=np.int64), 1, **options)
    np.testing.assert_array_equal(fit.model.scores, again.model.scores)
    assert fit.cells.size == fit.train.shape[0] == fit.train_scores.shape[0] == 300
    np.testing.assert_array_equal((fit.train + fit.test).toarray(), counts[fit.cells].toarray())
    others = np.setdiff1d(np.arange(400), fit.cells)
    some = np.where(np.arange(400) < 50, 0, -1)
    assert set(range(50)) <= set(fit_calibrated(counts, some, 1, **options).cells)
    expected, known = fit.model.expected()[others], full.model.expected()[others]
    assert metrics.pcc(np.log(known + 0.1), np.log(expected + 0.1)) > 0.98
    zero = counts.toarray()[others] == 0
    dropout, probability = truth[others][zero] > 0, fit.model.probability(counts)[others][zero]
    assert metrics.expected_calibration_error(dropout, probability) < 0.04
    assert metrics.auroc(dropout, probability) > 0.73


def test_clusters_that_know_held_out_molecules_close_no_gene() -> None:
    """Cells put together by a gene's own counts have means that no model of part of the molecules can beat."""
    counts = metrics.thin_counts(planted(), capture_efficiency=0.3).astype(np.float32)
    even = np.random.default_rng(3).poisson(1.0, size=400)  # a gene without structure
    counts = sp.hstack([sp.csr_matrix(even[:, None], dtype=np.float32), counts], format="csr")
    clusters = np.minimum(even, 2)
    fit = fit_calibrated(counts, clusters, 3, capture_efficiency=np.full(400, 0.3), random_state=0)
    assert np.nanmin(fit.gain[0]) < -5
    assert fit.total_gain[0] > 0


def test_genes_predicted_worse_than_by_zeros_are_closed() -> None:
    counts = metrics.thin_counts(planted(), capture_efficiency=0.3).astype(np.float32)
    clusters = np.zeros(400, dtype=np.int64)
    fit = fit_calibrated(counts, clusters, 1, capture_efficiency=np.full(400, 0.3), random_state=0)
    bad = 30 * fit.train_loadings
    _, total_gain = _calibrated._gain(fit.train, fit.test, fit.train_scores, bad, np.full(250, 200.0), clusters, 1)
    assert (total_gain < -5).mean() > 0.9
    assert (fit.total_gain > -5).all()


def test_dispersion_is_recovered() -> None:
    shapes = []
    for shape in (1.0, 20.0):
        counts = sp.csr_array(planted(shape=shape).astype(np.float64))
        fit = fit_calibrated(
            counts, np.zeros(400, dtype=np.int64), 1, capture_efficiency=np.full(400, 0.5), random_state=0
        )
        shapes.append(np.median(fit.model.shape[counts.mean(axis=0) > 0.5]))
    assert 0.5 < shapes[0] < 2
    assert shapes[1] > 5


def test_data_without_structure_give_gene_means() -> None:
    rng = np.random.default_rng(0)
    mean = rng.gamma(1, 1, size=100)
    counts = sp.csr_array(rng.poisson(np.broadcast_to(mean, (300, 100))).astype(float))
    fit = fit_calibrated(counts, np.zeros(300, dtype=np.int64), 1, capture_efficiency=np.full(300, 0.5), random_state=0)
    library_size = counts.sum(axis=1)
    flat = library_size[:, None] * (counts.sum(axis=0) / library_size.sum())
    seen = mean > 0.3
    ratio = (fit.model.expected() / flat)[:, seen]
    assert np.quantile(np.abs(np.log(ratio)), 0.9) < 0.15


def test_depth_efficiency() -> None:
    library_size = np.array([0.0, 100.0, 4000.0, 1e6])
    np.testing.assert_allclose(depth_efficiency(library_size), [1, 1 / 2.65, 0.5, 1e6 / 1.004e6])


def test_what_is_written_and_read_back(adata: ad.AnnData, tmp_path: Any) -> None:
    before = adata.copy()
    scnn.pp.dropout_prob(adata, cluster_key="type", capture_efficiency=0.3)
    pd.testing.assert_frame_equal(adata.var[before.var.columns], before.var)
    columns = {key for key in WRITTEN if key[0] == "var"}
    for name in adata.var.columns.difference(before.var.columns, sort=False):
        before.var[name] = adata.var[name]
    assert_only_added(before, adata, WRITTEN - columns)
    assert set(adata.obs["dropout_prob_capture_efficiency"]) == {0.3}
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
    dask = scnn.get.dropout_prob(adata, kind="dask")
    np.testing.assert_allclose(dask.compute(), layer, rtol=1e-5)


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
    assert "dropout_prob_shape" not in adata.var
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
