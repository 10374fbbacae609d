"""Cluster metrics by hand, against scikit-learn, and ``tl.eval_clusters``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sklearn.metrics
from helpers import assert_only_added, simulate
from hypothesis import given
from hypothesis import strategies as st

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import metrics

if TYPE_CHECKING:
    import anndata as ad

LABELS = ["a", "a", "a", "b", "b", "c"]
CLUSTERS = [0, 0, 1, 1, 1, 1]


def test_purity_by_hand() -> None:
    # Cluster 0: two a. Cluster 1: one a, two b, one c.
    assert metrics.purity(LABELS, CLUSTERS) == pytest.approx((2 + 2) / 6)


def test_entropy_by_hand() -> None:
    within = -(1 * np.log2(1 / 4) + 2 * np.log2(2 / 4) + 1 * np.log2(1 / 4))
    assert metrics.entropy(LABELS, CLUSTERS) == pytest.approx(within / (6 * np.log2(3)))


def test_ari_by_hand() -> None:
    # Pairs together in both: (a,a), (b,b) = 2; together by label 4, by cluster 7; of 15.
    expected = 4 * 7 / 15
    assert metrics.adjusted_rand_index(LABELS, CLUSTERS) == pytest.approx((2 - expected) / ((4 + 7) / 2 - expected))
    # The same from pair counts, as the paper prints it.
    tp, fp, fn, tn = 2, 5, 2, 6
    printed = 2 * (tp * tn - fp * fn) / ((tp + fn) * (fn + tn) + (tp + fp) * (fp + tn))
    assert metrics.adjusted_rand_index(LABELS, CLUSTERS) == pytest.approx(printed)


def test_nmi_by_hand() -> None:
    joint = {("a", 0): 2, ("a", 1): 1, ("b", 1): 2, ("c", 1): 1}
    of_label, of_cluster = {"a": 3, "b": 2, "c": 1}, {0: 2, 1: 4}
    mutual = sum(n / 6 * np.log(6 * n / (of_label[i] * of_cluster[j])) for (i, j), n in joint.items())
    entropies = [-sum(n / 6 * np.log(n / 6) for n in of.values()) for of in (of_label, of_cluster)]
    assert metrics.normalized_mutual_information(LABELS, CLUSTERS) == pytest.approx(mutual / np.mean(entropies))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_ranges_and_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    labels, clusters = map(np.array, zip(*pairs, strict=True))
    assert metrics.adjusted_rand_index(labels, clusters) == sklearn.metrics.adjusted_rand_score(labels, clusters)
    expected = sklearn.metrics.normalized_mutual_info_score(labels, clusters)
    assert metrics.normalized_mutual_information(labels, clusters) == expected
    assert 0 <= metrics.entropy(labels, clusters) <= 1 + 1e-12
    assert 0 < metrics.purity(labels, clusters) <= 1
    # Renaming clusters changes nothing.
    assert metrics.entropy(labels, 7 - clusters) == pytest.approx(metrics.entropy(labels, clusters))
    assert metrics.purity(labels, labels) == 1
    assert metrics.entropy(labels, labels) == 0


@pytest.mark.parametrize(
    "metric", [metrics.purity, metrics.entropy, metrics.adjusted_rand_index, metrics.normalized_mutual_information]
)
def test_refuses_vectors_that_do_not_match(metric: object) -> None:
    for labels, clusters in ((["a"], [0, 1]), ([], []), ([["a"]], [[0]])):
        with pytest.raises(ValueError, match="two vectors of one length"):
            metric(labels, clusters)


def test_one_clustering() -> None:
    adata = simulate()
    before = adata.copy()
    adata.obs["mine"] = adata.obs["type"].astype(str)
    adata.obs.loc["c0", "mine"] = None
    table = scnn.tl.eval_clusters(adata, label_key="type", cluster_key="mine")
    assert table.index.tolist() == ["obs:mine"]
    assert table.loc["obs:mine"].to_dict() == {
        "purity": 1, "entropy": 0, "ari": 1, "nmi": 1, "n_clusters": 2, "n_cells": 59
    }  # fmt: skip
    assert_only_added(before, adata, {("obs", "mine"), ("uns", "eval_clusters")})
    pd.testing.assert_frame_equal(adata.uns["eval_clusters"]["table"], table)


def test_layers_and_coordinates_side_by_side() -> None:
    adata = simulate(120, 200)
    rng = np.random.default_rng(0)
    adata.layers["noise"] = sp.csr_matrix(rng.poisson(1.0, size=adata.shape).astype(np.float32))
    table = scnn.tl.eval_clusters(
        adata, label_key="type", layers=["X", None, "noise"], use_rep="X_latent", method="kmeans", n_clusters=2
    )
    assert table.index.tolist() == ["X", "layer:noise", "obsm:X_latent"]
    assert table.loc["X", "ari"] > 0.9
    assert table.loc["layer:noise", "ari"] < 0.1
    scnn.tl.cluster(adata, method="kmeans", n_clusters=2)
    alone = scnn.tl.eval_clusters(adata, label_key="type")
    assert alone.loc["obs:cnn_cluster", "ari"] == table.loc["X", "ari"]


def test_layers_give_the_clusters_of_tl_cluster(adata: ad.AnnData) -> None:
    for method in ("adp", "leiden"):
        table = scnn.tl.eval_clusters(adata, label_key="type", layers="X", method=method)
        scnn.tl.cluster(adata, method=method)
        alone = scnn.tl.eval_clusters(adata, label_key="type", key_added="alone")
        assert table.loc["X"].to_dict() == alone.loc["obs:cnn_cluster"].to_dict()
        assert adata.uns["eval_clusters"]["params"]["method"] == method
        assert "method" not in adata.uns["alone"]["params"]


def test_imputed_layers_and_empty_cells(adata: ad.AnnData) -> None:
    values = adata.X.toarray()
    # Fractions at a minority of the non-zeros, as imputation leaves them.
    values[::3] += np.where(values[::3] == 0, np.float32(0.4), 0)
    values[5] = 0
    adata.layers["imputed"] = values
    table = scnn.tl.eval_clusters(adata, label_key="type", layers=dict.fromkeys(["X", "imputed"]).keys())
    assert table["n_cells"].tolist() == [60, 59]


@pytest.mark.parametrize("label_key", ["fractions", "barcodes", "depth"])
def test_columns_that_are_no_labels(adata: ad.AnnData, label_key: str) -> None:
    adata.obs["fractions"] = np.random.default_rng(0).random(60)
    adata.obs["barcodes"] = adata.obs_names
    adata.obs["depth"] = np.arange(60) // 2 * 10 + np.arange(60) % 2 * (np.arange(60) < 20)
    before = adata.copy()
    match = {
        "fractions": r"adata.obs\['fractions'\] holds fractions, which are no labels",
        "barcodes": r"adata.obs\['barcodes'\] has 60 labels for 60 cells: label_key= takes known cell types",
        "depth": r"adata.obs\['depth'\] has 40 labels for 60 cells",
    }[label_key]
    with pytest.raises(ValueError, match=match):
        scnn.tl.eval_clusters(adata, label_key=label_key, cluster_key="type")
    assert_only_added(before, adata, set())
    # Whole numbers, text and truth values are labels.
    adata.obs["numbers"] = np.where(np.arange(60) == 3, np.nan, np.arange(60) % 4)
    adata.obs["truth"] = np.arange(60) % 2 == 0
    assert scnn.tl.eval_clusters(adata, label_key="numbers", cluster_key="type").loc["obs:type", "n_cells"] == 59
    assert scnn.tl.eval_clusters(adata, label_key="truth", cluster_key="type").loc["obs:type", "ari"] == 1


def test_keys_of_the_wrong_kind(adata: ad.AnnData) -> None:
    before = adata.copy()

    def refuses(error: type[Exception], match: str, **keywords: object) -> None:
        with pytest.raises(error, match=match):
            scnn.tl.eval_clusters(adata, **{"label_key": "type", "cluster_key": "type", **keywords})

    for key in (adata.obs["type"], ["type"], 3):
        kind = type(key).__name__
        refuses(TypeError, f"label_key has type {kind}, expected str: the name of a key", label_key=key)
        refuses(TypeError, f"cluster_key has type {kind}, expected str: the name of a key", cluster_key=key)
    refuses(TypeError, "layers has type int, expected the name of a layer, 'X' or None, or a list of these", layers=3)
    refuses(TypeError, "layers has type list of int, expected the name of a layer", layers=["X", 3])
    refuses(TypeError, "layers has type csr_matrix of csr_matrix, expected the name of a layer", layers=adata.X)
    refuses(TypeError, "use_rep has type int, expected a key of adata.obsm, or a list of these", use_rep=3)
    refuses(TypeError, "use_rep has type list of NoneType, expected a key of adata.obsm", use_rep=[None])
    refuses(ValueError, "random_state=4294967296 is not allowed", layers="X", random_state=2**32)
    assert_only_added(before, adata, set())
    adata.obs = pd.concat([adata.obs, adata.obs[["type"]].set_axis(["k"], axis=1)], axis=1)
    adata.obs = pd.concat([adata.obs, adata.obs[["k"]]], axis=1)
    refuses(ValueError, "cluster_key='k' names 2 columns of adata.obs. Rename or drop all but one", cluster_key="k")
    refuses(ValueError, "label_key='k' names 2 columns of adata.obs", label_key="k")


def test_refusals(adata: ad.AnnData) -> None:
    with pytest.raises(KeyError, match=r"label_key='celltype' is not in adata.obs. Available: \['type'\]"):
        scnn.tl.eval_clusters(adata, label_key="celltype")
    with pytest.raises(KeyError, match=r"cluster_key='cnn_cluster' is not in adata.obs"):
        scnn.tl.eval_clusters(adata, label_key="type")
    with pytest.raises(KeyError, match=r"layer='imputed' is not in adata.layers. Available: \['twin'\]"):
        scnn.tl.eval_clusters(adata, label_key="type", layers=["imputed"])
    adata.obs["unknown"] = pd.Categorical([None] * 60, categories=["a"])
    with pytest.raises(ValueError, match="no cell has both"):
        scnn.tl.eval_clusters(adata, label_key="unknown", cluster_key="type")
    assert "eval_clusters" not in adata.uns
