"""Wrong values of every argument, damaged inputs, failures at every stage, threads, forks, and the same bits again."""

from __future__ import annotations

import inspect
import math
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import keys, simulate

import scanpy_cnnimpute as scnn

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
