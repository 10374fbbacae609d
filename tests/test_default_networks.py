"""The networks of the default preset, what they are made of, and what ``pp.cnn_impute`` makes of them."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import KINDS, assert_only_added, dense, simulate
from keras import ops

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import CNNImputer, metrics
from scanpy_cnnimpute._anndata.models import load_dropout_model
from scanpy_cnnimpute.dropout.calibrated import model as calibrated
from scanpy_cnnimpute.imputation import STATUSES
from scanpy_cnnimpute.imputation.default import architecture, features, kernels, low_rank, molecules, nonzero
from scanpy_cnnimpute.imputation.default.selection import above_threshold

# What each estimate keeps of every gene.
VARM = {
    "posterior_mean": ("gene_ids", "neighbours", "correlations", "level", "status"),
    "conditional": ("gene_ids", "neighbours", "correlations", "features", "intercept", "slope", "sd", "loadings",
        "loading_moments", "precision", "noise_factor", "status"),
}  # fmt: skip
VARM["expected_count"] = VARM["posterior_mean"]
FAST: dict[str, Any] = {"n_steps": 6, "verbose": False}


def modules(n_cells: int = 200, n_genes: int = 60, seed: int = 0) -> np.ndarray:
    """Counts of modules of five genes that go up and down together, beside a common depth."""
    rng = np.random.default_rng(seed)
    activity = rng.normal(0, 0.8, size=(n_cells, n_genes // 5))
    depth = rng.normal(0, 0.3, size=(n_cells, 1))
    mean = np.exp(1.2 + depth + np.repeat(activity, 5, axis=1))
    return rng.poisson(mean)


def test_lines_against_least_squares() -> None:
    rng = np.random.default_rng(0)
    counts = sp.csr_array(modules(seed=1))
    library_size = counts.sum(axis=1)
    lines = low_rank.fit_lines(counts, library_size)
    x = np.log(library_size) - np.log(library_size).mean()
    np.testing.assert_allclose(lines.depth(library_size), x, atol=1e-6)
    # Far from each other, with many cells, slopes are hardly shrunk.
    steep = np.exp(np.outer(x, rng.normal(1, 0.7, size=20)) + 8).round()
    alone = sp.csr_array(steep)
    fitted = low_rank.fit_lines(alone, library_size)
    for gene in range(20):
        slope, intercept = np.polyfit(x, np.log1p(steep[:, gene]), 1)
        assert fitted.slope[gene] == pytest.approx(slope, abs=0.02)
        assert fitted.intercept[gene] == pytest.approx(intercept, abs=0.02)
    residuals = lines.standardise(counts, lines.depth(library_size))
    assert residuals.data.std() == pytest.approx(1, abs=0.05)


def test_low_rank_finds_planted_factors() -> None:
    rng = np.random.default_rng(0)
    planted = rng.normal(size=(300, 3)) @ rng.normal(size=(3, 80))
    noisy = planted + rng.normal(0, 0.5, size=planted.shape)
    seen = rng.random(planted.shape) < 0.6
    residuals = sp.csr_array(np.where(seen, noisy, 0).astype(np.float32))
    model = low_rank.fit_low_rank(residuals, 10)
    scores, moments = model.scores(residuals)
    assert np.corrcoef((scores @ model.loadings.T)[~seen], planted[~seen])[0, 1] > 0.9
    # Ten were allowed, three are there.
    strength = np.sort((model.loadings**2).sum(axis=0) * scores.var(axis=0))[::-1]
    assert strength[3:].sum() < 0.05 * strength[:3].sum()
    upper = np.triu_indices(10)
    diagonal = moments[:, upper[0] == upper[1]]
    assert (diagonal >= scores**2 - 1e-5).all()


def test_correlated_genes_are_never_the_target() -> None:
    rng = np.random.default_rng(0)
    residuals = rng.normal(size=(100, 30)).astype(np.float32)
    residuals[:, 7] = -residuals[:, 3] + 0.1 * residuals[:, 7]
    neighbours, correlations = features.correlated_genes(residuals, 4)
    assert (neighbours != np.arange(30)[:, None]).all()
    assert neighbours[7, 0] == 3
    assert neighbours[3, 0] == 7
    assert correlations[3, 0] < -0.9
    assert (np.diff(np.abs(correlations), axis=1) <= 0).all()
    nothing = features.correlated_genes(residuals[:, :3], 4)
    assert nothing[0].shape == (3, 4)


def test_a_block_reads_its_own_genes_only() -> None:
    model = architecture.build_network((4, 2, 1, 1), 3, architecture.hidden_mse)
    rng = np.random.default_rng(0)
    # The last layer starts at zero: give it something to say.
    model.set_weights([rng.normal(size=weight.shape) for weight in model.get_weights()])
    inputs = [rng.normal(size=shape).astype(np.float32) for shape in ((2, 12, 2), (2, 4, 1), (2, 1))]
    before = np.asarray(model.predict_on_batch(inputs))
    inputs[0][:, 3:6] += 5
    after = np.asarray(model.predict_on_batch(inputs))
    changed = ~np.isclose(before, after)
    assert changed[:, 1].any()
    assert not changed[:, [0, 2, 3]].any()
    fresh = architecture.build_network((4, 2, 1, 1), 3, architecture.hidden_mse)
    assert not np.asarray(fresh.predict_on_batch(inputs)).any()


def test_what_is_joined_is_as_if_it_stood_side_by_side() -> None:
    model = architecture.build_network((4, 2, 5, 6), 3, architecture.hidden_mse)
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=weight.shape) for weight in model.get_weights()]
    model.set_weights(weights)
    of_cell, cell_bias, convolution, block_bias, from_cell, from_block, bias, from_gene, last, last_bias = weights
    blocks, genes, cells = (rng.normal(size=shape).astype(np.float32) for shape in ((7, 12, 2), (7, 4, 5), (7, 6)))
    found = np.einsum("igkc,kcw->igw", blocks.reshape(7, 4, 3, 2), convolution) + block_bias
    cell = np.repeat((cells @ of_cell + cell_bias)[:, None], 4, axis=1)
    beside = np.concatenate([np.maximum(found, 0), genes, np.maximum(cell, 0)], axis=2)
    joined = np.maximum(beside @ np.concatenate([from_block, from_gene, from_cell]) + bias, 0)
    expected = (joined @ last + last_bias)[..., 0]
    np.testing.assert_allclose(model.predict_on_batch([blocks, genes, cells]), expected, rtol=1e-4, atol=1e-3)


def test_losses_by_hand() -> None:
    truth = ops.convert_to_tensor([[[2.0, 1.0], [7.0, 0.0]]])
    assert float(architecture.hidden_mse(truth, ops.convert_to_tensor([[1.0, 3.0]]))) == pytest.approx(1)
    counts = ops.convert_to_tensor([[[3.0, 2.0]]])
    expected = 2 * (2 * np.exp(0.5) - 3 * 0.5)
    found = float(architecture.held_out_deviance(counts, ops.convert_to_tensor([[0.5]])))
    assert found == pytest.approx(expected, rel=1e-5)


def test_conditional_recovers_masked_counts_and_knows_its_error() -> None:
    masked = metrics.mask_nonzeros(modules(), min_detection=0)
    imputer = CNNImputer(estimate="conditional", n_steps=60, verbose=False, threshold=0, gate=False)
    imputed, deviation = imputer.fit_transform(masked.counts, dropout=np.ones(masked.counts.shape), return_std=True)
    where = (masked.rows, masked.columns)
    truth, estimate = np.log1p(masked.truth), np.log1p(imputed.toarray()[where])
    line = np.log1p(metrics.baseline_estimates(masked.counts, "gene_line")[where])
    assert metrics.mse(truth, estimate) < 0.85 * metrics.mse(truth, line)
    assert metrics.gene_pcc(truth, estimate, masked.columns) > 0.4
    distance = np.abs(truth - estimate) / deviation.toarray()[where]
    assert (distance < 1).mean() == pytest.approx(0.68, abs=0.06)
    assert (distance < 1.96).mean() == pytest.approx(0.95, abs=0.04)
    losses = imputer.history_[0]["val_loss"]
    assert min(losses) < losses[0]


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """What is imputed in the simulated counts."""
    adata = simulate()
    scnn.pp.cnn_impute(adata, cluster_key="type", **FAST)
    return adata.layers["cnn_imputed"].toarray()


@pytest.mark.parametrize("kind", ["fortran", "csc_array", "int", "big_endian"])
def test_any_kind_of_matrix(kind: str, expected: np.ndarray) -> None:
    adata = simulate()
    adata.X = KINDS[kind](adata.X)
    scnn.pp.cnn_impute(adata, cluster_key="type", **FAST)
    np.testing.assert_allclose(dense(adata.layers["cnn_imputed"]), expected, rtol=1e-5)
    assert sp.issparse(adata.layers["cnn_imputed"]) == sp.issparse(adata.X)


@pytest.mark.parametrize("estimate", ["posterior_mean", "expected_count", "conditional"])
def test_only_zeros_change_and_only_keys_are_added(adata: ad.AnnData, estimate: str) -> None:
    scnn.pp.dropout_prob(adata, cluster_key="type")
    before = adata.copy()
    scnn.pp.cnn_impute(adata, estimate=estimate, threshold=0, gate=False, return_std=True, **FAST)
    layers = {("layers", "cnn_imputed"), ("layers", "cnn_imputed_std"), ("uns", "cnn_imputed")}
    assert_only_added(before, adata, layers | {("varm", f"cnn_imputed_{name}") for name in VARM[estimate]})
    counts, imputed = adata.X.toarray(), adata.layers["cnn_imputed"].toarray()
    np.testing.assert_array_equal(imputed[counts > 0], counts[counts > 0])
    assert np.isfinite(imputed).all()
    zero = counts == 0
    # Every zero of a modelled gene.
    assert (imputed[zero] > 0).all()
    deviation = adata.layers["cnn_imputed_std"].toarray()
    assert (deviation[zero] > 0).all()
    assert not deviation[~zero].any()
    params = adata.uns["cnn_imputed"]["params"]
    assert params["estimate"] == estimate
    assert params["std_units"] == ("log1p(counts)" if estimate == "conditional" else "log1p(CP10k)")
    if estimate == "conditional":
        assert (imputed[zero] >= 1 - 1e-6).all()  # a non-zero count is not less
    status = adata.uns["cnn_imputed"]["status"]
    assert status.columns.tolist() == ["all"]
    np.testing.assert_array_equal(status["all"], np.where(zero.any(axis=0), "imputed", "nothing missing"))


def test_posterior_mean_recovers_thinned_counts() -> None:
    truth = modules(300)
    thinned = metrics.thin_counts(truth, capture_efficiency=0.3)
    adata = ad.AnnData(sp.csr_matrix(thinned.astype(np.float32)))
    adata.obs["all"] = pd.Categorical(["a"] * 300)
    scnn.pp.dropout_prob(adata, cluster_key="all", capture_efficiency=0.3)
    scnn.pp.cnn_impute(adata, n_steps=60, verbose=False)

    def scaled(values: np.ndarray, library_size: np.ndarray) -> np.ndarray:
        return np.log1p(values * (1e4 / library_size)[:, None])

    zero, library_size = thinned.toarray() == 0, thinned.sum(axis=1)
    target = scaled(truth, truth.sum(axis=1))[zero]
    found = metrics.mse(target, scaled(adata.layers["cnn_imputed"].toarray(), library_size)[zero])
    for method in metrics.BASELINES:
        other = scaled(metrics.baseline_estimates(thinned, method), library_size)[zero]
        assert found < metrics.mse(target, other), method
    adata.layers["dropout_prob"] = np.zeros(adata.shape, dtype=np.float32)
    scnn.pp.cnn_impute(adata, **FAST)
    np.testing.assert_array_equal(adata.layers["cnn_imputed"].toarray(), adata.X.toarray())


def test_a_network_that_learnt_nothing_changes_nothing(adata: ad.AnnData) -> None:
    scnn.pp.dropout_prob(adata, capture_efficiency=0.3)
    scnn.pp.cnn_impute(adata, gate=False, threshold=0, n_steps=1, learning_rate=1e-12, verbose=False)
    model, cells = load_dropout_model(adata, "dropout_prob")
    counts = sp.csr_array(adata.X)
    indptr, genes, missed = model.missed_molecules(counts, cells, np.arange(50), 0.0)
    nothing = np.zeros(missed.size, dtype=np.float32)
    plain, _ = model.posterior_mean(cells, indptr, genes, missed, nothing, logarithmic=True)
    rows = np.repeat(np.arange(60), np.diff(indptr))
    imputed = adata.layers["cnn_imputed"].toarray()
    np.testing.assert_allclose(imputed[rows, genes], plain, rtol=1e-4)
    assert rows.size == (imputed > 0).sum() - adata.X.nnz
    assert (adata.uns["cnn_imputed"]["summary"]["n_networks"] == 1).all()


def test_gate_leaves_genes_as_they_are(adata: ad.AnnData) -> None:
    scnn.pp.dropout_prob(adata)
    adata.varm["dropout_prob_gain"][:5] = -10.0
    scnn.pp.cnn_impute(adata, cluster_key="type", **FAST)
    status = adata.uns["cnn_imputed"]["status"]["all"]
    assert set(status.iloc[:5]) == {"no gain"}
    assert "no gain" not in set(status.iloc[5:])
    imputed, counts = adata.layers["cnn_imputed"].toarray(), adata.X.toarray()
    np.testing.assert_array_equal(imputed[:, :5], counts[:, :5])
    assert adata.uns["cnn_imputed"]["summary"].loc["a", "genes no gain"] == 5
    scnn.pp.cnn_impute(adata, gate=False, **FAST)
    assert "no gain" not in set(adata.uns["cnn_imputed"]["status"]["all"])


def test_clusters_may_be_wrong_or_one(adata: ad.AnnData) -> None:
    results = []
    adata.obs["one"] = pd.Categorical(["x"] * 60)
    adata.obs["wrong"] = pd.Categorical(np.random.default_rng(0).integers(3, size=60))
    for key in ("type", "one", "wrong"):
        scnn.pp.cnn_impute(adata, cluster_key=key, dropout_key=f"d_{key}", gate=False, **FAST)
        results.append(adata.layers["cnn_imputed"].toarray())
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_one_call_gives_what_two_give(adata: ad.AnnData) -> None:
    """The model that is fitted on the way is the one that pp.dropout_prob stores, with the same settings."""
    one, two = adata.copy(), adata.copy()
    scnn.pp.cnn_impute(one, **FAST)
    scnn.pp.dropout_prob(two, store="params")
    scnn.pp.cnn_impute(two, **FAST)
    np.testing.assert_array_equal(one.layers["cnn_imputed"].toarray(), two.layers["cnn_imputed"].toarray())
    assert one.uns["dropout_prob"]["params"] == two.uns["dropout_prob"]["params"]
    # So does the estimator.
    alone = CNNImputer(**FAST).fit_transform(adata.X)
    np.testing.assert_allclose(alone.toarray(), one.layers["cnn_imputed"].toarray(), rtol=1e-5)


def test_same_seed_same_bits(adata: ad.AnnData) -> None:
    found = []
    for seed in (0, 0, 1):
        np.random.seed(seed + 7)  # noqa: NPY002 - the global generator must not matter
        copy = simulate()
        scnn.pp.cnn_impute(copy, cluster_key="type", random_state=seed, n_steps=20, verbose=False)
        found.append(copy.layers["cnn_imputed"].toarray())
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


@pytest.mark.parametrize("estimate", ["posterior_mean", "conditional"])
def test_more_cells_than_are_learnt_from(estimate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (calibrated, nonzero):
        monkeypatch.setattr(module, "MAX_CELLS", 40)
    blocks = []
    for size in (1000, 7):
        for module in (calibrated, nonzero, molecules):
            monkeypatch.setattr(module, "DESCRIBED_CELLS", size)
        monkeypatch.setattr(molecules, "BLOCK_ENTRIES", 50 * size)
        adata = simulate(60)
        scnn.pp.cnn_impute(adata, estimate=estimate, threshold=0, gate=False, **FAST)
        blocks.append(adata.layers["cnn_imputed"].toarray())
    np.testing.assert_allclose(*blocks, rtol=1e-5)
    assert np.isfinite(blocks[0]).all()
    seen = adata.X.toarray().any(axis=0)
    assert (blocks[0][:, seen] > 0).all()


@pytest.mark.parametrize("estimate", ["posterior_mean", "conditional"])
def test_genes_and_cells_of_a_part_are_predicted_as_in_the_whole(estimate: str) -> None:
    adata = simulate(80)
    scnn.pp.cnn_impute(adata, estimate=estimate, threshold=0, gate=False, return_std=True, **FAST)
    whole = adata.layers["cnn_imputed"].toarray()
    found = scnn.get.cnn_imputed(adata, cells=[70, 3], genes=[40, 2, 3])
    np.testing.assert_allclose(found, whole[np.ix_([70, 3], [40, 2, 3])], rtol=1e-5)


def test_a_layout_loses_targets_whose_inputs_are_gone(caplog: pytest.LogCaptureFixture) -> None:
    gene_ids = np.array([10, 20, 40, 50])
    neighbours = np.array([[20, 40], [10, 30], [50, 10], [-1, -1]])
    correlations = np.arange(8, dtype=np.float32).reshape(4, 2)
    layout = features.layout_of(gene_ids, neighbours, correlations, np.array([0, 1, 3]))
    # Gene 20 read gene 30, which is not there any more; gene 50 has no network.
    assert "1 genes are imputed without the network" in caplog.text
    np.testing.assert_array_equal(layout.genes, [0, 1, 2])
    np.testing.assert_array_equal(layout.neighbours[0], [1, 2])
    np.testing.assert_array_equal(layout.read_position, [0, 1, 2, -1])
    np.testing.assert_array_equal(layout.target_position, [0, -1, -1, -1])
    np.testing.assert_array_equal(layout.correlations, correlations[:3])


def test_network_inputs_against_plain_python() -> None:
    rng = np.random.default_rng(0)
    layout = features.layout_of(
        np.arange(6), rng.permuted(np.tile(np.arange(6), (6, 1)), axis=1)[:, :2], rng.random((6, 2)), np.arange(6)
    )
    channels, own, shared = rng.random((4, 6, 3)), rng.random((4, 6, 2)), rng.random((6, 1))
    scores, loadings = rng.random((4, 2)), rng.random((6, 2))
    rows = np.array([3, 0, 3]), np.array([[1, 5], [0, 0], [2, 4]])
    blocks, genes = features.network_inputs(layout, channels, 1, own, shared, scores, loadings, rows)
    assert blocks.shape == (3, 4, 4)
    assert genes.shape == (3, 2, 5)
    for row, (cell, targets) in enumerate(zip(*rows, strict=True)):
        for position, target in enumerate(targets):
            for top in range(2):
                read = layout.neighbours[target, top]
                weighted = channels[cell, read, 1] * layout.correlations[target, top]
                expected = np.append(channels[cell, read], weighted)
                np.testing.assert_allclose(blocks[row, 2 * position + top], expected, rtol=1e-6)
            expected = np.concatenate([own[cell, target], shared[target], scores[cell] * loadings[target]])
            np.testing.assert_allclose(genes[row, position], expected, rtol=1e-6)
    everything, _ = features.network_inputs(layout, channels, 1, own, shared, scores, loadings)
    assert everything.shape == (4, 12, 4)


def test_counts_are_described_as_pearson_residuals() -> None:
    rng = np.random.default_rng(0)
    counts = sp.csr_array(rng.poisson(1.0, size=(5, 8)))
    position = np.array([0, -1, 1, 2, -1, 3, -1, 4], dtype=np.int32)
    read = np.flatnonzero(position >= 0)
    mean, shape = rng.gamma(1, 1, size=(2, 5)).astype(np.float32), rng.uniform(0.5, 9, 5).astype(np.float32)
    mean[0, 0] = 1e-4  # so rare that the residual of a count is clipped
    rows = np.array([4, 1])
    channels, own = np.full((2, 5, 2), np.nan, np.float32), np.full((2, 5, 4), np.nan, np.float32)
    limits = np.array([0.01, -1.0, 2.0], dtype=np.float32)
    kernels.describe_counts(
        counts.indptr, counts.indices, counts.data, rows, position, mean, np.log(mean), shape, *limits, channels, own
    )
    x = counts.toarray()[rows][:, read]
    residual = np.clip((x - mean) / np.sqrt(mean + mean**2 / shape + 0.01), -1, 2)
    np.testing.assert_allclose(channels, np.stack([residual, np.log(mean)], axis=-1), rtol=1e-5)
    np.testing.assert_allclose(own, np.stack([np.log(mean), x == 0, np.log1p(x), residual], axis=-1), rtol=1e-5)


def test_targets_are_arranged_and_their_predictions_collected() -> None:
    indptr, genes = np.array([0, 3, 3, 5]), np.array([0, 2, 4, 1, 2], dtype=np.int32)
    position = np.array([7, -1, 5, -1, 6], dtype=np.int32)
    sizes = np.empty(3, dtype=np.int64)
    kernels.count_targets(indptr, genes, position, sizes)
    np.testing.assert_array_equal(sizes, [3, 0, 1])
    first_row = np.array([0, 2, 2])
    cells, targets = np.full(3, -1), np.full((3, 2), -1)
    kernels.arrange_targets(indptr, genes, position, first_row, cells, targets)
    np.testing.assert_array_equal(cells, [0, 0, 2])
    np.testing.assert_array_equal(targets, [[7, 5], [6, 0], [5, 0]])
    out = np.zeros(5, dtype=np.float32)
    kernels.collect_predictions(indptr, genes, position, first_row, targets + np.float32(0.5), out)
    np.testing.assert_array_equal(out, [7.5, 5.5, 6.5, 0, 5.5])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_only_probabilities_above_the_threshold_are_taken(dtype: Any) -> None:
    counts = sp.csr_array(np.array([[0, 2, 0, 0], [1, 0, 0, 0]]))
    probability = np.array([[0.7, 0.9, 0.3, 0.8], [0.9, 0.3, np.nextafter(dtype(0.3), dtype(1)), 0.9]], dtype=dtype)
    indptr, genes, found = above_threshold(counts, probability, np.array([0, 1, 2]), 0.3)
    # Equal to the threshold, in the dtype of the probabilities, is not above it.
    np.testing.assert_array_equal(indptr, [0, 1, 2])
    np.testing.assert_array_equal(genes, [0, 2])
    np.testing.assert_allclose(found, [0.7, 0.3], rtol=1e-6)


def test_batches_see_every_cell_equally_often() -> None:
    drawn = features.batches(np.random.default_rng(0), np.arange(10) + 5, 4)
    seen = np.concatenate([next(drawn) for _ in range(10)])
    np.testing.assert_array_equal(np.bincount(seen)[5:], 4)
    assert sorted(seen[:10]) == list(range(5, 15))


def test_too_few_cells_and_genes() -> None:
    few = simulate(9)
    imputer = CNNImputer(**FAST)
    np.testing.assert_array_equal(imputer.fit_transform(few.X).toarray(), few.X.toarray())
    expected = np.where((few.X.toarray() > 0).any(axis=0), "too few cells", "not modelled")
    np.testing.assert_array_equal(np.array(STATUSES)[imputer.status_[:, 0]], expected)
    narrow = simulate(30, 4)
    for estimate in ("posterior_mean", "conditional"):
        imputer = CNNImputer(estimate=estimate, gate=False, **FAST | {"threshold": 0})
        imputed = imputer.fit_transform(narrow.X)
        assert np.isfinite(imputed.toarray()).all()
        assert (imputed.toarray()[narrow.X.toarray() == 0] > 0).all()
        assert imputer.history_ == []  # four genes have no five correlated ones


def test_own_layers_and_other_models(adata: ad.AnnData) -> None:
    adata.layers["mine"] = np.ones(adata.shape, dtype=np.float32)
    scnn.pp.cnn_impute(adata, dropout_key="mine", **FAST)
    params = adata.uns["cnn_imputed"]["params"]
    assert params["estimate"] == "conditional"
    assert params["threshold"] == 0.5
    assert not params["gate"]
    for options in ({"estimate": "posterior_mean"}, {"gate": True}):
        with pytest.raises(ValueError, match="need preset='default' and a calibrated dropout model"):
            scnn.pp.cnn_impute(adata, dropout_key="mine", **options)
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type")
    scnn.pp.cnn_impute(adata, **FAST)
    assert adata.uns["cnn_imputed"]["params"]["estimate"] == "conditional"


def test_refusals(adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match="estimate='median' is not known"):
        scnn.pp.cnn_impute(adata, estimate="median")
    with pytest.raises(TypeError, match="gate='yes' has type str, expected bool"):
        scnn.pp.cnn_impute(adata, gate="yes")
    with pytest.raises(ValueError, match="estimate='posterior_mean' is not one of preset='paper'"):
        scnn.pp.cnn_impute(adata, preset="paper", estimate="posterior_mean")
    for name in ("gate", "return_std"):
        with pytest.raises(ValueError, match=r"need.* preset='default'"):
            scnn.pp.cnn_impute(adata, preset="paper", **{name: True})
    with pytest.raises(ValueError, match=r"n_targets=16 is not a setting of preset='default'.*preset='paper'"):
        scnn.pp.cnn_impute(adata, n_targets=16)
    with pytest.raises(ValueError, match=r"n_folds=7 is not a setting of .*estimate='posterior_mean'.*'conditional'"):
        scnn.pp.cnn_impute(adata, n_folds=7)
    for wrong in (1, 101):
        with pytest.raises(ValueError, match=f"n_folds={wrong} is not allowed: 2 to 100"):
            scnn.pp.cnn_impute(adata, estimate="conditional", n_folds=wrong)
    with pytest.raises(ValueError, match=r"learning_rate=1\.5 is not allowed: above 0, at most 1"):
        scnn.pp.cnn_impute(adata, learning_rate=1.5)
    assert "dropout_prob" not in adata.uns
    scnn.pp.dropout_prob(adata, cluster_key="type")
    with pytest.warns(UserWarning, match="is not the published procedure"):
        scnn.pp.cnn_impute(adata, preset="paper", n_targets=16, max_epochs=1, verbose=False)
