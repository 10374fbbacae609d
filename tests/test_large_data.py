"""Counts on disk and in Dask arrays, read by blocks, give what the same counts in memory give."""

from __future__ import annotations

import os
import signal
import time
import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import dense, simulate

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import CNNImputer, _counts
from scanpy_cnnimpute._counts import Counts

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
zarr = pytest.importorskip("zarr")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

N_CELLS, N_GENES = 120, 50
FAST: dict[str, Any] = {"n_steps": 4, "verbose": False}
# The network's batches are those of the block: sums of float32 in another order.
TOLERANCE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def whole() -> ad.AnnData:
    adata = simulate(N_CELLS, N_GENES)
    del adata.layers["twin"], adata.obsm["X_latent"]
    return adata


@pytest.fixture(scope="module")
def stored(whole: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    whole.write_h5ad(folder / "csr.h5ad")
    whole.write_zarr(folder / "csr.zarr")
    full = whole.copy()
    full.X = full.X.toarray()
    full.write_h5ad(folder / "dense.h5ad")
    full.write_zarr(folder / "dense.zarr")
    full.X = sp.csc_matrix(full.X)
    full.write_h5ad(folder / "csc.h5ad")
    full.write_zarr(folder / "csc.zarr")
    return folder


def around(whole: ad.AnnData, matrix: Any) -> ad.AnnData:
    return ad.AnnData(matrix, obs=whole.obs.copy(), var=whole.var.copy())


def lazy(stored: Path, chunks: tuple[int, int] = (37, N_GENES)) -> Any:
    return ad.experimental.read_elem_lazy(zarr.open_group(stored / "csr.zarr", mode="r")["X"], chunks=chunks)


KINDS: dict[str, Callable[[ad.AnnData, Path], ad.AnnData]] = {
    "backed_csr": lambda _, stored: ad.read_h5ad(stored / "csr.h5ad", backed="r"),
    "backed_dense": lambda _, stored: ad.read_h5ad(stored / "dense.h5ad", backed="r"),
    "zarr_csr": lambda whole, stored: around(whole, ad.io.sparse_dataset(zarr.open_group(stored / "csr.zarr")["X"])),
    "zarr_dense": lambda whole, stored: around(whole, zarr.open_group(stored / "dense.zarr", mode="r")["X"]),
    "dask_csr": lambda whole, stored: around(whole, lazy(stored)),
    "dask_csr_array": lambda whole, stored: around(
        whole, lazy(stored).map_blocks(sp.csr_array, meta=sp.csr_array((0, 0), dtype=np.float32))
    ),
    "dask_dense": lambda whole, _: around(whole, da.from_array(whole.X.toarray(), chunks=(50, N_GENES))),
    "read_lazy": lambda _, stored: ad.experimental.read_lazy(stored / "csr.zarr"),
}
DASK = [name for name in KINDS if name.startswith("dask")]


@pytest.fixture(params=KINDS)
def outside(request: pytest.FixtureRequest, whole: ad.AnnData, stored: Path) -> Iterator[ad.AnnData]:
    adata = KINDS[request.param](whole, stored)
    yield adata
    if adata.isbacked:
        adata.file.close()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in four blocks."""
    monkeypatch.setattr(_counts, "BLOCK_ENTRIES", 35 * N_GENES)


def loaded(matrix: Any) -> np.ndarray:
    return dense(matrix.compute() if hasattr(matrix, "compute") else matrix)


def impute(adata: ad.AnnData, **options: Any) -> ad.AnnData:
    with warnings.catch_warnings():
        # anndata turns the missing labels of a lazily read table around.
        warnings.simplefilter("ignore", FutureWarning)
        scnn.pp.cnn_impute(adata, **{**FAST, **options})
    return adata


@pytest.mark.usefixtures("small_blocks")
def test_every_kind_gives_what_memory_gives(whole: ad.AnnData, outside: ad.AnnData) -> None:
    expected = whole.copy()
    for adata in (expected, outside):
        scnn.pp.dropout_prob(adata, capture_efficiency=0.5, store="layer")
        impute(adata, return_std=True)
    for key in ("obsm", "varm"):
        for name in getattr(expected, key):
            np.testing.assert_array_equal(getattr(outside, key)[name], getattr(expected, key)[name], err_msg=name)
    assert list(outside.obs["dropout_prob_library_size"]) == list(expected.obs["dropout_prob_library_size"])
    np.testing.assert_array_equal(loaded(outside.layers["dropout_prob"]), expected.layers["dropout_prob"])
    for name in ("cnn_imputed", "cnn_imputed_std"):
        np.testing.assert_allclose(loaded(outside.layers[name]), loaded(expected.layers[name]), **TOLERANCE)
    pick: dict[str, Any] = {"genes": ["g7", "g3"], "cells": slice(30, 90)}
    np.testing.assert_array_equal(scnn.get.dropout_prob(outside, **pick), scnn.get.dropout_prob(expected, **pick))
    found = scnn.get.cnn_imputed(outside, **pick)
    np.testing.assert_allclose(found, scnn.get.cnn_imputed(expected, **pick), **TOLERANCE)


OPTIONS: dict[str, dict[str, Any]] = {
    "expected_count": {"estimate": "expected_count"},
    "conditional": {"estimate": "conditional", "return_std": True},
    "all": {"entries": "all", "key_added": "cnn_imputed"},
    "some genes": {"mask_var": np.arange(N_GENES) % 2 == 0},
}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", ["backed_csr", "zarr_dense", "dask_csr", "dask_dense"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_estimate(whole: ad.AnnData, stored: Path, kind: str, name: str) -> None:
    expected, outside = whole.copy(), KINDS[kind](whole, stored)
    for adata in (expected, outside):
        impute(adata, **OPTIONS[name])
    container = np.ndarray if name == "all" or "dense" in kind else sp.csr_matrix
    found = outside.layers["cnn_imputed"]
    assert isinstance(found.compute() if kind in DASK else found, container)
    np.testing.assert_allclose(loaded(found), loaded(expected.layers["cnn_imputed"]), **TOLERANCE)


@pytest.mark.parametrize("kind", ["backed_csr", "dask_csr"])
def test_the_paper_reads_everything(whole: ad.AnnData, stored: Path, kind: str) -> None:
    expected, outside = whole.copy(), KINDS[kind](whole, stored)
    options = {"preset": "paper", "n_targets": 16, "max_epochs": 2, "verbose": False, "cluster_key": "type"}
    for adata in (expected, outside):
        scnn.pp.cnn_impute(adata, **options)
    np.testing.assert_array_equal(loaded(outside.layers["cnn_imputed"]), loaded(expected.layers["cnn_imputed"]))


def test_dask_layers_are_lazy_and_have_the_chunks_of_x(whole: ad.AnnData, stored: Path) -> None:
    computed: list[int] = []

    def counted(block: Any) -> Any:
        computed.append(block.shape[0])
        return block

    matrix = lazy(stored)
    matrix = matrix.map_blocks(counted, dtype=matrix.dtype, meta=matrix._meta)
    adata = around(whole, matrix)
    with dask.config.set(scheduler="synchronous"):
        scnn.pp.dropout_prob(adata)
        impute(adata, return_std=True)
        computed.clear()
        layers = [adata.layers[name] for name in ("dropout_prob", "cnn_imputed", "cnn_imputed_std")]
        assert all(layer.chunks == matrix.chunks for layer in layers)
        assert [layer.dtype for layer in layers] == [np.float32] * 3
        assert computed == []
        layers[1][:10].compute()
        assert computed == [37]
    assert [type(layer._meta) for layer in layers] == [np.ndarray, sp.csr_matrix, sp.csr_matrix]


def test_params_alone_write_no_lazy_layer(whole: ad.AnnData, stored: Path) -> None:
    adata = impute(around(whole, lazy(stored)), store="params")
    assert not [name for name in adata.layers if name is not None]
    assert scnn.get.cnn_imputed(adata, cells=slice(3)).shape == (3, N_GENES)


def test_a_changed_lazy_layer_is_used(whole: ad.AnnData, stored: Path) -> None:
    expected, outside = whole.copy(), around(whole, lazy(stored))
    for adata in (expected, outside):
        scnn.pp.dropout_prob(adata, store="layer")
        # Nothing is missing in the first half of the genes.
        adata.layers["dropout_prob"] = adata.layers["dropout_prob"] * (np.arange(N_GENES) >= 25).astype(np.float32)
        impute(adata)
    assert (loaded(outside.layers["cnn_imputed"])[:, :25] == loaded(whole.X)[:, :25]).all()
    np.testing.assert_allclose(
        loaded(outside.layers["cnn_imputed"]), loaded(expected.layers["cnn_imputed"]), **TOLERANCE
    )


def test_own_probabilities_in_a_dask_array(whole: ad.AnnData, stored: Path) -> None:
    expected, outside = whole.copy(), around(whole, lazy(stored))
    mine = np.random.default_rng(0).uniform(size=whole.shape).astype(np.float32)
    expected.layers["mine"] = mine
    outside.layers["mine"] = da.from_array(mine, chunks=(60, 25))
    for adata in (expected, outside):
        impute(adata, dropout_key="mine")
    np.testing.assert_allclose(
        loaded(outside.layers["cnn_imputed"]), loaded(expected.layers["cnn_imputed"]), **TOLERANCE
    )


@pytest.mark.parametrize("kind", ["backed_csr", "zarr_dense", "dask_csr", "dask_dense"])
@pytest.mark.usefixtures("small_blocks")
def test_the_estimator_reads_every_kind(whole: ad.AnnData, stored: Path, kind: str) -> None:
    outside = KINDS[kind](whole, stored)
    expected = CNNImputer(**FAST).fit_transform(whole, return_std=True)
    imputer = CNNImputer(**FAST)
    for found, known in zip(imputer.fit_transform(outside, return_std=True), expected, strict=True):
        np.testing.assert_allclose(loaded(found), loaded(known), **TOLERANCE)
    again = imputer.transform(whole)
    found = imputer.transform(outside)
    assert hasattr(found, "compute") == (kind in DASK)
    np.testing.assert_allclose(loaded(found), loaded(again), **TOLERANCE)
    np.testing.assert_allclose(loaded(imputer.transform(outside.X)), loaded(again), **TOLERANCE)
    # Genes in another order, and one capture efficiency for each cell.
    if not outside.isbacked:
        turned = outside[:, ::-1] if kind in DASK else whole[:, ::-1]
        efficiency = np.linspace(0.2, 0.8, N_CELLS)
        np.testing.assert_allclose(
            loaded(imputer.transform(turned, capture_efficiency=efficiency)),
            loaded(imputer.transform(whole, capture_efficiency=efficiency))[:, ::-1],
            **TOLERANCE,
        )


def test_evaluation_draws_cells(
    whole: ad.AnnData, stored: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("scanpy_cnnimpute.tl._eval_imputation.MAX_CELLS", 80)
    adata = around(whole, lazy(stored))
    options: dict[str, Any] = {"how": "thinning", "n_seeds": 1, "random_state": 3, "settings": {"n_steps": 2}}
    with caplog.at_level("INFO", logger="scanpy_cnnimpute"):
        table = scnn.tl.eval_imputation(adata, **options)
    assert "80 cells are drawn out of 120" in caplog.text
    drawn = np.sort(np.random.default_rng(3).choice(N_CELLS, 80, replace=False))
    pd.testing.assert_frame_equal(table, scnn.tl.eval_imputation(whole[drawn].copy(), **options))


def test_one_pass_of_statistics(whole: ad.AnnData, outside: ad.AnnData) -> None:
    totals, matrix = Counts.of(outside.X).totals, whole.X.toarray()
    np.testing.assert_array_equal(totals.library_size, matrix.sum(axis=1))
    np.testing.assert_array_equal(totals.gene_total, matrix.sum(axis=0))
    np.testing.assert_array_equal(totals.n_genes, (matrix > 0).sum(axis=1))
    np.testing.assert_array_equal(totals.n_cells, (matrix > 0).sum(axis=0))
    assert (totals.is_whole, totals.largest, totals.problem) == (True, matrix.max(), None)


@pytest.mark.usefixtures("small_blocks")
def test_rows_and_blocks_of_every_kind(whole: ad.AnnData, outside: ad.AnnData) -> None:
    counts, matrix = Counts.of(outside.X), whole.X.toarray()
    for rows in (np.array([0, 3, 36, 37, 119]), np.arange(20, 90), np.arange(0), np.arange(N_CELLS)):
        np.testing.assert_array_equal(counts.rows(rows).toarray(), matrix[rows])
    parts = list(counts.blocks())
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in parts]), np.arange(N_CELLS))
    np.testing.assert_array_equal(np.concatenate([block.toarray() for _, block in parts]), matrix)
    np.testing.assert_array_equal(counts.to_dense(np.dtype(np.float64)), matrix)


def test_what_cannot_be_read_by_cells_is_refused(whole: ad.AnnData, stored: Path) -> None:
    cases = {
        "2 blocks of genes.*rechunk": da.from_array(whole.X.toarray(), chunks=(50, 25)),
        "Dask array of CSC blocks": ad.experimental.read_elem_lazy(zarr.open_group(stored / "csc.zarr")["X"]),
        "CSC matrix on disk": ad.io.sparse_dataset(zarr.open_group(stored / "csc.zarr")["X"]),
    }
    for message, matrix in cases.items():
        adata = around(whole, matrix)
        for call in (scnn.pp.dropout_prob, impute, CNNImputer(**FAST).fit):
            with pytest.raises((ValueError, TypeError), match=f"adata.X is a .*{message}"):
                call(adata)
        assert not adata.uns


def test_normalised_values_are_refused_in_every_kind(outside: ad.AnnData) -> None:
    if not hasattr(outside.X, "map_blocks"):
        pytest.skip("files are as they are")
    matrix = outside.X
    outside.X = matrix.map_blocks(lambda block: np.log1p(block) if isinstance(block, np.ndarray) else block.log1p())
    with pytest.raises(ValueError, match="looks log-transformed"):
        scnn.pp.dropout_prob(outside)


def test_anndata_writes_lazy_layers(whole: ad.AnnData, stored: Path, tmp_path: Path) -> None:
    adata = impute(around(whole, lazy(stored)))
    expected = impute(whole.copy())
    adata.write_zarr(tmp_path / "out.zarr")
    adata.write_h5ad(tmp_path / "out.h5ad")
    for read in (ad.read_zarr(tmp_path / "out.zarr"), ad.read_h5ad(tmp_path / "out.h5ad")):
        np.testing.assert_allclose(
            loaded(read.layers["cnn_imputed"]), loaded(expected.layers["cnn_imputed"]), **TOLERANCE
        )
        assert scnn.get.cnn_imputed(read, cells=slice(2)).shape == (2, N_GENES)


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_schedulers_of_one_process(whole: ad.AnnData, stored: Path, scheduler: str) -> None:
    expected = impute(whole.copy())
    with dask.config.set(scheduler=scheduler):
        adata = around(whole, lazy(stored, (10, N_GENES)))
        scnn.pp.dropout_prob(adata)
        impute(adata)
        found = loaded(adata.layers["cnn_imputed"])
    np.testing.assert_array_equal(adata.obsm["dropout_prob_scores"], expected.obsm["dropout_prob_scores"])
    np.testing.assert_allclose(found, loaded(expected.layers["cnn_imputed"]), **TOLERANCE)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with (
        warnings.catch_warnings(),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as workers,
        distributed.Client(workers) as client,
    ):
        yield client


def test_two_workers_give_the_same(whole: ad.AnnData, stored: Path, cluster: Any) -> None:
    expected = whole.copy()
    adata = around(whole, lazy(stored, (30, N_GENES)))
    for each in (expected, adata):
        scnn.pp.dropout_prob(each)
        impute(each, return_std=True)
    np.testing.assert_array_equal(adata.obsm["dropout_prob_scores"], expected.obsm["dropout_prob_scores"])
    for name in ("dropout_prob", "cnn_imputed", "cnn_imputed_std"):
        np.testing.assert_allclose(loaded(adata.layers[name]), loaded(expected.layers[name]), **TOLERANCE)


def test_a_worker_that_is_killed_changes_nothing(whole: ad.AnnData, stored: Path, cluster: Any) -> None:
    expected = loaded(impute(whole.copy()).layers["cnn_imputed"])
    adata = impute(around(whole, lazy(stored, (6, N_GENES))))
    future = cluster.compute(adata.layers["cnn_imputed"])
    time.sleep(0.3)
    os.kill(next(iter(cluster.run(os.getpid).values())), signal.SIGKILL)
    np.testing.assert_allclose(loaded(future.result(timeout=120)), expected, **TOLERANCE)
