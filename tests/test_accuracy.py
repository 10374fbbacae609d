"""Metrics of accuracy and calibration, what is held out, the simple methods, and ``tl.eval_imputation``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
import sklearn.metrics
from helpers import KINDS, assert_only_added, simulate
from hypothesis import given
from hypothesis import strategies as st

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import metrics

if TYPE_CHECKING:
    import anndata as ad


def test_mse_and_pcc_against_scipy() -> None:
    rng = np.random.default_rng(0)
    truth, estimate = rng.normal(size=(2, 7, 9))
    assert metrics.mse(truth, estimate) == pytest.approx(sklearn.metrics.mean_squared_error(truth, estimate))
    assert metrics.pcc(truth, estimate) == pytest.approx(scipy.stats.pearsonr(truth.ravel(), estimate.ravel())[0])
    assert np.isnan(metrics.pcc(truth, np.ones_like(truth)))
    with pytest.raises(ValueError, match=r"got \(7, 9\) and \(7,\)"):
        metrics.mse(truth, estimate[:, 0])


def test_pcc_of_a_constant_is_not_defined() -> None:
    # The mean of three times 0.1 is not 0.1.
    assert np.isnan(metrics.pcc(np.full(3, 0.1), [1.0, 2.0, 4.0]))


def test_gene_pcc_by_hand() -> None:
    genes = np.repeat(["a", "b", "c", "d"], [4, 4, 4, 2])
    truth = np.array([1, 2, 3, 4.0, 1, 2, 3, 4, 5, 5, 5, 5, 0, 1])
    estimate = np.array([1, 2, 3, 4.0, 4, 3, 2, 1, 1, 2, 3, 4, 0, 1])
    # a: 1, b: -1, c: truth constant, d: too few.
    assert metrics.gene_pcc(truth, estimate, genes) == pytest.approx(0)
    assert metrics.gene_pcc(truth[:4], np.ones(4), genes[:4]) == 0
    with pytest.raises(ValueError, match="one gene for each value"):
        metrics.gene_pcc(truth, estimate, genes[:3])


def test_poisson_deviance_the_right_way_round() -> None:
    rng = np.random.default_rng(0)
    mean = rng.gamma(2, 1, size=200)
    counts = rng.poisson(mean)
    assert metrics.poisson_deviance(counts, mean) == pytest.approx(sklearn.metrics.mean_poisson_deviance(counts, mean))
    # The truth beats what is off by a factor, either way.
    assert metrics.poisson_deviance(counts, mean) < metrics.poisson_deviance(counts, 2 * mean)
    assert metrics.poisson_deviance(counts, mean) < metrics.poisson_deviance(counts, mean / 2)
    assert metrics.poisson_deviance([1], [0.0]) == np.inf
    assert metrics.poisson_deviance([0], [0.0]) == 0
    with pytest.raises(ValueError, match="Counts are not negative"):
        metrics.poisson_deviance([-1], [1.0])


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=50))
def test_calibration_against_scikit_learn(pairs: list[tuple[bool, float]]) -> None:
    truth, probability = map(np.array, zip(*pairs, strict=True))
    assert metrics.brier_score(truth, probability) == pytest.approx(np.mean((probability - truth) ** 2))
    if 0 < truth.sum() < truth.size:
        assert metrics.auroc(truth, probability) == sklearn.metrics.roc_auc_score(truth, probability)
    else:
        assert np.isnan(metrics.auroc(truth, probability))
    curve = metrics.reliability_curve(truth, probability, n_bins=5)
    assert curve["n"].sum() == truth.size
    assert np.average(curve["share"], weights=curve["n"]) == pytest.approx(truth.mean())
    assert 0 <= metrics.expected_calibration_error(truth, probability, n_bins=5) <= 1


def test_calibration_error_by_hand() -> None:
    truth = [0, 0, 0, 1, 1, 1]
    probability = [0.1, 0.1, 0.1, 0.3, 0.8, 0.9]
    # Bins of width .5: stated (.1 + .1 + .1 + .3) / 4 = .15, true 1/4; stated .85, true 1.
    assert metrics.expected_calibration_error(truth, probability, n_bins=2) == pytest.approx((4 * 0.10 + 2 * 0.15) / 6)
    with pytest.raises(ValueError, match="truth must be True or False"):
        metrics.auroc([0, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match=r"outside \[0, 1\]: from 0.1 to 1.2"):
        metrics.brier_score([0, 1], [0.1, 1.2])


@pytest.mark.parametrize("kind", ["dense", "csr_matrix", "csc_array", "int"])
def test_masking_takes_non_zeros_of_detected_genes(kind: str) -> None:
    full = simulate().X
    masked = metrics.mask_nonzeros(KINDS[kind](full), fraction=0.1, min_detection=0.7, random_state=3)
    dense = full.toarray()
    assert masked.genes.tolist() == np.flatnonzero((dense > 0).mean(axis=0) >= 0.7).tolist()
    kept = dense[:, masked.genes]
    np.testing.assert_array_equal(kept[masked.rows, masked.columns], masked.truth)
    assert (masked.truth > 0).all()
    assert masked.truth.size == round(0.1 * np.count_nonzero(kept))
    kept[masked.rows, masked.columns] = 0
    np.testing.assert_array_equal(masked.counts.toarray(), kept)
    again = metrics.mask_nonzeros(full, fraction=0.1, min_detection=0.7, random_state=3)
    np.testing.assert_array_equal(again.rows, masked.rows)
    with pytest.raises(ValueError, match="Nothing to mask: 0 genes"):
        metrics.mask_nonzeros(np.eye(50))
    with pytest.raises(ValueError, match=r"fraction=1\.5"):
        metrics.mask_nonzeros(full, fraction=1.5)


def test_thinning_keeps_each_molecule_with_its_probability() -> None:
    counts = np.full((300, 40), 10)
    thinned = metrics.thin_counts(counts, capture_efficiency=0.3).toarray()
    # 120,000 molecules: five standard errors.
    assert thinned.mean() == pytest.approx(3, abs=5 * np.sqrt(10 * 0.3 * 0.7 / counts.size))
    assert thinned.var() == pytest.approx(10 * 0.3 * 0.7, rel=0.05)
    with pytest.raises(ValueError, match="capture_efficiency=0 is not allowed"):
        metrics.thin_counts(counts, capture_efficiency=0)
    with pytest.raises(ValueError, match="values that are not whole numbers"):
        metrics.thin_counts(counts + 0.5, capture_efficiency=0.5)


def test_split_overlaps_like_two_independent_captures() -> None:
    # A cell's molecules, captured twice independently; their union is what one would have seen.
    rng = np.random.default_rng(0)
    n, share, efficiency = 400_000, 0.6, 0.4
    first_rate = share * efficiency
    second_rate = efficiency * (1 - share) / (1 - first_rate)
    first, second = rng.random((2, n)) < np.array([[first_rate], [second_rate]])
    union = first | second
    assert union.mean() == pytest.approx(efficiency, abs=0.004)
    counts = np.ones((n // 100, 100), dtype=int)
    train, test = metrics.split_molecules(counts, share=share, capture_efficiency=efficiency)
    assert train.sum() / n == pytest.approx(first.sum() / union.sum(), abs=0.005)
    assert test.sum() / n == pytest.approx(second.sum() / union.sum(), abs=0.005)
    assert train.multiply(test).sum() / n == pytest.approx((first & second).sum() / union.sum(), abs=0.005)
    assert (np.maximum(train.toarray(), test.toarray()) == 1).all()
    with pytest.raises(ValueError, match="share=1 is not allowed"):
        metrics.split_molecules(counts, share=1)
    with pytest.raises(ValueError, match=r"capture_efficiency=1\.0 is not allowed"):
        metrics.split_molecules(counts, capture_efficiency=1.0)


def test_baselines_by_hand_and_in_order() -> None:
    adata = simulate(80, 60)
    masked = metrics.mask_nonzeros(adata.X, min_detection=0.5)
    truth = np.log1p(masked.truth)
    errors = {}
    for method in metrics.BASELINES:
        filled = metrics.baseline_estimates(masked.counts, method, clusters=adata.obs["type"])
        assert np.isfinite(filled).all()
        assert (filled >= 0).all()
        seen = masked.counts.toarray() > 0
        if method != "rank_k":
            np.testing.assert_array_equal(filled[seen], masked.counts.toarray()[seen])
        errors[method] = metrics.mse(truth, np.log1p(filled[masked.rows, masked.columns]))
    assert errors["low_rank_nonzeros"] < errors["gene_line"] < errors["nonzero_mean"] < errors["none"]
    assert errors["cluster_mean"] < errors["gene_mean"]
    counts = np.array([[1.0, 0, 9], [3, 1, 6]])
    by_hand = np.expm1((np.log1p(1000.0) + 0) / 2) * 10 / 1e4
    assert metrics.baseline_estimates(counts, "gene_mean")[0, 1] == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="method='best' is not known"):
        metrics.baseline_estimates(counts, "best")


@pytest.mark.parametrize(
    ("how", "scores"),
    [
        ("masking", {"mse", "pcc", "gene_pcc"}),
        ("thinning", {"mse", "pcc", "mse_zeros", "pcc_zeros", "auroc", "brier", "ece"}),
        ("molecules", {"deviance", "mse"}),
    ],
)
def test_eval_imputation(how: str, scores: set[str]) -> None:
    adata = simulate(80, 60)
    before = adata.copy()
    table = scnn.tl.eval_imputation(adata, how=how, cluster_key="type", n_seeds=2, settings={"n_steps": 10})
    assert_only_added(before, adata, {("uns", "eval_imputation")})
    assert set(table.columns) == scores | {f"{score}_range" for score in scores}
    assert list(table.index) == ["cnn_impute", *metrics.BASELINES]
    record = adata.uns["eval_imputation"]
    assert set(record["scores"]["seed"]) == {0, 1}
    one = record["scores"].query("method == 'gene_mean'")["mse"]
    assert table.loc["gene_mean", "mse"] == pytest.approx(one.median())
    assert table.loc["gene_mean", "mse_range"] == pytest.approx(np.ptp(one))
    # Two cell types and modules of genes: there is something to find, in every sense.
    measure = "deviance" if how == "molecules" else "mse"
    assert table.loc["cnn_impute", measure] < table.loc[["none", "gene_mean"], measure].min()


def test_eval_imputation_of_the_paper_and_without_clusters(adata: ad.AnnData) -> None:
    settings = {"n_targets": 16, "max_epochs": 2}
    table = scnn.tl.eval_imputation(
        adata, how="molecules", preset="paper", cluster_key="type", n_seeds=1, settings=settings
    )
    assert np.isfinite(table.loc["cnn_impute", "deviance"])
    assert adata.uns["eval_imputation"]["params"]["preset"] == "paper"


def test_eval_imputation_with_cells_of_no_cluster(adata: ad.AnnData) -> None:
    adata.obs["some"] = adata.obs["type"].where(np.arange(60) > 5)
    table = scnn.tl.eval_imputation(adata, how="thinning", cluster_key="some", n_seeds=1, settings={"n_steps": 2})
    assert np.isfinite(table["mse"]).all()


def test_eval_imputation_refusals(adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match="how='guessing' is not known"):
        scnn.tl.eval_imputation(adata, how="guessing")
    with pytest.raises(ValueError, match="preset='fast' is not known"):
        scnn.tl.eval_imputation(adata, preset="fast")
    with pytest.raises(ValueError, match="n_seeds=0 is not allowed"):
        scnn.tl.eval_imputation(adata, n_seeds=0)
    with pytest.raises(ValueError, match=r"\['estimate'\] are chosen by tl.eval_imputation"):
        scnn.tl.eval_imputation(adata, settings={"estimate": "conditional"})
    with pytest.raises(KeyError, match=r"cluster_key='x' is not in adata\.obs"):
        scnn.tl.eval_imputation(adata, cluster_key="x")
    adata.uns["mine"] = 1
    with pytest.raises(ValueError, match="would be overwritten"):
        scnn.tl.eval_imputation(adata, key_added="mine")
    adata.layers["half"] = sp.csr_matrix(adata.X) / 2
    with pytest.warns(UserWarning, match="not whole numbers"), pytest.raises(ValueError, match="molecules can only"):
        scnn.tl.eval_imputation(adata, layer="half", n_seeds=1)
