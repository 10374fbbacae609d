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
