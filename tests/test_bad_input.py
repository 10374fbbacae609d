"""Bad input: a clear error that names what came, and nothing half written."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import QUICK, assert_only_added, dense, simulate

import scanpy_cnnimpute as scnn

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS: dict[str, Callable[[Any], Any]] = {
    "tl.cluster": scnn.tl.cluster,
    "pp.dropout_prob": lambda adata: scnn.pp.dropout_prob(adata, cluster_key="type"),
    "pp.cnn_impute": lambda adata: scnn.pp.cnn_impute(adata, cluster_key="type", **QUICK),
}


@pytest.fixture(params=CALLS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def refuses(name: str, adata: ad.AnnData, error: type[Exception], match: str) -> None:
    before = adata.copy()
    with pytest.raises(error, match=match):
        CALLS[name](adata)
    assert_only_added(before, adata, set())


@pytest.mark.parametrize("sparse", [True, False])
def test_nan_and_infinity(name: str, adata: ad.AnnData, sparse: bool) -> None:
    adata.X = adata.X if sparse else adata.X.toarray()
    data = adata.X.data if sparse else adata.X.reshape(-1)
    data[:2] = np.nan
    data[3] = np.inf
    refuses(name, adata, ValueError, r"adata.X has 2 NaN and 1 infinite values; .* needs raw counts.*layer='twin'")


def test_negative(name: str, adata: ad.AnnData) -> None:
    adata.X.data[0] = -1.5
    refuses(name, adata, ValueError, r"adata.X has negative values \(smallest -1.5\)")


def test_logged_data_names_the_layer_with_counts(name: str, adata: ad.AnnData) -> None:
    adata.X = adata.X.log1p()
    adata.layers["scaled"] = adata.X - 1.0 * (adata.X > 0).astype(np.float32)
    refuses(name, adata, ValueError, r"looks log-transformed.*adata.layers\['twin'\] looks like counts.*layer='twin'")


def test_logged_layer_names_x_and_raw(adata: ad.AnnData) -> None:
    adata.layers["logged"] = adata.X.log1p()
    with pytest.raises(ValueError, match=r"adata.X and adata.layers\['twin'\] looks like counts: pass layer=None"):
        scnn.pp.dropout_prob(adata, layer="logged", cluster_key="type")
    adata.raw = adata.copy()
    del adata.layers["twin"]
    adata.X = adata.layers["logged"].copy()
    with pytest.raises(ValueError, match=r"try adata.raw.to_adata\(\)"):
        scnn.pp.dropout_prob(adata, cluster_key="type")
    adata.raw = None
    with pytest.raises(ValueError, match="No layer looks like counts"):
        scnn.pp.dropout_prob(adata, cluster_key="type")


def test_fractions_of_counts_warn_at_the_callers_line(name: str, adata: ad.AnnData) -> None:
    # Ambient-corrected counts: fractions, but of a count's size.
    adata.X.data = adata.X.data * np.float32(10) + np.float32(0.3)
    with pytest.warns(UserWarning, match="100% of the non-zeros are not whole numbers") as caught:
        CALLS[name](adata)
    where = [warning.filename for warning in caught if "whole numbers" in str(warning.message)]
    assert where[0] == __file__


def test_whole_numbers_of_any_dtype_are_silent(adata: ad.AnnData) -> None:
    for dtype in (np.float32, np.float64, np.int32, np.int64, np.uint16):
        adata.X = adata.X.astype(dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scnn.pp.dropout_prob(adata, cluster_key="type")


def test_wrong_types(name: str, adata: ad.AnnData) -> None:
    for wrong in (adata.X, adata.to_df(), "file.h5ad", None):
        with pytest.raises(TypeError, match=f"{name} takes an AnnData, got {type(wrong).__name__}"):
            CALLS[name](wrong)


def test_text_and_objects(name: str) -> None:
    adata = simulate()
    adata.layers["text"] = np.full(adata.shape, "a", dtype=object)
    with pytest.raises(TypeError, match=r"adata.layers\['text'\] has dtype object, expected numbers"):
        scnn.pp.dropout_prob(adata, layer="text", cluster_key="type")


def test_missing_x_and_layers(adata: ad.AnnData) -> None:
    with pytest.raises(KeyError, match=r"layer='counts' is not in adata.layers. Available: \['twin'\]"):
        scnn.pp.dropout_prob(adata, layer="counts", cluster_key="type")
    empty = ad.AnnData(obs=adata.obs, var=adata.var, layers={"counts": adata.X})
    with pytest.raises(ValueError, match=r"adata.X is empty. Pass layer=, one of \['counts'\]"):
        scnn.pp.dropout_prob(empty, cluster_key="type")
    scnn.pp.dropout_prob(empty, layer="counts", cluster_key="type")
    np.testing.assert_array_equal(scnn.get.dropout_prob(empty), empty.layers["dropout_prob"])


def test_backed_is_refused_by_name(name: str, adata: ad.AnnData, tmp_path: Any) -> None:
    path = tmp_path / "a.h5ad"
    adata.write_h5ad(path)
    content = path.read_bytes()
    backed = ad.read_h5ad(path, backed="r+")
    with pytest.raises(NotImplementedError, match=rf"backed AnnData is not supported by {name}; call adata.to_memory"):
        CALLS[name](backed)
    backed.file.close()
    assert path.read_bytes() == content


def test_dask_is_refused_by_name(name: str, adata: ad.AnnData) -> None:
    da = pytest.importorskip("dask.array")
    adata.X = da.from_array(adata.X.toarray(), chunks=(20, 50))
    with pytest.raises(TypeError, match=r"adata.X is a dask Array, which is not supported.*\.compute\(\)"):
        CALLS[name](adata)


def test_nothing_in_it(name: str) -> None:
    for shape in ((0, 5), (5, 0), (0, 0), (4, 3)):
        adata = ad.AnnData(sp.csr_matrix(shape, dtype=np.float32))
        adata.obs["type"] = pd.Categorical(["a"] * shape[0])
        with pytest.raises(ValueError, match=r"no cluster|nothing to cluster|No cell has"):
            CALLS[name](adata)


def test_all_zero_genes_and_cells_are_kept(adata: ad.AnnData) -> None:
    x = adata.X.toarray()
    x[:, [0, 9]] = 0
    x[[5, 6]] = 0
    adata.X = sp.csr_matrix(x)
    scnn.pp.cnn_impute(adata, **QUICK)
    filled = dense(adata.layers["cnn_imputed"])
    assert filled.shape == x.shape
    assert not filled[:, [0, 9]].any()
    assert not filled[[5, 6]].any()


@pytest.mark.parametrize("n_clusters", [1, 59])
def test_one_cluster_and_a_cluster_of_two(adata: ad.AnnData, n_clusters: int) -> None:
    adata.obs["k"] = pd.Categorical(["x", "x", *map(str, range(58))] if n_clusters == 59 else ["x"] * 60)
    scnn.pp.cnn_impute(adata, cluster_key="k", **QUICK)
    summary = adata.uns["cnn_imputed"]["summary"]
    assert len(summary) == n_clusters
    assert (summary["n_networks"].sum() > 0) == (n_clusters == 1)
