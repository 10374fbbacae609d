"""Stored fits: ``pp.cnn_impute`` goes on from them, ``get`` gives any part, and what no longer belongs is refused."""

from __future__ import annotations

import functools
import logging
import pickle
import re
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from helpers import QUICK, assert_only_added, dense, simulate

import scanpy_cnnimpute as scnn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("quick_networks")

ESTIMATES = ("posterior_mean", "expected_count", "conditional")
# Of the network's arithmetic in batches of other shapes.
TOLERANCE = 1e-5
SHORT: dict[str, Any] = {"n_steps": 20, "verbose": False}


@functools.cache
def _imputed(estimate: str, kind: str) -> ad.AnnData:
    adata = simulate()
    if kind == "dense":
        adata.X = adata.X.toarray()
    scnn.pp.dropout_prob(adata, capture_efficiency=0.3)
    scnn.pp.cnn_impute(adata, estimate=estimate, **SHORT)
    return adata


def imputed(estimate: str = "posterior_mean", kind: str = "sparse") -> ad.AnnData:
    """An imputation with its layer and its stored fits; the caller's to change."""
    return _imputed(estimate, kind).copy()


def assert_equals_layer(adata: ad.AnnData, expected: np.ndarray, key: str = "cnn_imputed") -> None:
    np.testing.assert_allclose(scnn.get.cnn_imputed(adata, key=key), expected, rtol=TOLERANCE, atol=TOLERANCE)


# Going on from a fit


@pytest.mark.parametrize("estimate", ESTIMATES)
@pytest.mark.parametrize("store", ["layer", "params"])
def test_in_two_steps_as_in_one(estimate: str, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # these are trained
    one, two = simulate(), simulate()
    scnn.pp.cnn_impute(one, estimate=estimate, random_state=3, **SHORT)
    scnn.pp.dropout_prob(two, store=store, random_state=3)
    scnn.pp.cnn_impute(two, estimate=estimate, random_state=3, **SHORT)
    layer = two.layers["cnn_imputed"].toarray()
    assert (layer != dense(two.X)).any()
    np.testing.assert_array_equal(layer, one.layers["cnn_imputed"].toarray())
    np.testing.assert_array_equal(scnn.get.dropout_prob(two), scnn.get.dropout_prob(one))


def test_seeds_and_capture_efficiency_reach_both_models() -> None:
    adata = simulate()
    scnn.pp.cnn_impute(adata, random_state=3, **SHORT)
    assert adata.uns["dropout_prob"]["params"]["random_state"] == 3
    layer, zero = adata.layers["cnn_imputed"].toarray(), dense(adata.X) == 0
    scnn.pp.cnn_impute(adata, random_state=4, key_added="other", **SHORT)  # the network's alone
    assert adata.uns["dropout_prob"]["params"]["random_state"] == 3
    # On so few cells both may keep the weights that change nothing, but they were trained differently.
    losses = [adata.uns[key]["history"]["val_loss"].to_numpy() for key in ("cnn_imputed", "other")]
    assert (losses[0][1:] != losses[1][1:]).all()
    scnn.pp.dropout_prob(adata, capture_efficiency=0.05, key_added="shallow")
    scnn.pp.cnn_impute(adata, dropout_key="shallow", key_added="more", **SHORT)
    # More was missed, so more is given back.
    assert adata.layers["more"].toarray()[zero].sum() > 1.5 * layer[zero].sum()


def test_the_default_writes_what_it_says() -> None:
    adata = simulate()
    scnn.pp.dropout_prob(adata)
    before = adata.copy()
    scnn.pp.cnn_impute(adata, return_std=True, **SHORT)
    arrays = {"gene_ids", "neighbours", "correlations", "level", "status"}
    added = {("layers", "cnn_imputed"), ("layers", "cnn_imputed_std"), ("uns", "cnn_imputed")}
    assert_only_added(before, adata, added | {("varm", f"cnn_imputed_{name}") for name in arrays})
    spread = adata.layers["cnn_imputed_std"].toarray()
    changed = adata.layers["cnn_imputed"].toarray() != dense(adata.X)
    np.testing.assert_array_equal(spread > 0, changed)
    assert adata.layers["cnn_imputed_std"].dtype == np.float32


# Any part of it


PARTS: list[tuple[Any, Any]] = [
    (slice(None), slice(None)),
    (slice(5, 20, 2), slice(3, 9)),
    (["c3", "c1"], ["g4", "g2", "g7"]),
    ("c3", "g4"),
    (np.arange(60) % 3 == 0, np.arange(50) > 40),
    ([7, 1, 7], [9, 2, 9, 0]),
    (slice(None, None, -1), slice(None, None, -1)),
    ([], slice(None)),
    (slice(None), []),
]


@pytest.mark.parametrize("kind", ["sparse", "dense"])
@pytest.mark.parametrize("estimate", ESTIMATES)
def test_get_any_part(estimate: str, kind: str) -> None:
    adata = imputed(estimate, kind)
    layer = dense(adata.layers["cnn_imputed"])
    rows, columns = (
        pd.DataFrame({"at": np.arange(size)}, index=names)
        for size, names in zip(adata.shape, (adata.obs_names, adata.var_names), strict=True)
    )
    for cells, genes in PARTS:
        one, other = ([axis] if isinstance(axis, str) else axis for axis in (cells, genes))
        expected = layer[np.ix_(_at(rows, one), _at(columns, other))]
        part = scnn.get.cnn_imputed(adata, cells=cells, genes=genes)
        assert part.dtype == np.float32
        np.testing.assert_allclose(part, expected, rtol=TOLERANCE, atol=TOLERANCE)


def _at(table: pd.DataFrame, chosen: Any) -> np.ndarray:
    named = isinstance(chosen, list) and chosen and isinstance(chosen[0], str)
    return (table.loc[chosen] if named else table.iloc[chosen])["at"].to_numpy()


@pytest.mark.parametrize("kind", ["sparse", "dense"])
@pytest.mark.parametrize("estimate", ESTIMATES)
def test_parameters_alone_are_enough(estimate: str, kind: str) -> None:
    expected = imputed(estimate, kind)
    adata = simulate()
    adata.X = adata.X.toarray() if kind == "dense" else adata.X
    scnn.pp.dropout_prob(adata, capture_efficiency=0.3, store="params")
    scnn.pp.cnn_impute(adata, estimate=estimate, store="params", **SHORT)
    assert {"cnn_imputed", "dropout_prob"}.isdisjoint(adata.layers)
    assert_equals_layer(adata, dense(expected.layers["cnn_imputed"]))
    summary = adata.uns["cnn_imputed"]["summary"]
    pd.testing.assert_frame_equal(summary, expected.uns["cnn_imputed"]["summary"])


def test_a_layer_that_is_too_large_is_not_written(caplog: pytest.LogCaptureFixture) -> None:
    expected, adata = imputed(), simulate()
    scnn.pp.dropout_prob(adata, capture_efficiency=0.3)
    with caplog.at_level(logging.WARNING, "scanpy_cnnimpute"):
        scnn.pp.cnn_impute(adata, max_layer_bytes=1000, **SHORT)
    assert "cnn_imputed" not in adata.layers
    assert "max_layer_bytes" in caplog.text
    assert "get.cnn_imputed(adata, genes=, cells=, key='cnn_imputed')" in caplog.text
    assert_equals_layer(adata, dense(expected.layers["cnn_imputed"]))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "scanpy_cnnimpute"):
        scnn.pp.cnn_impute(adata, max_layer_bytes=60 * 50 * 8, **SHORT)
        scnn.pp.cnn_impute(adata, max_layer_bytes=0, store="layer", key_added="asked", **SHORT)
    assert caplog.text == ""
    for key in ("cnn_imputed", "asked"):
        np.testing.assert_array_equal(adata.layers[key].toarray(), expected.layers["cnn_imputed"].toarray())
    # A later call without a layer leaves none of an earlier one.
    scnn.pp.cnn_impute(adata, store="params", **SHORT)
    assert "cnn_imputed" not in adata.layers


def test_the_papers_networks_are_not_stored() -> None:
    adata = simulate()
    with pytest.raises(ValueError, match=r"store='params' needs preset='default'.*Pass store='layer'"):
        scnn.pp.cnn_impute(adata, cluster_key="type", store="params", **QUICK)
    assert "dropout_prob" not in adata.uns
    scnn.pp.cnn_impute(adata, cluster_key="type", **QUICK)
    with pytest.raises(
        KeyError, match=r"No imputer is stored under 'cnn_imputed'. Stored: \[\].*too large to be stored"
    ):
        scnn.get.cnn_imputed(adata)
    with pytest.raises(KeyError, match=r"No imputer is stored under 'other'. Stored: \[\]. Run pp.cnn_impute first"):
        scnn.get.cnn_imputed(adata, key="other")


# What may happen to an AnnData in between


def _written(adata: ad.AnnData, folder: Path, suffix: str) -> ad.AnnData:
    path = folder / f"a.{suffix}"
    getattr(adata, f"write_{suffix}")(path)
    return getattr(ad, f"read_{suffix}")(path)


JOURNEYS: dict[str, Callable[[ad.AnnData, Path], ad.AnnData]] = {
    "h5ad": lambda adata, folder: _written(adata, folder, "h5ad"),
    "zarr": lambda adata, folder: _written(adata, folder, "zarr"),
    "copy": lambda adata, folder: adata.copy(),
    "pickle": lambda adata, folder: pickle.loads(pickle.dumps(adata)),
    "both files": lambda adata, folder: _written(_written(adata, folder, "zarr"), folder, "h5ad"),
}


@pytest.mark.parametrize("journey", JOURNEYS)
@pytest.mark.parametrize("estimate", ESTIMATES)
def test_survives(estimate: str, journey: str, tmp_path: Path) -> None:
    adata = imputed(estimate)
    back = JOURNEYS[journey](adata, tmp_path)
    np.testing.assert_array_equal(back.layers["cnn_imputed"].toarray(), adata.layers["cnn_imputed"].toarray())
    np.testing.assert_array_equal(scnn.get.dropout_prob(back), adata.layers["dropout_prob"])
    assert_equals_layer(back, dense(adata.layers["cnn_imputed"]))
    assert back.uns["cnn_imputed"]["params"] == adata.uns["cnn_imputed"]["params"]
    # Both steps can be run again, the second on the stored model.
    scnn.pp.cnn_impute(back, estimate=estimate, **SHORT)
    np.testing.assert_array_equal(back.layers["cnn_imputed"].toarray(), adata.layers["cnn_imputed"].toarray())
    scnn.pp.dropout_prob(back, capture_efficiency=0.3)


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_cells_may_be_dropped_and_reordered(estimate: str) -> None:
    adata = imputed(estimate)
    for rows in (np.flatnonzero(adata.obs["type"] == "b"), np.arange(60)[::-1], np.array([4])):
        for part in (adata[rows], adata[rows].copy()):
            assert_equals_layer(part, dense(adata.layers["cnn_imputed"])[rows])


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_genes_may_be_reordered(estimate: str) -> None:
    adata = imputed(estimate)
    order = np.random.default_rng(0).permutation(50)
    assert_equals_layer(adata[:, order].copy(), dense(adata.layers["cnn_imputed"])[:, order])


@pytest.mark.parametrize("estimate", ESTIMATES[:2])
def test_genes_may_be_dropped(estimate: str, caplog: pytest.LogCaptureFixture) -> None:
    adata = imputed(estimate)
    neighbours = adata.varm["cnn_imputed_neighbours"]
    assert (neighbours >= 0).all()
    # Some genes, and all that the first two of them read.
    kept = np.union1d(np.arange(12), neighbours[:2])
    complete = np.isin(neighbours[kept], kept).all(axis=1)
    assert complete.any()
    assert not complete.all()
    part = adata[:, kept].copy()
    with caplog.at_level(logging.WARNING, "scanpy_cnnimpute"):
        found = scnn.get.cnn_imputed(part)
    n_lost = int((~complete).sum())
    assert f"{n_lost} genes are imputed without the network" in caplog.text
    expected = dense(part.layers["cnn_imputed"])
    np.testing.assert_allclose(found[:, complete], expected[:, complete], rtol=TOLERANCE, atol=TOLERANCE)
    # The others have what the dropout model alone says.
    lost = ~complete
    np.testing.assert_array_equal(found[:, lost] > 0, expected[:, lost] > 0)
    changed = dense(part.X)[:, lost] != expected[:, lost]
    assert (found[:, lost] != expected[:, lost])[changed].all()
    np.testing.assert_array_equal(scnn.get.dropout_prob(part), part.layers["dropout_prob"])


def test_genes_may_be_dropped_from_the_conditional_estimate(caplog: pytest.LogCaptureFixture) -> None:
    """Its cells are described by the genes that are left: the same zeros have values of about the same size."""
    adata = imputed("conditional")
    part = adata[:, :30].copy()
    with caplog.at_level(logging.WARNING, "scanpy_cnnimpute"):
        found = scnn.get.cnn_imputed(part)
    assert "genes are imputed without the network" in caplog.text
    expected, x = dense(part.layers["cnn_imputed"]), dense(part.X)
    np.testing.assert_array_equal(found > 0, expected > 0)
    np.testing.assert_array_equal(found[x > 0], x[x > 0])
    assert np.isfinite(found).all()


@pytest.mark.parametrize("names", ["odd", "integer"])
@pytest.mark.filterwarnings("ignore:Transforming to str index")  # by anndata, when it reads such a file
def test_names_of_genes(names: str, tmp_path: Path) -> None:
    adata = simulate()
    odd = ["a/b", "a\\b", "", " ", ".", "é", "gene 1", "A|B", "index", "_index", "x" * 300, "nan", "1e5", "'\""]
    index = np.arange(1000, 1050) if names == "integer" else [*odd, *adata.var_names[len(odd) :]]
    adata.var["id"] = index
    adata.var.set_index("id", inplace=True)  # noqa: PD002 - anndata makes text of what is assigned
    scnn.pp.dropout_prob(adata, capture_efficiency=0.3)
    scnn.pp.cnn_impute(adata, **SHORT)
    layer = imputed().layers["cnn_imputed"].toarray()
    for suffix in ("h5ad", "zarr"):
        back = _written(adata, tmp_path, suffix)
        assert_equals_layer(back, layer)
        assert back.uns["cnn_imputed"]["status"].index.tolist() == back.var_names.tolist() == [str(x) for x in index]
        gene = back.var_names[0]
        np.testing.assert_allclose(scnn.get.cnn_imputed(back, genes=gene)[:, 0], layer[:, 0], rtol=TOLERANCE)


def test_genes_may_be_renamed(tmp_path: Path) -> None:
    adata = imputed()
    layer = adata.layers["cnn_imputed"].toarray()
    adata.var["id"] = [f"ENSG{number}" for number in range(50)]
    adata.var.index = adata.var["id"]
    assert "ENSG" in repr(adata.var)
    for again in (adata, adata.copy(), _written(adata, tmp_path, "h5ad")):
        assert_equals_layer(again, layer)
        np.testing.assert_array_equal(scnn.get.dropout_prob(again), again.layers["dropout_prob"])
        scnn.pp.cnn_impute(again, **SHORT)
        np.testing.assert_array_equal(again.layers["cnn_imputed"].toarray(), layer)


def test_parts_of_one_fit_may_be_put_together_again() -> None:
    adata = imputed()
    layer = adata.layers["cnn_imputed"].toarray()
    cells = ad.concat([adata[40:], adata[:20]], merge="same", uns_merge="first")
    assert_equals_layer(cells, layer[np.r_[40:60, :20]])
    genes = ad.concat([adata[:, 25:], adata[:, :25]], axis="var", merge="same", uns_merge="first")
    assert_equals_layer(genes, layer[:, np.r_[25:50, :25]])
    np.testing.assert_array_equal(scnn.get.dropout_prob(cells), cells.layers["dropout_prob"])


# What is refused


def _sort_var(adata: ad.AnnData) -> None:
    adata.var["rank"] = np.arange(50)[::-1]
    adata.var = adata.var.sort_values("rank")


def _reverse_columns(adata: ad.AnnData) -> None:
    adata.X = adata.X[:, ::-1].copy()


def _replace_counts(adata: ad.AnnData) -> None:
    adata.X = simulate(seed=1).X


def _one_more(adata: ad.AnnData) -> None:
    adata.X = adata.X.copy()
    adata.X.data[0] += 1


def _permute_rows(adata: ad.AnnData) -> None:
    adata.X = adata.X[np.random.default_rng(0).permutation(60)].copy()


def _log(adata: ad.AnnData) -> None:
    adata.X = adata.X.log1p()


REFUSED: dict[str, tuple[Callable[[ad.AnnData], None], str]] = {
    "var sorted": (_sort_var, r"50 genes of adata.var, such as 'g49', stand at the counts of other genes"),
    "columns reversed": (_reverse_columns, r"The counts are not those .* the totals of \d+ genes differ"),
    "counts replaced": (_replace_counts, r"The counts are not those .* the totals of \d+ cells differ"),
    "one molecule more": (_one_more, "The counts are not those .* the totals of 1 cells differ"),
    "rows permuted": (_permute_rows, r"The counts are not those .* the totals of \d+ cells differ"),
    "log-transformed": (_log, "The counts are not those|looks log-transformed"),
}


@pytest.mark.parametrize("change", REFUSED)
@pytest.mark.parametrize("estimate", ["posterior_mean", "conditional"])
def test_a_fit_that_no_longer_belongs_is_refused(estimate: str, change: str) -> None:
    apply, match = REFUSED[change]
    adata = imputed(estimate)
    apply(adata)
    before = adata.copy()
    for call in (
        scnn.get.dropout_prob,
        scnn.get.cnn_imputed,
        lambda adata: scnn.get.cnn_imputed(adata, cells=slice(0, 30), genes=["g0"]),
        lambda adata: scnn.pp.cnn_impute(adata, estimate=estimate, key_added="new", **SHORT),
    ):
        with pytest.raises(ValueError, match=match):
            call(adata)
    assert_only_added(before, adata, set())


def test_a_part_of_other_counts_is_refused() -> None:
    """Fewer genes or cells leave smaller totals, never larger ones."""
    part = imputed()[:30, :20].copy()
    part.X = part.X * 2
    for call in (scnn.get.dropout_prob, scnn.get.cnn_imputed):
        with pytest.raises(ValueError, match="The counts are not those"):
            call(part)


def test_parts_of_two_fits_are_refused() -> None:
    adata, other = imputed(), simulate(seed=1)
    scnn.pp.dropout_prob(other, capture_efficiency=0.3)
    scnn.pp.cnn_impute(other, **SHORT)
    merged = ad.concat([adata, other], merge="first", uns_merge="first", index_unique="-")
    for call in (scnn.get.dropout_prob, scnn.get.cnn_imputed):
        with pytest.raises(ValueError, match=r"60 of the cells do not come from the fit .* Run pp.dropout_prob again"):
            call(merged)
    genes = ad.concat([adata[:, :25], other[:, 25:]], axis="var", merge="first", uns_merge="first")
    with pytest.raises(ValueError, match="25 of the genes do not come from the fit"):
        scnn.get.cnn_imputed(genes)


def test_a_dropout_model_that_was_fitted_again_is_refused() -> None:
    adata = imputed()
    scnn.pp.dropout_prob(adata, capture_efficiency=0.3, random_state=1)
    with pytest.raises(ValueError, match=r"'cnn_imputed' goes on from another fit .* Run pp.cnn_impute again"):
        scnn.get.cnn_imputed(adata)
    scnn.pp.dropout_prob(adata, capture_efficiency=0.3)  # the same fit as before
    assert_equals_layer(adata, dense(adata.layers["cnn_imputed"]))
    del adata.uns["dropout_prob"]
    with pytest.raises(ValueError, match=r"'cnn_imputed' goes on from another fit"):
        scnn.get.cnn_imputed(adata)


def test_a_damaged_fit_is_refused() -> None:
    adata = imputed()
    adata.varm["cnn_imputed_neighbours"] = adata.varm["cnn_imputed_neighbours"].astype(float)
    with pytest.raises(ValueError, match=r"The fit stored under 'cnn_imputed' is damaged: the array 'neighbours'"):
        scnn.get.cnn_imputed(adata)
    del adata.varm["cnn_imputed_neighbours"]
    with pytest.raises(KeyError, match="No imputer is stored under 'cnn_imputed'"):
        scnn.get.cnn_imputed(adata)
    del adata.varm["dropout_prob_shape"]
    with pytest.raises(KeyError, match="No dropout model is stored under 'dropout_prob'"):
        scnn.get.dropout_prob(adata)


RECORDS = {
    "model": ("dropout_prob", ["params", "model"], scnn.get.dropout_prob),
    "n_obs": ("dropout_prob", ["fingerprint", "n_obs"], scnn.get.dropout_prob),
    "is_whole": ("dropout_prob", ["fingerprint", "is_whole"], scnn.pp.cnn_impute),
    "format": ("dropout_prob", ["fingerprint", "format"], scnn.get.cnn_imputed),
    "preset": ("cnn_imputed", ["params", "preset"], scnn.get.cnn_imputed),
    "fingerprint": ("cnn_imputed", ["fingerprint"], scnn.get.cnn_imputed),
    "history": ("cnn_imputed", ["history"], lambda adata: scnn.pl.history(adata, show=False)),
}


@pytest.mark.parametrize("lost", RECORDS)
def test_what_a_record_has_lost_is_named(lost: str) -> None:
    adata = imputed()
    key, place, call = RECORDS[lost]
    record = adata.uns[key]
    for name in place[:-1]:
        record = record[name]
    del record[place[-1]]
    written_by = "pp.dropout_prob" if key == "dropout_prob" else "pp.cnn_impute"
    said = (
        f"'{lost}'. Run {written_by} again" if lost != "model" else "['params']['model']=None is not known. Available"
    )
    with pytest.raises((KeyError, ValueError), match=re.escape(said)):
        call(adata)


def test_what_stands_in_place_of_a_record_is_refused() -> None:
    adata = imputed()
    adata.uns["dropout_prob"]["params"]["model"] = "zzz"
    with pytest.raises(ValueError, match=r"adata.uns\['dropout_prob'\]\['params'\]\['model'\]='zzz' is not known"):
        scnn.get.dropout_prob(adata)
    adata.uns["dropout_prob"] = None
    with pytest.raises(ValueError, match="'cnn_imputed' goes on from another fit"):
        scnn.get.cnn_imputed(adata)
    adata.uns["cnn_imputed"]["history"] = [1, 2]
    with pytest.raises(ValueError, match=r"adata.uns\['cnn_imputed'\]\['history'\] has type list, not a table"):
        scnn.pl.history(adata, show=False)


# Layers of the user's own


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_a_changed_dropout_layer_is_used(estimate: str) -> None:
    adata = imputed(estimate)
    zero = dense(adata.X) == 0
    before = dense(adata.layers["cnn_imputed"])
    adata.layers["dropout_prob"][:, 5:] = 0
    adata.layers["dropout_prob"][:30, 0] = np.where(zero[:30, 0], 0.95, 0)
    scnn.pp.cnn_impute(adata, estimate=estimate, **SHORT)
    after = dense(adata.layers["cnn_imputed"])
    np.testing.assert_array_equal(after[:, 5:], dense(adata.X)[:, 5:])
    assert (after[:30, 0][zero[:30, 0]] > 0).all()
    assert (after[30:, 0] > 0).sum() >= (before[30:, 0] > 0).sum() > 0
    if estimate != "conditional":
        assert after[:30, 0][zero[:30, 0]].mean() > before[:30, 0][zero[:30, 0]].mean()
    assert_equals_layer(adata, after)


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_a_dropout_layer_in_half_precision(estimate: str) -> None:
    adata = imputed(estimate)
    expected = dense(adata.layers["cnn_imputed"])
    adata.layers["dropout_prob"] = adata.layers["dropout_prob"].astype(np.float16)
    scnn.pp.cnn_impute(adata, estimate=estimate, **SHORT)
    found = dense(adata.layers["cnn_imputed"])
    # float16 has eleven bits; a probability at the threshold may fall on its other side.
    assert np.mean((found > 0) != (expected > 0)) < 0.01
    both = (found > 0) & (expected > 0)
    # Missed molecules grow without bounds towards a probability of one.
    np.testing.assert_allclose(found[both], expected[both], rtol=0.05)


def test_masks_of_every_dtype_fill_alike() -> None:
    layers = []
    for dtype in (bool, np.int8, np.int64, np.float32, np.float64):
        adata = simulate()
        adata.layers["dropout_prob"] = (dense(adata.X) == 0).astype(dtype)
        scnn.pp.cnn_impute(adata, **SHORT)
        assert adata.uns["cnn_imputed"]["params"]["estimate"] == "conditional"
        layers.append(dense(adata.layers["cnn_imputed"]))
        assert_equals_layer(adata, layers[-1])
    zero = dense(simulate().X) == 0
    assert (layers[0][zero] > 0).mean() > 0.99
    for layer in layers[1:]:
        np.testing.assert_array_equal(layer, layers[0])


def test_normalised_counts_are_refused_after_cells_and_genes_were_dropped() -> None:
    adata = simulate()
    scnn.pp.cnn_impute(adata, store="params", **SHORT)
    part = adata[5:, 5:].copy()  # neither totals of cells nor of genes are those of the fit
    part.X = part.X.log1p()
    for call in (scnn.get.cnn_imputed, scnn.get.dropout_prob, scnn.CNNImputer.from_anndata):
        with pytest.raises(ValueError, match="those were whole numbers, these are not, as after normalisation"):
            call(part)


def test_the_same_model_asked_for_again_is_the_same() -> None:
    adata = simulate()
    scnn.pp.cnn_impute(adata, **SHORT)
    scnn.pp.dropout_prob(adata)  # to look at the layer
    np.testing.assert_allclose(scnn.get.cnn_imputed(adata), adata.layers["cnn_imputed"].toarray(), rtol=1e-5)


def test_an_edited_dropout_layer_must_stay() -> None:
    adata = simulate()
    scnn.pp.dropout_prob(adata)
    adata.layers["dropout_prob"][:, :20] = 0
    scnn.pp.cnn_impute(adata, **SHORT)
    np.testing.assert_allclose(scnn.get.cnn_imputed(adata), adata.layers["cnn_imputed"].toarray(), rtol=1e-5)
    del adata.layers["dropout_prob"]
    with pytest.raises(ValueError, match="was fitted with other dropout probabilities than those now under"):
        scnn.get.cnn_imputed(adata)


def test_standard_deviations_need_a_layer() -> None:
    adata = simulate()
    with pytest.raises(ValueError, match="return_std=True writes a layer, which store='params' does not"):
        scnn.pp.cnn_impute(adata, store="params", return_std=True, **SHORT)
    scnn.pp.cnn_impute(adata, max_layer_bytes=1, return_std=True, **SHORT)
    assert "cnn_imputed_std" not in adata.layers
    assert "std_units" not in adata.uns["cnn_imputed"]["params"]


def test_few_cells_of_the_fit_that_are_left_train_no_network(caplog: pytest.LogCaptureFixture) -> None:
    adata = simulate()
    scnn.pp.dropout_prob(adata)
    scnn.pp.cnn_impute(adata[:5], **SHORT)
    assert "At least 10 cells with counts are needed" in caplog.text


def test_genes_that_occur_twice_are_refused() -> None:
    adata = simulate()
    scnn.pp.cnn_impute(adata, **SHORT)
    with pytest.raises(ValueError, match="genes occur more than once"):
        scnn.get.cnn_imputed(adata[:, [0, 0, 1]])
