"""Denoising: every entry becomes its posterior mean given its own count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
import scipy.stats
from helpers import KINDS, dense, simulate

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute._anndata.counts import get_counts
from scanpy_cnnimpute._anndata.models import load_dropout_model

if TYPE_CHECKING:
    from pathlib import Path

QUICK: dict[str, Any] = {"entries": "all", "n_steps": 10, "verbose": False}


@pytest.fixture(scope="module")
def denoised() -> ad.AnnData:
    adata = simulate(80, 60)
    scnn.pp.dropout_prob(adata)
    scnn.pp.cnn_impute(adata, estimate="expected_count", key_added="mean", return_std=True, **QUICK)
    scnn.pp.cnn_impute(adata, return_std=True, **QUICK)
    return adata


def posterior(adata: ad.AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Shape and mean of the posterior rate of every entry, without the network."""
    model, cells = load_dropout_model(adata, "dropout_prob")
    expected = cells.scores.astype(float) @ model.loadings.astype(float).T
    shape = model.shape + dense(adata.X)
    return shape, shape / (model.shape + expected) * expected


def log_mean(shape: float, mean: float, scale: float, power: int = 1) -> float:
    n = np.arange(20_000)
    return float((scipy.stats.nbinom.pmf(n, shape, shape / (shape + mean)) * np.log1p(scale * n) ** power).sum())


def test_keys_and_kind(denoised: ad.AnnData) -> None:
    layer = denoised.layers["cnn_denoised"]
    assert isinstance(layer, np.ndarray)
    assert layer.dtype == np.float32
    assert (layer > 0).all()
    params = denoised.uns["cnn_denoised"]["params"]
    assert params["entries"] == "all"
    assert params["units"] == "counts"
    assert "threshold" not in params


@pytest.mark.parametrize("times", [None, 0.1, 3.0])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_values_without_the_network(denoised: ad.AnnData, times: float | None, logarithmic: bool) -> None:
    model, cells = load_dropout_model(denoised, "dropout_prob")
    counts = get_counts(denoised, None, caller="test")
    wanted = np.array([0, 3, 4, 59])
    none = np.zeros(counts.shape[0] * wanted.size, dtype=np.float32)
    library_size = counts.sum(axis=1)
    depth = None if times is None else times * float(library_size.mean())
    values, deviation = model.denoised(
        counts, cells, wanted, none, logarithmic=logarithmic, depth=depth, return_std=True
    )
    shape, mean = (each[:, wanted] for each in posterior(denoised))
    values, deviation = values.reshape(mean.shape), deviation.reshape(mean.shape)
    of_cell = library_size if depth is None else np.full_like(library_size, depth)
    for i in range(0, 80, 9):
        scale, more = 1e4 / of_cell[i], of_cell[i] / library_size[i]
        for g in range(wanted.size):
            first = log_mean(shape[i, g], mean[i, g] * more, scale)
            second = log_mean(shape[i, g], mean[i, g] * more, scale, 2)
            exact = np.expm1(first) / scale if logarithmic else mean[i, g] * more
            assert values[i, g] == pytest.approx(exact, rel=5e-3)
            assert deviation[i, g] == pytest.approx(np.sqrt(second - first**2), rel=2e-2)


@pytest.mark.parametrize(("shape", "mean"), [(0.5, 0.01), (3.0, 0.2), (0.2, 5.0), (500.0, 400.0), (5000.0, 4900.0)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_mean_of_the_logarithm_against_sums(shape: float, mean: float, scale: float) -> None:
    from scanpy_cnnimpute.dropout.calibrated import kernels

    logs = np.log1p(scale * np.arange(kernels.N_SINGLE_TERMS + 1))
    differences = kernels._forward_differences(logs[: kernels.N_SERIES + 1])
    assert kernels._log_mean(mean, shape, scale, logs, differences) == pytest.approx(
        log_mean(shape, mean, scale), rel=2e-3
    )


@pytest.mark.usefixtures("quick_networks")
def test_the_network_corrects_all_entries(adata: ad.AnnData) -> None:
    scnn.pp.dropout_prob(adata)
    scnn.pp.cnn_impute(adata, estimate="expected_count", entries="all", verbose=False)
    ratio = adata.layers["cnn_denoised"] / posterior(adata)[1]
    assert (np.abs(np.log(ratio)) > 1e-3).mean() > 0.9


def test_all_kinds_of_matrices(any_kind: ad.AnnData) -> None:
    expected = simulate()
    scnn.pp.cnn_impute(expected, **QUICK)
    before = dense(any_kind.X).copy()
    scnn.pp.cnn_impute(any_kind, **QUICK)
    assert isinstance(any_kind.layers["cnn_denoised"], np.ndarray)
    # float32 sums of the network in another order
    np.testing.assert_allclose(any_kind.layers["cnn_denoised"], expected.layers["cnn_denoised"], rtol=1e-4)
    np.testing.assert_array_equal(dense(any_kind.X), before)


def test_any_part_without_a_layer(denoised: ad.AnnData) -> None:
    adata = denoised.copy()
    scnn.pp.cnn_impute(adata, store="params", key_added="parts", **QUICK)
    assert "parts" not in adata.layers
    part = scnn.get.cnn_imputed(adata, genes=["g7", "g2"], cells=slice(5, 20), key="parts")
    np.testing.assert_allclose(part, adata.layers["cnn_denoised"][5:20][:, [7, 2]], rtol=1e-4)


def test_genes_that_are_not_selected_stay(adata: ad.AnnData) -> None:
    chosen = np.arange(50) < 5
    scnn.pp.cnn_impute(adata, mask_var=chosen, **QUICK)
    np.testing.assert_array_equal(adata.layers["cnn_denoised"][:, ~chosen], dense(adata.X)[:, ~chosen])
    assert (adata.layers["cnn_denoised"][:, chosen] != dense(adata.X)[:, chosen]).all()


def test_depth_is_that_of_the_whole_layer(adata: ad.AnnData) -> None:
    chosen = np.arange(50) < 30
    scnn.pp.cnn_impute(adata, mask_var=chosen, estimate="expected_count", depth=1000.0, **QUICK)
    layer = adata.layers["cnn_denoised"]
    per_cell = 1000 / dense(adata.X).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(layer[:, ~chosen], (dense(adata.X) * per_cell)[:, ~chosen], rtol=1e-5)
    np.testing.assert_allclose(layer.sum(axis=1), 1000, rtol=0.2)
    part = scnn.get.cnn_imputed(adata, genes=["g3", "g40"], key="cnn_denoised")
    np.testing.assert_allclose(part, layer[:, [3, 40]], rtol=1e-4)


def test_gated_genes_stay(adata: ad.AnnData) -> None:
    scnn.pp.dropout_prob(adata)
    gain = adata.varm["dropout_prob_gain"].copy()
    gain[4] = -6.0
    adata.varm["dropout_prob_gain"] = gain
    scnn.pp.cnn_impute(adata, **QUICK)
    np.testing.assert_array_equal(adata.layers["cnn_denoised"][:, 4], dense(adata.X)[:, 4])
    scnn.pp.cnn_impute(adata, gate=False, key_added="ungated", **QUICK)
    assert (adata.layers["ungated"][:, 4] != dense(adata.X)[:, 4]).all()


def test_new_cells_and_saving(tmp_path: Path) -> None:
    adata = simulate(100, 60)
    imputer = scnn.CNNImputer(entries="all", depth=500.0, n_steps=10, verbose=False).fit(adata[:70])
    values = imputer.transform(adata[70:])
    assert isinstance(values, np.ndarray)
    assert (values > 0).all()
    imputer.save(tmp_path / "imputer")
    loaded = scnn.CNNImputer.load(tmp_path / "imputer")
    assert loaded.entries == "all"
    assert loaded.settings.depth == 500.0
    np.testing.assert_allclose(loaded.transform(adata[70:]), values, rtol=1e-5)


def test_from_anndata(denoised: ad.AnnData) -> None:
    imputer = scnn.CNNImputer.from_anndata(denoised, "cnn_denoised")
    assert imputer.entries == "all"
    # The scores are fitted anew, to these cells alone.
    logs = (np.log1p(each).ravel() for each in (imputer.transform(denoised), denoised.layers["cnn_denoised"]))
    assert np.corrcoef(*logs)[0, 1] > 0.99


def test_it_is_closer_to_the_truth_than_the_counts() -> None:
    truth = dense(simulate(200, 100, seed=5).X)
    thinned = scnn.metrics.thin_counts(truth, capture_efficiency=0.3, random_state=0)
    adata = ad.AnnData(thinned.astype(np.float32))
    scnn.pp.cnn_impute(adata, estimate="expected_count", entries="all", verbose=False)
    error = ((adata.layers["cnn_denoised"] / 0.3 - truth) ** 2).mean()
    assert error < 0.7 * ((dense(thinned) / 0.3 - truth) ** 2).mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "paper"}, "entries='all' is not one of preset='paper'"),
        (
            {"estimate": "conditional"},
            "estimate='conditional' is not one of preset='default', which",
        ),
        ({"threshold": 0.5}, "threshold=0.5 is not a setting of preset='default', entries='all'"),
        ({"depth": 0.0}, "depth=0.0 is not allowed: above 0"),
    ],
)
def test_refusals(adata: ad.AnnData, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scnn.pp.cnn_impute(adata, entries="all", **options)
    assert "cnn_denoised" not in adata.uns


def test_depth_is_for_denoising(adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match=r"depth=10.0 is not a setting of preset='default', entries='zeros'"):
        scnn.pp.cnn_impute(adata, depth=10.0)
    with pytest.raises(ValueError, match=r"entries='some' is not known. Available: \['zeros', 'all'\]"):
        scnn.pp.cnn_impute(adata, entries="some")  # type: ignore[arg-type]


def test_it_needs_the_calibrated_model(adata: ad.AnnData) -> None:
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type")
    with pytest.raises(ValueError, match=r"entries='all'.* need preset='default' and a calibrated dropout model"):
        scnn.pp.cnn_impute(adata, entries="all")


def test_float64_holds_large_counts() -> None:
    adata = simulate()
    adata.X = KINDS["int"](adata.X)
    scnn.pp.cnn_impute(adata, **QUICK)
    assert adata.layers["cnn_denoised"].dtype == np.float64
