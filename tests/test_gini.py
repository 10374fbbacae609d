"""Gini coefficients, normalisation by a housekeeping gene, and ``tl.eval_gini``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import KINDS, assert_only_added, dense, simulate
from hypothesis import given
from hypothesis import strategies as st

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import metrics

if TYPE_CHECKING:
    from pathlib import Path

EXPRESSION = st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e6)), min_size=1, max_size=40).map(np.array)


def double_sum(x: np.ndarray) -> float:
    """The formula as the paper prints it."""
    return np.abs(x[:, None] - x).sum() / (2 * x.size**2 * x.mean())


def test_gini_by_hand() -> None:
    # Differences of 1, 2, 3: 1 + 1 + 2, each twice; 8 / (2 * 9 * 2).
    assert metrics.gini([3, 1, 2]) == pytest.approx(8 / 36)
    assert metrics.gini([0, 0, 0, 5]) == 3 / 4
    assert metrics.gini([7.0]) == 0
    assert np.isnan(metrics.gini([0, 0]))


@given(EXPRESSION, st.floats(1e-3, 1e3), st.randoms(use_true_random=False))
def test_gini_is_the_double_sum_without_a_scale_and_an_order(x: np.ndarray, factor: float, random: Any) -> None:
    shuffled = x.tolist()
    random.shuffle(shuffled)
    value = metrics.gini(x)
    if x.any():
        assert value == pytest.approx(double_sum(x), abs=1e-12)
        assert -1e-12 <= value <= 1 - 1 / x.size + 1e-12
    assert metrics.gini(factor * x) == pytest.approx(value, abs=1e-12, nan_ok=True)
    assert metrics.gini(shuffled) == pytest.approx(value, abs=1e-12, nan_ok=True)
    assert metrics.gini(np.tile(x, 3)) == pytest.approx(value, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("kind", KINDS)
def test_gini_of_every_kind_of_matrix(kind: str) -> None:
    counts = simulate().X @ sp.diags(np.arange(50) != 3, dtype=np.float32)
    values = metrics.gini(KINDS[kind](counts))
    assert values.shape == (50,)
    assert values.dtype == np.float64
    assert np.isnan(values[3])
    used = np.arange(50) != 3
    expected = [double_sum(column.astype(np.float64)) for column in counts.toarray().T[used]]
    np.testing.assert_allclose(values[used], expected)


def test_gini_refuses() -> None:
    for values, problem in (
        ([1.0, -2.0], r"values has negative values \(smallest -2\)"),
        (sp.csr_array([[1.0, np.nan]]), "values has 1 NaN and 0 infinite values"),
        ([], "values has no cells"),
        (np.zeros((0, 3)), "values has no cells"),
        (np.zeros((2, 2, 2)), "3 dimensions"),
    ):
        with pytest.raises(ValueError, match=problem):
            metrics.gini(values)


@pytest.mark.parametrize("kind", KINDS)
def test_housekeeping_by_hand(kind: str) -> None:
    housekeeping = np.arange(11)  # quantiles 2 and 8
    counts = KINDS[kind](sp.csr_matrix(np.c_[housekeeping, np.full(11, 10)].astype(np.float32)))
    scaled, kept = metrics.housekeeping_normalize(counts, housekeeping)
    np.testing.assert_array_equal(np.flatnonzero(kept), [3, 4, 5, 6, 7])
    assert sp.issparse(scaled) == sp.issparse(counts)
    assert scaled.dtype == np.float64
    # The mean of those kept is 5, and all cells have it afterwards.
    np.testing.assert_allclose(dense(scaled), np.c_[np.full(5, 5), 10 * 5 / np.arange(3, 8)])


def test_housekeeping_quantiles() -> None:
    counts = np.ones((4, 1))
    assert metrics.housekeeping_normalize(counts, [1, 2, 2, 9], lower=0, upper=1)[1].tolist() == [0, 1, 1, 0]
    with pytest.raises(ValueError, match=r"lower=0.8, upper=0.2 is not allowed: 0 <= lower < upper <= 1"):
        metrics.housekeeping_normalize(counts, [1, 2, 3, 4], lower=0.8, upper=0.2)


def test_housekeeping_refuses() -> None:
    counts = np.ones((4, 2))
    with pytest.raises(ValueError, match=r"above 0 \(quantile 0.2\) and below 0 \(quantile 0.8\)"):
        metrics.housekeeping_normalize(counts, [0, 0, 0, 0])
    with pytest.raises(ValueError, match="No cell has housekeeping expression"):
        metrics.housekeeping_normalize(np.ones((0, 2)), [])
    with pytest.raises(ValueError, match=r"counts has shape \(4, 2\), housekeeping \(3,\)"):
        metrics.housekeeping_normalize(counts, [1, 2, 3])
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="negative, NaN or infinite"):
            metrics.housekeeping_normalize(counts, [1, 2, 3, wrong])


def test_scores_and_values(tmp_path: Path) -> None:
    adata = simulate()
    adata.layers["flat"] = np.ones(adata.shape)
    before = adata.copy()
    truth = metrics.gini(adata.X)
    reference = pd.Series(truth[:10] + 0.1, index=adata.var_names[:10])
    reference["absent"], reference["g4"] = 0.5, np.nan
    table = scnn.tl.eval_gini(adata, reference=reference, layers=["X", "flat", None])
    assert table.index.tolist() == ["X", "layer:flat"]
    assert table.loc["X"].to_dict() == pytest.approx({"mse": 0.01, "pcc": 1, "n_genes": 9, "n_cells": 60})
    # Constant values have 0, and no correlation.
    used = np.arange(10) != 4
    assert table.loc["layer:flat", "mse"] == pytest.approx(np.mean((truth[:10] + 0.1)[used] ** 2))
    assert np.isnan(table.loc["layer:flat", "pcc"])
    assert_only_added(before, adata, {("uns", "eval_gini")})

    values = adata.uns["eval_gini"]["gini"]
    assert values.index.tolist() == [f"g{i}" for i in range(10) if i != 4]
    np.testing.assert_array_equal(values["X"], truth[:10][used])
    np.testing.assert_array_equal(values["reference"], reference[values.index])
    adata.write_h5ad(tmp_path / "a.h5ad")
    stored = ad.read_h5ad(tmp_path / "a.h5ad").uns["eval_gini"]
    pd.testing.assert_frame_equal(stored["table"], table)
    pd.testing.assert_frame_equal(stored["gini"], values)


def test_each_layer_by_its_own_housekeeping_gene() -> None:
    adata = simulate(200)
    adata.var_names = ["GAPDH", *adata.var_names[1:]]
    adata.X = sp.csr_matrix(np.c_[np.random.default_rng(1).poisson(60, size=200), adata.X[:, 1:].toarray()])
    # Another depth for each cell, which the housekeeping gene takes out again.
    depth = np.random.default_rng(0).uniform(1, 9, size=200)
    adata.layers["uneven"] = sp.csr_matrix(adata.X.toarray() * depth[:, None])
    reference = dict(zip(adata.var_names[1:], metrics.gini(adata.X)[1:], strict=True))
    alone = scnn.tl.eval_gini(adata, reference=reference, layers=["X", "uneven"])
    table = scnn.tl.eval_gini(adata, reference=reference, layers=["X", "uneven"], housekeeping="GAPDH")
    assert (table["n_cells"] < 125).all()
    assert table.loc["layer:uneven", "mse"] < 0.2 * alone.loc["layer:uneven", "mse"]
    normalised, _ = metrics.housekeeping_normalize(adata.layers["uneven"], dense(adata.layers["uneven"])[:, 0])
    np.testing.assert_allclose(adata.uns["eval_gini"]["gini"]["layer:uneven"], metrics.gini(normalised)[1:])


def test_imputed_layers() -> None:
    adata = simulate()
    adata.layers["imputed"] = np.where(adata.X.toarray() == 0, np.float32(0.4), adata.X.toarray())
    reference = dict(zip(adata.var_names, metrics.gini(adata.layers["imputed"]), strict=True))
    table = scnn.tl.eval_gini(adata, reference=reference, layers=("X", "imputed"))
    assert table.loc["layer:imputed", "mse"] == 0
    assert table.loc["X", "mse"] > 0


def test_gene_that_no_cell_expresses() -> None:
    adata = simulate()
    adata.X = adata.X @ sp.diags(np.arange(50) > 1, dtype=np.float32)
    table = scnn.tl.eval_gini(adata, reference={"g0": 0.5, "g1": 0.5})
    assert table.loc["X", "n_genes"] == 0
    assert table.loc["X", ["mse", "pcc"]].isna().all()
    assert scnn.tl.eval_gini(adata, reference={"g0": 0.5, "g2": 0.5}).loc["X", "n_genes"] == 1


def test_refusals() -> None:
    adata = simulate()
    before = adata.copy()
    with pytest.raises(ValueError, match=r"no gene in common: reference has \['ENSG1'\], adata \['g0', 'g1', 'g2'\]"):
        scnn.tl.eval_gini(adata, reference={"ENSG1": 0.5})
    with pytest.raises(ValueError, match=r"reference has values from 0.2 to 1.5; Gini coefficients are in \[0, 1\]"):
        scnn.tl.eval_gini(adata, reference={"g0": 0.2, "g1": 1.5})
    with pytest.raises(ValueError, match=r"reference has genes more than once, such as \['g0'\]"):
        scnn.tl.eval_gini(adata, reference=pd.Series([0.2, 0.3], index=["g0", "g0"]))
    with pytest.raises(KeyError, match=r"housekeeping='GAPDH' has to be exactly one of adata.var_names"):
        scnn.tl.eval_gini(adata, reference={"g0": 0.2}, housekeeping="GAPDH")
    with pytest.raises(KeyError, match=r"layer='imputed' is not in adata.layers. Available: \['twin'\]"):
        scnn.tl.eval_gini(adata, reference={"g0": 0.2}, layers="imputed")
    with pytest.raises(TypeError, match="layers has type int, expected the name of a layer, 'X' or None"):
        scnn.tl.eval_gini(adata, reference={"g0": 0.2}, layers=3)
    for reference in ([0.2], "gini.csv", pd.DataFrame({"g0": [0.2]})):
        with pytest.raises(TypeError, match=f"reference is a {type(reference).__name__}, expected a dict or a Series"):
            scnn.tl.eval_gini(adata, reference=reference)
    for housekeeping in (3, ["g1"]):
        with pytest.raises(TypeError, match=f"housekeeping has type {type(housekeeping).__name__}, expected str"):
            scnn.tl.eval_gini(adata, reference={"g0": 0.2}, housekeeping=housekeeping)
    assert_only_added(before, adata, set())
    adata.var_names = ["g0", *adata.var_names[:-1]]
    with pytest.raises(ValueError, match=r"adata.var_names has genes more than once, such as \['g0'\]"):
        scnn.tl.eval_gini(adata, reference={"g0": 0.2})
