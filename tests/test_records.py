"""Records of arrays, and the registries that find dropout models and imputers by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import simulate

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import CNNImputer
from scanpy_cnnimpute._records import ArrayRecord, array, array_list, column
from scanpy_cnnimpute.dropout import MODELS, Clusters, DropoutFit, DropoutModel
from scanpy_cnnimpute.imputation import IMPUTERS, Imputed, Imputer, find_imputer
from scanpy_cnnimpute.presets import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scanpy_cnnimpute._counts import Counts


@dataclass(frozen=True, kw_only=True)
class Toy(ArrayRecord):
    scores: np.ndarray = array("f4", "cells", "factors")
    depth: np.ndarray = column("f8")
    loadings: np.ndarray = array("f4", "genes", "factors")
    ids: np.ndarray = array("i4", "genes")
    names: np.ndarray = array("U", "clusters")
    seed: int = array("i8")
    mean: float = array("f8")
    weights: list[np.ndarray] = array_list("f4")
    label: str = "no array"


def toy() -> Toy:
    rng = np.random.default_rng(0)
    return Toy(
        scores=rng.random((4, 2), dtype=np.float32),
        depth=rng.random(4),
        loadings=rng.random((5, 2), dtype=np.float32),
        ids=np.arange(5, dtype=np.int32),
        names=np.array(["a", "bc"]),
        seed=7,
        mean=0.25,
        weights=[rng.random((2, 3), dtype=np.float32), rng.random(1, dtype=np.float32)] * 6,
        label="mine",
    )


def assert_same(one: Toy, two: Toy) -> None:
    for name in ("scores", "depth", "loadings", "ids", "names"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        assert getattr(one, name).dtype == getattr(two, name).dtype
    assert (one.seed, one.mean, one.label) == (two.seed, two.mean, two.label)
    for first, second in zip(one.weights, two.weights, strict=True):
        np.testing.assert_array_equal(first, second)


def test_take_slices_the_axes_that_are_named() -> None:
    record = toy()
    part = record.take(cells=np.array([2, 0]), genes=np.array([4, 1, 1]))
    np.testing.assert_array_equal(part.scores, record.scores[[2, 0]])
    np.testing.assert_array_equal(part.depth, record.depth[[2, 0]])
    np.testing.assert_array_equal(part.loadings, record.loadings[[4, 1, 1]])
    np.testing.assert_array_equal(part.ids, [4, 1, 1])
    assert part.names is record.names
    assert (part.seed, part.label) == (7, "mine")
    assert_same(record.take(), record)
    only_genes = record.take(genes=np.arange(5) % 2 == 0)
    np.testing.assert_array_equal(only_genes.ids, [0, 2, 4])
    assert only_genes.scores is record.scores


def test_round_trip_keeps_order_and_dtypes() -> None:
    arrays = toy().to_arrays()
    assert [name for name in arrays if name.startswith("weights")] == [f"weights_{k}" for k in range(12)]
    assert arrays["seed"].shape == ()
    again = Toy.from_arrays(arrays, {"genes": 5, "cells": 4}, label="mine")
    assert_same(again, toy())
    assert type(again.seed) is int
    assert type(again.mean) is float
    # Files may hold other widths of the same kind, in any memory layout.
    wide = arrays | {"ids": arrays["ids"].astype(np.int64), "scores": np.asfortranarray(arrays["scores"], dtype=float)}
    again = Toy.from_arrays(wide, {}, label="mine")
    assert_same(again, toy())
    assert again.scores.flags.c_contiguous


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("depth", None, "the array 'depth' is missing"),
        ("seed", None, "the array 'seed' is missing"),
        ("scores", np.zeros((4, 3)), "the array 'loadings' has 2 factors, expected 3"),
        ("ids", np.zeros(6, dtype=int), "the array 'ids' has 6 genes, expected 5"),
        ("depth", np.zeros((4, 1)), "the array 'depth' has 2 dimensions, expected 1"),
        ("seed", np.arange(2), "the array 'seed' has 1 dimensions, expected 0"),
        ("ids", np.zeros(5), "the array 'ids' has dtype float64, expected int32"),
        ("depth", np.zeros(4, dtype=int), "the array 'depth' has dtype int64, expected float64"),
        ("depth", np.array(["1"] * 4), "the array 'depth' has dtype <U1, expected float64"),
        ("weights_3", np.array(["text"]), "the array 'weights_3' has dtype <U4, expected float32"),
        ("weights_0", np.array([None]), "the array 'weights_0' has dtype object, expected float32"),
    ],
)
def test_what_does_not_fit_is_named(name: str, value: Any, message: str) -> None:
    arrays = toy().to_arrays() | {name: value}
    if value is None:
        del arrays[name]
    with pytest.raises(ValueError, match=message):
        Toy.from_arrays(arrays, {"genes": 5})


@pytest.fixture
def registries() -> Iterator[None]:
    """What a test registers is forgotten afterwards."""
    models, imputers = dict(MODELS), list(IMPUTERS)
    yield
    MODELS.clear()
    MODELS.update(models)
    IMPUTERS[:] = imputers


def new_model() -> type[DropoutModel]:
    @dataclass(frozen=True, kw_only=True)
    class Cells(ArrayRecord):
        library_size: np.ndarray = column("f8")

    @dataclass(frozen=True, kw_only=True)
    class ZeroShare(DropoutModel):
        """The more often a gene was counted, the likelier is a zero a dropout."""

        name: ClassVar[str] = "zero_share"
        cells_type: ClassVar[type[ArrayRecord]] = Cells
        needs_clusters: ClassVar[bool] = False
        counts_molecules: ClassVar[bool] = False
        detected: np.ndarray = array("f4", "genes")

        @classmethod
        def fit(cls, counts: Counts, **_: Any) -> DropoutFit:
            detected = counts.totals.n_cells / counts.shape[0]
            model = cls(detected=detected.astype(np.float32))
            return DropoutFit(model=model, cells=model.describe(counts.load()), tables={})

        def describe(self, counts: sp.csr_array, **_: Any) -> Cells:
            return Cells(library_size=counts.sum(axis=1, dtype=np.float64))

        def probability(self, counts: sp.csr_array, cells: Any) -> np.ndarray:
            return np.where(counts.toarray() > 0, np.float32(0), self.detected)

        @property
        def modelled(self) -> np.ndarray:
            return self.detected[:, None] > 0

        def summary(self, counts: Counts, cells: Any, clusters: Clusters) -> pd.DataFrame:
            n_cells = np.bincount(clusters.codes, minlength=len(clusters.names))
            return pd.DataFrame({"n_cells": n_cells, "n_modelled": int(self.modelled.sum()), "zeros_called": 0.0})

    return ZeroShare


def new_imputer(dropout_model: str) -> type[Imputer]:
    @dataclass(frozen=True, kw_only=True)
    class ConstantSettings(Settings):
        value: float = 2.0
        threshold: float = 0.5

    @dataclass(kw_only=True)
    class ConstantImputer(Imputer):
        """One number for all probable dropouts."""

        preset: ClassVar[str] = "constant"
        estimates: ClassVar[tuple[str, ...]] = ("conditional",)
        settings_type: ClassVar[type[Settings]] = ConstantSettings
        status: np.ndarray = array("i1", "genes", "columns")
        settings: Any = field(default_factory=ConstantSettings)
        estimate: str = "conditional"
        history: list[dict[str, Any]] = field(default_factory=list)

        @classmethod
        def fit(cls, counts: Counts, dropout: Any, options: Any) -> ConstantImputer:
            return cls(status=np.zeros((counts.shape[1], 1), dtype=np.int8), settings=options.settings)

        def predict(self, counts: sp.csr_array, dropout: Any, **options: Any) -> Iterator[Imputed]:
            cells = np.arange(counts.shape[0])
            missing = (dropout.block(cells) > self.settings.threshold) & (counts.toarray() == 0)
            values = sp.csr_array(missing * np.float32(self.settings.value))
            yield Imputed(cells=cells, counts=counts, values=values)

    ConstantImputer.dropout_model = dropout_model
    return ConstantImputer


@pytest.mark.usefixtures("registries")
def test_a_new_model_is_found_by_name() -> None:
    adata = simulate()
    with pytest.raises(ValueError, match=r"model='zero_share' is not known. Available: \['calibrated', 'gamma_normal'"):
        scnn.pp.dropout_prob(adata, model="zero_share")
    assert new_model() is MODELS["zero_share"]
    scnn.pp.dropout_prob(adata, model="zero_share", cluster_key="type")
    counts = adata.X.toarray()
    expected = np.where(counts > 0, 0, (counts > 0).mean(axis=0))
    np.testing.assert_allclose(adata.layers["dropout_prob"], expected, rtol=1e-6)
    assert adata.varm["dropout_prob_detected"].shape == (50, 1)
    part = adata[10:20, ::-1].copy()
    np.testing.assert_allclose(scnn.get.dropout_prob(part), expected[10:20, ::-1], rtol=1e-6)
    scnn.pp.cnn_impute(adata, n_steps=2, verbose=False)
    assert adata.uns["cnn_imputed"]["params"]["estimate"] == "conditional"


@pytest.mark.usefixtures("registries")
def test_a_new_imputer_is_found_by_preset(tmp_path: Any) -> None:
    adata = simulate()
    with pytest.raises(ValueError, match=r"preset='constant' is not known. Available: \['default', 'paper'\]"):
        CNNImputer(preset="constant")
    kind = new_imputer(new_model().name)
    assert find_imputer("constant") is kind
    imputer = CNNImputer(preset="constant", value=3)
    imputed = imputer.fit_transform(adata)
    counts = adata.X.toarray()
    missing = (counts == 0) & ((counts > 0).mean(axis=0) > 0.5)
    np.testing.assert_array_equal(imputed.toarray(), np.where(missing, 3, counts))
    imputer.save(tmp_path / "constant")
    loaded = CNNImputer.load(tmp_path / "constant")
    assert loaded.settings == imputer.settings
    np.testing.assert_array_equal(loaded.transform(adata).toarray(), imputed.toarray())
    with pytest.raises(ValueError, match=r"n_steps=3 is not a setting of preset='constant'.*\['threshold', 'value'\]"):
        CNNImputer(preset="constant", n_steps=3)
    scnn.pp.cnn_impute(adata, preset="constant", verbose=False)
    assert adata.uns["dropout_prob"]["params"]["model"] == "zero_share"
    np.testing.assert_array_equal(adata.layers["cnn_imputed"].toarray(), np.where(missing, 2, counts))


def test_what_tests_register_is_forgotten() -> None:
    assert set(MODELS) == {"calibrated", "gamma_normal"}
    assert {imputer.preset for imputer in IMPUTERS} == {"default", "paper"}
