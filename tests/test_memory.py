"""Repeated calls keep nothing of earlier ones alive: no counts, no models, no networks' data."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from functools import lru_cache
from typing import Any

import pytest
import scipy.sparse as sp
from helpers import QUICK, simulate

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute.imputation.default import architecture as default_architecture
from scanpy_cnnimpute.imputation.default import training as default_training
from scanpy_cnnimpute.imputation.default.architecture import hidden_mse
from scanpy_cnnimpute.imputation.paper import architecture as paper_architecture
from scanpy_cnnimpute.presets import PaperSettings

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {"n_steps": 2, "verbose": False}
CALLS: dict[str, dict[str, Any]] = {
    "posterior_mean": TINY,
    "expected_count": {**TINY, "estimate": "expected_count"},
    "conditional": {**TINY, "estimate": "conditional"},
    "all": {**TINY, "entries": "all"},
    "paper": QUICK,
}
SHAPES = tuple((shape, "float32") for shape in ((4, 50, 3), (4, 10, 11), (4, 9), (4, 10, 2)))
KEY = {"all": "cnn_denoised"}


def alive() -> Counter[str]:
    """Numbers of sparse matrices, and of objects whose class is this package's, by name of the class."""
    gc.collect()
    kinds = [type(each) for each in gc.get_objects()]  # isinstance would wake up deprecated objects of torch
    return Counter(kind.__name__ for kind in kinds if issubclass(kind, sp.sparray | sp.spmatrix) or _is_ours(kind))


def _is_ours(kind: type) -> bool:
    return str(getattr(kind, "__module__", "")).startswith("scanpy_cnnimpute")


def graphs() -> int:
    """Number of graphs that TensorFlow holds for its functions."""
    return sum(type(each).__name__ == "FuncGraph" for each in gc.get_objects())


def call(name: str, n_cells: int = 60, n_genes: int = 50) -> list[weakref.ref[Any]]:
    """One imputation, and all that can be read from it; returns references to its data."""
    adata = simulate(n_cells, n_genes)
    scnn.pp.cnn_impute(adata, **CALLS[name])
    scnn.get.dropout_prob(adata)
    if name != "paper":
        scnn.get.cnn_imputed(adata, genes=["g3", "g1"], key=KEY.get(name, "cnn_imputed"))
    return [weakref.ref(part) for part in (adata, adata.X, adata.layers[KEY.get(name, "cnn_imputed")])]


@pytest.mark.parametrize("name", CALLS)
def test_nothing_of_an_earlier_call_is_alive(name: str) -> None:
    call(name)  # what is loaded once and kept
    before = alive()
    references = call(name) + call(name)
    after = alive()
    assert after == before
    assert [reference() for reference in references] == [None] * 6


def test_networks_of_other_shapes_are_released(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (default_training, default_architecture):
        monkeypatch.setattr(module, "_compiled", lru_cache(maxsize=1)(module._compiled.__wrapped__))
    for name in ("posterior_mean", "conditional"):
        call(name, n_genes=30)
        before, n_graphs = alive(), graphs()
        references = [*call(name, n_cells=50, n_genes=35), *call(name, n_genes=40)]
        assert alive() == before
        assert graphs() == n_graphs
        assert [reference() for reference in references] == [None] * 6


def test_networks_built_again_have_the_names_of_the_first() -> None:
    # TensorFlow keeps a kernel for each name that a variable has had.
    sizes = 10, 3, 11, 9
    builds = [
        lambda: default_training._Trainer(sizes, 5, hidden_mse, (2, 1e-3), SHAPES)._trainer,
        lambda: paper_architecture.build_network(PaperSettings(n_targets=4)),
    ]
    for build in builds:
        names = [
            [variable.path for variable in (*model.trainable_variables, *model.optimizer.variables)]
            for model in (build(), build())
        ]
        assert names[0] == names[1]


@pytest.mark.parametrize("name", CALLS)
def test_nothing_of_a_failed_training_is_alive(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    def fails(*_: Any, **__: Any) -> None:
        msg = "no such luck"
        raise OSError(msg)

    call(name)
    before = alive()
    adata = simulate()
    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "fit", fails)
        patch.setattr(keras.Model, "predict_on_batch", fails)
        with pytest.raises(OSError, match="no such luck"):
            scnn.pp.cnn_impute(adata, **CALLS[name])
    assert KEY.get(name, "cnn_imputed") not in adata.layers
    assert KEY.get(name, "cnn_imputed") not in adata.uns
    del adata
    assert alive() == before


@pytest.mark.parametrize("name", ["posterior_mean", "paper"])
def test_a_fitted_estimator_goes_with_its_last_reference(name: str) -> None:
    settings = {"n_steps": 2} if name == "posterior_mean" else {"preset": "paper", "n_targets": 16, "max_epochs": 2}
    counts = simulate().X
    scnn.CNNImputer(verbose=False, **settings).fit(counts)
    before = alive()
    imputer = scnn.CNNImputer(verbose=False, **settings).fit(counts)
    imputer.transform(counts)
    reference = weakref.ref(imputer)
    del imputer
    assert alive() == before
    assert reference() is None
