"""The networks of the default preset, what they are made of, and what ``pp.cnn_impute`` makes of them."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import KINDS, assert_only_added, simulate
from keras import ops

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import CNNImputer, metrics
from scanpy_cnnimpute._anndata.models import load_model
from scanpy_cnnimpute.dropout import _calibrated
from scanpy_cnnimpute.imputation import STATUSES, _block_model, _blocks, _conditional, _low_rank
from scanpy_cnnimpute.presets import resolve

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
    lines = _low_rank.fit_lines(counts, library_size)
    x = np.log(library_size) - np.log(library_size).mean()
    np.testing.assert_allclose(lines.depth(library_size), x, atol=1e-6)
    # Far from each other, with many cells, slopes are hardly shrunk.
    steep = np.exp(np.outer(x, rng.normal(1, 0.7, size=20)) + 8).round()
    alone = sp.csr_array(steep)
    fitted = _low_rank.fit_lines(alone, library_size)
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
    model = _low_rank.fit_low_rank(residuals, 10)
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
    neighbours, correlations = _blocks.correlated_genes(residuals, 4)
    assert (neighbours != np.arange(30)[:, None]).all()
    assert neighbours[7, 0] == 3
    assert neighbours[3, 0] == 7
    assert correlations[3, 0] < -0.9
    assert (np.diff(np.abs(correlations), axis=1) <= 0).all()
    nothing = _blocks.correlated_genes(residuals[:, :3], 4)
    assert nothing[0].shape == (3, 4)


def test_a_block_reads_its_own_genes_only() -> None:
    settings = resolve("default", n_top=3)
    model = _block_model.build_block_network((4, 2, 1, 1), _block_model.hidden_mse, settings, 0)
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
    fresh = _block_model.build_block_network((4, 2, 1, 1), _block_model.hidden_mse, settings, 0)
    assert not np.asarray(fresh.predict_on_batch(inputs)).any()


def test_what_is_joined_is_as_if_it_stood_side_by_side() -> None:
    settings = resolve("default", n_top=3)
    model = _block_model.build_block_network((4, 2, 5, 6), _block_model.hidden_mse, settings, 0)
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
    assert float(_block_model.hidden_mse(truth, ops.convert_to_tensor([[1.0, 3.0]]))) == pytest.approx(1)
    counts = ops.convert_to_tensor([[[3.0, 2.0]]])
    expected = 2 * (2 * np.exp(0.5) - 3 * 0.5)
    found = float(_block_model.held_out_deviance(counts, ops.convert_to_tensor([[0.5]])))
    assert found == pytest.approx(expected, rel=1e-5)


def test_conditional_recovers_masked_counts_and_knows_its_error() -> None:
    masked = metrics.mask_nonzeros(modules(), min_detection=0)
    imputer = CNNImputer(n_steps=60, verbose=False, threshold=0)
    imputed, deviation = imputer.fit_transform(masked.counts, return_std=True)
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


@pytest.mark.parametrize("kind", ["fortran", "csc_array", "int", "big_endian"])
def test_any_kind_of_matrix(kind: str) -> None:
    adata, expected = simulate(), simulate()
    adata.X = KINDS[kind](adata.X)
    for each in (adata, expected):
        scnn.pp.cnn_impute(each, cluster_key="type", **FAST)
    found = adata.layers["cnn_imputed"]
    found = found.toarray() if sp.issparse(found) else found
    np.testing.assert_allclose(found, expected.layers["cnn_imputed"].toarray(), rtol=1e-5)
    assert sp.issparse(adata.layers["cnn_imputed"]) == sp.issparse(adata.X)


@pytest.mark.parametrize("estimate", ["posterior_mean", "expected_count", "conditional"])
def test_only_zeros_change_and_only_keys_are_added(adata: ad.AnnData, estimate: str) -> None:
    scnn.pp.dropout_prob(adata, cluster_key="type")
    before = adata.copy()
    scnn.pp.cnn_impute(adata, estimate=estimate, threshold=0, gate=False, return_std=True, **FAST)
    layers = {("layers", "cnn_imputed"), ("layers", "cnn_imputed_std"), ("uns", "cnn_imputed")}
    assert_only_added(before, adata, layers)
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
    for cluster in ("a", "b"):
        some = zero[adata.obs["type"] == cluster].any(axis=0)
        np.testing.assert_array_equal(status[cluster], np.where(some, "imputed", "nothing missing"))


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
    scnn.pp.dropout_prob(adata, cluster_key="type", capture_efficiency=0.3)
    scnn.pp.cnn_impute(adata, gate=False, threshold=0, n_steps=1, learning_rate=1e-12, verbose=False)
    rows, columns = np.nonzero(adata.X.toarray() == 0)
    model = load_model(adata, "dropout_prob").model
    probability = adata.layers["dropout_prob"][rows, columns]
    library_size = adata.obs["dropout_prob_library_size"].to_numpy()
    entries = np.arange(adata.n_obs), np.searchsorted(rows, np.arange(adata.n_obs + 1)), columns
    plain, _ = model.posterior_mean(*entries, probability, np.zeros(rows.size), library_size, logarithmic=True)
    np.testing.assert_allclose(adata.layers["cnn_imputed"].toarray()[rows, columns], plain, rtol=1e-4)
    assert (adata.uns["cnn_imputed"]["summary"]["n_networks"] == 1).all()


def test_gate_leaves_genes_as_they_are(adata: ad.AnnData) -> None:
    scnn.pp.dropout_prob(adata, cluster_key="type")
    adata.var.iloc[:5, adata.var.columns.get_loc("dropout_prob_gain")] = -10.0
    scnn.pp.cnn_impute(adata, **FAST)
    status = adata.uns["cnn_imputed"]["status"]
    assert set(status.iloc[:5].to_numpy().ravel()) == {"no gain"}
    assert "no gain" not in set(status.iloc[5:].to_numpy().ravel())
    imputed, counts = adata.layers["cnn_imputed"].toarray(), adata.X.toarray()
    np.testing.assert_array_equal(imputed[:, :5], counts[:, :5])
    assert adata.uns["cnn_imputed"]["summary"].loc["a", "genes no gain"] == 5
    scnn.pp.cnn_impute(adata, gate=False, **FAST)
    assert "no gain" not in set(adata.uns["cnn_imputed"]["status"].to_numpy().ravel())


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
    scnn.pp.cnn_impute(one, cluster_key="type", **FAST)
    scnn.pp.dropout_prob(two, cluster_key="type", store="params")
    scnn.pp.cnn_impute(two, **FAST)
    np.testing.assert_array_equal(one.layers["cnn_imputed"].toarray(), two.layers["cnn_imputed"].toarray())
    assert one.uns["dropout_prob"]["params"] == two.uns["dropout_prob"]["params"]


def test_same_seed_same_bits(adata: ad.AnnData) -> None:
    found = []
    for seed in (0, 0, 1):
        np.random.seed(seed + 7)  # noqa: NPY002 - the global generator must not matter
        copy = simulate()
        scnn.pp.cnn_impute(copy, cluster_key="type", random_state=seed, n_steps=20, verbose=False)
        found.append(copy.layers["cnn_imputed"].toarray())
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


def test_save_load_and_new_cells(tmp_path: Any) -> None:
    train, new = simulate(80), simulate(10, seed=3)
    imputer = CNNImputer(n_members=2, threshold=0.5, **FAST)
    fitted = imputer.fit_transform(train.X, genes=train.var_names)
    assert len(imputer.history_) == 2
    np.testing.assert_allclose(imputer.transform(train.X).toarray(), fitted.toarray(), rtol=1e-5)
    imputer.save(tmp_path / "imputer")
    loaded = CNNImputer.load(tmp_path / "imputer")
    assert loaded.settings == imputer.settings
    assert loaded.preset == "default"
    imputed, deviation = loaded.transform(new.X[:, ::-1], genes=list(new.var_names)[::-1], return_std=True)
    again, same = imputer.transform(new.X, return_std=True)
    # Sums of float32 over the genes, in another order.
    np.testing.assert_allclose(imputed.toarray()[:, ::-1], again.toarray(), rtol=1e-5)
    np.testing.assert_allclose(deviation.toarray()[:, ::-1], same.toarray(), rtol=1e-4)
    np.testing.assert_array_equal(loaded.transform(new.X).toarray(), again.toarray())


@pytest.mark.parametrize("estimate", ["posterior_mean", "conditional"])
def test_more_cells_than_are_learnt_from(estimate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (_calibrated, _conditional):
        monkeypatch.setattr(module, "MOST_CELLS", 40)
    blocks = []
    for size in (1000, 7):
        monkeypatch.setattr(_conditional, "DESCRIBED_CELLS", size)
        adata = simulate(60)
        scnn.pp.cnn_impute(adata, cluster_key="type", estimate=estimate, threshold=0, gate=False, **FAST)
        blocks.append(adata.layers["cnn_imputed"].toarray())
    np.testing.assert_allclose(*blocks, rtol=1e-5)
    assert np.isfinite(blocks[0]).all()
    seen = adata.X.toarray().any(axis=0)
    assert (blocks[0][:, seen] > 0).all()


def test_too_few_cells_and_genes() -> None:
    few = simulate(9)
    imputer = CNNImputer(**FAST)
    np.testing.assert_array_equal(imputer.fit_transform(few.X).toarray(), few.X.toarray())
    assert set(np.array(STATUSES)[imputer.status_].ravel()) == {"too few cells"}
    narrow = simulate(30, 4)
    imputed = CNNImputer(**FAST).fit_transform(narrow.X)
    assert np.isfinite(imputed.toarray()).all()
    assert (imputed.toarray()[narrow.X.toarray() == 0] > 0).all()


def test_own_layers_and_other_models(adata: ad.AnnData) -> None:
    adata.layers["mine"] = np.ones(adata.shape, dtype=np.float32)
    scnn.pp.cnn_impute(adata, dropout_key="mine", **FAST)
    params = adata.uns["cnn_imputed"]["params"]
    assert params["estimate"] == "conditional"
    assert params["threshold"] == 0.5
    assert not params["gate"]
    with pytest.raises(ValueError, match="need a calibrated dropout model, and 'mine' is none"):
        scnn.pp.cnn_impute(adata, dropout_key="mine", estimate="posterior_mean")
    with pytest.raises(ValueError, match="need a calibrated dropout model"):
        scnn.pp.cnn_impute(adata, dropout_key="mine", gate=True)
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type")
    scnn.pp.cnn_impute(adata, **FAST)
    assert adata.uns["cnn_imputed"]["params"]["estimate"] == "conditional"


def test_refusals(adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match="estimate='median' is not known"):
        scnn.pp.cnn_impute(adata, estimate="median")
    with pytest.raises(TypeError, match="gate='yes' has type str, expected bool"):
        scnn.pp.cnn_impute(adata, gate="yes")
    for name, value in {"estimate": "posterior_mean", "gate": True, "return_std": True}.items():
        with pytest.raises(ValueError, match="need preset='default', not 'paper'"):
            scnn.pp.cnn_impute(adata, preset="paper", **{name: value})
    with pytest.raises(ValueError, match=r"n_targets=16 is not a setting of preset='default', .* one of \['paper'\]"):
        scnn.pp.cnn_impute(adata, n_targets=16)
    with pytest.raises(ValueError, match="n_folds=1 is not allowed"):
        scnn.pp.cnn_impute(adata, n_folds=1)
    assert "dropout_prob" not in adata.uns
    with pytest.raises(ValueError, match="return_std needs preset='default'"):
        CNNImputer(preset="paper", n_targets=16, max_epochs=1, verbose=False).fit(adata.X).transform(
            adata.X, return_std=True
        )
    scnn.pp.dropout_prob(adata, cluster_key="type")
    with pytest.warns(UserWarning, match="is not the published procedure"):
        scnn.pp.cnn_impute(adata, preset="paper", n_targets=16, max_epochs=1, verbose=False)
