"""``pp.cnn_impute``: what it promises about the AnnData."""

from __future__ import annotations

import logging
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import QUICK, assert_only_added, dense, simulate

import scanpy_cnnimpute as scnn

ADDED = {("layers", "cnn_imputed"), ("uns", "cnn_imputed")}


def run(adata: ad.AnnData, **kwargs: Any) -> None:
    scnn.pp.cnn_impute(adata, **{**QUICK, "cluster_key": "type", **kwargs})


def test_only_called_zeros_change(imputed: ad.AnnData) -> None:
    x, filled = dense(imputed.X), dense(imputed.layers["cnn_imputed"])
    called = scnn.get.dropout_prob(imputed) > 0.5
    assert (filled != x).sum() > 100
    np.testing.assert_array_equal(filled[x > 0], x[x > 0])
    np.testing.assert_array_equal(filled[~called], x[~called])
    assert np.isfinite(filled).all()
    assert filled.min() >= 0


def test_any_kind_of_matrix(any_kind: ad.AnnData) -> None:
    expected = simulate()
    run(expected)
    before = any_kind.copy()
    scnn.pp.dropout_prob(any_kind, model="gamma_normal", cluster_key="type", store="params")
    both = any_kind.copy()
    run(any_kind)
    assert_only_added(both, any_kind, ADDED)
    layer = any_kind.layers["cnn_imputed"]
    # Same counts, same networks, same bits, whatever they came in.
    np.testing.assert_array_equal(dense(layer).astype(np.float32), expected.layers["cnn_imputed"].toarray())
    assert sp.issparse(layer) == sp.issparse(before.X)
    if sp.issparse(layer):
        assert layer.format == "csr"
        assert isinstance(layer, sp.sparray) == isinstance(before.X, sp.sparray)
    assert layer.dtype == np.result_type(before.X.dtype, np.float32)


def test_large_integers_stay_exact() -> None:
    adata = simulate()
    counts = adata.X.toarray().astype(np.int64)
    counts[0, 0] = 2**40 + 1
    adata.X = counts
    with pytest.warns(UserWarning, match=r"one count, .* is 100\.0% of all counts"):
        run(adata)
    assert adata.layers["cnn_imputed"][0, 0] == 2**40 + 1


def test_a_view_becomes_an_actual_anndata_and_leaves_its_parent(adata: ad.AnnData) -> None:
    parent = adata.copy()
    view = adata[:, ::-1]
    run(view)
    assert not view.is_view
    assert "cnn_imputed" in view.layers
    assert_only_added(parent, adata, set())


def test_record(imputed: ad.AnnData) -> None:
    record = imputed.uns["cnn_imputed"]
    assert record["params"]["units"] == "counts"
    assert record["params"]["preset"] == "paper"
    assert record["params"]["n_targets"] == 16
    history, summary, status = record["history"], record["summary"], record["status"]
    assert history.groupby(["cluster", "subset"]).size().max() == 3
    assert np.isfinite(history[["loss", "val_loss"]].to_numpy()).all()
    assert status.index.equals(imputed.var_names)
    assert summary.loc["a", "n_cells"] == 30
    for cluster in ("a", "b"):
        members = (imputed.obs["type"] == cluster).to_numpy()
        changed = dense(imputed.layers["cnn_imputed"])[members] != dense(imputed.X)[members]
        assert summary.loc[cluster, "n_entries"] == changed.sum()
        assert set(status.index[changed.any(axis=0)]) <= set(status.index[status[cluster] == "imputed"])
        assert summary.loc[cluster, "genes imputed"] == (status[cluster] == "imputed").sum()
        networks = history.loc[history["cluster"] == cluster, "subset"].nunique()
        assert summary.loc[cluster, "n_networks"] == networks == int(np.ceil((status[cluster] == "imputed").sum() / 16))


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_round_trip(imputed: ad.AnnData, tmp_path: Any, suffix: str) -> None:
    path = f"{tmp_path}/a.{suffix}"
    getattr(imputed, f"write_{suffix}")(path)
    back = getattr(ad, f"read_{suffix}")(path)
    np.testing.assert_array_equal(back.layers["cnn_imputed"].toarray(), imputed.layers["cnn_imputed"].toarray())
    record, expected = back.uns["cnn_imputed"], imputed.uns["cnn_imputed"]
    assert record["params"] == expected["params"]
    for key in ("history", "status", "summary"):
        pd.testing.assert_frame_equal(
            record[key].astype(object), expected[key].astype(object), check_names=False, check_index_type=False,
            check_column_type=False,
        )  # fmt: skip


def test_same_seed_same_bits_and_another_seed_others(adata: ad.AnnData) -> None:
    run(adata)
    run(adata, key_added="again")
    run(adata, key_added="other", random_state=1)
    first = adata.layers["cnn_imputed"].toarray()
    np.testing.assert_array_equal(adata.layers["again"].toarray(), first)
    assert (adata.layers["other"].toarray() != first).any()


def test_everything_is_computed_when_nothing_is_there() -> None:
    adata = simulate()
    before = adata.copy()
    scnn.pp.cnn_impute(adata, **QUICK)
    new = {key for _, key in {("obs", "cnn_cluster"), ("uns", "dropout_prob"), ("layers", "cnn_imputed")}}
    assert new <= {key for attribute in ("obs", "uns", "layers") for key in getattr(adata, attribute)}
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())


def test_layer_and_parameters_give_the_same(adata: ad.AnnData) -> None:
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type", store="params")
    scnn.pp.cnn_impute(adata, **QUICK)
    adata.layers["own"] = scnn.get.dropout_prob(adata)
    assert (adata.varm["dropout_prob_status"] == 0).all(), "the comparison needs all genes modelled"
    run(adata, dropout_key="own", key_added="from_layer")
    np.testing.assert_array_equal(adata.layers["from_layer"].toarray(), adata.layers["cnn_imputed"].toarray())


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, sp.csc_array])
def test_a_layer_of_ones_own_without_clusters(adata: ad.AnnData, kind: Any) -> None:
    probability = np.zeros(adata.shape, np.float32)
    probability[:, :10] = 0.9
    adata.layers["own"] = kind(probability)
    scnn.pp.cnn_impute(adata, dropout_key="own", **QUICK)
    changed = adata.layers["cnn_imputed"].toarray() != adata.X.toarray()
    assert changed[:, :10].any()
    assert not changed[:, 10:].any()
    assert adata.uns["cnn_imputed"]["summary"].index.tolist() == ["all"]


def test_a_changed_layer_is_used(adata: ad.AnnData) -> None:
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type")
    adata.layers["dropout_prob"][:, 5:] = 0
    scnn.pp.cnn_impute(adata, **QUICK)
    changed = (adata.layers["cnn_imputed"].toarray() != adata.X.toarray()).any(axis=0)
    assert changed[:5].any()
    assert not changed[5:].any()


def test_a_stale_model_is_refused(adata: ad.AnnData) -> None:
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type")
    counts = adata.X.copy()
    adata.X = adata.X[::-1].copy()
    with pytest.raises(ValueError, match="The counts are not those"):
        scnn.pp.cnn_impute(adata, **QUICK)
    adata.X = counts
    adata.obs["type"] = adata.obs["type"].cat.rename_categories({"a": "b", "b": "a"})
    with pytest.raises(ValueError, match=r"adata.obs\['type'\] has changed since the dropout model"):
        scnn.pp.cnn_impute(adata, **QUICK)
    del adata.obs["type"]
    scnn.pp.cnn_impute(adata, **QUICK)


def test_a_mistyped_key_is_announced(adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type", key_added="dp")
    with caplog.at_level(logging.WARNING, "scanpy_cnnimpute"):
        run(adata, dropout_key="dpp")
    assert "no dropout model is stored under 'dpp', fitting one; stored: ['dp']" in caplog.text


def test_without_log(adata: ad.AnnData) -> None:
    run(adata, log=False)
    assert adata.uns["cnn_imputed"]["params"]["log"] is False
    x, filled = dense(adata.X), dense(adata.layers["cnn_imputed"])
    np.testing.assert_array_equal(filled[x > 0], x[x > 0])
    assert (filled != x).any()


QUICK_CALLS: list[dict[str, Any]] = [
    {"n_steps": 30},
    {"n_steps": 30, "estimate": "conditional", "threshold": 0},
    QUICK,
]


# What a user may have configured, and the largest root mean square difference, in standard deviations of the imputed
# values: reduced precision has eight to eleven bits, and training goes its own way from there.
CONFIGURED: dict[str, tuple[str, Any, float]] = {
    "mixed_bfloat16": ("dtype_policy", "mixed_bfloat16", 0.1),
    "mixed_float16": ("dtype_policy", "mixed_float16", 0.1),
    "channels_first": ("image_data_format", "channels_first", 1e-4),
    "float16": ("floatx", "float16", 0.01),  # Keras keeps the learning rate in it
    "float64": ("floatx", "float64", 1e-4),
}


@pytest.mark.parametrize("configured", CONFIGURED)
@pytest.mark.parametrize("kwargs", QUICK_CALLS, ids=["posterior_mean", "conditional", "paper"])
def test_whatever_keras_is_set_to(kwargs: dict[str, Any], configured: str) -> None:
    import keras

    name, value, tolerance = CONFIGURED[configured]
    read, write = getattr(keras.config, name), getattr(keras.config, f"set_{name}")
    before, layers = read(), []
    policy = keras.config.dtype_policy()
    try:
        for setting in (before, value):
            write(setting)
            adata = simulate()
            scnn.pp.cnn_impute(adata, **{"cluster_key": "type", "verbose": False, **kwargs})
            layers.append(np.log1p(dense(adata.layers["cnn_imputed"])))
        assert getattr(read(), "name", read()) == value
    finally:
        write(before)
        keras.config.set_dtype_policy(policy)
    zero = dense(simulate().X) == 0
    assert (layers[0][zero] > 0).any()
    assert np.isfinite(layers[1]).all()
    np.testing.assert_array_equal(layers[0][~zero], layers[1][~zero])
    difference = np.sqrt(np.mean((layers[0] - layers[1])[zero] ** 2))
    assert difference <= tolerance * layers[0][zero].std()


@pytest.mark.parametrize("kwargs", QUICK_CALLS, ids=["posterior_mean", "conditional", "paper"])
def test_other_libraries_have_nothing_to_say(kwargs: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """TensorFlow warns of retracing in its log; warnings of Python are errors in all tests."""
    with caplog.at_level(logging.WARNING):
        for seed in range(3):  # batches of several shapes
            adata = simulate(n_cells=60 + 7 * seed, seed=seed)
            scnn.pp.cnn_impute(adata, **{"cluster_key": "type", "verbose": False, **kwargs})
            if kwargs is not QUICK:
                scnn.get.cnn_imputed(adata, genes=adata.var_names[: 5 + seed])
    assert [record.getMessage() for record in caplog.records if not record.name.startswith("scanpy_cnnimpute")] == []


@pytest.mark.parametrize("estimate", ["posterior_mean", "expected_count", "conditional"])
def test_cells_without_label_are_imputed(adata: ad.AnnData, estimate: str) -> None:
    adata.obs["some"] = adata.obs["type"].astype(object)
    adata.obs.loc[adata.obs_names[:20], "some"] = None
    scnn.pp.cnn_impute(adata, estimate=estimate, n_steps=2, verbose=False)
    expected = adata.layers["cnn_imputed"].toarray()
    scnn.pp.cnn_impute(adata, estimate=estimate, cluster_key="some", n_steps=2, verbose=False)
    np.testing.assert_array_equal(adata.layers["cnn_imputed"].toarray(), expected)
    changed = expected != dense(adata.X)
    assert changed[:20].any(axis=1).all()
    summary = adata.uns["cnn_imputed"]["summary"]
    assert summary["n_cells"].to_dict() == {"a": 20, "b": 20, "unlabelled": 20}
    assert summary.loc["unlabelled", "n_entries"] == changed[:20].sum()


def test_threshold_one_third_calls_more(adata: ad.AnnData) -> None:
    adata.layers["own"] = np.full(adata.shape, 0.4, np.float32)
    scnn.pp.cnn_impute(adata, dropout_key="own", **QUICK)
    assert adata.layers["cnn_imputed"].nnz == adata.X.nnz
    scnn.pp.cnn_impute(adata, dropout_key="own", threshold=1 / 3, max_dropout=1, **QUICK)
    assert adata.layers["cnn_imputed"].nnz > adata.X.nnz


def test_small_clusters_empty_cells_and_genes_stay(adata: ad.AnnData) -> None:
    x = adata.X.toarray()
    x[:, 4] = 0
    x[:, 6] = 3
    x[10] = 0
    adata.X = sp.csr_matrix(x)
    adata.obs["tiny"] = pd.Categorical(["pair"] * 2 + ["rest"] * 58)
    run(adata, cluster_key="tiny")
    filled = adata.layers["cnn_imputed"].toarray()
    np.testing.assert_array_equal(filled[[0, 1, 10]], x[[0, 1, 10]])
    np.testing.assert_array_equal(filled[:, [4, 6]], x[:, [4, 6]])
    status = adata.uns["cnn_imputed"]["status"]
    # Not one of the genes of the pair is imputed, and the table says why.
    assert set(status["pair"]) == {"too few cells"}
    assert status.loc["g4", "rest"] == "not modelled"


@pytest.mark.parametrize(("n_cells", "n_genes"), [(1, 50), (60, 1), (2, 2), (12, 3)])
def test_tiny_data(n_cells: int, n_genes: int) -> None:
    adata = simulate(n_cells, 50)[:, :n_genes].copy()
    scnn.pp.cnn_impute(adata, **QUICK)
    x, filled = dense(adata.X), dense(adata.layers["cnn_imputed"])
    np.testing.assert_array_equal(filled[x > 0], x[x > 0])


def test_duplicate_names(adata: ad.AnnData) -> None:
    adata.var_names = ["same"] * 2 + list(adata.var_names[2:])
    adata.obs_names = ["cell"] * 3 + list(adata.obs_names[3:])
    run(adata)
    expected = simulate()
    run(expected)
    np.testing.assert_array_equal(adata.layers["cnn_imputed"].toarray(), expected.layers["cnn_imputed"].toarray())


def test_refusals(adata: ad.AnnData) -> None:
    before = adata.copy()
    with pytest.raises(KeyError, match=r"cluster_key='leiden' is not in adata.obs"):
        run(adata, cluster_key="leiden")
    with pytest.raises(ValueError, match="threshold=2 is not allowed"):
        run(adata, threshold=2)
    with pytest.raises(ValueError, match=r"adata.layers\['twin'\] would be overwritten"):
        run(adata, key_added="twin")
    with pytest.raises(
        ValueError, match=r"adata.uns\['mine'\] would be overwritten, but no record says that pp.cnn_impute wrote it"
    ):
        run(adata, key_added="mine")
    with pytest.raises(ValueError, match="random_state=-1 is not allowed: at least 0"):
        run(adata, random_state=-1)
    with pytest.raises(ValueError, match="key_added='dropout_prob' is taken"):
        run(adata, key_added="dropout_prob")
    with pytest.raises(ValueError, match="key_added='twin' is taken"):
        run(adata, layer="twin", key_added="twin")
    assert_only_added(before, adata, set())
    adata.layers["own"] = adata.X.copy()
    with pytest.raises(ValueError, match="no probabilities"):
        run(adata, dropout_key="own")
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type", store="params")
    with pytest.raises(ValueError, match="was fitted to layer=None, not to layer='twin'"):
        run(adata, layer="twin")
    adata.obs["other"] = adata.obs["type"]
    with pytest.raises(ValueError, match="was fitted in the clusters of 'type', not of 'other'"):
        run(adata, cluster_key="other")
    assert "cnn_imputed" not in adata.layers
