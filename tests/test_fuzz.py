"""Any data and any arguments: a result that keeps the rules, or a refusal in words that leaves nothing behind.

A small number of examples runs with the other tests; `pytest tests/test_fuzz.py --hypothesis-profile=large` runs ten
thousand.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import dense, keys, simulate, untrained
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from strategies import annotated, arguments, damage

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import CNNImputer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.slow

REFUSALS = (ValueError, TypeError, KeyError, NotImplementedError)
DROPOUT: dict[str, list[Any]] = {
    "layer": [None, "twin", "missing"],
    "cluster_key": [None, "type"],
    "model": ["calibrated", "gamma_normal"],
    "count_type": ["auto", "umi", "reads"],
    "capture_efficiency": [None, 0.1, 1.0, "10x_v3", "type"],
    "mask_var": [None, "chosen"],
    "random_state": [0, 7],
    "store": ["auto", "layer", "params"],
    "max_layer_bytes": [0, 2**30],
    "key_added": ["dropout_prob", "p", "a/b", "twin"],
    "n_jobs": [None, 1, 2],
}
IMPUTE: dict[str, list[Any]] = {
    "layer": [None, "twin"],
    "cluster_key": [None, "type"],
    "count_type": ["auto", "umi", "reads"],
    "estimate": [None, "posterior_mean", "expected_count", "conditional"],
    "entries": ["zeros", "all"],
    "gate": [None, True, False],
    "return_std": [True, False],
    "mask_var": [None, "chosen"],
    "threshold": [None, 0.0, 0.3, 1.0],
    "n_top": [None, 1, 3],
    "n_steps": [1, 2],
    "depth": [None, 1000.0],
    "random_state": [0, 7],
    "store": ["auto", "layer", "params"],
    "key_added": [None, "i", "..", "twin"],
}
CLUSTER: dict[str, list[Any]] = {
    "layer": [None, "twin"],
    "method": ["leiden", "kmeans"],
    "n_clusters": [None, 1, 2, 40],
    "resolution": [1.0, 0.1],
    "random_state": [0, 3],
    "key_added": ["cnn_cluster", "c"],
}
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


@pytest.fixture(scope="module", autouse=True)
def quick_and_quiet() -> Any:
    """Networks that are not trained but correct every prediction; what the log says is not looked at here."""
    with pytest.MonkeyPatch.context() as patch:
        for estimate in ("molecules", "nonzero"):
            patch.setattr(f"scanpy_cnnimpute.imputation.default.{estimate}.train_network", untrained)
        level = logging.getLogger("scanpy_cnnimpute").level
        logging.getLogger("scanpy_cnnimpute").setLevel(logging.ERROR)
        yield
        logging.getLogger("scanpy_cnnimpute").setLevel(level)


@pytest.fixture(autouse=True)
def names_need_not_be_unique() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*names are not unique", category=UserWarning)
        yield


def snapshot(adata: ad.AnnData) -> bytes:
    """All of an AnnData, to the bit."""
    parts: dict[str, Any] = {"X": adata.X, "obs": adata.obs, "var": adata.var, "uns": dict(adata.uns)}
    for name in ("layers", "obsm", "varm"):
        parts |= {f"{name} {key}": value for key, value in getattr(adata, name).items() if key is not None}
    plain = {
        key: (type(value).__name__, value.data, value.indices, value.indptr) if sp.issparse(value) else value
        for key, value in parts.items()
    }
    return pickle.dumps(
        {key: np.asarray(value) if isinstance(value, np.ndarray) else value for key, value in plain.items()}
    )


def called(function: Callable[..., Any], adata: ad.AnnData, options: dict[str, Any]) -> bool:
    """Whether a call succeeds. If it is refused, it says why and the data are as before."""
    before = snapshot(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", UserWarning)  # names that are not unique; fractions that may be counts
        try:
            function(adata, **options)
        except REFUSALS as error:
            message = str(error.args[0]) if error.args else ""
            event(f"{function.__name__} refuses: {type(error).__name__}")
            assert len(message) > 15
            assert "\n" not in message.strip()
            assert snapshot(adata) == before
            return False
    event(f"{function.__name__} succeeds")
    return True


def check_rules(before: ad.AnnData, after: ad.AnnData) -> None:
    """What was there is as it was; new layers hold finite, non-negative numbers."""
    assert keys(before) <= keys(after)
    assert after.obs_names.equals(before.obs_names)
    assert after.var_names.equals(before.var_names)
    for old, new in ((before.X, after.X), (before.layers["twin"], after.layers["twin"])):
        assert type(old) is type(new)
        assert old.dtype == new.dtype
        np.testing.assert_array_equal(dense(old), dense(new))
    for attribute, key in keys(after) - keys(before):
        if attribute == "layers":
            values = dense(after.layers[key])
            assert values.shape == before.shape
            assert np.isfinite(values).all()
            assert (values >= 0).all()


@settings(suppress_health_check=SLOW, deadline=None)
@given(adata=annotated(), options=arguments(DROPOUT))
def test_dropout_prob(adata: ad.AnnData, options: dict[str, Any]) -> None:
    before = adata.copy()
    if not called(scnn.pp.dropout_prob, adata, options):
        return
    check_rules(before, adata)
    key = options.get("key_added", "dropout_prob")
    probability = scnn.get.dropout_prob(adata, key=key)
    observed = dense(before.X if options.get("layer") is None else before.layers[options["layer"]]) > 0
    assert ((probability >= 0) & (probability <= 1)).all()
    assert (probability[observed] <= 0.4).all()
    if key in adata.layers:
        chosen = before.var["chosen"].to_numpy() if options.get("mask_var") else slice(None)
        np.testing.assert_array_equal(dense(adata.layers[key])[:, chosen], probability[:, chosen])
    again = before.copy()
    assert called(scnn.pp.dropout_prob, again, options)
    np.testing.assert_array_equal(scnn.get.dropout_prob(again, key=key), probability)


@settings(suppress_health_check=SLOW, deadline=None)
@given(adata=annotated(), options=arguments(IMPUTE))
def test_cnn_impute(adata: ad.AnnData, options: dict[str, Any]) -> None:
    before = adata.copy()
    if not called(scnn.pp.cnn_impute, adata, {"verbose": False, **options}):
        return
    check_rules(before, adata)
    everything = options.get("entries") == "all"
    key = options.get("key_added") or ("cnn_denoised" if everything else "cnn_imputed")
    layer = adata.uns[key]["params"].get("layer")
    counts = dense(before.X if layer is None else before.layers[layer])
    found = scnn.get.cnn_imputed(adata, key=key)
    if not everything:
        np.testing.assert_array_equal(found[counts > 0], counts[counts > 0])
    if key in adata.layers:
        # The network's batches differ: sums of float32 in another order.
        np.testing.assert_allclose(found, dense(adata.layers[key]), rtol=1e-4, atol=1e-6)
    status = adata.uns[key]["status"]
    changed = (found != counts).any(axis=0)
    assert set(status.to_numpy()[changed].ravel()) <= {"imputed"} or "depth" in options


@settings(suppress_health_check=SLOW, deadline=None)
@given(adata=annotated(), options=arguments(CLUSTER))
def test_cluster(adata: ad.AnnData, options: dict[str, Any]) -> None:
    before = adata.copy()
    if not called(scnn.tl.cluster, adata, options):
        return
    check_rules(before, adata)
    labels = adata.obs[options.get("key_added", "cnn_cluster")]
    counts = dense(before.X if options.get("layer") is None else before.layers[options["layer"]])
    np.testing.assert_array_equal(labels.isna(), ~(counts > 0).any(axis=1))


@settings(suppress_health_check=SLOW, deadline=None)
@given(adata=annotated(sound=True), options=arguments(IMPUTE, sound=True), suffix=st.sampled_from(["h5ad", "zarr"]))
def test_files_keep_what_was_written(
    tmp_path_factory: Any, adata: ad.AnnData, options: dict[str, Any], suffix: str
) -> None:
    if suffix == "zarr":
        pytest.importorskip("zarr")
    if not called(scnn.pp.cnn_impute, adata, {"verbose": False, **options}):
        return
    path = tmp_path_factory.mktemp("fuzz") / f"a.{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_h5ad(path) if suffix == "h5ad" else adata.write_zarr(path)
        read = ad.read_h5ad(path) if suffix == "h5ad" else ad.read_zarr(path)
    key = options.get("key_added") or ("cnn_denoised" if options.get("entries") == "all" else "cnn_imputed")
    expected, found = (scnn.get.cnn_imputed(data, key=key) for data in (adata, read))
    np.testing.assert_array_equal(found, expected)
    again = CNNImputer.from_anndata(read, key)
    assert again.genes_ == list(read.var_names)


@settings(suppress_health_check=SLOW, deadline=None)
@given(
    adata=annotated(), efficiency=st.sampled_from([None, 0.2, "10x_v2", 3.0]), entries=st.sampled_from(["zeros", "all"])
)
def test_estimator(tmp_path_factory: Any, adata: ad.AnnData, efficiency: Any, entries: Any) -> None:
    before = snapshot(adata)
    imputer = CNNImputer(n_steps=1, verbose=False, entries=entries)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            imputer.fit(adata, capture_efficiency=efficiency)
            found = imputer.transform(adata)
        except REFUSALS as error:
            event(f"CNNImputer refuses: {type(error).__name__}")
            assert len(str(error)) > 15  # noqa: PT017 - a success is right, too
            return
        finally:
            assert snapshot(adata) == before
        values = dense(found)
        assert np.isfinite(values).all()
        assert (values >= 0).all()
        if entries == "zeros":
            observed = dense(adata.X) > 0
            np.testing.assert_array_equal(values[observed], dense(adata.X)[observed])
        path = tmp_path_factory.mktemp("fuzz") / "imputer"
        imputer.save(path)
        if len(set(imputer.genes_)) == len(imputer.genes_):
            np.testing.assert_array_equal(dense(CNNImputer.load(path).transform(adata)), values)
    event("CNNImputer succeeds")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved imputer."""
    path = tmp_path_factory.mktemp("saved") / "imputer"
    CNNImputer(n_steps=1, verbose=False).fit(simulate(30, 12)).save(path)
    return path


@settings(suppress_health_check=SLOW, deadline=None)
@given(change=damage(), name=st.sampled_from(["imputer.json", "arrays.npz"]))
def test_damaged_imputers_are_refused_or_right(saved: Path, change: Callable[[bytes], bytes], name: str) -> None:
    new = simulate(8, 12, seed=1)
    expected = CNNImputer.load(saved).transform(new).toarray()
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(change(content))
    try:
        found = CNNImputer.load(saved).transform(new).toarray()
    except (ValueError, FileNotFoundError) as error:
        event(f"refused: {type(error).__name__}")
        # A changed letter in the name of a gene is noticed when the genes are aligned.
        assert any(word in str(error) for word in (str(saved), "damaged", "genes", "training data"))  # noqa: PT017
    else:
        # Bytes that nobody reads, such as dates in the archive; numbers without a checksum stay numbers.
        assert np.isfinite(found).all()
        assert found.shape == expected.shape
    finally:
        (saved / name).write_bytes(content)


@settings(suppress_health_check=SLOW, deadline=None)
@given(
    adata=annotated(sound=True),
    cells=st.sampled_from([slice(None), slice(0, 3), [0], "c", np.array([True]), [99], slice(5, 1), -1]),
    genes=st.sampled_from([slice(None), "g0", ["g1", "g0"], [0, 0], [99], [], np.array([0.5]), None]),
)
def test_parts(adata: ad.AnnData, cells: Any, genes: Any) -> None:
    if adata.n_obs < 2 or dense(adata.X).sum() == 0:
        return
    scnn.pp.dropout_prob(adata, count_type="umi", store="layer")
    try:
        expected = adata[cells, genes].layers["dropout_prob"]
    except Exception:
        with pytest.raises((*REFUSALS, IndexError)):
            scnn.get.dropout_prob(adata, cells=cells, genes=genes)
        return
    if not adata.var_names.is_unique and isinstance(genes, str | list):
        # One name may stand for several genes: anndata gives one of them.
        try:
            scnn.get.dropout_prob(adata, cells=cells, genes=genes)
        except ValueError as error:
            assert "more than once" in str(error)  # noqa: PT017 - positions are right, too
        return
    found = scnn.get.dropout_prob(adata, cells=cells, genes=genes)
    np.testing.assert_array_equal(found, dense(expected).reshape(found.shape))


def test_tables_are_tables() -> None:
    """Status and summary of any call are data frames with text as index."""
    adata = simulate()
    scnn.pp.cnn_impute(adata, n_steps=1, verbose=False)
    for name in ("status", "summary", "history"):
        table = adata.uns["cnn_imputed"][name]
        assert isinstance(table, pd.DataFrame)
        assert all(isinstance(label, str) for label in table.index)
