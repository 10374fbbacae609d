"""``mask_var``: only the chosen genes are imputed, from all genes, and as if none were masked."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from helpers import QUICK, assert_only_added, dense, simulate

import scanpy_cnnimpute as scnn

if TYPE_CHECKING:
    from collections.abc import Callable

    import anndata as ad

pytestmark = pytest.mark.usefixtures("quick_networks")

ESTIMATES = ("posterior_mean", "expected_count", "conditional")
CHOSEN = np.isin(np.arange(50), [0, 3, 4, 17, 42])
FUNCTIONS: dict[str, Callable[..., Any]] = {"dropout_prob": scnn.pp.dropout_prob, "cnn_impute": scnn.pp.cnn_impute}


@pytest.fixture
def adata() -> ad.AnnData:
    adata = simulate()
    adata.var["chosen"] = CHOSEN
    return adata


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_chosen_genes_have_the_values_of_the_unmasked_call(adata: ad.AnnData, estimate: str) -> None:
    scnn.pp.dropout_prob(adata, capture_efficiency=0.3)
    scnn.pp.cnn_impute(adata, estimate=estimate, key_added="everything", verbose=False)
    scnn.pp.cnn_impute(adata, estimate=estimate, mask_var="chosen", return_std=True, verbose=False)
    x, masked, everything = (dense(m) for m in (adata.X, adata.layers["cnn_imputed"], adata.layers["everything"]))
    np.testing.assert_array_equal(masked[:, ~CHOSEN], x[:, ~CHOSEN])
    np.testing.assert_allclose(masked[:, CHOSEN], everything[:, CHOSEN], rtol=1e-5, atol=1e-5)
    assert (masked[:, CHOSEN] != x[:, CHOSEN]).any(axis=0).all()
    assert not dense(adata.layers["cnn_imputed_std"])[:, ~CHOSEN].any()
    status = adata.uns["cnn_imputed"]["status"]["all"]
    assert set(status[CHOSEN]) == {"imputed"}
    assert set(status[~CHOSEN]) == {"not selected"}
    assert adata.uns["cnn_imputed"]["summary"].loc["all", "genes not selected"] == 45
    np.testing.assert_allclose(scnn.get.cnn_imputed(adata), masked, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kwargs", [{"verbose": False}, {**QUICK, "cluster_key": "type"}])
@pytest.mark.parametrize("mask", [CHOSEN, pd.Series(CHOSEN, dtype="boolean"), "chosen"], ids=["array", "pandas", "key"])
def test_ways_to_choose(adata: ad.AnnData, mask: Any, kwargs: dict[str, Any]) -> None:
    scnn.pp.cnn_impute(adata, mask_var=mask, **kwargs)
    x, masked = dense(adata.X), dense(adata.layers["cnn_imputed"])
    np.testing.assert_array_equal(masked[:, ~CHOSEN], x[:, ~CHOSEN])
    assert (masked[:, CHOSEN] != x[:, CHOSEN]).any()
    assert set(adata.uns["cnn_imputed"]["status"].to_numpy()[~CHOSEN].ravel()) == {"not selected"}


@pytest.mark.parametrize("model", ["calibrated", "gamma_normal"])
def test_the_dropout_layer_is_of_the_chosen_genes(adata: ad.AnnData, model: str) -> None:
    expected = scnn.pp.dropout_prob(adata, model=model, cluster_key="type", copy=True)
    scnn.pp.dropout_prob(adata, model=model, cluster_key="type", mask_var="chosen")
    layer = adata.layers["dropout_prob"]
    np.testing.assert_array_equal(layer[:, CHOSEN], expected.layers["dropout_prob"][:, CHOSEN])
    assert not layer[:, ~CHOSEN].any()
    # The model is of all genes.
    np.testing.assert_array_equal(scnn.get.dropout_prob(adata), expected.layers["dropout_prob"])


@pytest.mark.parametrize("kwargs", [*({"estimate": estimate, "verbose": False} for estimate in ESTIMATES), QUICK])
def test_zeros_of_a_masked_layer_say_nothing_of_the_other_genes(adata: ad.AnnData, kwargs: dict[str, Any]) -> None:
    model = "gamma_normal" if kwargs is QUICK else "calibrated"
    expected = adata.copy()
    scnn.pp.dropout_prob(expected, model=model, cluster_key="type")
    scnn.pp.cnn_impute(expected, **kwargs)
    scnn.pp.dropout_prob(adata, model=model, cluster_key="type", mask_var=CHOSEN)
    scnn.pp.cnn_impute(adata, **kwargs)
    layer = dense(adata.layers["cnn_imputed"])
    np.testing.assert_array_equal(layer, dense(expected.layers["cnn_imputed"]))
    assert (layer != dense(adata.X))[:, ~CHOSEN].any()
    # Where the layer was written, the user's changes count.
    adata.layers["dropout_prob"][:, 3] = 0
    scnn.pp.cnn_impute(adata, **kwargs)
    changed = dense(adata.layers["cnn_imputed"]) != dense(adata.X)
    assert not changed[:, 3].any()
    assert changed[:, ~CHOSEN].any()


def test_a_later_layer_of_all_genes_forgets_the_mask(adata: ad.AnnData) -> None:
    scnn.pp.dropout_prob(adata, mask_var="chosen")
    scnn.pp.dropout_prob(adata)
    assert "dropout_prob_selected" not in adata.varm
    np.testing.assert_array_equal(scnn.get.dropout_prob(adata), adata.layers["dropout_prob"])


def test_nothing_to_impute_among_the_chosen(adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    adata.layers["own"] = np.where(CHOSEN, 0, 1).astype(np.float32) * np.ones((60, 1), np.float32)
    with caplog.at_level(logging.WARNING, "scanpy_cnnimpute"):
        scnn.pp.cnn_impute(adata, dropout_key="own", mask_var="chosen", verbose=False)
    assert "nothing is imputed (45 genes 'not selected', 5 genes 'nothing missing')" in caplog.text
    np.testing.assert_array_equal(dense(adata.layers["cnn_imputed"]), dense(adata.X))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_refusals(adata: ad.AnnData, function: str) -> None:
    adata.var["number"] = CHOSEN.astype(int)
    adata.var["none"] = False
    before = adata.copy()
    cases: list[tuple[Any, type[Exception], str]] = [
        ("elsewhere", KeyError, r"mask_var='elsewhere' is not in adata.var. Available: \['chosen', 'number', 'none'\]"),
        ("number", TypeError, r"adata.var\['number'\] has type int64, expected True or False for each gene"),
        (np.arange(5), TypeError, "mask_var has type int64, expected True or False"),
        (3, TypeError, "mask_var has type int, expected True or False"),
        (CHOSEN[:10], ValueError, r"mask_var has shape \(10,\), expected \(50,\): one value for each gene"),
        (CHOSEN[:, None], ValueError, r"mask_var has shape \(50, 1\), expected \(50,\)"),
        ("none", ValueError, r"adata.var\['none'\] selects no gene"),
        (~np.ones(50, dtype=bool), ValueError, "mask_var selects no gene"),
    ]
    for mask, error, match in cases:
        with pytest.raises(error, match=match):
            FUNCTIONS[function](adata, mask_var=mask)
    assert_only_added(before, adata, set())


def test_a_series_of_other_names_is_refused(adata: ad.AnnData) -> None:
    mask = pd.Series(np.arange(50) < 5, index=adata.var_names)
    with pytest.raises(ValueError, match=r"mask_var is a Series whose index is not adata\.var_names"):
        scnn.pp.dropout_prob(adata, mask_var=mask[::-1])
    scnn.pp.dropout_prob(adata, mask_var=mask)
    assert not adata.layers["dropout_prob"][:, 5:].any()
