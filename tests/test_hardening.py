"""Wrong values of every argument, damaged inputs, failures at every stage, threads, forks, and the same bits again."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import math
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numba
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import keys, simulate
from threadpoolctl import threadpool_info

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute._matrix import to_csr

if TYPE_CHECKING:
    import anndata as ad


@pytest.fixture(scope="module")
def prepared() -> ad.AnnData:
    """Data with a result of every kind, which wrong calls leave as they are."""
    adata = simulate()
    scnn.pp.dropout_prob(adata)
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type", key_added="mixture")
    scnn.pp.cnn_impute(adata, n_steps=1, verbose=False)
    adata.obs["cnn_cluster"] = adata.obs["type"]
    adata.obsm["X_umap"] = adata.obsm["X_latent"][:, :2].copy()
    adata.layers["truth"] = adata.X + sp.csr_matrix(adata.X == 0).astype(np.float32)
    scnn.tl.eval_clusters(adata, label_key="type", cluster_key="type")
    scnn.tl.eval_false_signals(adata, "type", layers="X")
    scnn.tl.eval_imputation(adata, how="masking", n_seeds=1, settings={"n_steps": 1})
    return adata


class WorkStarted(BaseException):
    """Raised in place of long work: wrong values are to be refused before."""


# What takes long, or writes: no wrong value gets there.
WORK = (
    "pp._cnn_impute.fit_options",
    "dropout.calibrated.CalibratedModel.fit",
    "dropout.gamma_normal.GammaNormalModel.fit",
    "clustering.Clusterer.cluster_points",
    "clustering.Clusterer.cluster_counts",
    "tl._eval_clusters._judge",
    "tl._eval_de._test",
    "tl._eval_false_signals.test_layer",
    "tl._eval_imputation._score_molecules",
    "tl._rank_genes_groups.test_layer",
    "_estimate._sample",
    "get._cnn_imputed.imputed_columns",
)

OBJECT = object()
NUMBERS = {
    "text": "a",
    "bool": True,
    "numpy bool": np.True_,
    "nan": math.nan,
    "inf": math.inf,
    "list": [1],
    "array": np.array([1, 2]),
    "text without dimensions": np.array("a"),
    "complex": 1j,
    "dict": {},
}
INTEGERS = NUMBERS | {"fraction": 1.5, "huge": 2**70, "negative": -1}
FLOATS = NUMBERS | {"-inf": -math.inf, "nan without dimensions": np.array(math.nan)}
FLAGS = {"text": "yes", "one": 1, "zero": 0.0, "list": [], "array": np.array([True, False]), "nan": math.nan}
TEXTS = {
    "int": 3,
    "list": ["type"],
    "bytes": b"a",
    "bool": True,
    "object": OBJECT,
    "nan": math.nan,
    "array": np.array(["a", "b"]),
    "dict": {},
}
CHOICES = TEXTS | {"unknown": "no such", "empty": ""}
NAMES = {"int": 3, "unknown": ["zz"], "text": "zz", "nan": math.nan, "ints": [3], "object": OBJECT, "bytes": b"a"}
ARRAYS = {
    "none": None,
    "object": OBJECT,
    "int": 3,
    "text": "abc",
    "ragged": [[1], [1, 2]],
    "four dimensions": np.ones((1, 1, 1, 1)),
    "empty": np.empty(0),
    "dict": {},
    "masked": np.ma.masked_array([1.0, 2.0], [0, 1]),
}
PLACES = {
    "unknown": "zz",
    "unknown names": ["zz"],
    "far": 10**6,
    "far positions": [10**6],
    "object": OBJECT,
    "fraction": 1.5,
    "nan": math.nan,
    "short mask": np.ones(3, dtype=bool),
    "none": None,
}
TABLES = {"none": None, "int": 3, "text": "a", "object": OBJECT, "dict": {"a": "b"}, "nan": math.nan, "list": [1, 2]}
BY_NAME: dict[str, dict[str, Any]] = {
    "adata": {"none": None, "int": 3, "text": "a", "array": np.ones((3, 3)), "sparse": sp.csr_matrix((3, 3))},
    "data": {"none": None, "int": 3, "text": "zz", "object": OBJECT, "array": np.ones((3, 3))},
    "mask_var": {"int": 3, "unknown": "no such", "short": np.ones(3, dtype=bool), "ints": np.ones(50, dtype=int)}
    | {"object": OBJECT, "nan": math.nan, "none of them": np.zeros(50, dtype=bool)},
    "ax": {"text": "a", "int": 3, "list": [1]},
    "show": FLAGS,
    "save": {"int": 3, "list": ["a"], "object": OBJECT, "bool": True},
    "layers": NAMES,
    "use_rep": NAMES,
    "methods": NAMES,
    "tested": NAMES,
    "group": NAMES,
    "groups": NAMES,
    "settings": {"int": 3, "text": "a", "unknown": {"zz": 1}, "list": [1], "no text": {3: 1}},
    "group_probabilities": {"int": 3, "none": None, "text": "a", "negative": [-1, 2], "empty": [], "nan": [math.nan]},
    "capture_efficiency": FLOATS | {"unknown": "zz", "negative": -1.0, "zero": 0.0, "object": OBJECT},
    # The key need not exist: a model is fitted under it then.
    "dropout_key": TEXTS,
    "key_added": TEXTS | {"empty": "", "slash": "a/b"},
}
SIGNED = {"library_location", "outlier_location", "de_location", "dropout_mid", "dropout_shape"}
EVALUATED: dict[str, Any] = {
    "group": "a",
    "reference_group": "b",
    "reference": pd.DataFrame({"log2_fold_change": 1.0, "p_value": 0.01}, index=["g1", "g2"]),
}
REQUIRED: dict[str, dict[str, Any]] = {
    "eval_clusters": {"label_key": "type"},
    "eval_de": {"groupby": "type", **EVALUATED},
    "eval_gini": {"reference": {"g1": 0.3, "g2": 0.2}},
    "rank_genes_groups": {"groupby": "type"},
    "eval_false_signals": {"groupby": "type", "layers": "X"},
    "held_out": {"truth": "truth"},
    "mixture": {"gene": "g1", "key": "mixture"},
    "pl.dropout_prob": {"gene": "g1"},
    "thin_counts": {"capture_efficiency": 0.5},
    "baseline_estimates": {"method": "gene_mean"},
}
ARGUMENTS: dict[str, Any] = {
    "labels": [0, 1],
    "clusters": [0, 1],
    "truth": [0, 1],
    "probability": [0.1, 0.5],
    "estimate": [0.1, 0.5],
    "observed": [0, 1],
    "expected": [0.1, 0.5],
    "genes": [0, 0],
    "reference_lfc": [1.0, 2.0],
    "lfc": [1.0, 2.0],
    "values": [1.0, 2.0],
    "counts": np.arange(12).reshape(4, 3),
    "housekeeping": [1.0, 2.0, 3.0, 4.0],
}
CONDITIONAL, PAPER = (
    {"n_components", "n_folds"},
    {
        "n_targets",
        "max_dropout",
        "log",
        "batch_size",
        "max_epochs",
        "patience",
        "validation_fraction",
    },
)


def public() -> dict[str, Any]:
    modules = (scnn.pp, scnn.tl, scnn.get, scnn.pl, scnn.datasets, scnn.metrics)
    found = {f"{m.__name__.split('.')[-1]}.{name}": getattr(m, name) for m in modules for name in m.__all__}
    functions = {name: function for name, function in found.items() if inspect.isfunction(function)}
    return functions | {"estimate": scnn.estimate, "CNNImputer": scnn.CNNImputer}


def wrong_values(function: str, parameter: inspect.Parameter) -> dict[str, Any]:  # noqa: PLR0911
    """Wrong values of a parameter, by its name or its annotation."""
    name, kind = parameter.name, str(parameter.annotation)
    is_optional = "None" in kind
    if function.startswith("get.") and name in {"genes", "cells"}:
        return PLACES
    if name == "reference" and ("Mapping" in kind or "DataFrame" in kind):
        return TABLES
    if name == "reference":
        return {key: CHOICES[key] for key in ("list", "unknown", "array", "dict")}
    if "ArrayLike" in kind or name in {"counts", "values"}:
        return ARRAYS
    if name == "clusters":
        return {"int": 3, "short": np.ones(3), "object": OBJECT, "text": "abc"}
    if name in BY_NAME:
        found = dict(BY_NAME[name])
        if name == "capture_efficiency" and "str" in kind:
            del found["list"], found["array"]
        return found
    if "int" in kind:
        return INTEGERS | ({} if is_optional else {"none": None})
    if "float" in kind:
        negative = {} if name in SIGNED else {"negative": -1.0}
        return FLOATS | negative | ({} if is_optional else {"none": None})
    if "bool" in kind:
        return FLAGS | ({} if is_optional else {"none": None})
    return CHOICES | ({} if is_optional else {"none": None})


@pytest.mark.parametrize("name", public())
def test_wrong_values_are_refused_by_name_before_the_work(
    name: str, prepared: ad.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: Any, **__: Any) -> Any:
        raise WorkStarted

    for work in WORK:
        monkeypatch.setattr(f"scanpy_cnnimpute.{work}", started)
    function, short = public()[name], name.partition(".")[2]
    parameters = inspect.signature(function).parameters
    before, failures = keys(prepared), []
    for parameter in parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        fixed: dict[str, Any] = REQUIRED.get(name, REQUIRED.get(short, {})) | {"adata": prepared, "data": prepared}
        fixed = ARGUMENTS | fixed if name.startswith("metrics") else fixed
        if "key_added" in parameters:
            fixed["key_added"] = "fresh"
        if short == "cnn_impute":
            fixed |= {"estimate": "conditional"} if parameter.name in CONDITIONAL else {}
            fixed |= {"preset": "paper", "dropout_key": "mixture"} if parameter.name in PAPER else {}
            fixed |= {"entries": "all"} if parameter.name == "depth" else {}
        if name == "tl.cluster" and parameter.name == "n_clusters":
            fixed["method"] = "kmeans"
        if name == "metrics.baseline_estimates":
            fixed.pop("clusters", None)
        fixed = {key: value for key, value in fixed.items() if key in parameters}
        for label, value in wrong_values(name, parameter).items():
            begun, told = perf_counter(), "no error"
            try:
                function(**fixed | {parameter.name: value})
            except (TypeError, ValueError, KeyError) as error:
                text = str(error)
                known = not isinstance(value, int | float | None) and str(value)[:30] in text
                told = "" if parameter.name in text or known else f"{type(error).__name__}: {text}"
            except WorkStarted:
                told = "the work started"
            if perf_counter() - begun > 2:  # seconds, far more than a check takes on a busy machine
                told += "; too late"
            if told:
                failures.append(f"{parameter.name}={label}: {told}")
    assert failures == []
    assert keys(prepared) == before


@pytest.mark.parametrize("kind", [np.int64, np.int8, np.uint32, np.array])
def test_numpy_scalars_are_numbers(kind: Any) -> None:
    adata = simulate()
    scnn.pp.dropout_prob(adata, random_state=kind(3), n_jobs=kind(2), max_layer_bytes=np.int64(2**30))
    scnn.tl.cluster(adata, method="kmeans", n_clusters=kind(2), random_state=kind(1), resolution=np.float32(1))
    scnn.tl.rank_genes_groups(adata, "type", n_decoys=kind(1), n_genes=kind(5), n_jobs=kind(1), rankby_abs=np.True_)
    assert adata.uns["dropout_prob"]["params"]["random_state"] == 3


STAGES = {
    "tl.cluster": ("clustering.Clusterer.cluster_counts", "clustering.methods.leiden", "tl._cluster._log_sizes"),
    "pp.dropout_prob": (
        "_counts.Counts.check",
        "dropout.calibrated.model.factorise",
        "dropout.calibrated.held_out.HeldOut.gain",
        "dropout.calibrated.CalibratedModel.summary",
        "pp._dropout_prob.add_record",
        "pp._dropout_prob.add_fingerprint",
        "pp._dropout_prob._report",
    ),
    "paper": (
        "clustering.Clusterer.cluster_counts",
        "dropout.gamma_normal.model.fit_mixture",
        "imputation.paper.training.train",
        "pp._cnn_impute.status_table",
        "pp._cnn_impute.report",
    ),
    "pp.cnn_impute": (
        "dropout.calibrated.model.factorise",
        "pp._cnn_impute.fit_options",
        "imputation.default.molecules.train_network",
        "imputation.default.molecules.MoleculeImputer.predict",
        "pp._cnn_impute.history_table",
        "pp._cnn_impute.add_fingerprint",
        "_anndata.results.storable",
        "pp._cnn_impute.report",
    ),
    "tl.rank_genes_groups": ("tl._rank_genes_groups.test_layer", "_anndata.results.storable"),
    "tl.eval_clusters": ("clustering.Clusterer.cluster_counts", "_anndata.results.storable"),
    "tl.eval_false_signals": ("tl._eval_false_signals.test_layer", "_anndata.results.storable"),
    "tl.eval_imputation": ("tl._eval_imputation._score_masking", "_anndata.results.storable"),
    "tl.eval_gini": ("tl._eval_gini._judge", "_anndata.results.storable"),
    "tl.eval_de": ("tl._eval_de._test", "_anndata.results.storable"),
}
CALLS: dict[str, Any] = {
    "tl.cluster": scnn.tl.cluster,
    "pp.dropout_prob": scnn.pp.dropout_prob,
    "paper": lambda adata: scnn.pp.cnn_impute(adata, preset="paper", n_targets=16, max_epochs=1, verbose=False),
    "pp.cnn_impute": lambda adata: scnn.pp.cnn_impute(adata, n_steps=1, verbose=False),
    "tl.rank_genes_groups": lambda adata: scnn.tl.rank_genes_groups(adata, "type"),
    "tl.eval_clusters": lambda adata: scnn.tl.eval_clusters(adata, label_key="type", layers="X"),
    "tl.eval_false_signals": lambda adata: scnn.tl.eval_false_signals(adata, "type", layers="X"),
    "tl.eval_imputation": lambda adata: scnn.tl.eval_imputation(
        adata, how="masking", n_seeds=1, settings={"n_steps": 1}
    ),
    "tl.eval_gini": lambda adata: scnn.tl.eval_gini(adata, reference={"g1": 0.3, "g2": 0.2}),
    "tl.eval_de": lambda adata: scnn.tl.eval_de(adata, groupby="type", **EVALUATED),
}


def contents(adata: ad.AnnData) -> dict[tuple[str, str], Any]:
    return {(attribute, key): getattr(adata, attribute)[key] for attribute, key in keys(adata)}


def assert_same_contents(before: dict[tuple[str, str], Any], adata: ad.AnnData) -> None:
    after = contents(adata)
    assert set(after) == set(before)
    for (attribute, key), value in before.items():
        if attribute in {"obs", "var"}:
            pd.testing.assert_series_equal(after[attribute, key], value)
        else:
            assert after[attribute, key] is value, (attribute, key)


@pytest.mark.parametrize(
    ("again", "failure"), [(False, KeyboardInterrupt), (True, MemoryError)], ids=["first", "again"]
)
@pytest.mark.parametrize(("name", "stage"), [(name, stage) for name, stages in STAGES.items() for stage in stages])
def test_a_failure_at_any_stage_leaves_nothing(
    name: str,
    stage: str,
    again: bool,
    failure: type[BaseException],
    finished: dict[str, ad.AnnData],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adata = finished[name].copy() if again else simulate()
    before, state = contents(adata), global_state()

    def fails(*_: Any, **__: Any) -> Any:
        raise failure

    monkeypatch.setattr(f"scanpy_cnnimpute.{stage}", fails)
    try:
        CALLS[name](adata)
    except failure:
        assert_same_contents(before, adata)
    else:
        # Done before, and not again.
        assert again
    assert_same_state(state)


@pytest.fixture(scope="module")
def finished() -> dict[str, ad.AnnData]:
    """Data after each call."""
    found = {}
    for name, call in CALLS.items():
        found[name] = simulate()
        call(found[name])
    return found


def global_state() -> dict[str, Any]:
    """What a call must not change in the process."""
    import keras
    import matplotlib as mpl

    root, own = logging.getLogger(), logging.getLogger("scanpy_cnnimpute")
    tensorflow = logging.getLogger("tensorflow")
    return {
        "libraries": sorted((each["filepath"], each["num_threads"]) for each in threadpool_info()),
        "numba threads": numba.get_num_threads(),
        "numba layer": numba.config.THREADING_LAYER,
        "floatx": keras.config.floatx(),
        "dtype policy": keras.config.dtype_policy().name,
        "image data format": keras.config.image_data_format(),
        "epsilon": keras.config.epsilon(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "python": random.getstate(),
        "errors": np.geterr(),
        "filters": list(warnings.filters),
        "handlers": [list(each.handlers) for each in (root, own, tensorflow)],
        "levels": [each.level for each in (root, own, tensorflow)],
        "log filters": [list(each.filters) for each in (root, own, tensorflow)],
        "rc": dict(mpl.rcParams),
        "environment": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109
        "figures": mpl.pyplot.get_fignums() if hasattr(mpl, "pyplot") else [],
        "print options": np.get_printoptions(),
    }


def assert_same_state(before: dict[str, Any]) -> None:
    after = global_state()
    known = {path for path, _ in before["libraries"]}  # others were loaded since
    after["libraries"] = [each for each in after["libraries"] if each[0] in known]
    for name, value in before.items():
        assert after[name] == value, name


FIRST_CALL = """
import random
import numpy as np
import scanpy_cnnimpute as scnn
from helpers import simulate
adata = simulate()
states = random.getstate(), str(np.random.get_state())
scnn.pp.cnn_impute(adata, n_steps=2, verbose=False)
assert (random.getstate(), str(np.random.get_state())) == states
"""


def test_the_first_call_of_a_process_keeps_generators() -> None:
    # The first import of Keras draws from Python's generator.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    subprocess.run([sys.executable, "-c", FIRST_CALL], check=True, env=environment)


@pytest.mark.parametrize("name", CALLS)
def test_global_states_are_as_before(name: str, finished: dict[str, ad.AnnData]) -> None:
    adata = simulate()
    before = global_state()
    CALLS[name](adata)
    assert_same_state(before)
    if name == "pp.cnn_impute":
        adata = finished[name].copy()
        before = global_state()
        scnn.get.cnn_imputed(adata, cells=slice(0, 5))
        scnn.CNNImputer.from_anndata(adata).transform(adata)
        assert_same_state(before)


DAMAGES: dict[str, Any] = {
    "far index": lambda x: x.indices.__setitem__(5, 10**6),
    "negative index": lambda x: x.indices.__setitem__(5, -3),
    "falling indptr": lambda x: x.indptr.__setitem__(3, x.indptr[4] + 5),
    "late end": lambda x: x.indptr.__setitem__(-1, x.indptr[-1] + 1000),
    "late start": lambda x: x.indptr.__setitem__(0, 3),
    "fewer values": lambda x: setattr(x, "data", x.data[:-4]),
    "short indptr": lambda x: setattr(x, "indptr", x.indptr[:-2]),
}


def damaged(matrix: Any, how: str) -> sp.csr_matrix:
    copy = sp.csr_matrix(matrix, copy=True)
    DAMAGES[how](copy)
    return copy


ON_COUNTS: dict[str, Any] = {
    "tl.cluster": scnn.tl.cluster,
    "pp.dropout_prob": scnn.pp.dropout_prob,
    "pp.cnn_impute": scnn.pp.cnn_impute,
    "gamma-normal": lambda adata: scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type"),
    "tl.rank_genes_groups": lambda adata: scnn.tl.rank_genes_groups(adata, "type"),
    "tl.eval_imputation": scnn.tl.eval_imputation,
    "estimate": scnn.estimate,
    "CNNImputer": lambda adata: scnn.CNNImputer().fit(adata.X),
    "CNNImputer, AnnData": lambda adata: scnn.CNNImputer().fit(adata),
    "metrics.gini": lambda adata: scnn.metrics.gini(adata.X),
    "metrics.mask_nonzeros": lambda adata: scnn.metrics.mask_nonzeros(adata.X),
    "metrics.thin_counts": lambda adata: scnn.metrics.thin_counts(adata.X, capture_efficiency=0.5),
    "metrics.baseline_estimates": lambda adata: scnn.metrics.baseline_estimates(adata.X, "rank_k"),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_sparse_counts_are_refused(how: str) -> None:
    for name, call in ON_COUNTS.items():
        adata = simulate()
        adata.X = damaged(adata.X, how)
        with pytest.raises(ValueError, match=r"is a damaged sparse matrix"):
            call(adata)
        assert keys(adata) == keys(simulate()), name


@pytest.mark.parametrize("how", [how for how in DAMAGES if how != "short indptr"])
def test_damaged_counts_are_refused_before_cells_are_picked(how: str, finished: dict[str, ad.AnnData]) -> None:
    adata = finished["pp.cnn_impute"].copy()
    x = damaged(adata.X, how)
    adata.X.data, adata.X.indices, adata.X.indptr = x.data, x.indices, x.indptr
    for function in (scnn.get.dropout_prob, scnn.get.cnn_imputed):
        with pytest.raises(ValueError, match=r"adata\.X is a damaged sparse matrix"):
            function(adata, cells=[1, 2])


@pytest.mark.parametrize("how", [how for how in DAMAGES if how != "short indptr"])
def test_damaged_counts_on_disk_are_refused(how: str, tmp_path: Path) -> None:
    adata, path = simulate(), tmp_path / "a.h5ad"
    adata.write_h5ad(path)
    x = damaged(adata.X, how)
    with h5py.File(path, "r+") as file:
        for part in ("data", "indices", "indptr"):
            del file["X"][part]
            file["X"][part] = getattr(x, part)
    backed = anndata.read_h5ad(path, backed="r")
    with pytest.raises(ValueError, match=r"adata\.X is a damaged sparse matrix"):
        scnn.pp.dropout_prob(backed)
    backed.file.close()


BLOCKS: dict[str, Any] = {
    "fewer genes": lambda block: block[:, :40],
    "more genes": lambda block: sp.hstack([block, block], format="csr"),
    "fewer cells": lambda block: block[:-3],
    "far index": lambda block: damaged(block, "far index"),
    "falling indptr": lambda block: damaged(block, "falling indptr"),
}


@pytest.mark.parametrize("how", BLOCKS)
def test_dask_chunks_that_are_not_what_they_say_are_refused(how: str) -> None:
    da = pytest.importorskip("dask.array")
    adata = simulate(120)
    adata.X = da.from_array(adata.X.toarray(), chunks=(60, -1)).map_blocks(
        lambda block: BLOCKS[how](sp.csr_matrix(block)) if block.size else sp.csr_matrix(block),
        dtype=np.float32,
        meta=sp.csr_matrix((0, 0), dtype=np.float32),
    )
    for function in (scnn.pp.dropout_prob, scnn.pp.cnn_impute):
        with pytest.raises(ValueError, match=r"is a damaged sparse matrix|A block of adata\.X has shape"):
            function(adata)


def test_entries_that_were_changed_in_place_are_sorted_and_summed() -> None:
    x = simulate().X
    assert x.has_canonical_format  # SciPy remembers that, whatever happens to the indices
    x.indices[:2] = x.indices[1], x.indices[0]
    x.indices[x.indptr[1]] = x.indices[x.indptr[1] + 1]
    csr = to_csr(x)
    assert csr.nnz == x.nnz - 1
    np.testing.assert_array_equal(csr.toarray(), sp.coo_array(x).toarray())


CHANGES: dict[str, Any] = {
    "other columns": lambda values: np.concatenate([values, values], axis=1),
    "negative": lambda values: (-np.abs(values) - 5).astype(values.dtype),
    "nan": lambda values: np.full(values.shape, np.nan),
}
CHANGED = [
    ("obsm", "dropout_prob_scores", "other columns"),
    ("obsm", "dropout_prob_scores", "negative"),
    ("obsm", "dropout_prob_cell_ids", "other columns"),
    ("obsm", "dropout_prob_cell_ids", "negative"),
    ("obsm", "dropout_prob_fit", "other columns"),
    ("varm", "dropout_prob_fit", "other columns"),
    ("varm", "dropout_prob_total", "other columns"),
    ("varm", "dropout_prob_loadings", "other columns"),
    ("varm", "dropout_prob_loadings", "negative"),
    ("varm", "dropout_prob_shape", "negative"),
    ("varm", "dropout_prob_shape", "nan"),
    ("varm", "cnn_imputed_neighbours", "negative"),
    ("varm", "cnn_imputed_gene_ids", "negative"),
    ("varm", "cnn_imputed_status", "negative"),
    ("varm", "cnn_imputed_status", "other columns"),
    ("varm", "cnn_imputed_correlations", "other columns"),
]


@pytest.mark.parametrize(("place", "name", "how"), CHANGED)
def test_changed_arrays_of_a_stored_fit_are_refused(
    place: str, name: str, how: str, finished: dict[str, ad.AnnData]
) -> None:
    adata = finished["pp.cnn_impute"].copy()
    getattr(adata, place)[name] = CHANGES[how](np.asarray(getattr(adata, place)[name]))
    for call in (scnn.get.cnn_imputed, scnn.CNNImputer.from_anndata):
        with pytest.raises(ValueError, match=r"is damaged|do not come from the fit"):
            call(adata)


FORKED = """
import multiprocessing, sys
import scanpy_cnnimpute as scnn
sys.path.insert(0, "tests")
from helpers import simulate

def work(method):
    adata = simulate()
    if method == "impute":
        scnn.pp.cnn_impute(adata, n_steps=1, verbose=False)
        return float(adata.layers["cnn_imputed"].sum())
    if method == "mixture":
        scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type")
    elif method == "calibrated":
        scnn.pp.dropout_prob(adata)
    else:
        scnn.tl.cluster(adata, method=method, use_rep="X_latent")
        return "".join(adata.obs["cnn_cluster"].astype(str))
    return adata.layers["dropout_prob"].tobytes()

methods = ["mixture", "calibrated", "adp", "leiden"]
here = [work(method) for method in methods]
with multiprocessing.get_context("fork").Pool(1) as pool:
    there = [pool.apply_async(work, (method,)).get(120) for method in methods]
print("the same:", here == there)
work("impute")
with multiprocessing.get_context("fork").Pool(1) as pool:
    print("the same:", pool.apply_async(work, ("calibrated",)).get(120) == here[1])
    try:
        pool.apply_async(work, ("impute",)).get(120)
    except RuntimeError as error:
        print(error)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the operating system does not fork")
def test_forked_processes_do_the_same_or_are_refused(request: pytest.FixtureRequest) -> None:
    lines = run_python(FORKED, request).splitlines()
    assert lines[:2] == ["the same: True"] * 2
    assert "multiprocessing.get_context('spawn')" in lines[2]


THREADS = """
import sys, threading
import numba
import scanpy_cnnimpute as scnn
from threadpoolctl import threadpool_info
sys.path.insert(0, "tests")
from helpers import simulate

results = {}
def work(number):
    adata = simulate()
    scnn.pp.dropout_prob(adata, n_jobs=1 + number % 2)
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type", key_added="mixture")
    scnn.tl.cluster(adata, method="adp", use_rep="X_latent")
    results[number] = adata.layers["dropout_prob"].tobytes(), adata.layers["mixture"].tobytes()

work(0)
before = {each["filepath"]: each["num_threads"] for each in threadpool_info()}
threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
after = {each["filepath"]: each["num_threads"] for each in threadpool_info()}
print(numba.threading_layer(), len(results), len(set(results.values())), before == after)
"""


@pytest.mark.parametrize("layer", ["workqueue", "omp", "tbb"])
def test_four_threads_at_once(layer: str, request: pytest.FixtureRequest) -> None:
    if layer == "tbb" and importlib.util.find_spec("tbb") is None:
        pytest.skip("TBB is not installed")
    variables = {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2"}
    assert run_python(THREADS, request, **variables).split() == [layer, "5", "1", "True"]


SAME_BITS = """
import hashlib, sys
import numpy as np, scipy.sparse as sp
import scanpy_cnnimpute as scnn
from scanpy_cnnimpute.clustering import methods
from scanpy_cnnimpute.imputation.default import molecules, nonzero
sys.path.insert(0, "tests")
from helpers import simulate, untrained

molecules.train_network = nonzero.train_network = untrained  # all but the network
def note(name, *values):
    digest = hashlib.sha256()
    for value in values:
        value = value.toarray() if sp.issparse(value) else np.ascontiguousarray(value)
        digest.update(value.tobytes() if value.dtype != object else repr(value.tolist()).encode())
    print(name, digest.hexdigest())

for _ in range(int(sys.argv[1])):
    adata = simulate(120, 60)
    repeated = adata[np.arange(120) % 15].copy()  # fewer distinct cells than components
    repeated.obs_names_make_unique()
    for data in (adata, repeated):
        for method in ("leiden", "kmeans", "adp"):
            copy = data.copy()
            scnn.tl.cluster(copy, method=method, n_clusters=3 if method == "kmeans" else None, random_state=1)
            embedding = copy.obsm["X_cnn_tsne" if method == "adp" else "X_cnn_pca"]
            note(method, copy.obs["cnn_cluster"].cat.codes, embedding)
    methods.MAX_CELLS, methods.DRAWN_CELLS = 80, dict.fromkeys(methods.DRAWN_CELLS, 60)
    for method in ("leiden", "kmeans", "adp"):
        copy = adata.copy()
        scnn.tl.cluster(copy, method=method, n_clusters=3 if method == "kmeans" else None, random_state=1)
        note(method + " of a draw", copy.obs["cnn_cluster"].cat.codes)
    methods.MAX_CELLS, methods.DRAWN_CELLS = 20_000, {"leiden": 20_000, "kmeans": 20_000, "adp": 5_000}
    for data in (adata, repeated):
        copy = data.copy()
        scnn.pp.dropout_prob(copy)
        scnn.pp.dropout_prob(copy, model="gamma_normal", key_added="mixture")
        note("probabilities", copy.layers["dropout_prob"], copy.layers["mixture"])
    scnn.pp.dropout_prob(adata)
    quick = {"n_steps": 1, "verbose": False}
    scnn.pp.cnn_impute(adata, estimate="conditional", key_added="conditional", **quick)
    note("conditional", *(adata.varm["conditional_" + name] for name in ("loadings", "features", "neighbours", "sd")))
    scnn.pp.cnn_impute(adata, **quick)
    note("default", *(adata.varm["cnn_imputed_" + name] for name in ("neighbours", "correlations", "level")))
    scnn.tl.rank_genes_groups(adata, "type")
    note("decoys", adata.uns["rank_genes_groups"]["scores"]["a"], adata.uns["rank_genes_groups"]["pvals"]["a"])
    note("false signals", scnn.tl.eval_false_signals(adata, "type", layers="X")[["called", "correlation"]].to_numpy())
    table = scnn.tl.eval_imputation(adata, n_seeds=1, settings={"n_steps": 1}).drop(index="cnn_impute")
    note("baselines", table.to_numpy(float))
    print("end")
"""


def test_the_same_bits_before_the_network_wherever_it_runs(request: pytest.FixtureRequest) -> None:
    outputs = []
    for threads, hash_seed, n_times in (("1", "0", "1"), ("2", "7", "2")):
        variables = {"NUMBA_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        output = run_python(SAME_BITS, request, n_times, PYTHONHASHSEED=hash_seed, **variables)
        outputs += output.removesuffix("end\n").split("end\n")
    assert len(outputs) == 3
    for other in outputs[1:]:
        assert other.splitlines() == outputs[0].splitlines()
    assert len(outputs[0].splitlines()) == 16


def run_python(code: str, request: pytest.FixtureRequest, *arguments: str, **variables: str) -> str:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        cwd=request.config.rootpath,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout
