"""``pp.dropout_prob`` and ``get.dropout_prob``: what is written, and that any part of it comes back the same."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import assert_only_added, dense, simulate

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute.dropout.gamma_normal.model import STATUSES

PARAMETERS = ("rate", "alpha", "beta", "mu", "sigma")
# What each model writes besides the layer, without "dropout_prob_".
WRITTEN = {
    "gamma_normal": {
        "obs": ("library_size", "cluster"),
        "obsm": ("fit",),
        "varm": (*PARAMETERS, "status", "profiles", "fit", "total"),
    },
    "calibrated": {
        "obs": ("library_size", "capture_efficiency"),
        "obsm": ("scores", "cell_ids", "fit"),
        "varm": ("loadings", "shape", "gain", "train_loadings", "gene_ids", "fit", "total"),
    },
}


def statuses(adata: ad.AnnData) -> pd.DataFrame:
    """Status of every gene in every cluster, in words."""
    words = np.array(STATUSES, dtype=object)[adata.varm["dropout_prob_status"]]
    return pd.DataFrame(words, index=adata.var_names, columns=list(adata.uns["dropout_prob"]["clusters"]))


def added(model: str = "gamma_normal", key: str = "dropout_prob", *, layer: bool = True) -> set[tuple[str, str]]:
    written = {(place, f"{key}_{name}") for place, names in WRITTEN[model].items() for name in names}
    return written | {("uns", key)} | ({("layers", key)} if layer else set())


def test_writes_what_it_says(adata: ad.AnnData) -> None:
    before = adata.copy()
    assert scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type") is None
    assert_only_added(before, adata, added())
    layer = adata.layers["dropout_prob"]
    assert layer.dtype == np.float32
    assert layer.shape == adata.shape
    assert np.isfinite(layer).all()
    assert layer.min() >= 0
    assert layer.max() <= 1
    assert layer[dense(adata.X) > 0].max() <= np.float32(0.4)
    assert adata.uns["dropout_prob"]["clusters"].tolist() == ["a", "b"]
    for name in PARAMETERS:
        assert adata.varm[f"dropout_prob_{name}"].shape == (50, 2)
        assert adata.varm[f"dropout_prob_{name}"].dtype == np.float64
    assert adata.varm["dropout_prob_status"].dtype == np.int8
    # Clusters are positions in their names.
    np.testing.assert_array_equal(adata.obs["dropout_prob_cluster"], adata.obs["type"].cat.codes)
    np.testing.assert_array_equal(adata.obs["dropout_prob_library_size"], dense(adata.X).sum(axis=1))
    assert adata.uns["dropout_prob"]["params"]["units"] == "probability"
    assert adata.uns["dropout_prob"]["summary"].loc["a", "n_cells"] == 30


def test_the_calibrated_model_writes_what_it_says(adata: ad.AnnData) -> None:
    before = adata.copy()
    scnn.pp.dropout_prob(adata)
    assert_only_added(before, adata, added("calibrated"))
    layer = adata.layers["dropout_prob"]
    assert layer.dtype == np.float32
    assert np.isfinite(layer).all()
    assert layer.min() >= 0
    assert layer.max() <= 1
    assert not layer[dense(adata.X) > 0].any()
    scores, loadings = adata.obsm["dropout_prob_scores"], adata.varm["dropout_prob_loadings"]
    assert scores.dtype == loadings.dtype == np.float32
    # Their product is the expected count: its total is that of the counts.
    np.testing.assert_allclose((scores @ loadings.T).sum(), dense(adata.X).sum(), rtol=0.05)
    assert adata.varm["dropout_prob_shape"].shape == adata.varm["dropout_prob_gain"].shape == (50, 1)
    assert (adata.varm["dropout_prob_shape"] > 0).all()
    share = adata.obs["dropout_prob_capture_efficiency"]
    assert ((share > 0) & (share <= 1)).all()
    record = adata.uns["dropout_prob"]
    assert record["summary"].index.tolist() == ["all"]
    assert record["summary"].loc["all", "n_cells"] == 60
    assert {"probability", "share", "n"} <= set(record["reliability"].columns)


def test_clusters_are_for_the_calibrated_models_summary_alone(adata: ad.AnnData) -> None:
    adata.obs["some"] = adata.obs["type"].astype(object)
    adata.obs.loc[["c0", "c1"], "some"] = None
    without = scnn.pp.dropout_prob(adata, copy=True)
    scnn.pp.dropout_prob(adata, cluster_key="some")
    np.testing.assert_array_equal(adata.layers["dropout_prob"], without.layers["dropout_prob"])
    summary = adata.uns["dropout_prob"]["summary"]
    assert summary["n_cells"].to_dict() == {"a": 29, "b": 29, "unlabelled": 2}
    assert "cnn_cluster" not in adata.obs


def test_capture_efficiency_reaches_the_model(adata: ad.AnnData) -> None:
    adata.obs["recovered"] = np.linspace(0.1, 0.9, 60)
    scnn.pp.dropout_prob(adata, capture_efficiency="recovered")
    np.testing.assert_allclose(adata.obs["dropout_prob_capture_efficiency"], adata.obs["recovered"], rtol=1e-6)
    zero = dense(adata.X) == 0
    by_column = scnn.get.dropout_prob(adata)
    scnn.pp.dropout_prob(adata, capture_efficiency=0.1)
    by_number = scnn.get.dropout_prob(adata)
    np.testing.assert_allclose(by_number[0], by_column[0], atol=1e-6)
    # More is missing where less was captured.
    assert (by_number[1:][zero[1:]] > by_column[1:][zero[1:]]).all()
    scnn.pp.dropout_prob(adata, capture_efficiency=1.0)
    assert not adata.layers["dropout_prob"].any()


def test_the_seed_reaches_the_calibrated_model(adata: ad.AnnData) -> None:
    first, again, other = (
        scnn.pp.dropout_prob(adata, random_state=seed, copy=True).layers["dropout_prob"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("model", WRITTEN)
def test_any_kind_of_matrix_gives_the_same_bits(any_kind: ad.AnnData, model: str) -> None:
    expected = simulate()
    scnn.pp.dropout_prob(expected, model=model, cluster_key="type")
    before = any_kind.copy()
    scnn.pp.dropout_prob(any_kind, model=model, cluster_key="type")
    np.testing.assert_array_equal(any_kind.layers["dropout_prob"], expected.layers["dropout_prob"])
    assert_only_added(before, any_kind, added(model))


def test_clusters_are_computed_when_there_are_none(adata: ad.AnnData) -> None:
    before = adata.copy()
    scnn.pp.dropout_prob(adata, model="gamma_normal")
    clusters = {("obs", "cnn_cluster"), ("obsm", "X_cnn_tsne"), ("uns", "cnn_cluster")}
    assert_only_added(before, adata, added() | clusters)


def test_store(adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type", store="params")
    assert "dropout_prob" not in adata.layers
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type", store="layer", max_layer_bytes=1)
    assert "dropout_prob" in adata.layers
    with caplog.at_level(logging.WARNING, "scanpy_cnnimpute"):
        scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type", max_layer_bytes=60 * 50 * 4 - 1)
    # The layer of the earlier call would not belong to these parameters.
    assert "dropout_prob" not in adata.layers
    assert "max_layer_bytes" in caplog.text
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type", max_layer_bytes=60 * 50 * 4)
    assert "dropout_prob" in adata.layers


@pytest.mark.parametrize(
    ("cells", "genes"),
    [
        (slice(None), slice(None)),
        (slice(5, 20, 2), slice(3, 9)),
        (["c3", "c1"], ["g4", "g2", "g7"]),
        ("c3", "g4"),
        (np.arange(60) % 3 == 0, np.arange(50) > 40),
        ([1, 5], [0]),
        ([], slice(None)),
        (slice(None), []),
        ([7, 3, 7], ["g9", "g2", "g9"]),
        (slice(None, None, -1), [-1, 0]),
    ],
)
@pytest.mark.parametrize("model", WRITTEN)
def test_get_any_part(adata: ad.AnnData, cells: object, genes: object, model: str) -> None:
    scnn.pp.dropout_prob(adata, model=model, cluster_key="type")
    one = [[axis] if isinstance(axis, str) else axis for axis in (cells, genes)]
    expected = dense(adata[one[0], one[1]].layers["dropout_prob"])
    part = scnn.get.dropout_prob(adata, cells=cells, genes=genes)
    assert part.dtype == np.float32
    np.testing.assert_array_equal(part, expected)


def test_parameters_survive_dropping_genes_and_cells(adata: ad.AnnData) -> None:
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type")
    part = adata[adata.obs["type"] == "b", 10:20].copy()
    np.testing.assert_array_equal(scnn.get.dropout_prob(part), part.layers["dropout_prob"])


def test_blocks_do_not_change_the_layer(adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type")
    expected = adata.layers["dropout_prob"].copy()
    for height in (1, 7):
        monkeypatch.setattr("scanpy_cnnimpute.dropout.base.BLOCK_BYTES", 50 * 4 * height)
        scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type")
        np.testing.assert_array_equal(adata.layers["dropout_prob"], expected)
        np.testing.assert_array_equal(scnn.get.dropout_prob(adata), expected)


def test_cells_without_cluster_or_counts_have_no_dropouts(adata: ad.AnnData) -> None:
    adata.obs["some"] = adata.obs["type"].cat.add_categories("unused").astype(object)
    adata.obs.loc[["c0", "c1"], "some"] = None
    x = adata.X.toarray()
    x[2] = 0
    adata.X = sp.csr_matrix(x)
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="some")
    assert (adata.layers["dropout_prob"][:3] == 0).all()
    assert adata.layers["dropout_prob"][3:].max() > 0.5
    assert adata.uns["dropout_prob"]["clusters"].tolist() == ["a", "b"]
    assert adata.obs["dropout_prob_cluster"].tolist()[:5] == [-1, -1, -1, 1, 0]


def test_cluster_names_that_files_cannot_hold(adata: ad.AnnData) -> None:
    adata.obs["named"] = adata.obs["type"].cat.rename_categories({"a": "CD4/CD8", "b": "CD4|CD8"})
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="named")
    assert list(adata.uns["dropout_prob"]["clusters"]) == ["CD4/CD8", "CD4|CD8"]
    np.testing.assert_array_equal(scnn.get.dropout_prob(adata), adata.layers["dropout_prob"])


def test_numeric_clusters(adata: ad.AnnData) -> None:
    adata.obs["number"] = adata.obs["type"].cat.codes.astype(float)
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="number")
    np.testing.assert_array_equal(scnn.get.dropout_prob(adata), adata.layers["dropout_prob"])


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_round_trip(adata: ad.AnnData, tmp_path: object, suffix: str) -> None:
    adata.obs["named"] = adata.obs["type"].cat.rename_categories({"a": "x/y"})
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="named")
    path = f"{tmp_path}/a.{suffix}"
    getattr(adata, f"write_{suffix}")(path)
    back = getattr(ad, f"read_{suffix}")(path)
    np.testing.assert_array_equal(back.layers["dropout_prob"], adata.layers["dropout_prob"])
    np.testing.assert_array_equal(scnn.get.dropout_prob(back), adata.layers["dropout_prob"])
    for name in (*PARAMETERS, "status"):
        np.testing.assert_array_equal(back.varm[f"dropout_prob_{name}"], adata.varm[f"dropout_prob_{name}"])
    assert back.uns["dropout_prob"]["clusters"].tolist() == ["x/y", "b"]
    assert back.uns["dropout_prob"]["params"] == adata.uns["dropout_prob"]["params"]


def test_a_second_run_replaces_only_its_own(adata: ad.AnnData) -> None:
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type")
    once = adata.copy()
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type")
    np.testing.assert_array_equal(adata.layers["dropout_prob"], once.layers["dropout_prob"])
    adata.layers["mine"] = adata.X.copy()
    with pytest.raises(ValueError, match=r"adata.layers\['mine'\].* would be overwritten.*del adata.layers\['mine'\]"):
        scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type", key_added="mine")
    assert not any(name.startswith("mine_") for name in adata.varm)


def test_foreign_keys_survive_a_second_run(adata: ad.AnnData) -> None:
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type", store="params")
    adata.layers["dropout_prob"] = adata.X.copy()  # the user's own, under our name
    with pytest.raises(ValueError, match=r"adata.layers\['dropout_prob'\] would be overwritten"):
        scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type")
    scnn.pp.dropout_prob(adata[:, ::-1], model="gamma_normal", cluster_key="type", key_added="other")
    np.testing.assert_array_equal(dense(adata.layers["dropout_prob"]), dense(adata.X))


def test_keys_of_one_call_differ(adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match="key_added='type' is taken"):
        scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type", key_added="type")
    with pytest.raises(ValueError, match="key_added='cnn_cluster' is taken"):
        scnn.pp.dropout_prob(adata, model="gamma_normal", key_added="cnn_cluster")
    assert "cnn_cluster" not in adata.obs


def test_get_refuses_counts_that_were_replaced(adata: ad.AnnData) -> None:
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type")
    logged = adata.copy()
    logged.X = logged.X.log1p()
    with pytest.raises(ValueError, match=r"the totals of 60 cells differ from those at the time of the fit"):
        scnn.get.dropout_prob(logged)
    more = adata[:, :40].copy()
    more.X = more.X * 10
    with pytest.raises(ValueError, match=r"Run pp.dropout_prob again"):
        scnn.get.dropout_prob(more, genes=["g1"])
    # The cells that are asked for decide.
    adata.X[5] = adata.X[5] * 2
    assert scnn.get.dropout_prob(adata, cells=slice(0, 5)).shape == (5, 50)
    with pytest.raises(ValueError, match="the totals of 1 cells differ"):
        scnn.get.dropout_prob(adata)


def test_merged_data_need_a_new_model(adata: ad.AnnData) -> None:
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type")
    other = simulate(seed=1)
    scnn.pp.dropout_prob(other, model="gamma_normal", cluster_key="type")
    merged = ad.concat([adata, other], merge="first", uns_merge="first", index_unique="-")
    with pytest.raises(ValueError, match="60 of the cells do not come from the fit stored under 'dropout_prob'"):
        scnn.get.dropout_prob(merged)
    bare = ad.concat([adata, other], index_unique="-")
    with pytest.raises(KeyError, match="No dropout model is stored"):
        scnn.get.dropout_prob(bare)
    with pytest.raises(ValueError, match=r"of which only adata.obs.* is left, as after anndata.concat"):
        scnn.pp.cnn_impute(bare, verbose=False)
    with pytest.raises(ValueError, match=r"del adata.obs\['dropout_prob_library_size'\]"):
        scnn.pp.dropout_prob(bare, model="gamma_normal", cluster_key="type")


@pytest.mark.parametrize("position", [-2, 2, 7])
def test_clusters_that_the_model_does_not_have(adata: ad.AnnData, position: int) -> None:
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type")
    adata.obs.loc["c3", "dropout_prob_cluster"] = position
    for call in (scnn.get.dropout_prob, scnn.pp.cnn_impute):
        with pytest.raises(
            ValueError, match=r"'dropout_prob' is damaged: .*clusters outside -1 to 1. Run pp.dropout_prob"
        ):
            call(adata)


def test_continuous_columns_are_no_clusters(adata: ad.AnnData) -> None:
    adata.obs["score"] = np.linspace(0, 1, 60)
    with pytest.raises(ValueError, match=r"adata.obs\['score'\] holds fractions"):
        scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="score")
    adata.obs["mixed"] = pd.Categorical([1, "1"] * 30)
    with pytest.raises(ValueError, match=r"same name as text: \['1'\]"):
        scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="mixed")


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_very_long_cluster_names(adata: ad.AnnData, tmp_path: object, suffix: str) -> None:
    adata.obs["long"] = adata.obs["type"].cat.rename_categories({"a": "\u00e4" * 300, "b": "\u00e4" * 301})
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="long")
    getattr(adata, f"write_{suffix}")(f"{tmp_path}/a.{suffix}")
    back = getattr(ad, f"read_{suffix}")(f"{tmp_path}/a.{suffix}")
    np.testing.assert_array_equal(scnn.get.dropout_prob(back), adata.layers["dropout_prob"])


def test_one_cell_and_two_cells(adata: ad.AnnData) -> None:
    adata.obs["tiny"] = pd.Categorical(["one", "two", "two"] + ["many"] * 57)
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="tiny")
    status = statuses(adata)
    # One cell has no spread to fit.
    assert set(status["one"]) <= {"no counts", "fit failed"}
    assert (adata.layers["dropout_prob"][0] == 0).all()
    assert (status["many"] == "modelled").sum() > 40


def test_summary_tells_a_collapsed_gamma(imputed: ad.AnnData) -> None:
    summary = imputed.uns["dropout_prob"]["summary"]
    for cluster in summary.index:
        members = (imputed.obs["type"] == cluster).to_numpy()
        zeros = dense(imputed.X[members]) == 0
        called = imputed.layers["dropout_prob"][members] > 0.5
        assert summary.loc[cluster, "zeros_called"] == pytest.approx(called[zeros].mean())
        modelled = (statuses(imputed)[cluster] == "modelled").to_numpy()
        position = imputed.uns["dropout_prob"]["clusters"].tolist().index(cluster)
        alpha, beta = (imputed.varm[f"dropout_prob_{name}"][:, position] for name in ("alpha", "beta"))
        mean = alpha / beta
        collapsed = np.abs(mean[modelled] / np.log10(1.01) - 1) < 0.01
        assert summary.loc[cluster, "collapsed"] == pytest.approx(collapsed.mean())


def test_refusals(adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match=r"model='zinb' is not known. Available: \['calibrated', 'gamma_normal'\]"):
        scnn.pp.dropout_prob(adata, model="zinb")
    with pytest.raises(ValueError, match=r"store='disk' is not known"):
        scnn.pp.dropout_prob(adata, model="gamma_normal", store="disk")
    with pytest.raises(TypeError, match="max_layer_bytes='1GB' has type str, expected int"):
        scnn.pp.dropout_prob(adata, model="gamma_normal", max_layer_bytes="1GB")
    with pytest.raises(KeyError, match=r"cluster_key='leiden' is not in adata.obs. Available: \['type'\]"):
        scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="leiden")
    adata.obs["none"] = pd.Categorical([None] * 60, categories=["a"])
    with pytest.raises(ValueError, match="no cluster"):
        scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="none")
    with pytest.raises(ValueError, match="key_added='a/b' is not allowed"):
        scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type", key_added="a/b")
    with pytest.raises(KeyError, match=r"No dropout model is stored under 'dropout_prob'. Stored: \[\]"):
        scnn.get.dropout_prob(adata)
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type")
    with pytest.raises(KeyError, match="nonesuch"):
        scnn.get.dropout_prob(adata, genes=["nonesuch"])
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"capture_efficiency=.* is not allowed .*above 0 and at most 1"):
            scnn.pp.dropout_prob(adata, capture_efficiency=wrong)
    with pytest.raises(ValueError, match="capture_efficiency=nan is not allowed: a finite number"):
        scnn.pp.dropout_prob(adata, capture_efficiency=np.nan)
    with pytest.raises(KeyError, match=r"capture_efficiency='depth' is not in adata.obs. Available: \['type'"):
        scnn.pp.dropout_prob(adata, capture_efficiency="depth")
    with pytest.raises(TypeError, match=r"adata.obs\['type'\] has dtype category, expected numbers"):
        scnn.pp.dropout_prob(adata, capture_efficiency="type")
    with pytest.raises(ValueError, match=r"capture_efficiency=0\.5 means nothing to model='gamma_normal'"):
        scnn.pp.dropout_prob(adata, model="gamma_normal", capture_efficiency=0.5)
