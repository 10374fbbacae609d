"""A call that leaves cells, most genes or nearly all zeros as they are says so, with the reason and what changes it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from helpers import QUICK, dense, simulate

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute.dropout.protocols import PROTOCOLS, find_protocol
from scanpy_cnnimpute.imputation import find_imputer
from scanpy_cnnimpute.imputation.base import NO_INPUTS, TRAINING_FAILED
from scanpy_cnnimpute.pp import _report

if TYPE_CHECKING:
    from collections.abc import Callable

FAST: dict[str, Any] = {"n_steps": 2, "verbose": False}


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[..., str]:
    """What a call of pp.cnn_impute warns of."""

    def call(adata: ad.AnnData, **options: Any) -> str:
        with caplog.at_level(logging.WARNING, "scanpy_cnnimpute"):
            caplog.clear()
            scnn.pp.cnn_impute(adata, **options)
        return caplog.text

    return call


def test_nothing_to_say(adata: ad.AnnData, warned: Callable[..., str]) -> None:
    assert warned(adata, **FAST) == ""


def test_threshold(adata: ad.AnnData, warned: Callable[..., str]) -> None:
    text = warned(adata, threshold=0.9999, **FAST)
    assert "nothing is imputed (50 genes 'nothing missing'). Their dropout probabilities are not above" in text
    assert "lower it, or state capture_efficiency= in pp.dropout_prob" in text


def test_few_zeros(adata: ad.AnnData, warned: Callable[..., str]) -> None:
    scnn.pp.dropout_prob(adata)
    layer = np.zeros(adata.shape, dtype=np.float32)
    row, column = np.argwhere(dense(adata.X) == 0)[0]
    layer[row, column] = 1
    adata.layers["dropout_prob"] = layer
    text = warned(adata, **FAST)
    assert "% of the zeros are imputed (49 genes 'nothing missing'). Their dropout probabilities" in text
    assert "pp.cnn_impute: only 0." in text


def test_all_molecules_counted(adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "scanpy_cnnimpute"):
        scnn.pp.dropout_prob(adata, capture_efficiency=0.999)
    assert "hardly any zero is a probable dropout" in caplog.text
    assert "state a lower capture_efficiency=" in caplog.text


def test_gate(adata: ad.AnnData, warned: Callable[..., str]) -> None:
    scnn.pp.dropout_prob(adata)
    gain = adata.varm["dropout_prob_gain"].copy()
    gain[:40] = -6
    adata.varm["dropout_prob_gain"] = gain
    text = warned(adata, **FAST)
    assert "most genes are left as they are (40 genes 'no gain'" in text
    assert "gate=False imputes them all the same" in text
    assert warned(adata, gate=False, **FAST) == ""


def test_genes_that_no_cell_has(adata: ad.AnnData, warned: Callable[..., str]) -> None:
    counts = dense(adata.X).copy()
    counts[:, 10:] = 0
    text = warned(ad.AnnData(counts), **FAST)
    assert "most genes are left as they are (40 genes 'not modelled'). No cell that the dropout model was" in text
    assert "sc.pp.filter_genes(adata, min_cells=3)" in text
    text = warned(ad.AnnData(counts), entries="all", **FAST)
    assert "most genes are left as they are (40 genes 'not modelled')" in text


def test_too_few_cells(warned: Callable[..., str]) -> None:
    text = warned(simulate(8, 50), **FAST)
    assert "nothing is imputed (50 genes 'too few cells'). At least 10 cells with counts are needed" in text


def test_selected_genes_are_what_was_asked_for(adata: ad.AnnData, warned: Callable[..., str]) -> None:
    assert warned(adata, mask_var=np.arange(50) == 3, **FAST) == ""


def test_cells_without_counts(adata: ad.AnnData, warned: Callable[..., str]) -> None:
    counts = dense(adata.X).copy()
    counts[[3, 7]] = 0
    text = warned(ad.AnnData(sp.csr_matrix(counts)), **FAST)
    assert "cells without counts stay as they are (2): sc.pp.filter_cells(adata, min_counts=1) drops them" in text


def test_cells_without_a_cluster(adata: ad.AnnData, warned: Callable[..., str]) -> None:
    adata.obs["some"] = adata.obs["type"].where(np.arange(60) > 4)
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="some")
    text = warned(adata, **QUICK)
    assert "cells without a cluster stay as they are (5); cluster_key= takes another column" in text


def test_small_clusters(adata: ad.AnnData, warned: Callable[..., str]) -> None:
    adata.obs["uneven"] = np.where(np.arange(60) < 4, "tiny", "rest")
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="uneven")
    text = warned(adata, **QUICK)
    assert "cells of clusters that are too small stay as they are ('tiny': 4)" in text
    assert "cluster_key= takes a column with larger ones" in text
    assert "genes" not in text


@pytest.mark.parametrize(("code", "keyword"), [(NO_INPUTS, "max_dropout="), (TRAINING_FAILED, "learning_rate=")])
def test_reasons_of_the_published_networks(code: int, keyword: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "scanpy_cnnimpute"):
        _report._warn_of_genes(find_imputer("paper"), np.full(50, code), 0.0, 0)  # type: ignore[arg-type]
    assert keyword in caplog.text


def test_no_zeros_to_impute(warned: Callable[..., str]) -> None:
    assert warned(ad.AnnData(dense(simulate().X) + 1), **FAST) == ""


def test_every_reason_says_what_helps() -> None:
    from scanpy_cnnimpute.imputation import STATUSES

    assert {STATUSES[code] for code in _report.WHAT_HELPS} == set(STATUSES) - {"imputed"}
    assert all("=" in text for text in _report.WHAT_HELPS.values())


@pytest.mark.parametrize("name", ["10x_v3", "10X v3", "10x-V3"])
def test_protocol(adata: ad.AnnData, name: str) -> None:
    other = adata.copy()
    scnn.pp.dropout_prob(adata, capture_efficiency=name)
    scnn.pp.dropout_prob(other, capture_efficiency=PROTOCOLS["10x_v3"].efficiency)
    np.testing.assert_array_equal(adata.layers["dropout_prob"], other.layers["dropout_prob"])
    imputer = scnn.CNNImputer(**FAST).fit(adata, capture_efficiency=name)
    told = scnn.CNNImputer(**FAST).fit(adata, capture_efficiency=PROTOCOLS["10x_v3"].efficiency)
    np.testing.assert_array_equal(dense(imputer.transform(adata)), dense(told.transform(adata)))


def test_a_column_goes_before_a_protocol(adata: ad.AnnData) -> None:
    adata.obs["10x_v3"] = 0.5
    scnn.pp.dropout_prob(adata, capture_efficiency="10x_v3")
    assert (adata.obs["dropout_prob_capture_efficiency"] == 0.5).all()


def test_unknown_protocol(adata: ad.AnnData) -> None:
    message = r"'smart_seq2' is not in adata.obs. Available: \['type'\], and the protocols .*drop_seq"
    with pytest.raises(KeyError, match=message):
        scnn.pp.dropout_prob(adata, capture_efficiency="smart_seq2")
    with pytest.raises(KeyError, match=r"capture_efficiency='smart_seq2' is not known. Available: .*drop_seq"):
        scnn.CNNImputer().fit(adata, capture_efficiency="smart_seq2")


def test_protocols_have_sources() -> None:
    for name, protocol in PROTOCOLS.items():
        assert find_protocol(name) is protocol
        assert 0 < protocol.low <= protocol.efficiency <= protocol.high <= 1
        assert protocol.source
        assert protocol.method
