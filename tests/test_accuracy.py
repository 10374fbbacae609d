"""Metrics of accuracy and calibration, held-out counts, the simple methods, and ``tl.eval_imputation``."""

from __future__ import annotations

import logging
import tracemalloc
from typing import TYPE_CHECKING, Any

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
from scanpy_cnnimpute.metrics import _baselines
from scanpy_cnnimpute.metrics._baselines import Baselines
from scanpy_cnnimpute.metrics._streaming import Calibration, Deviance, PairedScores

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


def dense_reference(counts: np.ndarray, method: str, labels: np.ndarray) -> np.ndarray:
    """The simple methods as plainly as they can be written, on dense matrices and with exact decompositions."""
    size = counts.sum(axis=1)[:, None]
    observed, log = counts > 0, np.log1p(counts)
    normalised = np.log1p(counts / size * 1e4)

    def truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        return (u[:, :rank] * s[:rank]) @ vt[:rank]

    def to_counts(values: np.ndarray) -> np.ndarray:
        return np.expm1(np.maximum(values, 0)) * size / 1e4

    def lines() -> np.ndarray:
        depth = np.log(size.ravel())
        depth = depth - depth.mean()
        seen = [observed[:, gene] for gene in range(counts.shape[1])]
        x = [depth[cells] - depth[cells].mean() for cells in seen]
        y = [log[cells, gene] for gene, cells in enumerate(seen)]
        sxx = np.array([own @ own for own in x])
        sxy = np.array([own @ (values - values.mean()) for own, values in zip(x, y, strict=True)])
        slope = (sxy + 20 * depth.var() * sxy.sum() / sxx.sum()) / (sxx + 20 * depth.var())
        return np.column_stack(
            [values.mean() + b * (depth - depth[cells].mean()) for values, b, cells in zip(y, slope, seen, strict=True)]
        )

    if method == "none":
        estimate = counts
    elif method == "gene_mean":
        estimate = to_counts(normalised.mean(axis=0)[None])
    elif method == "cluster_mean":
        means = {label: normalised[labels == label].mean(axis=0) for label in set(labels)}
        estimate = to_counts(np.stack([means[label] for label in labels]))
    elif method == "nonzero_mean":
        estimate = np.expm1(log.sum(axis=0) / observed.sum(axis=0))[None]
    elif method == "gene_line":
        estimate = np.expm1(np.maximum(lines(), 0))
    elif method == "low_rank_nonzeros":
        residuals = np.where(observed, log - lines(), 0)
        sd = np.sqrt((residuals**2).sum(axis=0) / observed.sum(axis=0))
        fit = np.zeros_like(residuals)
        for _ in range(50):
            fit = truncated(np.where(observed, residuals / sd, fit), 8)
        estimate = np.expm1(np.maximum(lines() + fit * sd, 0))
    else:
        mean = normalised.mean(axis=0)
        estimate = to_counts(mean + truncated(normalised - mean, 15))
    return estimate if method == "rank_k" else np.where(observed, counts, estimate)


@pytest.mark.parametrize("method", metrics.BASELINES)
def test_baselines_equal_the_dense_reference_in_any_blocks(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = simulate(90, 70)
    counts = adata.X.toarray().astype(np.float64)
    labels = adata.obs["type"].to_numpy(dtype=object, copy=True)
    labels[:7] = None  # a group of their own
    reference = dense_reference(counts, method, labels)
    estimates = metrics.baseline_estimates(counts, method, clusters=labels)
    # Subspace iteration stops before the last digits: the eighth singular value has no gap to the ninth here.
    tolerance = {"low_rank_nonzeros": 0.03, "rank_k": 1e-3, "rank_k_zeros": 1e-3}.get(method, 1e-6)
    np.testing.assert_allclose(np.log1p(estimates), np.log1p(reference), rtol=0, atol=tolerance)
    if method == "low_rank_nonzeros":
        assert np.sqrt(metrics.mse(np.log1p(reference), np.log1p(estimates))) < 0.003
    baselines = Baselines(adata.X, clusters=labels)
    blocks = [baselines.rows(method, rows) for rows in (slice(0, 1), slice(1, 60), slice(60, 60), slice(60, 90))]
    assert {block.dtype for block in blocks} == {np.dtype(np.float32)}
    np.testing.assert_allclose(np.concatenate(blocks), estimates, rtol=1e-4, atol=1e-4)  # float32
    monkeypatch.setattr(_baselines, "BLOCK_BYTES", 4 * 70 * 7)
    np.testing.assert_allclose(metrics.baseline_estimates(counts, method, clusters=labels), estimates, rtol=1e-12)


@pytest.mark.parametrize("method", metrics.BASELINES)
@pytest.mark.parametrize("counts", [np.ones((9, 10)), np.outer(np.arange(5), [1, 0, 2]), np.zeros((3, 4)), [[3]]])
def test_baselines_of_degenerate_counts(method: str, counts: Any) -> None:
    """Equal cells, cells that differ in depth only, empty cells and genes, nothing at all, one entry."""
    counts = np.asarray(counts, dtype=np.float32)
    estimates = metrics.baseline_estimates(counts, method)
    assert np.isfinite(estimates).all()
    assert (estimates >= 0).all()
    np.testing.assert_allclose(estimates[counts > 0], counts[counts > 0], rtol=1e-4)


def test_baselines_never_become_dense() -> None:
    counts = sp.random_array((1500, 4000), density=0.01, rng=np.random.default_rng(0), dtype=np.float32).tocsr()
    counts.data = np.ceil(5 * counts.data)
    tracemalloc.start()
    baselines = Baselines(counts)
    for method in metrics.BASELINES:
        for rows in _baselines.row_blocks(*counts.shape):
            baselines.rows(method, rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * counts.shape[0] * counts.shape[1] / 2


def test_baselines_keep_counts_that_float32_does_not_hold() -> None:
    counts = np.array([[2**24 + 1, 0], [1, 1]])
    assert metrics.baseline_estimates(counts, "gene_line")[0, 0] == 2**24 + 1
    with pytest.raises(ValueError, match="clusters has 3 labels, counts 2 cells"):
        metrics.baseline_estimates(counts, "cluster_mean", clusters=["a", "b", "a"])


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 30), min_size=1, max_size=5), st.sampled_from([0.0, 1e4]))
def test_streaming_equals_the_array_functions(seed: int, sizes: list[int], offset: float) -> None:
    rng = np.random.default_rng(seed)
    truth = [offset + rng.poisson(1.0, size=size).astype(np.float32) for size in sizes]
    estimate = [offset + rng.gamma(1.0, 1.0, size=size).astype(np.float32) for size in sizes]
    paired, deviance = PairedScores(), Deviance()
    for pair in zip(truth, estimate, strict=True):
        paired.add(*pair)
        deviance.add(*pair)
    whole = np.concatenate(truth), np.concatenate(estimate)
    if whole[0].size == 0:
        assert np.isnan([paired.mse, paired.pcc, deviance.mean]).all()
        return
    assert paired.mse == pytest.approx(metrics.mse(*whole))
    assert paired.pcc == pytest.approx(metrics.pcc(*whole), rel=1e-6, abs=1e-9, nan_ok=True)
    assert deviance.mean == pytest.approx(metrics.poisson_deviance(*whole))


def test_streaming_correlation_of_constants_is_not_defined() -> None:
    scores = PairedScores()
    for size in (3, 4):
        scores.add(np.full(size, 0.1), np.arange(size))
    assert np.isnan(scores.pcc)
    assert scores.mse > 0


def test_streaming_calibration_equals_the_array_functions() -> None:
    rng = np.random.default_rng(0)
    probability = np.append(rng.beta(0.5, 3.0, size=60_000), [0.0, 1.0]).astype(np.float32)
    truth = rng.random(probability.size) < probability**1.2
    scores = Calibration()
    for part in np.array_split(np.arange(probability.size), 7):
        scores.add(truth[part], probability[part])
    assert scores.auroc == pytest.approx(metrics.auroc(truth, probability), abs=1e-4)
    assert scores.brier == pytest.approx(metrics.brier_score(truth, probability))
    assert scores.ece == pytest.approx(metrics.expected_calibration_error(truth, probability))
    ties = Calibration()
    ties.add(np.array([True, False, False]), np.array([0.5, 0.5, 0.2]))
    assert ties.auroc == metrics.auroc([1, 0, 0], [0.5, 0.5, 0.2]) == 0.75
    nothing = Calibration()
    assert np.isnan([nothing.auroc, nothing.brier, nothing.ece]).all()


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


def test_eval_imputation_scores_whole_matrices(adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of seven cells give the scores of the array functions."""
    monkeypatch.setattr(_baselines, "BLOCK_BYTES", 4 * adata.n_vars * 7)
    options: dict[str, Any] = {"n_seeds": 1, "random_state": 3, "settings": {"n_steps": 2}}
    table = scnn.tl.eval_imputation(adata, how="molecules", share=0.6, **options)
    train, test = metrics.split_molecules(adata.X, share=0.6, random_state=3)
    scale, held_out, seen = test.sum() / train.sum(), test.toarray(), train.sum(axis=0) > 0
    part = scnn.pp.dropout_prob(type(adata)(train), capture_efficiency=0.6, random_state=3, store="params", copy=True)
    scnn.pp.cnn_impute(part, estimate="expected_count", random_state=3, n_steps=2, verbose=False)
    imputed = part.layers["cnn_imputed"].toarray()
    expected = {
        "cnn_impute": np.where(train.toarray() > 0, scale * imputed, imputed / 0.6),
        "none": scale * train.toarray(),
        "rank_k": scale * metrics.baseline_estimates(train, "rank_k", random_state=3),
    }
    for name, values in expected.items():
        raised = np.maximum(values, 0.01 * scale * train.mean(axis=0))
        deviance = metrics.poisson_deviance(held_out[:, seen], raised[:, seen])
        assert table.loc[name, "deviance"] == pytest.approx(deviance, rel=1e-4)
        assert table.loc[name, "mse"] == pytest.approx(metrics.mse(held_out, values), rel=1e-4)

    table = scnn.tl.eval_imputation(adata, how="thinning", share=0.6, **options)
    thinned = metrics.thin_counts(adata.X, capture_efficiency=0.6, random_state=3)
    full, size, zero = adata.X.toarray(), thinned.sum(axis=1)[:, None], thinned.toarray() == 0
    target = np.log1p(full / full.sum(axis=1, keepdims=True) * 1e4)
    for name in ("gene_mean", "gene_line", "rank_k"):
        estimate = np.log1p(metrics.baseline_estimates(thinned, name, random_state=3) / size * 1e4)
        for suffix, where in (("", np.full(zero.shape, True)), ("_zeros", zero)):
            for score in (metrics.mse, metrics.pcc):
                value = table.loc[name, f"{score.__name__}{suffix}"]
                assert value == pytest.approx(score(target[where], estimate[where]), rel=1e-4)
    part = type(adata)(thinned)
    scnn.pp.dropout_prob(part, capture_efficiency=0.6, random_state=3, store="layer")
    probability, dropout = part.layers["dropout_prob"][zero], full[zero] > 0
    assert table.loc["cnn_impute", "auroc"] == pytest.approx(metrics.auroc(dropout, probability), abs=1e-4)
    assert table.loc["cnn_impute", "brier"] == pytest.approx(metrics.brier_score(dropout, probability))

    table = scnn.tl.eval_imputation(adata, how="masking", **options)
    masked = metrics.mask_nonzeros(adata.X, random_state=3)
    estimate = metrics.baseline_estimates(masked.counts, "gene_line", random_state=3)[masked.rows, masked.columns]
    found = metrics.mse(np.log1p(masked.truth), np.log1p(estimate))
    assert table.loc["gene_line", "mse"] == pytest.approx(found, rel=1e-4)


def test_eval_imputation_of_the_paper_and_without_clusters(adata: ad.AnnData) -> None:
    settings = {"n_targets": 16, "max_epochs": 2}
    table = scnn.tl.eval_imputation(
        adata, how="molecules", preset="paper", cluster_key="type", n_seeds=1, settings=settings
    )
    assert np.isfinite(table.loc["cnn_impute", "deviance"])
    assert adata.uns["eval_imputation"]["params"]["preset"] == "paper"


def test_eval_imputation_with_cells_of_no_cluster(adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="scanpy_cnnimpute")
    adata.obs["some"] = adata.obs["type"].where(np.arange(60) > 5)
    options: dict[str, Any] = {"how": "masking", "n_seeds": 1, "settings": {"n_steps": 2}}
    some = scnn.tl.eval_imputation(adata, cluster_key="some", **options)
    # The default preset imputes and scores all cells; the labels only change the cluster mean.
    plain = scnn.tl.eval_imputation(adata, **options)
    others = some.index.drop("cluster_mean")
    np.testing.assert_array_equal(some.loc[others], plain.loc[others])
    adata.obs["filled"] = adata.obs["some"].cat.add_categories("none").fillna("none")
    filled = scnn.tl.eval_imputation(adata, cluster_key="filled", **options)
    np.testing.assert_array_equal(filled, some)
    assert "left out" not in caplog.text
    # The paper's preset has no network for cells without a cluster: the same as without these cells.
    options |= {"preset": "paper", "settings": {"n_targets": 16, "max_epochs": 1}}
    left_out = scnn.tl.eval_imputation(adata, cluster_key="some", **options)
    assert "6 of 60 cells have no label in adata.obs['some'] and are left out" in caplog.text
    labelled = scnn.tl.eval_imputation(adata[6:].copy(), cluster_key="some", **options)
    np.testing.assert_array_equal(left_out, labelled)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"settings": ["n_steps"]}, TypeError, r"settings=\['n_steps'\] has type list, expected a dict"),
        ({"settings": 3}, TypeError, "settings=3 has type int, expected a dict"),
        ({"settings": {"nope": 1}}, ValueError, r"\['nope'\] cannot be set for preset='default'.*'n_steps'.*'gate'"),
        ({"settings": {"n_targets": 1}}, ValueError, r"\['n_targets'\] cannot be set for preset='default'"),
        ({"settings": {"gate": True}, "how": "masking"}, ValueError, r"\['gate'\] cannot be set for .*how='masking'"),
        ({"settings": {"gate": True}, "preset": "paper"}, ValueError, r"\['gate'\] cannot be set for preset='paper'"),
        ({"settings": {"gate": 1}}, TypeError, "gate=1 has type int, expected bool"),
        ({"settings": {"n_steps": "a"}}, TypeError, "n_steps='a' has type str, expected int"),
        ({"settings": {"n_steps": 0}}, ValueError, "n_steps=0 is not allowed: at least 1"),
        ({"preset": []}, ValueError, r"preset=\[\] is not known. Available: \['default', 'paper'\]"),
        ({"share": "a"}, TypeError, "share='a' has type str, expected float"),
        ({"share": 1}, ValueError, "share=1 is not allowed: between 0 and 1, both excluded"),
        ({"capture_efficiency": b"2"}, TypeError, "capture_efficiency=b'2' has type bytes, expected float"),
        ({"capture_efficiency": b"2", "how": "masking"}, TypeError, "capture_efficiency=b'2' has type bytes"),
        ({"capture_efficiency": 0.1, "how": "masking"}, ValueError, "only used by how='molecules', not 'masking'"),
        ({"random_state": 2**70}, ValueError, f"random_state={2**70} is not allowed: at most {2**32 - 5}"),
        ({"random_state": "a"}, TypeError, "random_state='a' has type str, expected int"),
        ({"cluster_key": ["type"]}, TypeError, "cluster_key has type list, expected str"),
        ({"how": "guessing"}, ValueError, "how='guessing' is not known"),
    ],
)
def test_eval_imputation_refuses_before_any_work(
    adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    for name in ("mask_nonzeros", "thin_counts", "split_molecules"):
        monkeypatch.delattr(metrics, name)
    with pytest.raises(error, match=message):
        scnn.tl.eval_imputation(adata, **options)
    assert "eval_imputation" not in adata.uns


def test_eval_imputation_refusals(adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match="how='guessing' is not known"):
        scnn.tl.eval_imputation(adata, how="guessing")
    with pytest.raises(ValueError, match="preset='fast' is not known"):
        scnn.tl.eval_imputation(adata, preset="fast")
    with pytest.raises(ValueError, match="n_seeds=0 is not allowed"):
        scnn.tl.eval_imputation(adata, n_seeds=0)
    with pytest.raises(ValueError, match=r"\['estimate'\] cannot be set .* are chosen by tl.eval_imputation"):
        scnn.tl.eval_imputation(adata, settings={"estimate": "conditional"})
    with pytest.raises(KeyError, match=r"cluster_key='x' is not in adata\.obs"):
        scnn.tl.eval_imputation(adata, cluster_key="x")
    adata.uns["mine"] = 1
    with pytest.raises(ValueError, match="would be overwritten"):
        scnn.tl.eval_imputation(adata, key_added="mine")
    adata.layers["half"] = sp.csr_matrix(adata.X) / 2
    with pytest.warns(UserWarning, match="not whole numbers"), pytest.raises(ValueError, match="molecules can only"):
        scnn.tl.eval_imputation(adata, layer="half", n_seeds=1)
