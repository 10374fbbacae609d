"""Repeated calls keep nothing of earlier ones alive: no counts, no models, no networks' data."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from typing import Any

import pytest
import scipy.sparse as sp
from helpers import QUICK, simulate

import scanpy_cnnimpute as scnn

TINY: dict[str, Any] = {"n_steps": 2, "verbose": False}
CALLS: dict[str, dict[str, Any]] = {
    "posterior_mean": TINY,
    "expected_count": {**TINY, "estimate": "expected_count"},
    "conditional": {**TINY, "estimate": "conditional"},
    "paper": QUICK,
}


def alive() -> Counter[str]:
    """Numbers of sparse matrices, and of objects whose class is this package's, by name of the class."""
    gc.collect()
    kinds = [type(each) for each in gc.get_objects() if sp.issparse(each) or _is_ours(type(each))]
    return Counter(kind.__name__ for kind in kinds)


def _is_ours(kind: type) -> bool:
    return str(getattr(kind, "__module__", "")).startswith("scanpy_cnnimpute")


def call(name: str) -> list[weakref.ref[Any]]:
    """One imputation, and all that can be read from it; returns references to its data."""
    adata = simulate()
    scnn.pp.cnn_impute(adata, **CALLS[name])
    scnn.get.dropout_prob(adata)
    if name != "paper":
        scnn.get.cnn_imputed(adata, genes=["g3", "g1"])
    return [weakref.ref(part) for part in (adata, adata.X, adata.layers["cnn_imputed"])]


@pytest.mark.parametrize("name", CALLS)
def test_nothing_of_an_earlier_call_is_alive(name: str) -> None:
    call(name)  # what is loaded once and kept
    before = alive()
    references = call(name) + call(name)
    after = alive()
    assert after == before
    assert [reference() for reference in references] == [None] * 6


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
    assert "cnn_imputed" not in adata.layers
    assert "cnn_imputed" not in adata.uns
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
