"""Reads are told from molecules, become molecules, and come back as reads."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from helpers import dense, simulate
from sklearn.metrics import roc_auc_score

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute._counts import Counts
from scanpy_cnnimpute.dropout.calibrated.model import molecules_of
from scanpy_cnnimpute.dropout.read_counts import (
    estimate_reads,
    reads_of_cells,
    reads_per_molecule,
    resolve_count_type,
    solve_detection,
    to_molecules,
)

if TYPE_CHECKING:
    from pathlib import Path

PER_MOLECULE = 60.0


def amplified(molecules: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads of molecules, each of which gives an exponential number; the factors of the cells and genes."""
    rng = np.random.default_rng(seed)
    per_cell = PER_MOLECULE * np.exp(rng.normal(0, 0.3, molecules.shape[0]))
    factor = np.exp(rng.normal(0, 0.5, molecules.shape[1]))
    # At least one read: a molecule that gives none was not counted.
    share = rng.gamma(np.maximum(molecules, 1e-9)) * per_cell[:, None] * factor
    return np.where(molecules > 0, np.maximum(1, np.rint(share)), 0).astype(np.float32), per_cell, factor


def thinned(n_cells: int = 300, n_genes: int = 400, share: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """True molecules of two cell types, and those that were counted."""
    truth = dense(simulate(n_cells, n_genes, seed=3).X).astype(int)
    return truth, np.random.default_rng(1).binomial(truth, share)


@pytest.fixture(scope="module")
def reads() -> ad.AnnData:
    """Simulated reads of molecules of which three in ten were counted; all molecules in a layer."""
    truth, counted = thinned()
    values, per_cell, factor = amplified(counted)
    adata = ad.AnnData(sp.csr_matrix(values))
    adata.layers["truth"], adata.layers["counted"] = truth, counted
    adata.obs["per_cell"], adata.var["factor"] = per_cell, factor
    return adata


@pytest.fixture(scope="module")
def imputed(reads: ad.AnnData) -> ad.AnnData:
    adata = reads.copy()
    scnn.pp.dropout_prob(adata, capture_efficiency=0.3)
    scnn.pp.cnn_impute(adata, return_std=True, verbose=False)
    return adata


def test_zeros_fall_with_the_mean_as_of_molecules_or_reads(reads: ad.AnnData) -> None:
    assert 1 <= reads_per_molecule(Counts.of(reads.layers["counted"])) < 2
    # More than the average molecule gives: types differ, which makes zeros.
    assert reads_per_molecule(Counts.of(reads.X)) == pytest.approx(PER_MOLECULE, rel=0.5)


@pytest.mark.parametrize("n_copies", [1, 3])
def test_poisson_counts_times_a_number(n_copies: int) -> None:
    rng = np.random.default_rng(0)
    counts = n_copies * rng.poisson(rng.gamma(1.0, 0.7, size=500), size=(400, 500))
    assert reads_per_molecule(Counts.of(counts)) == pytest.approx(n_copies, rel=0.02)


@pytest.mark.parametrize("counts", [np.ones((3, 3)), np.zeros((3, 3)), np.zeros((0, 3)), np.eye(9) * 70])
def test_no_gene_tells(counts: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    assert np.isnan(reads_per_molecule(Counts.of(counts)))
    with caplog.at_level(logging.INFO, "scanpy_cnnimpute"):
        assert resolve_count_type(Counts.of(counts), "auto", caller="test") == "umi"
    assert "too few genes tell reads from molecules" in caplog.text


def test_abundant_genes_of_molecules_are_no_reads() -> None:
    """Genes that nearly all cells show have few zeros, of cells that are unlike the others."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(60.0, size=(200, 40))
    counts[:3] = rng.poisson(0.5, size=(3, 40))
    assert resolve_count_type(Counts.of(counts), "auto", caller="test") == "umi"


def test_cells_without_reads_change_nothing(reads: ad.AnnData) -> None:
    values = dense(reads.X)
    adata = ad.AnnData(sp.csr_matrix(np.concatenate([values, np.zeros((40, 400), np.float32)])))
    other = reads.copy()
    for each in (adata, other):
        scnn.pp.dropout_prob(each, count_type="reads", store="params")
    found, expected = (each.obs["dropout_prob_reads_per_molecule"].to_numpy() for each in (adata, other))
    np.testing.assert_allclose(found[:300], expected, rtol=0.05)


def test_all_reads_come_back(imputed: ad.AnnData) -> None:
    """Molecules times what each gives are the reads, of every gene."""
    per_molecule = imputed.obs["dropout_prob_reads_per_molecule"].to_numpy()
    factor, divisor = (imputed.varm[f"dropout_prob_reads_{name}"][:, 0] for name in ("factor", "divisor"))
    counts = sp.csr_array(imputed.X)
    back = (to_molecules(counts, per_molecule, divisor).T @ per_molecule) * factor
    np.testing.assert_allclose(back, counts.sum(axis=0), rtol=1e-4)
    adata = imputed.copy()
    scnn.pp.cnn_impute(adata, entries="all", estimate="expected_count", verbose=False)
    assert adata.layers["cnn_denoised"].sum() == pytest.approx(counts.sum(), rel=0.05)


def test_the_bundled_data_are_molecules(caplog: pytest.LogCaptureFixture) -> None:
    adata = scnn.datasets.five_cell_lines()[:, :500].copy()
    told = adata.copy()
    with caplog.at_level(logging.INFO, "scanpy_cnnimpute"):
        scnn.pp.dropout_prob(adata)
    assert "taken for molecules (1.5 reads per molecule)" in caplog.text
    scnn.pp.dropout_prob(told, count_type="umi")
    np.testing.assert_array_equal(adata.layers["dropout_prob"], told.layers["dropout_prob"])
    assert adata.uns["dropout_prob"]["params"]["count_type"] == "umi"
    assert "dropout_prob_reads_per_molecule" not in adata.obs


def test_reads_are_recognised(reads: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    adata = reads.copy()
    with caplog.at_level(logging.INFO, "scanpy_cnnimpute"):
        scnn.pp.dropout_prob(adata, store="params")
    assert "the counts are taken for reads: zeros fall with the mean as if a molecule gave" in caplog.text
    assert "reads in the median cell" in caplog.text
    assert adata.uns["dropout_prob"]["params"]["count_type"] == "reads"


def test_unclear_counts_are_warned_of(reads: ad.AnnData) -> None:
    adata = reads.copy()
    adata.X = np.ceil(dense(reads.X) / 7)
    with pytest.warns(UserWarning, match=r"as if a molecule gave \d+\.\d reads, many for UMIs .* Pass count_type="):
        scnn.pp.dropout_prob(adata, store="params")


def test_reads_per_molecule_are_recovered(imputed: ad.AnnData) -> None:
    found = imputed.obs["dropout_prob_reads_per_molecule"]
    assert np.median(found) == pytest.approx(PER_MOLECULE, rel=0.2)
    assert np.corrcoef(np.log(found), np.log(imputed.obs["per_cell"]))[0, 1] > 0.8
    factor = imputed.varm["dropout_prob_reads_factor"][:, 0]
    assert np.corrcoef(np.log(factor), np.log(imputed.var["factor"]))[0, 1] > 0.8


def test_molecules_are_whole_and_keep_the_zeros(reads: ad.AnnData) -> None:
    counts = sp.csr_array(reads.X)
    molecules = molecules_of(counts, 0)
    np.testing.assert_array_equal(molecules.indices, counts.indices)
    assert molecules.data.min() == 1
    np.testing.assert_array_equal(molecules.data, np.rint(molecules.data))
    total = dense(reads.layers["counted"]).sum()
    assert molecules.sum() == pytest.approx(total, rel=0.1)


def test_to_molecules_by_hand() -> None:
    counts = sp.csr_array([[10.0, 0.0, 44.0], [0.0, 1.0, 0.0]])
    molecules = to_molecules(counts, np.array([10.0, 100.0]), np.array([1.0, 1.0, 2.0]))
    np.testing.assert_array_equal(molecules.toarray(), [[1, 0, 2], [0, 1, 0]])
    assert molecules.dtype == np.float32


def test_solve_detection_against_the_definition() -> None:
    rng = np.random.default_rng(0)
    expected = rng.gamma(1, 1, size=(5, 40))
    root = np.array([0.01, 0.3, 1.0, 4.0, 20.0])
    detected = -np.expm1(-root[:, None] * expected).sum(axis=1)
    out = np.empty(5)
    solve_detection(expected, detected, out)
    np.testing.assert_allclose(out, root, rtol=1e-4)


def test_exact_poisson_molecules_of_equal_genes() -> None:
    """Without spread, and with the true expectations, the estimate is the number of reads of a molecule."""
    rng = np.random.default_rng(0)
    rate = np.outer(rng.gamma(20, 1 / 20, 500), rng.gamma(1.0, 0.7, 300))
    counts = sp.csr_array(40.0 * rng.poisson(rate))
    divisor, factor, share = estimate_reads(counts, lambda _: rate.T, np.arange(500))
    per_cell = reads_of_cells(counts, counts.sum(axis=1), share)
    assert np.median(per_cell) == pytest.approx(40, rel=0.05)
    seen = (dense(counts) > 0).mean(axis=0)
    for each in (divisor, factor):
        np.testing.assert_allclose(np.median(each[(seen > 0.1) & (seen < 0.9)]), 1.0, rtol=0.1)


def test_observed_reads_stay(reads: ad.AnnData, imputed: ad.AnnData) -> None:
    before, after = dense(reads.X), dense(imputed.layers["cnn_imputed"])
    np.testing.assert_array_equal(after[before > 0], before[before > 0])
    assert (after[before == 0] > 0).mean() > 0.5


def test_what_is_filled_in_are_reads(imputed: ad.AnnData) -> None:
    """Filled in at dropouts are, on average, the reads of the missed share of a molecule."""
    zero = dense(imputed.X) == 0
    adata = imputed.copy()
    scnn.pp.cnn_impute(adata, estimate="expected_count", key_added="counts", verbose=False)
    per = adata.obs["per_cell"].to_numpy()[:, None] * adata.var["factor"].to_numpy()
    molecules = (dense(adata.layers["counts"]) / per)[zero].mean()
    # Given in counts at the library size of the cell: three in ten of what is missed.
    assert molecules == pytest.approx(0.3 * adata.layers["truth"][zero].mean(), rel=0.25)


def test_probabilities_of_reads_are_nearly_those_of_molecules(imputed: ad.AnnData) -> None:
    zero = dense(imputed.X) == 0
    missed = imputed.layers["truth"][zero] > 0
    other = ad.AnnData(imputed.layers["counted"].astype(np.float32))
    scnn.pp.dropout_prob(other, capture_efficiency=0.3)
    areas = [roc_auc_score(missed, each.layers["dropout_prob"][zero]) for each in (imputed, other)]
    assert areas[0] > areas[1] - 0.03
    brier = np.mean((imputed.layers["dropout_prob"][zero] - missed) ** 2)
    assert brier < 0.95 * missed.mean() * (1 - missed.mean())


def test_the_error_at_zeros_falls(imputed: ad.AnnData) -> None:
    truth = imputed.layers["truth"] * imputed.var["factor"].to_numpy()
    library_size = dense(imputed.X).sum(axis=1, keepdims=True)
    target = np.log1p(1e4 * truth / truth.sum(axis=1, keepdims=True))
    zero = dense(imputed.X) == 0
    estimate = np.log1p(1e4 * dense(imputed.layers["cnn_imputed"]) / library_size)
    assert ((estimate - target)[zero] ** 2).mean() < 0.8 * (target[zero] ** 2).mean()


def test_part_of_the_data_is_as_the_layer(imputed: ad.AnnData) -> None:
    part = imputed[50:90, 100:300].copy()
    np.testing.assert_allclose(
        scnn.get.dropout_prob(part), imputed.layers["dropout_prob"][50:90, 100:300], rtol=1e-6, atol=1e-7
    )
    whole = scnn.get.cnn_imputed(imputed, cells=slice(50, 90))
    np.testing.assert_allclose(whole, dense(imputed.layers["cnn_imputed"])[50:90], rtol=1e-4)


def test_new_cells(reads: ad.AnnData, tmp_path: Path) -> None:
    imputer = scnn.CNNImputer(n_steps=10, verbose=False).fit(reads[:200], capture_efficiency=0.3)
    values = dense(imputer.transform(reads[200:]))
    observed = dense(reads.X)[200:]
    np.testing.assert_array_equal(values[observed > 0], observed[observed > 0])
    target = np.log1p(reads.layers["truth"] * reads.var["factor"].to_numpy() * PER_MOLECULE)[200:]
    zero = observed == 0
    assert ((np.log1p(values) - target)[zero] ** 2).mean() < 0.9 * (target[zero] ** 2).mean()
    imputer.save(tmp_path / "imputer")
    loaded = scnn.CNNImputer.load(tmp_path / "imputer")
    assert loaded.count_type == "reads"
    np.testing.assert_allclose(dense(loaded.transform(reads[200:])), values, rtol=1e-5)


def test_told_and_stored_types_must_agree(reads: ad.AnnData) -> None:
    adata = reads.copy()
    scnn.pp.dropout_prob(adata, count_type="umi", store="params")
    with pytest.raises(ValueError, match="was fitted with count_type='umi', not 'reads'"):
        scnn.pp.cnn_impute(adata, count_type="reads", verbose=False)


@pytest.mark.parametrize("call", [scnn.pp.dropout_prob, scnn.pp.cnn_impute, scnn.tl.eval_imputation])
def test_unknown_type(reads: ad.AnnData, call: object) -> None:
    with pytest.raises(ValueError, match=r"count_type='tpm' is not known. Available: \['auto', 'umi', 'reads'\]"):
        call(reads, count_type="tpm")  # type: ignore[operator]
    with pytest.raises(ValueError, match="count_type='tpm' is not known"):
        scnn.CNNImputer(count_type="tpm")  # type: ignore[arg-type]


def test_the_gamma_normal_model_knows_no_type(adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match="count_type='reads' means nothing to model='gamma_normal'"):
        scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type", count_type="reads")
    with pytest.raises(ValueError, match="count_type='reads' means nothing to gamma_normal"):
        scnn.pp.cnn_impute(adata, preset="paper", count_type="reads")
    with pytest.raises(ValueError, match="count_type='reads' is a parameter of the calibrated dropout model"):
        scnn.CNNImputer(preset="paper", count_type="reads").fit(adata)


def test_cells_and_genes_without_reads(reads: ad.AnnData) -> None:
    values = dense(reads.X).copy()
    values[:, 7], values[:, 8] = 0, 100  # a gene that every cell shows says nothing by its zeros
    values[5] = 0
    adata = ad.AnnData(sp.csr_matrix(values))
    scnn.pp.dropout_prob(adata)
    assert np.isfinite(adata.obs["dropout_prob_reads_per_molecule"]).all()
    assert np.isfinite(adata.varm["dropout_prob_reads_factor"]).all()
    assert not adata.layers["dropout_prob"][5].any()


def test_few_genes() -> None:
    # The share of a gene in the molecules is then above 1: what is stored must still be read.
    rng = np.random.default_rng(12)
    reads = rng.poisson(rng.gamma(1, 2, size=(1, 3)) * np.ones((26, 1))) * rng.poisson(20, size=(26, 3))
    adata = ad.AnnData(reads.astype(np.float32))
    scnn.pp.dropout_prob(adata, count_type="reads")
    assert adata.varm["dropout_prob_molecule_share"].max() > 1
    np.testing.assert_array_equal(scnn.get.dropout_prob(adata), adata.layers["dropout_prob"])
    scnn.pp.cnn_impute(adata, count_type="reads", verbose=False)
    assert (dense(adata.layers["cnn_imputed"])[reads > 0] == reads[reads > 0]).all()


@pytest.mark.parametrize("how", ["molecules", "thinning"])
def test_evaluation_splits_molecules(reads: ad.AnnData, how: str) -> None:
    options = {"how": how, "n_seeds": 1, "settings": {"n_steps": 10}}
    table = scnn.tl.eval_imputation(reads.copy(), **options)
    as_molecules = scnn.tl.eval_imputation(reads.copy(), count_type="umi", **options)
    score = {"molecules": "deviance", "thinning": "mse_zeros"}[how]
    gained, apparent = (each.loc["cnn_impute", score] / each.loc["none", score] for each in (table, as_molecules))
    # Parts of the reads hold the same molecules, so that nothing seems to be missing.
    assert gained < 0.85
    assert apparent > 0.97


def test_seed(reads: ad.AnnData) -> None:
    first, second = reads.copy(), reads.copy()
    for adata in (first, second):
        scnn.pp.dropout_prob(adata, random_state=3)
    np.testing.assert_array_equal(first.layers["dropout_prob"], second.layers["dropout_prob"])


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_round_trip(imputed: ad.AnnData, tmp_path: Path, suffix: str) -> None:
    write, read = (imputed.write_h5ad, ad.read_h5ad) if suffix == "h5ad" else (imputed.write_zarr, ad.read_zarr)
    write(tmp_path / suffix)
    back = read(tmp_path / suffix)
    np.testing.assert_array_equal(scnn.get.dropout_prob(back), imputed.layers["dropout_prob"])
    values = scnn.get.cnn_imputed(back, cells=slice(0, 20))
    np.testing.assert_allclose(values, dense(imputed.layers["cnn_imputed"])[:20], rtol=1e-4)


@pytest.mark.parametrize(("place", "name"), [("obs", "reads_per_molecule"), ("varm", "reads_factor")])
def test_a_lost_part_is_named(imputed: ad.AnnData, place: str, name: str) -> None:
    adata = imputed.copy()
    del getattr(adata, place)[f"dropout_prob_{name}"]
    with pytest.raises(KeyError, match=rf"adata.{place}\['dropout_prob_{name}'\] is missing"):
        scnn.get.dropout_prob(adata)


def test_molecules_after_reads_leave_nothing_behind(imputed: ad.AnnData) -> None:
    adata = imputed.copy()
    scnn.pp.dropout_prob(adata, count_type="umi")
    assert "dropout_prob_reads_per_molecule" not in adata.obs
    assert "dropout_prob_reads_factor" not in adata.varm
