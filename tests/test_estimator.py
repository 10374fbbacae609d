"""``CNNImputer``: every preset and estimate on arrays and AnnData, new cells, and what is saved and loaded."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from helpers import QUICK, dense, simulate

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import CNNImputer, _matrix, metrics
from scanpy_cnnimpute._counts import Counts
from scanpy_cnnimpute.dropout import Clusters
from scanpy_cnnimpute.dropout.calibrated import CalibratedModel
from scanpy_cnnimpute.dropout.gamma_normal import GammaNormalModel
from scanpy_cnnimpute.imputation import STATUSES, base

if TYPE_CHECKING:
    import anndata as ad

FAST: dict[str, Any] = {"n_steps": 3, "verbose": False}
CASES: dict[str, dict[str, Any]] = {
    "posterior_mean": {"estimate": "posterior_mean", **FAST},
    "expected_count": {"estimate": "expected_count", **FAST},
    "conditional": {"estimate": "conditional", "threshold": 0.1, **FAST},
    "paper": {**QUICK, "max_dropout": 1, "threshold": 0.1},
}
DEFAULT_CASES = [name for name in CASES if name != "paper"]


def clusters_of(case: str, adata: ad.AnnData) -> dict[str, Any]:
    return {"clusters": adata.obs["type"]} if case == "paper" else {}


@pytest.fixture(scope="module")
def imputers() -> dict[str, CNNImputer]:
    """One fitted imputer of each kind, which tests only read."""
    adata = simulate(80)
    return {case: CNNImputer(**options).fit(adata, **clusters_of(case, adata)) for case, options in CASES.items()}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def imputer(case: str, imputers: dict[str, CNNImputer]) -> CNNImputer:
    return imputers[case]


def test_only_zeros_change(imputer: CNNImputer) -> None:
    new = simulate(25, seed=1)
    counts, imputed = new.X.toarray(), imputer.transform(new).toarray()
    np.testing.assert_array_equal(imputed[counts > 0], counts[counts > 0])
    assert np.isfinite(imputed).all()
    assert imputed.min() >= 0
    assert (imputed > 0).sum() > (counts > 0).sum()


def test_arrays_and_anndata_give_the_same(case: str, imputer: CNNImputer) -> None:
    new = simulate(25, seed=1)
    expected = imputer.transform(new)
    assert isinstance(expected, sp.csr_matrix)
    assert expected.has_canonical_format
    assert expected.dtype == np.float32
    new.layers["mine"] = new.X.copy()
    new.X = sp.csr_matrix(new.shape, dtype=np.float32)
    by_layer = imputer.transform(new, layer="mine")
    np.testing.assert_array_equal(by_layer.toarray(), expected.toarray())
    counts = new.layers["mine"]
    for kind in (np.asarray, np.asfortranarray):
        found = imputer.transform(kind(counts.toarray()))
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, expected.toarray())
    for kind in (sp.csr_array, sp.csc_matrix, sp.coo_array):
        found = imputer.transform(kind(counts))
        assert type(found) is (sp.csr_matrix if kind is sp.csc_matrix else sp.csr_array)
        np.testing.assert_array_equal(found.toarray(), expected.toarray())
    found = imputer.transform(counts.astype(np.int64))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found.toarray(), expected.toarray(), rtol=1e-5)


def test_fitting_arrays_and_anndata_gives_the_same(case: str, imputer: CNNImputer) -> None:
    adata, new = simulate(80), simulate(25, seed=1)
    by_array = CNNImputer(**CASES[case])
    imputed = by_array.fit_transform(adata.X.toarray(), **clusters_of(case, adata))
    assert isinstance(imputed, np.ndarray)
    assert by_array.genes_ == [str(i) for i in range(50)]
    np.testing.assert_array_equal(by_array.transform(new.X).toarray(), imputer.transform(new).toarray())


def test_genes_in_another_order(imputer: CNNImputer) -> None:
    new = simulate(25, seed=1)
    expected = imputer.transform(new).toarray()
    order = np.random.default_rng(0).permutation(50)
    shuffled = new[:, order].copy()
    np.testing.assert_array_equal(imputer.transform(shuffled).toarray(), expected[:, order])
    by_name = imputer.transform(shuffled.X.toarray(), genes=list(shuffled.var_names))
    np.testing.assert_array_equal(by_name, expected[:, order])


def test_missing_and_unknown_genes_are_named(imputer: CNNImputer) -> None:
    new = simulate(5)
    names = list(new.var_names)
    with pytest.raises(ValueError, match="missing: 'g49'; not trained on: 'other'"):
        imputer.transform(new.X, genes=[*names[:-1], "other"])
    with pytest.raises(ValueError, match="missing: 'g10', 'g11', 'g12', 'g13', 'g14' and 35 more"):
        imputer.transform(new[:, :10].copy())
    with pytest.raises(ValueError, match="duplicate names, which cannot be aligned: 'g0'"):
        imputer.transform(new.X, genes=["g0", "g0", *names[2:]])
    with pytest.raises(ValueError, match="trained on 50; pass genes="):
        imputer.transform(new.X[:, :9])
    with pytest.raises(ValueError, match="genes has 3 names, X has 50 columns"):
        imputer.transform(new.X, genes=names[:3])


def test_each_cell_is_described_by_its_own_counts(imputer: CNNImputer) -> None:
    new = simulate(25, seed=1)
    expected = imputer.transform(new).toarray()
    some = np.array([20, 3, 7])
    np.testing.assert_allclose(imputer.transform(new[some].copy()).toarray(), expected[some], rtol=1e-4)
    assert imputer.transform(new.X[:0]).shape == (0, 50)


def test_empty_cells_stay_empty(imputer: CNNImputer) -> None:
    new = simulate(6).X.toarray()
    new[2] = 0
    assert not imputer.transform(new)[2].any()


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_standard_deviations(case: str, imputers: dict[str, CNNImputer]) -> None:
    new = simulate(25, seed=1)
    imputer = imputers[case]
    imputed, deviation = imputer.transform(new, return_std=True)
    np.testing.assert_array_equal(imputed.toarray(), imputer.transform(new).toarray())
    assert isinstance(deviation, sp.csr_matrix)
    assert deviation.dtype == np.float32
    np.testing.assert_array_equal(deviation.toarray() > 0, imputed.toarray() != new.X.toarray())
    plain = imputer.transform(new.X.toarray(), return_std=True)
    assert all(isinstance(part, np.ndarray) for part in plain)
    np.testing.assert_array_equal(plain[1], deviation.toarray())
    order = np.arange(50)[::-1]
    moved = imputer.transform(new[:, order].copy(), return_std=True)[1]
    np.testing.assert_array_equal(moved.toarray(), deviation.toarray()[:, order])
    fitted = CNNImputer(**CASES[case]).fit_transform(simulate(40), return_std=True)
    assert (fitted[1].toarray() > 0).any()


def test_the_paper_has_no_standard_deviations(imputers: dict[str, CNNImputer]) -> None:
    with pytest.raises(ValueError, match="return_std=True needs preset='default', not 'paper'"):
        imputers["paper"].transform(simulate(5), return_std=True)
    with pytest.raises(ValueError, match="return_std=True needs preset='default', not 'paper'"):
        CNNImputer(**CASES["paper"]).fit_transform(simulate(20), return_std=True)


def test_attributes(case: str, imputer: CNNImputer) -> None:
    assert imputer.genes_ == [f"g{i}" for i in range(50)]
    assert imputer.clusters_ == (["a", "b"] if case == "paper" else ["all"])
    assert imputer.status_.shape == (50, len(imputer.clusters_))
    assert imputer.status_.dtype == np.int8
    assert {"imputed"} <= set(np.array(STATUSES)[imputer.status_].ravel())
    for network in imputer.history_:
        assert network["cluster"] in imputer.clusters_
        assert len(network["loss"]) == len(network["val_loss"]) > 1
    assert imputer.settings.threshold == CASES[case].get("threshold", 0.01)


@pytest.mark.parametrize("case", ["conditional", "paper"])
def test_given_probabilities_of_any_kind(case: str) -> None:
    adata = simulate(40)
    missing = np.random.default_rng(0).random(adata.shape) < 0.7
    options = clusters_of(case, adata)
    fitted = CNNImputer(**CASES[case]).fit(adata, dropout=missing, **options)
    expected = fitted.transform(adata, dropout=missing, **options)
    kinds = {
        "float16": missing.astype(np.float16),
        "float64": missing.astype(np.float64),
        "csr": sp.csr_matrix(missing),
        "csc": sp.csc_array(missing.astype(np.float32)),
    }
    for name, dropout in kinds.items():
        if name in {"float16", "csc"}:
            found = CNNImputer(**CASES[case]).fit_transform(adata, dropout=dropout, **options)
            np.testing.assert_array_equal(found.toarray(), expected.toarray(), err_msg=name)
        found = fitted.transform(adata, dropout=dropout, **options)
        np.testing.assert_array_equal(found.toarray(), expected.toarray(), err_msg=name)
    zero = adata.X.toarray() == 0
    changed = expected.toarray() != adata.X.toarray()
    assert not changed[~(zero & missing)].any()
    if case == "conditional":
        assert changed[zero & missing].all()
    # Nobody says what is missing of new cells: every zero.
    everything = fitted.transform(adata, **options).toarray()
    assert (everything > 0).sum() > (expected.toarray() > 0).sum()
    # Columns go with the genes.
    order = np.random.default_rng(0).permutation(50)
    moved = fitted.transform(adata[:, order].copy(), dropout=kinds["csr"][:, order], **options)
    np.testing.assert_array_equal(moved.toarray(), expected.toarray()[:, order])


def test_given_probabilities_replace_those_of_the_calibrated_model(imputers: dict[str, CNNImputer]) -> None:
    new = simulate(25, seed=1)
    imputer, zero = imputers["posterior_mean"], new.X.toarray() == 0
    nothing = imputer.transform(new, dropout=np.zeros(new.shape))
    np.testing.assert_array_equal(nothing.toarray(), new.X.toarray())
    certain = imputer.transform(new, dropout=np.ones(new.shape)).toarray()
    own = imputer.transform(new).toarray()
    assert (certain[zero] >= own[zero] * (1 - 1e-5)).all()
    # The probabilities of the model itself change nothing.
    model = imputer._model
    counts = sp.csr_array(new.X)
    same = imputer.transform(new, dropout=model.probability(counts, model.describe(counts)))
    np.testing.assert_array_equal(same.toarray(), own)


def test_refused_probabilities(imputers: dict[str, CNNImputer]) -> None:
    new = simulate(5)
    for case in ("conditional", "paper"):
        imputer = imputers[case]
        with pytest.raises(ValueError, match=r"dropout has shape \(2, 2\), X has \(5, 50\)"):
            imputer.transform(new.X, dropout=np.ones((2, 2)))
        with pytest.raises(ValueError, match="dropout has values outside"):
            imputer.transform(new.X, dropout=np.full((5, 50), 7.0))
        with pytest.raises(ValueError, match="dropout has values outside"):
            imputer.transform(new.X, dropout=np.full((5, 50), np.nan))
        with pytest.raises(TypeError, match="dropout is a builtins float, which is not supported"):
            imputer.transform(new.X, dropout=0.7)
    with pytest.raises(ValueError, match="estimate='posterior_mean' needs the calibrated model: leave dropout= out"):
        CNNImputer(**CASES["posterior_mean"]).fit(new.X, dropout=np.ones((5, 50)))


def test_without_an_estimate_given_probabilities_choose_the_conditional_one() -> None:
    adata = simulate(40)
    found = CNNImputer(**FAST).fit_transform(adata, dropout=np.ones(adata.shape), return_std=True)
    conditional = CNNImputer(estimate="conditional", **FAST)
    expected = conditional.fit_transform(adata, dropout=np.ones(adata.shape), return_std=True)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.toarray(), other.toarray())


def test_capture_efficiency(imputers: dict[str, CNNImputer]) -> None:
    adata, new = simulate(40), simulate(25, seed=1)
    scalar = CNNImputer(**CASES["posterior_mean"]).fit_transform(adata, capture_efficiency=0.3)
    each = CNNImputer(**CASES["posterior_mean"]).fit_transform(adata, capture_efficiency=np.full(40, 0.3))
    np.testing.assert_array_equal(each.toarray(), scalar.toarray())
    imputer, zero = imputers["posterior_mean"], new.X.toarray() == 0
    low, high = (imputer.transform(new, capture_efficiency=share).toarray() for share in (0.1, 0.6))
    mixed = imputer.transform(new, capture_efficiency=np.repeat([0.1, 0.6], [10, 15])).toarray()
    np.testing.assert_allclose(mixed, np.concatenate([low[:10], high[10:]]), rtol=1e-5)
    assert low[zero].sum() > high[zero].sum()
    everything = imputer.transform(new, capture_efficiency=1)
    np.testing.assert_array_equal(everything.toarray(), new.X.toarray())
    for bad in (0, 1.5, -0.1, np.append(np.full(24, 0.5), 0), np.append(np.full(24, 0.5), np.nan)):
        with pytest.raises(
            ValueError, match=r"capture_efficiency is not allowed .*: a share of the molecules, above 0"
        ):
            imputer.transform(new, capture_efficiency=bad)
    with pytest.raises(ValueError, match="capture_efficiency=nan is not allowed: a finite number"):
        imputer.transform(new, capture_efficiency=np.nan)
    with pytest.raises(ValueError, match=r"capture_efficiency has shape \(3,\), expected a number or \(25,\)"):
        imputer.transform(new, capture_efficiency=[0.5] * 3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (True, "capture_efficiency=True has type bool"),
        ([True] * 25, "capture_efficiency has dtype bool"),
        (["0.3"] * 25, "capture_efficiency has type list and dtype"),
        (np.ma.masked_all(25), "capture_efficiency has masked entries"),
        ({0.3}, "capture_efficiency=.* has type set"),
        (b"0.3", "capture_efficiency=.* has type bytes"),
        (3 + 0j, "capture_efficiency=.* has type complex"),
    ],
)
def test_refused_capture_efficiencies(given: Any, said: str, imputers: dict[str, CNNImputer]) -> None:
    new = simulate(25)
    with pytest.raises(TypeError, match=said):
        imputers["posterior_mean"].transform(new, capture_efficiency=given)
    with pytest.raises(TypeError, match=said):
        CNNImputer(**CASES["posterior_mean"]).fit(new, capture_efficiency=given)


def test_what_is_told_of_cells_is_in_their_order(imputers: dict[str, CNNImputer]) -> None:
    new = simulate(25)
    share = pd.Series(np.linspace(0.1, 0.9, 25), index=new.obs_names)
    imputer = imputers["posterior_mean"]
    told = imputer.transform(new, capture_efficiency=share)
    np.testing.assert_array_equal(dense(told), dense(imputer.transform(new, capture_efficiency=share.to_numpy())))
    numbered = imputer.transform(new, capture_efficiency=share.reset_index(drop=True))
    np.testing.assert_array_equal(dense(told), dense(numbered))
    with pytest.raises(ValueError, match=r"capture_efficiency is a Series whose index is not adata\.obs_names"):
        imputer.transform(new, capture_efficiency=share[::-1])
    with pytest.raises(ValueError, match=r"clusters is a Series whose index is not adata\.obs_names"):
        imputers["paper"].transform(new, clusters=new.obs["type"][::-1])


@pytest.mark.parametrize("genes", [{"g1"}, frozenset(), 3, True, "g1", b"g1", np.array(3)])
def test_names_of_genes_have_an_order(genes: Any, imputers: dict[str, CNNImputer]) -> None:
    # The order of a set depends on the hash seed of the process: values would get the names of others.
    said = f"genes has type {type(genes).__name__}, expected a list of names"
    with pytest.raises(TypeError, match=said):
        imputers["posterior_mean"].transform(simulate(25).X, genes=genes)
    with pytest.raises(TypeError, match=said):
        CNNImputer(**CASES["posterior_mean"]).fit(simulate(25), genes=genes)


def test_the_gate_leaves_genes_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = simulate(40)
    monkeypatch.setattr(base, "GATE", -1e9)  # every gene that can be judged
    gated = CNNImputer(**CASES["posterior_mean"])
    imputed = gated.fit_transform(adata).toarray()
    judged = np.isfinite(gated._model.gain)
    assert judged.mean() > 0.9
    np.testing.assert_array_equal(np.array(STATUSES)[gated.status_[:, 0]] == "no gain", judged)
    np.testing.assert_array_equal(imputed[:, judged], adata.X.toarray()[:, judged])
    np.testing.assert_array_equal(gated.transform(adata).toarray()[:, judged], adata.X.toarray()[:, judged])
    opened = CNNImputer(gate=False, **CASES["posterior_mean"]).fit_transform(adata)
    assert opened.nnz > adata.X.nnz


@pytest.mark.parametrize("case", ["posterior_mean", "conditional", "paper"])
def test_same_seed_same_bits(case: str) -> None:
    adata = simulate(40)
    options = clusters_of(case, adata)
    found = []
    for seed in (3, 3, 4):
        np.random.seed(seed + 7)  # noqa: NPY002 - the global generator must not matter
        found.append(CNNImputer(random_state=seed, **CASES[case]).fit_transform(adata, **options).toarray())
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


# ---- the paper's networks in clusters


@pytest.fixture(scope="module")
def fitted() -> CNNImputer:
    """Trained as if all zeros were missing."""
    adata = simulate()
    return CNNImputer(**QUICK, max_dropout=1).fit(
        adata.X, clusters=adata.obs["type"], genes=adata.var_names, dropout=np.ones(adata.shape)
    )


def test_fit_transform_equals_fit_and_transform(fitted: CNNImputer) -> None:
    adata = simulate()
    options = {"clusters": adata.obs["type"], "dropout": np.ones(adata.shape)}
    once = CNNImputer(**QUICK, max_dropout=1).fit_transform(adata.X, **options)
    twice = fitted.transform(adata.X, clusters=adata.obs["type"])
    np.testing.assert_array_equal(once.toarray(), twice.toarray())
    assert isinstance(once, sp.csr_matrix)
    # So do all whose dropout probabilities are given, or come from mixtures.
    imputer = CNNImputer(**CASES["conditional"])
    once = imputer.fit_transform(adata, dropout=options["dropout"])
    np.testing.assert_array_equal(imputer.transform(adata, dropout=options["dropout"]).toarray(), once.toarray())
    imputer = CNNImputer(**CASES["paper"])
    once = imputer.fit_transform(adata, clusters=adata.obs["type"])
    np.testing.assert_array_equal(imputer.transform(adata, clusters=adata.obs["type"]).toarray(), once.toarray())


def test_new_cells_find_their_cluster(fitted: CNNImputer) -> None:
    new = simulate(40, seed=2)
    assigned = fitted.transform(new.X)
    told = fitted.transform(new.X, clusters=new.obs["type"])
    same = (assigned.toarray() == told.toarray()).all(axis=1)
    assert same.mean() > 0.9


def test_cells_without_cluster_stay_as_they_are(fitted: CNNImputer) -> None:
    new = simulate(6)
    result = fitted.transform(new.X, clusters=["a", None, "b", None, "a", None]).toarray()
    np.testing.assert_array_equal(result[1::2], new.X.toarray()[1::2])
    assert (result[::2] > 0).sum() > (new.X[::2] > 0).sum()


def test_cells_without_counts_or_cluster(fitted: CNNImputer) -> None:
    new = simulate(6).X.toarray()
    new[2] = 0
    assert not fitted.transform(new)[2].any()
    np.testing.assert_array_equal(fitted.transform(new, clusters=["a", None, None, None, None, None])[1:], new[1:])
    np.testing.assert_array_equal(fitted.transform(new, clusters=[None] * 6), new)
    with pytest.raises(ValueError, match="No cell has a cluster"):
        CNNImputer(**QUICK).fit(new, clusters=[None] * 6)


def test_a_cluster_of_empty_cells() -> None:
    counts = simulate(30).X.toarray()
    counts[:3] = 0
    imputer = CNNImputer(**QUICK, max_dropout=1)
    imputer.fit(counts, clusters=["empty"] * 3 + ["full"] * 27, dropout=np.ones(counts.shape))
    assert set(np.array(STATUSES)[imputer.status_[:, 0]]) == {"too few cells"}
    # New cells go to the one that has a profile.
    assert (imputer.transform(counts)[3:] > 0).sum() > (counts > 0).sum()


def test_refused_clusters(fitted: CNNImputer) -> None:
    new = simulate(5)
    with pytest.raises(ValueError, match=r"Different clusters have the same name as text: \['1'\]"):
        CNNImputer(**QUICK).fit(simulate(4).X, clusters=[1, "1", 1, "1"])
    with pytest.raises(ValueError, match=r"clusters \['z'\] are unknown. Fitted: \['a', 'b'\]"):
        fitted.transform(new.X, clusters=list("abzab"))
    with pytest.raises(ValueError, match="clusters has 2 labels, X has 5 cells"):
        fitted.transform(new.X, clusters=["a", "b"])
    for wrong in ("type", {"a"}, 3):
        said = f"clusters={wrong!r} has type {type(wrong).__name__}, expected a name for each of 5 cells"
        with pytest.raises(TypeError, match=said):
            fitted.transform(new.X, clusters=wrong)


def test_results_are_put_together_alike_dense_and_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = simulate()
    run = {"clusters": adata.obs["type"].where(np.arange(adata.n_obs) % 7 > 0)}  # some cells have none
    run["dropout"] = np.ones(adata.shape)
    sparse = CNNImputer(**QUICK, max_dropout=1).fit_transform(adata.X, **run)
    assert sparse.has_canonical_format
    assert (sparse.data > 0).all()
    monkeypatch.setattr(_matrix, "BLOCK_BYTES", 4 * 50 * 7)
    plain = CNNImputer(**QUICK, max_dropout=1).fit_transform(adata.X.toarray(), **run)
    assert isinstance(plain, np.ndarray)
    np.testing.assert_array_equal(plain, dense(sparse))
    assert (plain > 0).sum() > adata.X.nnz


@pytest.mark.parametrize("dtype", [np.float64, np.int16])
@pytest.mark.parametrize("order", ["C", "F"])
def test_dense_counts_as_scipy_reads_them(monkeypatch: pytest.MonkeyPatch, dtype: Any, order: Any) -> None:
    monkeypatch.setattr(_matrix, "BLOCK_BYTES", 200)
    counts = np.random.default_rng(0).poisson(0.3, size=(23, 7)).astype(dtype, order=order)
    for matrix in (counts, counts[:, ::2], counts[:0], counts[:, :0], np.zeros_like(counts)):
        found, expected = _matrix.to_csr(matrix), sp.csr_array(matrix)
        assert found.has_canonical_format
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))
            assert getattr(found, part).dtype == getattr(expected, part).dtype


# ---- refusals


def test_values_that_are_no_counts_are_refused(imputer: CNNImputer) -> None:
    adata = simulate(20)
    normalised = adata.copy()
    sc.pp.normalize_total(normalised, target_sum=1e4)
    scaled = normalised.copy()
    sc.pp.log1p(normalised)
    for bad, message in ((normalised, "looks log-transformed"), (scaled, "looks normalised")):
        for X in (bad, bad.X, bad.X.toarray()):
            with pytest.raises(ValueError, match=message):
                imputer.transform(X)
    with pytest.raises(ValueError, match="looks log-transformed"):
        CNNImputer(**FAST).fit(normalised)
    for value, message in ((np.nan, "NaN"), (-1, "negative"), (np.inf, "infinite")):
        counts = adata.X.toarray()
        counts[0, 0] = value
        with pytest.raises(ValueError, match=message):
            imputer.transform(counts)
    with pytest.raises(TypeError, match="layer='twin' needs an AnnData, got csr_matrix"):
        imputer.transform(adata.X, layer="twin")


def test_what_is_not_fitted_says_so(tmp_path: Path) -> None:
    imputer = CNNImputer()
    for action in (
        lambda: imputer.transform(simulate(5).X),
        lambda: imputer.save(tmp_path / "x"),
        lambda: imputer.status_,
        lambda: imputer.history_,
        lambda: imputer.clusters_,
    ):
        with pytest.raises(RuntimeError, match="not fitted"):
            action()
    assert not (tmp_path / "x").exists()
    assert imputer.settings.n_steps == 300


def test_refused_options() -> None:
    with pytest.raises(ValueError, match="estimate='median' is not known"):
        CNNImputer(estimate="median")
    with pytest.raises(ValueError, match="estimate='posterior_mean' is not one of preset='paper'"):
        CNNImputer(preset="paper", estimate="posterior_mean")
    with pytest.raises(TypeError, match="gate='yes' has type str, expected bool"):
        CNNImputer(gate="yes")
    with pytest.raises(ValueError, match="random_state=-1 is not allowed"):
        CNNImputer(random_state=-1)
    with pytest.raises(ValueError, match="n_steps=0 is not allowed"):
        CNNImputer(estimate="conditional", n_steps=0)
    with pytest.raises(ValueError, match=r"n_steps=3 is not a setting of preset='paper'.*preset='default'"):
        CNNImputer(preset="paper", n_steps=3)


# ---- saved and loaded


@pytest.fixture
def saved(case: str, imputer: CNNImputer, tmp_path: Path) -> Path:
    imputer.save(tmp_path / "imputer")
    return tmp_path / "imputer"


def test_loaded_equals_the_original_bit_for_bit(case: str, imputer: CNNImputer, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "imputer"
    imputer.save(str(path))
    assert sorted(file.name for file in path.iterdir()) == ["arrays.npz", "imputer.json"]
    loaded = CNNImputer.load(path)
    new = simulate(20, seed=3)
    parts = {"return_std": True} if case != "paper" else {}
    for one, other in zip(
        np.atleast_1d(np.array(loaded.transform(new, **parts), dtype=object)),
        np.atleast_1d(np.array(imputer.transform(new, **parts), dtype=object)),
        strict=True,
    ):
        np.testing.assert_array_equal(one.toarray(), other.toarray())
    assert loaded.settings == imputer.settings
    assert (loaded.preset, loaded.estimate, loaded.random_state) == (
        imputer.preset, imputer._imputer.estimate, imputer.random_state,
    )  # fmt: skip
    assert (loaded.genes_, loaded.clusters_) == (imputer.genes_, imputer.clusters_)
    assert repr(loaded.history_) == repr(imputer.history_)  # the first loss is not a number, which equals nothing
    np.testing.assert_array_equal(loaded.status_, imputer.status_)
    # What was loaded can be saved again.
    loaded.save(tmp_path / "again")
    for name in ("arrays.npz", "imputer.json"):
        assert (tmp_path / "again" / name).stat().st_size == (path / name).stat().st_size
    with pytest.raises(FileExistsError, match="overwrite=True"):
        imputer.save(path)
    imputer.save(path, overwrite=True)
    # Nothing temporary is left.
    assert [entry.name for entry in path.parent.iterdir()] == ["imputer"]


def test_without_a_dropout_model(fitted: CNNImputer, tmp_path: Path) -> None:
    fitted.save(tmp_path / "imputer")
    loaded, new = CNNImputer.load(tmp_path / "imputer"), simulate(20, seed=3)
    np.testing.assert_array_equal(loaded.transform(new).toarray(), fitted.transform(new).toarray())


def test_pickled_equals_the_original_bit_for_bit(case: str, imputer: CNNImputer) -> None:
    new = simulate(20, seed=3)
    expected = imputer.transform(new).toarray()  # before: what is cached must not be in the way
    again = pickle.loads(pickle.dumps(imputer))
    np.testing.assert_array_equal(again.transform(new).toarray(), expected)
    assert again.settings == imputer.settings


@pytest.mark.parametrize("kind", [CalibratedModel, GammaNormalModel])
def test_pickled_dropout_models(kind: Any) -> None:
    adata = simulate(40)
    counts = sp.csr_array(adata.X)
    clusters = Clusters(codes=adata.obs["type"].cat.codes.to_numpy(np.int64), names=["a", "b"])
    fit = kind.fit(Counts.of(counts), clusters=clusters)
    expected = fit.model.probability(counts, fit.cells)
    again = pickle.loads(pickle.dumps(fit))
    np.testing.assert_array_equal(again.model.probability(counts, again.cells), expected)


def test_a_failed_save_leaves_nothing(
    imputers: dict[str, CNNImputer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, path = imputers["posterior_mean"], tmp_path / "imputer"
    fitted.save(path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        msg = "no space left"
        raise OSError(msg)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        for target in (path, tmp_path / "other"):
            with pytest.raises(OSError, match="no space left"):
                fitted.save(target, overwrite=True)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["imputer"]
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match=r"precious exists\. Pass overwrite=True to replace a folder that holds"):
        fitted.save(precious, overwrite=True)
    assert (precious / "thesis.tex").read_text() == "mine"


def rewrite(path: Path, **changes: Any) -> None:
    """Change arrays of a saved imputer; None deletes one."""
    with np.load(path / "arrays.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    for name, value in changes.items():
        assert name in arrays
        if value is None:
            del arrays[name]
        else:
            arrays[name] = value(arrays[name]) if callable(value) else value
    np.savez(path / "arrays.npz", **arrays)


def describe(path: Path, **changes: Any) -> None:
    """Change the description of a saved imputer; None deletes an entry."""
    description = json.loads((path / "imputer.json").read_text())
    description = {name: value for name, value in (description | changes).items() if value is not None}
    (path / "imputer.json").write_text(json.dumps(description))


class Attack:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_no_code_is_run(imputers: dict[str, CNNImputer], tmp_path: Path) -> None:
    path, trace = tmp_path / "imputer", tmp_path / "trace"
    imputers["posterior_mean"].save(path)
    objects = np.array([Attack(trace)], dtype=object)
    # It does leave a file where pickles are allowed.
    stream = io.BytesIO()
    np.save(stream, objects)
    stream.seek(0)
    np.load(stream, allow_pickle=True)
    assert trace.exists()
    trace.unlink()
    for name in ("imputer_level", "anything"):
        with np.load(path / "arrays.npz") as stored:
            arrays = {each: stored[each] for each in stored.files}
        np.savez(path / "arrays.npz", **arrays | {name: objects})
        with pytest.raises(ValueError, match=r"imputer holds no readable CNNImputer: arrays\.npz is damaged"):
            CNNImputer.load(path)
        assert not trace.exists()
        imputers["posterior_mean"].save(path, overwrite=True)
    # A bare pickle in place of the archive.
    (path / "arrays.npz").write_bytes(pickle.dumps(Attack(trace)))
    with pytest.raises(ValueError, match=r"imputer holds no readable CNNImputer: arrays\.npz is damaged"):
        CNNImputer.load(path)
    with zipfile.ZipFile(path / "arrays.npz", "w") as archive:
        archive.writestr("imputer_level", pickle.dumps(Attack(trace)))
    with pytest.raises(ValueError, match="imputer holds no readable CNNImputer"):
        CNNImputer.load(path)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["arrays.npz", "imputer.json"])
def test_links_are_refused(name: str, imputers: dict[str, CNNImputer], tmp_path: Path) -> None:
    path = tmp_path / "imputer"
    imputers["posterior_mean"].save(path)
    shutil.move(path / name, tmp_path / name)
    (path / name).symlink_to(tmp_path / name)
    with pytest.raises(ValueError, match=rf"imputer holds no readable CNNImputer: {name} is a link to another place"):
        CNNImputer.load(path)


def test_folders_that_hold_no_imputer(imputers: dict[str, CNNImputer], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no saved CNNImputer: imputer.json is missing"):
        CNNImputer.load(tmp_path / "nowhere")
    path = tmp_path / "imputer"
    imputers["posterior_mean"].save(path)
    good = (path / "imputer.json").read_text()
    for text, message in {
        '{"format": ': r"imputer holds no readable CNNImputer: imputer.json is damaged",
        "\xff": r"imputer holds no readable CNNImputer: imputer.json is damaged",
        '{"format": 99}': "imputer has format 99; this version reads format 4",
        '{"format": 3}': "imputer has format 3; this version reads format 4",
        "[4]": "imputer has format None; this version reads format 4",
        "4": "imputer has format None; this version reads format 4",
    }.items():
        (path / "imputer.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=message):
            CNNImputer.load(path)
    (path / "imputer.json").write_text(good)
    content = (path / "arrays.npz").read_bytes()
    for part in (content[: len(content) // 2], content[:-10], b"", content[:100] + b"\0" * 500 + content[600:]):
        (path / "arrays.npz").write_bytes(part)
        with pytest.raises(ValueError, match=r"imputer holds no readable CNNImputer: arrays.npz is damaged"):
            CNNImputer.load(path)
    (path / "arrays.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"imputer holds no saved CNNImputer: arrays.npz is missing"):
        CNNImputer.load(path)


ENTRIES = ("preset", "estimate", "settings", "random_state", "genes", "history", "dropout_model")
VALUES = (None, 5, "other", [], {"a": 1})
READABLE = (("random_state", 5), ("history", []))


@pytest.mark.parametrize(
    ("name", "value"), [pair for pair in itertools.product(ENTRIES, VALUES) if pair not in READABLE]
)
def test_descriptions_that_do_not_fit(name: str, value: Any, imputers: dict[str, CNNImputer], tmp_path: Path) -> None:
    imputers["posterior_mean"].save(tmp_path / "imputer")
    describe(tmp_path / "imputer", **{name: value})
    with pytest.raises(ValueError, match="imputer holds no readable CNNImputer: "):
        CNNImputer.load(tmp_path / "imputer")


def test_missing_arrays_are_named(case: str, saved: Path) -> None:
    with np.load(saved / "arrays.npz") as stored:
        names = [name for name in stored.files if "_weights_" not in name]
    lists = ("imputer_targets_", "imputer_inputs_")
    for name in names:
        copy = saved.parent / "copy"
        shutil.copytree(saved, copy)
        rewrite(copy, **{name: None})
        what = name.removeprefix("imputer_").removeprefix("dropout_")
        message = "networks have" if name.startswith(lists) else f"the array '{what}' is missing"
        with pytest.raises(ValueError, match=f"copy holds no readable CNNImputer: .*{message}"):
            CNNImputer.load(copy)
        shutil.rmtree(copy)


def test_arrays_of_another_shape_are_named(case: str, saved: Path) -> None:
    with np.load(saved / "arrays.npz") as stored:
        names = {name: stored[name].ndim for name in stored.files if "_weights_" not in name}
    for name, n_dimensions in names.items():
        copy = saved.parent / "copy"
        shutil.copytree(saved, copy)
        rewrite(copy, **{name: lambda array: array[None]})
        what = name.removeprefix("imputer_").removeprefix("dropout_").rstrip("0123456789").rstrip("_")
        message = "positions outside" if what in {"targets", "inputs"} else f"{n_dimensions + 1} dimensions"
        with pytest.raises(ValueError, match=f"copy holds no readable CNNImputer: the array '{what}' has {message}"):
            CNNImputer.load(copy)
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    ("case", "name", "change", "message"),
    [
        ("posterior_mean", "imputer_level", lambda x: x[:-1], "the array 'level' has 49 genes, expected 50"),
        ("posterior_mean", "imputer_level", lambda x: x.astype(str), "the array 'level' has dtype"),
        ("posterior_mean", "imputer_neighbours", lambda x: x[:, 1:], "the array 'correlations' has 5 top, expected 4"),
        ("posterior_mean", "imputer_status", lambda x: x + 50, "the array 'status' has codes outside 0 to 7"),
        ("posterior_mean", "imputer_status", lambda x: x - 50, "the array 'status' has codes outside 0 to 7"),
        ("posterior_mean", "dropout_shape", lambda x: x[:3], "the array 'shape' has 3 genes, expected 50"),
        ("posterior_mean", "dropout_loadings", lambda x: x[:, :4], "has 20 factors, expected 4"),
        ("conditional", "imputer_noise_level", lambda x: x[1:], "the array 'noise_variance' has"),
        ("paper", "imputer_targets_0", lambda x: x + 50, "the array 'targets' has positions outside 0 to 49"),
        ("paper", "imputer_inputs_1", lambda x: -x - 1, "the array 'inputs' has positions outside 0 to 49"),
        ("paper", "imputer_network_cluster", lambda x: x + 2, "the array 'network_cluster' has positions outside 0 to"),
        ("paper", "dropout_mu", lambda x: x[:, :1], "has 1 clusters, expected 2"),
    ],
)
def test_arrays_that_do_not_go_together(case: str, name: str, change: Any, message: str, saved: Path) -> None:
    rewrite(saved, **{name: change})
    with pytest.raises(ValueError, match=f"imputer holds no readable CNNImputer: .*{message}"):
        CNNImputer.load(saved)


@pytest.mark.parametrize("change", [None, lambda array: array[..., :-1], lambda array: array[None]])
def test_weights_of_another_network_are_refused(case: str, saved: Path, change: Any) -> None:
    rewrite(saved, imputer_weights_2=change)
    # The network that they belong to is only built when it is used.
    with pytest.raises(ValueError, match=r"The stored weights have shapes .*: the stored imputer is damaged"):
        CNNImputer.load(saved).transform(simulate(20, seed=3))


# ---- from an AnnData


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_from_anndata_gives_the_layer_again(case: str) -> None:
    adata = simulate(200)
    scnn.pp.cnn_impute(adata, **CASES[case])
    imputer = CNNImputer.from_anndata(adata)
    assert imputer.estimate == case
    assert imputer.genes_ == list(adata.var_names)
    found, layer = imputer.transform(adata).toarray(), adata.layers["cnn_imputed"].toarray()
    zero = adata.X.toarray() == 0
    np.testing.assert_array_equal(found[~zero], layer[~zero])
    # Cells are described anew, with the loadings fixed.
    assert metrics.pcc(np.log1p(layer[zero]), np.log1p(found[zero])) > 0.98
    given = imputer.transform(adata, dropout=scnn.get.dropout_prob(adata)).toarray()
    if case == "conditional":
        np.testing.assert_allclose(given, layer, rtol=1e-5)
    # Some of the genes are gone: those that are left are imputed.
    part = adata[:, np.arange(50) % 2 == 0].copy()
    few = CNNImputer.from_anndata(part)
    assert few.genes_ == list(part.var_names)
    assert few.transform(part).nnz > part.X.nnz


def test_from_anndata_with_probabilities_of_the_users_own() -> None:
    adata = simulate(60)
    adata.layers["mine"] = np.random.default_rng(0).random(adata.shape, dtype=np.float32)
    scnn.pp.cnn_impute(adata, dropout_key="mine", **FAST)
    imputer = CNNImputer.from_anndata(adata)
    found = imputer.transform(adata, dropout=adata.layers["mine"])
    np.testing.assert_allclose(found.toarray(), adata.layers["cnn_imputed"].toarray(), rtol=1e-5)


def test_from_anndata_refuses_foreign_data() -> None:
    adata = simulate(60)
    with pytest.raises(KeyError, match="No imputer is stored under 'cnn_imputed'"):
        CNNImputer.from_anndata(adata)
    scnn.pp.cnn_impute(adata, **FAST)
    with pytest.raises(KeyError, match=r"No imputer is stored under 'other'. Stored: \['cnn_imputed'\]"):
        CNNImputer.from_anndata(adata, key="other")
    foreign = adata.copy()
    foreign.X = simulate(60, seed=5).X
    with pytest.raises(ValueError, match="The counts are not those that 'dropout_prob' was fitted to"):
        CNNImputer.from_anndata(foreign)
    moved = adata.copy()
    moved.var_names = list(adata.var_names[::-1])
    with pytest.raises(ValueError, match=r"genes of adata\.var, such as 'g49', stand at the counts of other genes"):
        CNNImputer.from_anndata(moved)
    replaced = adata.copy()
    scnn.pp.dropout_prob(replaced, random_state=5)
    with pytest.raises(ValueError, match="goes on from another fit than the one now stored under 'dropout_prob'"):
        CNNImputer.from_anndata(replaced)
    gone = adata.copy()
    del gone.varm["dropout_prob_loadings"]
    with pytest.raises(KeyError, match="No dropout model is stored under 'dropout_prob'"):
        CNNImputer.from_anndata(gone)


def test_from_anndata_has_no_networks_of_the_paper(imputed: ad.AnnData) -> None:
    with pytest.raises(KeyError, match="networks of preset='paper' are too large to be stored"):
        CNNImputer.from_anndata(imputed)
