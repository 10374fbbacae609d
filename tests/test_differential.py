"""Agreement of fold changes, and ``tl.eval_de``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import sklearn.metrics
from helpers import assert_only_added, simulate
from hypothesis import given
from hypothesis import strategies as st

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import metrics

if TYPE_CHECKING:
    from pathlib import Path

GROUPS: dict[str, Any] = {"groupby": "type", "group": "a", "reference_group": "b"}
VECTORS = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=2, max_size=30)


def test_normalized_euclidean_distance_by_hand() -> None:
    # var(X) = 2/3, var(Y) = 26/3 - 4, X - Y = 0, -1, -3.
    x, y = [0, 1, 2], [0, 2, 5]
    expected = 0.5 * (10 / 3 - 16 / 9) / (2 / 3 + 29 / 3 - 49 / 9)
    assert metrics.normalized_euclidean_distance(x, y) == pytest.approx(expected)
    assert np.isnan(metrics.normalized_euclidean_distance([1, 1], [2, 2]))
    with pytest.raises(ValueError, match=r"got \(3,\) and \(2,\)"):
        metrics.normalized_euclidean_distance(x, y[:2])


@given(VECTORS, st.integers(-9, 9))
def test_normalized_euclidean_distance_invariants(pairs: list[tuple[int, int]], shift: int) -> None:
    x, y = np.array(pairs, dtype=np.float64).T
    value = metrics.normalized_euclidean_distance(x, y)
    if x.var() + y.var() == 0:
        assert np.isnan(value)
        return
    assert 0 <= value <= 1 + 1e-12
    assert metrics.normalized_euclidean_distance(y, x) == pytest.approx(value)
    assert metrics.normalized_euclidean_distance(x + shift, y) == pytest.approx(value)
    assert metrics.normalized_euclidean_distance(x, -y) == pytest.approx(1 - value)


def test_overlap_by_hand() -> None:
    nan = np.nan
    reference = [5, -4, 3, -2, 1, nan, 0.5]
    lfc = [4, -5, -3, nan, 9, 8, 0.1]
    # First five of the reference: 0 to 4. First four of the other: 4, 5, 1, 0. Genes 0, 1 and 4 are in both.
    found = metrics.de_overlap(reference, lfc, n_reference=5, n=4)
    assert (found["up"], found["down"], found["n_common"]) == (2, 1, 3)
    assert found["mse"] == pytest.approx((1 + 1 + 64) / 3)
    assert found["pcc"] == pytest.approx(np.corrcoef([5, -4, 1], [4, -5, 9])[0, 1])
    assert found["ned"] == metrics.normalized_euclidean_distance([5, -4, 1], [4, -5, 9])
    # With all significant genes, 2 has opposite signs: common, but neither up nor down.
    found = metrics.de_overlap(reference, lfc)
    assert (found["up"], found["down"], found["n_common"]) == (3, 1, 5)


def test_overlap_of_nothing() -> None:
    found = metrics.de_overlap([1.0, np.nan], [np.nan, 1.0])
    assert (found["up"], found["down"], found["n_common"]) == (0, 0, 0)
    assert all(np.isnan(found[name]) for name in ("pcc", "mse", "ned"))
    one = metrics.de_overlap([1.0], [2.0])
    assert (one["n_common"], one["mse"]) == (1, 1)
    assert np.isnan(one["pcc"])


@given(VECTORS, st.integers(1, 9), st.integers(1, 9))
def test_overlap_invariants(pairs: list[tuple[int, int]], n_reference: int, n: int) -> None:
    x, y = np.array(pairs, dtype=np.float64).T
    found = metrics.de_overlap(x, y, n_reference=n_reference, n=n)
    assert found["up"] + found["down"] <= found["n_common"] <= min(n_reference, n, x.size)
    turned = metrics.de_overlap(-x, -y, n_reference=n_reference, n=n)
    assert (turned["up"], turned["down"]) == (found["down"], found["up"])
    itself = metrics.de_overlap(x, x, n_reference=n, n=n)
    assert (itself["n_common"], itself["mse"]) == (min(n, x.size), 0)


def test_overlap_refuses() -> None:
    with pytest.raises(ValueError, match=r"two vectors of one length, got shapes \(2,\) and \(1,\)"):
        metrics.de_overlap([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="infinite: add a pseudocount"):
        metrics.de_overlap([1.0, np.inf], [1.0, 2.0])
    with pytest.raises(ValueError, match="n=0 is not allowed: at least 1"):
        metrics.de_overlap([1.0], [1.0], n=0)


@pytest.fixture(scope="module")
def planted() -> tuple[ad.AnnData, pd.DataFrame]:
    """Two groups of 80 cells; of 300 genes 30 are raised and 30 lowered fourfold in ``a``. Its truth."""
    rng = np.random.default_rng(0)
    lfc = np.zeros(300)
    lfc[:30], lfc[30:60] = 2, -2
    types = np.arange(160) % 2
    mean = rng.gamma(3, 4, size=300) * np.exp2(np.where(types[:, None] == 0, lfc / 2, -lfc / 2))
    # The size of a cell says nothing, and must not be taken for a difference.
    counts = rng.poisson(mean * np.where(types == 0, 0.7, 1.4)[:, None])
    adata = ad.AnnData(
        sp.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame({"type": np.array(["a", "b"])[types]}, index=[f"c{i}" for i in range(160)]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(300)]),
    )
    adata.uns["mine"] = {"a": 1}
    return adata, pd.DataFrame({"log2_fold_change": lfc, "p_value": np.where(lfc == 0, 1, 0.0)}, index=adata.var_names)


@pytest.mark.parametrize("method", ["wilcoxon", "t-test"])
def test_planted_differences_are_found(planted: tuple[ad.AnnData, pd.DataFrame], method: Any, tmp_path: Path) -> None:
    adata, reference = planted[0].copy(), planted[1]
    rng = np.random.default_rng(1)
    # Cells in another order: nothing is left to find.
    adata.layers["shuffled"] = adata.X[rng.permutation(160)]
    before = adata.copy()
    table = scnn.tl.eval_de(
        adata, reference=reference, layers=["X", "shuffled"], method=method, n_reference=60, n=60, **GROUPS
    )
    assert table.index.tolist() == ["X", "layer:shuffled"]
    found, nothing = table.loc["X"], table.loc["layer:shuffled"]
    assert found["auc"] > 0.98
    assert min(found["up"], found["down"]) >= 28
    assert found["pcc"] > 0.95
    assert found["mse"] < 0.2  # Scanpy's fold change leans to the group with deeper cells
    assert found["ned"] < 0.05
    assert 60 <= found["n_significant"] <= 60 + 2 * 0.05 * 240
    assert nothing["auc"] == pytest.approx(0.5, abs=0.1)
    assert nothing["n_significant"] < 45
    assert_only_added(before, adata, {("uns", "eval_de")})
    adata.write_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(ad.read_h5ad(tmp_path / "a.h5ad").uns["eval_de"]["table"], table)


def test_the_same_as_with_scanpy_alone(planted: tuple[ad.AnnData, pd.DataFrame]) -> None:
    adata, reference = planted[0].copy(), planted[1]
    table = scnn.tl.eval_de(adata, reference=reference, **GROUPS)
    alone = planted[0].copy()
    alone.X = sp.csr_matrix(np.log1p(alone.X.toarray() * (1e4 / np.asarray(alone.X.sum(axis=1), dtype=np.float64))))
    alone.obs["type"] = alone.obs["type"].astype("category")
    sc.tl.rank_genes_groups(alone, "type", groups=["a"], reference="b", method="wilcoxon", tie_correct=True)
    found = sc.get.rank_genes_groups_df(alone, "a").set_index("names").loc[reference.index]
    significant = found["pvals"] <= 0.05
    assert table.loc["X", "n_significant"] == significant.sum()
    score = found["logfoldchanges"].abs().where(significant, 0)
    assert table.loc["X", "auc"] == pytest.approx(sklearn.metrics.roc_auc_score(reference["p_value"] < 0.5, score))
    both = significant & (reference["p_value"] < 0.5)
    difference = found["logfoldchanges"] - reference["log2_fold_change"]
    assert table.loc["X", "mse"] == pytest.approx((difference[both] ** 2).mean())


def test_only_genes_of_both(planted: tuple[ad.AnnData, pd.DataFrame], caplog: pytest.LogCaptureFixture) -> None:
    adata, reference = planted[0].copy(), planted[1]
    whole = scnn.tl.eval_de(adata, reference=reference, **GROUPS)
    # Genes in another order, one that adata lacks, and only a third of its own; library sizes stay those of all genes.
    part = pd.concat([reference.iloc[::-3], pd.DataFrame({"log2_fold_change": [9.0], "p_value": [0.0]}, index=["no"])])
    with caplog.at_level(logging.INFO, "scanpy_cnnimpute"):
        table = scnn.tl.eval_de(adata, reference=part, **GROUPS)
    assert (
        "compared in 100 genes; left out are 200 that only adata has and 1 that only the reference has" in caplog.text
    )
    assert table.loc["X", "n_genes"] == 100
    assert table.loc["X", "auc"] > 0.98
    assert table.loc["X", "n_significant"] < whole.loc["X", "n_significant"]


def test_thresholds_and_genes_that_are_not_significant(planted: tuple[ad.AnnData, pd.DataFrame]) -> None:
    adata, reference = planted[0].copy(), planted[1].copy()
    none = scnn.tl.eval_de(adata, reference=reference, p_value=0.0, **GROUPS).loc["X"]
    assert none[["up", "down", "n_common", "n_significant"]].tolist() == [0, 0, 0, 0]
    assert none["auc"] == 0.5
    reference.loc["g0", "log2_fold_change"] = np.nan
    reference.loc["g1", "p_value"] = np.nan
    reference.loc["g2", "p_value"] = 0.08
    found = scnn.tl.eval_de(adata, reference=reference, **GROUPS).loc["X"]
    assert found["n_common"] == 58
    stricter = scnn.tl.eval_de(adata, reference=reference, reference_p_value=0.05, **GROUPS).loc["X"]
    assert stricter["n_common"] == 57
    everything = reference.assign(p_value=1.0)
    assert np.isnan(scnn.tl.eval_de(adata, reference=everything, **GROUPS).loc["X", "auc"])


def test_empty_genes_empty_cells_and_other_groups(planted: tuple[ad.AnnData, pd.DataFrame]) -> None:
    adata, reference = planted[0].copy(), planted[1]
    kept_cells, kept_genes = (sp.diags(np.arange(n) != gone, dtype=np.float32) for n, gone in ((160, 3), (300, 299)))
    adata.X = kept_cells @ adata.X @ kept_genes
    adata.obs["type"] = pd.Categorical(adata.obs["type"], categories=["b", "none", "a"])
    adata.obs.iloc[:20, 0] = np.nan
    before = adata.copy()
    assert scnn.tl.eval_de(adata, reference=reference, **GROUPS).loc["X", "auc"] > 0.97
    assert_only_added(before, adata, {("uns", "eval_de")})


def test_cells_without_a_group(planted: tuple[ad.AnnData, pd.DataFrame]) -> None:
    adata, reference = planted
    adata = adata.copy()
    adata.obs["type"] = adata.obs["type"].astype("string")
    adata.obs.iloc[:3, adata.obs.columns.get_loc("type")] = pd.NA
    table = scnn.tl.eval_de(adata, reference=reference, **GROUPS)
    pd.testing.assert_frame_equal(table, scnn.tl.eval_de(adata[3:].copy(), reference=reference, **GROUPS))


def test_a_list_of_one_group_as_in_scanpy(planted: tuple[ad.AnnData, pd.DataFrame]) -> None:
    adata, reference = planted[0].copy(), planted[1]
    table = scnn.tl.eval_de(adata, reference=reference, **GROUPS)
    for one in (["a"], ("a",), np.array(["a"])):
        again = scnn.tl.eval_de(adata, reference=reference, **{**GROUPS, "group": one})
        pd.testing.assert_frame_equal(again, table)
        assert adata.uns["eval_de"]["params"]["group"] == "a"


def test_imputed_layers(planted: tuple[ad.AnnData, pd.DataFrame]) -> None:
    adata, reference = planted[0].copy(), planted[1]
    adata.layers["imputed"] = np.where(adata.X.toarray() == 0, np.float32(0.4), adata.X.toarray())
    table = scnn.tl.eval_de(adata, reference=reference, layers=("X", "imputed"), **GROUPS)
    assert (table["auc"] > 0.95).all()


def test_refusals() -> None:
    adata = simulate()
    before = adata.copy()
    reference = pd.DataFrame({"log2_fold_change": 1.0, "p_value": 0.01}, index=adata.var_names)

    def refuses(error: type[Exception], match: str, **changed: Any) -> None:
        with pytest.raises(error, match=match):
            scnn.tl.eval_de(adata, **{**GROUPS, "reference": reference, **changed})

    refuses(KeyError, r"groupby='line' is not in adata.obs. Available: \['type'\]", groupby="line")
    refuses(ValueError, r"group='c' has 0 cells in adata.obs\['type'\].* Available: \['a', 'b'\]", group="c")
    refuses(ValueError, "reference_group='c' has 0 cells", reference_group="c")
    refuses(ValueError, "both 'b'; two different groups are needed", group="b")
    refuses(ValueError, "method='logreg' is not known. Available: .'wilcoxon', 't-test'", method="logreg")
    refuses(TypeError, "reference is a dict, expected a DataFrame with columns", reference={"g0": 1.0})
    refuses(KeyError, "reference has no column 'p_value'", reference=reference[["log2_fold_change"]])
    refuses(
        ValueError, "reference and adata.var_names have no gene in common", reference=reference.rename("x{}".format)
    )
    refuses(ValueError, "infinite", reference=reference.replace(1.0, np.inf))
    refuses(ValueError, "n=0 is not allowed: at least 1", n=0)
    refuses(TypeError, "p_value='low' has type str, expected float", p_value="low")
    refuses(KeyError, r"layer='imputed' is not in adata.layers. Available: \['twin'\]", layers=["imputed"])
    refuses(ValueError, r"group=\['a', 'b'\] names 2 groups, expected one. Call tl.eval_de once", group=["a", "b"])
    refuses(ValueError, r"group=\[\] names 0 groups, expected one", group=[])
    refuses(ValueError, r"reference_group=\['a', 'b'\] names 2 groups", reference_group=["a", "b"])
    refuses(TypeError, "groupby has type Series, expected str: the name of a key", groupby=adata.obs["type"])
    refuses(TypeError, "groupby has type list, expected str", groupby=["type"])
    refuses(TypeError, "layers has type int, expected the name of a layer", layers=3)
    refuses(ValueError, r"method=\['wilcoxon'\] is not known", method=["wilcoxon"])
    assert_only_added(before, adata, set())
    adata.obs = pd.concat([adata.obs, adata.obs], axis=1)
    refuses(ValueError, "groupby='type' names 2 columns of adata.obs")
