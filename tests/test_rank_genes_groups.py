"""Decoys, the null that they give, and tests that they calibrate."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import scipy.stats
from helpers import dense, simulate

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute._anndata.models import load_dropout_model
from scanpy_cnnimpute.differential import TESTS, Contrast, DecoyNull, permute_counts
from scanpy_cnnimpute.differential.decoys import library_size_bins
from scanpy_cnnimpute.dropout.calibrated.factorisation import fit_loadings

if TYPE_CHECKING:
    from pathlib import Path

N_NULL = 60  # of the genes below, which do not differ
PAIR = {"groups": ["a"], "reference": "b"}


def two_groups(n_cells: int = 100, n_genes: int = 200, seed: int = 0) -> ad.AnnData:
    """Two types; the counts of the first genes are permuted among cells of similar library size."""
    adata = simulate(n_cells, n_genes, seed=seed)
    counts = dense(adata.X).copy()
    genes = np.arange(N_NULL)
    counts[:, :N_NULL] = permute_counts(counts[:, :N_NULL].T, counts.sum(axis=1), genes + 10_000, 7).T
    adata.X = sp.csr_matrix(counts)
    del adata.layers["twin"]
    return adata


@pytest.fixture(scope="module")
def imputed() -> ad.AnnData:
    adata = two_groups(seed=1)
    scnn.pp.cnn_impute(adata, n_steps=20, verbose=False)
    return adata


def result(adata: ad.AnnData, group: str = "a", key: str = "rank_genes_groups") -> pd.DataFrame:
    return sc.get.rank_genes_groups_df(adata, group, key=key).set_index("names").loc[adata.var_names]


def test_decoys_keep_the_counts_of_each_bin() -> None:
    rng = np.random.default_rng(0)
    values, library_size = rng.poisson(3.0, size=(50, 80)), rng.uniform(1, 9, size=80)
    decoys = permute_counts(values, library_size, np.arange(50), 0)
    order, starts = library_size_bins(library_size)
    assert starts.tolist() == [0, 20, 40, 60, 80]
    for first, last in pairwise(starts):
        cells = order[first:last]
        np.testing.assert_array_equal(np.sort(decoys[:, cells]), np.sort(values[:, cells]))
    assert (decoys != values).mean() > 0.5


def test_a_gene_has_the_same_decoy_whatever_others_are_there() -> None:
    rng = np.random.default_rng(0)
    values, library_size = rng.poisson(3.0, size=(50, 80)), rng.uniform(1, 9, size=80)
    decoys = permute_counts(values, library_size, np.arange(50), 3)
    np.testing.assert_array_equal(permute_counts(values[[7, 3]], library_size, np.array([7, 3]), 3), decoys[[7, 3]])
    assert (permute_counts(values, library_size, np.arange(50), 4) != decoys).any()


def test_every_order_is_as_likely() -> None:
    values = np.tile(np.arange(3), (60_000, 1))
    orders = permute_counts(values, np.ones(3), np.arange(60_000), 0) @ [9, 3, 1]
    counts = np.unique(orders, return_counts=True)[1]
    assert counts.size == 6
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("method", ["wilcoxon", "t-test"])
def test_scores_against_scipy(method: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.poisson(1.0, size=(60, 30)).astype(np.float32)
    values[:, 4] = 2.0  # does not vary
    contrast = Contrast(group=np.arange(0, 60, 3), reference=np.setdiff1d(np.arange(60), np.arange(0, 60, 3)))
    scores = TESTS[method](values, [contrast])[0]
    assert scores[4] == 0
    group, reference = values[contrast.group], values[contrast.reference]
    for g in np.setdiff1d(np.arange(30), [4]):
        if method == "t-test":
            exact = scipy.stats.ttest_ind(group[:, g].astype(float), reference[:, g].astype(float), equal_var=False)
        else:
            exact = scipy.stats.mannwhitneyu(group[:, g], reference[:, g], use_continuity=False, method="asymptotic")
        assert 2 * scipy.stats.norm.sf(abs(scores[g])) == pytest.approx(exact.pvalue, rel=1e-5)
    higher = group.mean(axis=0) > reference.mean(axis=0)
    clear = np.abs(scores) > 1
    np.testing.assert_array_equal(scores[clear] > 0, higher[clear])


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_the_null_is_that_of_the_decoys(scale: float, power: float) -> None:
    law = scipy.stats.gennorm(power)
    unit = scale * scipy.stats.norm.isf(0.025) / law.isf(0.025)
    rng = np.random.default_rng(0)
    mean = rng.gamma(1.0, size=8_000)
    null = DecoyNull.fit(mean, law.rvs(8_000, random_state=1) * unit)
    assert np.median(null.power) == pytest.approx(power, rel=0.25)
    p_values = null.p_values(mean, law.rvs(8_000, random_state=2) * unit)
    for level in (0.05, 0.01):
        # 80 genes are expected at 0.01, 11 % apart by chance; the null has its own quantile of as many decoys.
        assert (p_values <= level).mean() == pytest.approx(level, rel=0.35)


def test_the_scale_follows_the_mean_and_is_at_least_one() -> None:
    rng = np.random.default_rng(0)
    mean = rng.uniform(0, 1, size=10_000)
    null = DecoyNull.fit(mean, rng.normal(size=10_000) * np.where(mean > 0.5, 3.0, 0.3))
    assert null.scaled(np.array([0.1]), np.array([2.0]))[0] == 2.0
    assert null.scaled(np.array([0.9]), np.array([3.0]))[0] == pytest.approx(1.0, rel=0.1)


def test_few_decoys_say_nothing_of_tails() -> None:
    null = DecoyNull.fit(np.arange(50.0), np.linspace(-1, 1, 50))
    assert set(null.power) == {2.0}


def test_large_scores_keep_their_order() -> None:
    rng = np.random.default_rng(0)
    shift = np.arange(2, 12)
    values = rng.normal(size=(3_000, 10)).astype(np.float32)
    values[:1_500] += shift
    scores = TESTS["t-test"](values, [Contrast(group=np.arange(1_500), reference=np.arange(1_500, 3_000))])[0]
    assert (np.diff(scores) > 0).all()


def test_groups_of_different_depth_are_warned_of(imputed: ad.AnnData) -> None:
    adata = imputed.copy()
    counts = dense(adata.X).copy()
    counts[adata.obs["type"] == "a"] *= 5
    adata.X = counts
    with pytest.warns(
        UserWarning, match=r"The groups differ so much in library size .* Compare cells of similar depth"
    ):
        scnn.tl.rank_genes_groups(adata, "type", **PAIR)


def test_other_results_are_not_overwritten(imputed: ad.AnnData) -> None:
    with pytest.raises(ValueError, match=r"adata.uns\['cnn_imputed'\] is no ranking of genes and would be overwritten"):
        scnn.tl.rank_genes_groups(imputed, "type", key_added="cnn_imputed")


def test_blocks_do_not_change_the_result(imputed: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = imputed.copy(), imputed.copy()
    scnn.tl.rank_genes_groups(whole, "type", layer="cnn_imputed", **PAIR)
    monkeypatch.setattr("scanpy_cnnimpute.tl._contrasts.BLOCK_GENES", 30)
    scnn.tl.rank_genes_groups(parts, "type", layer="cnn_imputed", **PAIR)
    np.testing.assert_allclose(result(parts)["scores"], result(whole)["scores"], rtol=1e-3, atol=1e-3)


def test_no_decoys_give_the_normal_distribution() -> None:
    null = DecoyNull.fit(np.empty(0), np.empty(0))
    assert null.p_values(np.array([1.0]), np.array([1.96]))[0] == pytest.approx(0.05, rel=1e-3)


def test_loadings_fitted_to_the_scores_expect_what_the_model_does(imputed: ad.AnnData) -> None:
    model, cells = load_dropout_model(imputed, "dropout_prob")
    loadings = fit_loadings(sp.csr_array(imputed.X), cells.scores)
    before, after = (cells.scores @ each.T for each in (model.loadings, loadings))
    assert np.corrcoef(np.log(before).ravel(), np.log(after).ravel())[0, 1] > 0.98
    # The prior pulls the loadings of genes with few counts to those of all genes.
    np.testing.assert_allclose(after.sum(axis=0), dense(imputed.X).sum(axis=0), rtol=0.3)


@pytest.mark.parametrize("method", ["wilcoxon", "t-test"])
@pytest.mark.parametrize("reference", ["rest", "b"])
def test_without_decoys_it_is_scanpys_test(adata: ad.AnnData, method: str, reference: str) -> None:
    scnn.tl.rank_genes_groups(adata, "type", groups=["a"], reference=reference, method=method, null=None)
    other = adata.copy()
    sc.pp.normalize_total(other, target_sum=1e4)
    sc.pp.log1p(other)
    sc.tl.rank_genes_groups(
        other, "type", groups=["a"], reference=reference, method=method, tie_correct=method == "wilcoxon"
    )
    found, expected = result(adata), result(other)
    for column in ("logfoldchanges", "pvals", "pvals_adj"):
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-3, atol=1e-12)
    ours, scanpys = (each.uns["rank_genes_groups"] for each in (adata, other))
    assert set(ours) == set(scanpys)
    for field in ("names", "scores", "pvals", "pvals_adj", "logfoldchanges"):
        assert ours[field].dtype == scanpys[field].dtype


@pytest.mark.parametrize("layer", [None, "cnn_imputed"])
@pytest.mark.parametrize("method", ["wilcoxon", "t-test"])
def test_genes_that_do_not_differ_are_called_as_often_as_stated(layer: str | None, method: str) -> None:
    called, naive, differ = [], [], []
    for seed in range(3):
        adata = two_groups(seed=seed)
        scnn.pp.cnn_impute(adata, n_steps=20, verbose=False)
        scnn.tl.rank_genes_groups(adata, "type", layer=layer, method=method, n_decoys=3, **PAIR)
        p_values = result(adata)["pvals"].to_numpy()
        called.append((p_values[:N_NULL] <= 0.05).mean())
        differ.append((p_values[N_NULL:] <= 0.05).mean())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an imputed layer
            scnn.tl.rank_genes_groups(adata, "type", layer=layer, method=method, null=None, **PAIR)
        naive.append((result(adata)["pvals"].to_numpy()[:N_NULL] <= 0.05).mean())
    # 180 genes: two standard errors are 3 %.
    assert np.mean(called) < 0.09
    assert np.mean(differ) > 0.3
    if layer is not None and method == "wilcoxon":
        assert np.mean(naive) > 2 * max(np.mean(called), 0.05)


def test_scanpy_reads_and_draws_the_result(imputed: ad.AnnData, tmp_path: Path) -> None:
    from matplotlib import pyplot as plt

    adata = imputed.copy()
    scnn.tl.rank_genes_groups(adata, "type", layer="cnn_imputed")
    table = adata.uns["rank_genes_groups_decoys"]["table"]
    assert table.index.tolist() == ["a", "b"]
    assert table["called"].between(0, 1).all()
    assert (table["scale"] >= 1).all()
    sc.pl.rank_genes_groups(adata, show=False)
    sc.pl.rank_genes_groups_dotplot(adata, n_genes=3, show=False)
    plt.close("all")
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(result(back), result(adata))


def test_the_layer_need_not_be_there(imputed: ad.AnnData) -> None:
    adata = imputed.copy()
    scnn.pp.cnn_impute(adata, store="params", key_added="parts", n_steps=20, verbose=False)
    scnn.tl.rank_genes_groups(adata, "type", layer="cnn_imputed", **PAIR)
    expected = result(adata)
    scnn.tl.rank_genes_groups(adata, "type", layer="parts", **PAIR)
    np.testing.assert_allclose(result(adata)["scores"], expected["scores"], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="'parts' is not stored: pass null='decoys'"):
        scnn.tl.rank_genes_groups(adata, "type", layer="parts", null=None)


def test_denoised_layers_and_reads(imputed: ad.AnnData) -> None:
    adata = imputed.copy()
    adata.X = adata.X * 40
    scnn.pp.dropout_prob(adata, count_type="reads", store="params")
    scnn.pp.cnn_impute(adata, entries="all", n_steps=20, verbose=False)
    scnn.tl.rank_genes_groups(adata, "type", layer="cnn_denoised", **PAIR)
    p_values = result(adata)["pvals"]
    assert np.isfinite(p_values).all()
    assert (p_values.iloc[:N_NULL] <= 0.05).mean() < 0.15


def test_options(imputed: ad.AnnData) -> None:
    options = {"n_genes": 5, "rankby_abs": True, "corr_method": "bonferroni", "key_added": "other"}
    copy = scnn.tl.rank_genes_groups(imputed, "type", copy=True, **options, **PAIR)
    assert "other" not in imputed.uns
    found = copy.uns["other"]
    assert found["names"]["a"].size == 5
    assert (np.diff(np.abs(found["scores"]["a"])) <= 0).all()
    assert found["params"]["corr_method"] == "bonferroni"


def test_imputed_layers_are_warned_of(imputed: ad.AnnData) -> None:
    adata = imputed.copy()
    with pytest.warns(UserWarning, match=r"'cnn_imputed' is imputed.*28 to 75 %.*null='decoys'"):
        scnn.tl.rank_genes_groups(adata, "type", layer="cnn_imputed", null=None)


def test_decoys_of_other_imputers_are_permuted_values(imputed: ad.AnnData) -> None:
    adata = imputed.copy()
    scnn.pp.cnn_impute(adata, estimate="conditional", n_steps=2, key_added="conditional", verbose=False)
    with pytest.warns(UserWarning, match="decoys of 'conditional' are its values permuted"):
        scnn.tl.rank_genes_groups(adata, "type", layer="conditional", **PAIR)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"groups": ["c"]},
            r"\['c'\] are no groups of at least 2 cells in adata.obs\['type'\]. Available: \['a', 'b'\]",
        ),
        ({"groups": "a"}, "groups='a' is not allowed: 'all', or a sequence of names such as"),
        ({"reference": "c"}, r"\['c'\] are no groups of at least 2 cells"),
        ({"groups": ["a"], "reference": "a"}, "leave no two groups to compare"),
        ({"method": "logreg"}, r"method='logreg' is not known. Available: \['t-test', 'wilcoxon'\]"),
        ({"null": "halves"}, r"null='halves' is not known. Available: \['decoys'\]"),
        ({"layer": "logged"}, "looks log-transformed"),
    ],
)
def test_refusals(imputed: ad.AnnData, options: dict[str, Any], message: str) -> None:
    adata = imputed.copy()
    counts = dense(adata.X)
    adata.layers["logged"] = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    with pytest.raises(ValueError, match=message):
        scnn.tl.rank_genes_groups(adata, "type", **options)
    assert "rank_genes_groups" not in adata.uns


def test_unknown_column(imputed: ad.AnnData) -> None:
    with pytest.raises(KeyError, match=r"groupby='kind' is not in adata.obs"):
        scnn.tl.rank_genes_groups(imputed, "kind")


def test_false_signals(imputed: ad.AnnData) -> None:
    from matplotlib import pyplot as plt

    adata = imputed.copy()
    table = scnn.tl.eval_false_signals(adata, "type", **PAIR).set_index(["layer", "method"])
    assert table.loc[("X", "t-test"), "called"] == pytest.approx(0.05, abs=0.05)
    assert table.loc[("cnn_imputed", "wilcoxon"), "called"] > table.loc[("X", "wilcoxon"), "called"]
    assert table.loc[("X", "t-test"), "correlation"] == pytest.approx(1.0, abs=0.5)
    assert table.loc[("cnn_imputed", "t-test"), "correlation"] > 1.0
    assert table["false_discoveries"].between(0, 1).all()
    axes = scnn.pl.false_signals(adata, show=False)
    assert len(axes.patches) == 4
    plt.close("all")
    with pytest.raises(ValueError, match="methods='logreg' is not known"):
        scnn.tl.eval_false_signals(adata, "type", methods=["logreg"])


def test_eval_de_takes_the_result(imputed: ad.AnnData) -> None:
    adata = imputed.copy()
    reference = pd.DataFrame(
        {"log2_fold_change": 1.0, "p_value": np.where(np.arange(200) < N_NULL, 0.5, 0.01)}, index=adata.var_names
    )
    scnn.tl.rank_genes_groups(adata, "type", null=None, method="wilcoxon", key_added="naive", **PAIR)
    scnn.tl.rank_genes_groups(adata, "type", layer="cnn_imputed", key_added="decoys", **PAIR)
    options = {"groupby": "type", "group": "a", "reference_group": "b", "reference": reference}
    table = scnn.tl.eval_de(adata, tested=["naive", "decoys"], **options)
    assert table.index.tolist() == ["uns:naive", "uns:decoys", "X"]
    assert table.loc["uns:decoys", "auc"] > 0.6
    scnn.tl.rank_genes_groups(adata, "type", null=None, key_added="rest")
    with pytest.raises(ValueError, match=r"adata.uns\['rest'\] has reference='rest', not 'b'"):
        scnn.tl.eval_de(adata, tested="rest", **options)
    with pytest.raises(KeyError, match=r"tested='none' is no result of tl.rank_genes_groups"):
        scnn.tl.eval_de(adata, tested="none", **options)
    scnn.tl.rank_genes_groups(adata, "type", n_genes=5, key_added="few", **PAIR)
    with pytest.raises(ValueError, match="rank all genes"):
        scnn.tl.eval_de(adata, tested="few", **options)
