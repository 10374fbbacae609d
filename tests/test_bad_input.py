"""Bad input: a clear error that names what came, and nothing half written."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import QUICK, assert_only_added, dense, simulate

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute._anndata.counts import layer_matrices
from scanpy_cnnimpute._anndata.results import Results, check_keys, cluster_codes
from scanpy_cnnimpute._checks import MAX_INT64, check_number
from scanpy_cnnimpute._counts import Counts
from scanpy_cnnimpute._matrix import check_probabilities, to_csr

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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


def test_one_count_that_is_most_of_all_is_named(adata: ad.AnnData) -> None:
    # A typing error or a flipped bit: all library sizes and capture efficiencies would follow it, without a word.
    adata.X = sp.csr_matrix(adata.X).astype(np.float64)
    adata.X[3, 7] = 1e12
    said = r"one count, 1e\+12 \(cell 3, gene 7, from 0\), is 100\.0% of all counts"
    with pytest.warns(UserWarning, match=said) as caught:
        scnn.pp.dropout_prob(adata, cluster_key="type")
    assert sum("one count" in str(warning.message) for warning in caught) == 1
    scnn.pp.dropout_prob(adata[:, [7]].copy()[:10], cluster_key="type")  # of ten counts, one may well be most


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


READ_BY_BLOCKS = {"pp.dropout_prob", "pp.cnn_impute", "tl.eval_imputation"}


def test_backed_is_refused_by_name(name: str, adata: ad.AnnData, tmp_path: Any) -> None:
    if name in READ_BY_BLOCKS:
        pytest.skip("reads backed data")
    path = tmp_path / "a.h5ad"
    adata.write_h5ad(path)
    content = path.read_bytes()
    backed = ad.read_h5ad(path, backed="r+")
    with pytest.raises(NotImplementedError, match=rf"backed AnnData is not supported by {name}; call adata.to_memory"):
        CALLS[name](backed)
    backed.file.close()
    assert path.read_bytes() == content


def test_dask_is_refused_by_name(name: str, adata: ad.AnnData) -> None:
    if name in READ_BY_BLOCKS:
        pytest.skip("reads Dask arrays")
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


# What can be wrong with the arrays of a CSR matrix of 60 x 50; CSC is damaged alike.
DAMAGES: dict[str, tuple[str, Any]] = {
    "indices go from 0 to 1000, allowed are 0 to": ("indices", lambda x: np.where(np.arange(x.size) == 7, 1000, x)),
    "indices go from -1 to": ("indices", lambda x: np.where(np.arange(x.size) == 7, -1, x)),
    "indptr falls": ("indptr", lambda x: np.r_[x[:3], x[3] + x[-1] // 2, x[4:]].astype(x.dtype)),
    r"indptr goes from 0 to \d+, expected from 0 to": ("indptr", lambda x: np.r_[x[:-1], x[-1] - 1].astype(x.dtype)),
    "indptr goes from 1 to": ("indptr", lambda x: np.r_[1, x[1:]].astype(x.dtype)),
    "indptr has shape": ("indptr", lambda x: x[:-1].copy()),
    "indices have shape": ("indices", lambda x: x[:-1].copy()),
    "expected integers": ("indices", lambda x: x.astype(np.float64)),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csr_array, sp.csc_matrix, sp.csc_array])
def test_damaged_sparse_matrices(adata: ad.AnnData, kind: Any, damage: str) -> None:
    matrix = kind(adata.X)
    part, change = DAMAGES[damage]
    setattr(matrix, part, change(getattr(matrix, part)))
    with pytest.raises(ValueError, match=f"M is a damaged sparse matrix: .*{damage}"):
        to_csr(matrix, where="M")
    with pytest.raises(ValueError, match="M is a damaged sparse matrix"):
        check_probabilities(matrix, where="M")


def test_damaged_sparse_matrices_are_refused_by_every_call(name: str, adata: ad.AnnData) -> None:
    adata.X.indices[7] = 1000
    with pytest.raises(ValueError, match=r"adata.X is a damaged sparse matrix: column indices go from 0 to 1000"):
        CALLS[name](adata)


def test_damaged_coordinates_and_blocks() -> None:
    coordinates = sp.coo_matrix(np.eye(4))
    coordinates.row = np.array([0, 1, 2, 9], dtype=np.int32)
    with pytest.raises(ValueError, match="damaged sparse matrix: row indices go from 0 to 9, allowed are 0 to 3"):
        to_csr(coordinates)
    blocks = sp.bsr_matrix(np.eye(4), blocksize=(2, 2))
    blocks.indices[0] = 2
    with pytest.raises(ValueError, match="column indices go from 1 to 2, allowed are 0 to 1"):
        to_csr(blocks)


@pytest.mark.parametrize("kind", ["coo", "lil", "dok", "dia", "bsr", "csc"])
@pytest.mark.parametrize("container", [sp.csr_matrix, sp.csr_array])
def test_every_sparse_format_is_read(adata: ad.AnnData, kind: str, container: Any) -> None:
    found = to_csr(container(adata.X).asformat(kind))
    assert isinstance(found, sp.csr_array)
    np.testing.assert_array_equal(found.toarray(), adata.X.toarray())


def test_duplicate_entries_are_summed_on_a_copy() -> None:
    matrix = sp.csr_array((np.array([1.0, 2.0, 4.0]), np.array([2, 0, 2]), np.array([0, 3])), shape=(1, 3))
    np.testing.assert_array_equal(to_csr(matrix).toarray(), [[2, 0, 5]])
    np.testing.assert_array_equal(matrix.data, [1, 2, 4])


@pytest.mark.parametrize("read", [to_csr, check_probabilities])
def test_containers_and_dtypes_are_refused_by_name(read: Callable[..., Any]) -> None:
    zeros = np.zeros((3, 2))
    cases: list[tuple[Any, type[Exception], str]] = [
        (np.ma.masked_array(zeros, zeros == 0), TypeError, r"M is a numpy MaskedArray.*call \.filled\(\)"),
        (zeros.view(np.matrix), TypeError, r"M is a numpy matrix.*numpy\.asarray"),
        (pd.DataFrame(zeros), TypeError, r"M is a pandas DataFrame.*\.to_numpy\(\)"),
        (pd.array([1, 2], dtype="Int64"), TypeError, r"M is a pandas IntegerArray.*\.to_numpy\(\)"),
        ([[1, 2]], TypeError, "M is a builtins list"),
        (zeros.astype(object), TypeError, "M has dtype object, expected numbers"),
        (zeros.astype(complex), TypeError, "M has dtype complex128, expected numbers"),
        (sp.csr_array(zeros.astype(complex)), TypeError, "M has dtype complex128, expected numbers"),
        (zeros.astype(np.longdouble), TypeError, "M has dtype float128, expected numbers.*at most 64 bits"),
        (np.zeros((3, 2), dtype=[("a", "f4")]), TypeError, "expected numbers"),
        (np.zeros((3, 2), dtype="M8[s]"), TypeError, "expected numbers"),
        (np.zeros(3), ValueError, "M has 1 dimensions, expected 2"),
        (np.zeros((1, 2, 3)), ValueError, "M has 3 dimensions, expected 2"),
        (sp.coo_array(np.zeros(3)), ValueError, "M has 1 dimensions, expected 2"),
    ]
    for matrix, error, match in cases:
        with pytest.raises(error, match=match):
            read(matrix, where="M")


@pytest.mark.parametrize("value", [2.0**53, 1e19])
def test_counts_that_floats_do_not_hold(name: str, adata: ad.AnnData, value: float) -> None:
    adata.X.data[3] = value
    refuses(
        name,
        adata,
        ValueError,
        r"adata.X has values of 2\*\*53 or more \(largest .* needs raw counts.*layer='twin'",
    )


def scaled(counts: np.ndarray, target_sum: float = 1e4) -> np.ndarray:
    return counts / counts.sum(axis=1, keepdims=True) * target_sum


# What counts commonly went through before they are handed over, and what the error says.
TRANSFORMED: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "cp10k": (scaled, "normalised"),
    "cpm": (lambda x: scaled(x, 1e6), "normalised"),
    "cp10k of selected genes": (lambda x: scaled(x)[:, :40], "normalised"),
    "size factors": (lambda x: x / (x.sum(axis=1, keepdims=True) / x.sum(axis=1).mean()) ** 0.9, "normalised"),
    "tpm": (lambda x: scaled(x / np.linspace(0.5, 9.3, x.shape[1]), 1e6), "normalised"),
    "sqrt": (np.sqrt, "root-transformed"),
    "sqrt of cp10k": (lambda x: np.sqrt(scaled(x)), "root-transformed"),
    "log1p": (np.log1p, "log-transformed"),
    "log2": (lambda x: np.log2(x + 1), "log-transformed"),
    "log10": (lambda x: np.log10(x + 1), "log-transformed"),
    "log1p of cp10k": (lambda x: np.log1p(scaled(x)), "log-transformed"),
    "log1p of selected genes": (lambda x: np.log1p(scaled(x))[:, :40], "log-transformed"),
    "log2 of cpm": (lambda x: np.log2(scaled(x, 1e6) + 1), "log-transformed"),
    "log2 of tpm": (lambda x: np.log2(scaled(x / np.linspace(0.5, 9.3, x.shape[1]), 1e6) + 1), "log-transformed"),
}


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, sp.csc_array])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("change", TRANSFORMED)
def test_transformed_counts_are_refused(change: str, dtype: Any, kind: Any) -> None:
    transform, looks = TRANSFORMED[change]
    matrix = kind(transform(simulate(n_cells=80).X.toarray().astype(np.float64)).astype(dtype))
    with pytest.raises(ValueError, match=f"M looks {looks} .*; f needs raw counts. Try another."):
        Counts.of(matrix, where="M").check(caller="f", suggestion="Try another.")


@pytest.mark.parametrize("change", TRANSFORMED)
def test_transformed_counts_name_the_layer_with_counts(change: str, name: str) -> None:
    transform, looks = TRANSFORMED[change]
    adata = simulate()
    changed = transform(adata.X.toarray().astype(np.float64)).astype(np.float32)
    adata = adata[:, : changed.shape[1]].copy()
    adata.X = changed
    refuses(name, adata, ValueError, rf"adata.X looks {looks}.*adata.layers\['twin'\] looks like counts")


def test_fractions_that_may_be_counts_only_warn() -> None:
    counts = simulate(n_cells=80).X
    rng = np.random.default_rng(0)
    ambient, expected, halves, few = (counts.copy() for _ in range(4))
    ambient.data = np.maximum(30 * ambient.data - rng.uniform(0, 0.5, ambient.nnz), 0.01)
    expected.data = np.round(20 * expected.data * rng.uniform(0.01, 1, expected.nnz), 2) + 0.01
    halves.data = 10 * halves.data + 0.5
    few.data[:5] += 0.25
    for matrix in (ambient, expected, halves, few):
        with pytest.warns(UserWarning, match="M: .* not whole numbers; f is meant for raw counts") as caught:
            Counts.of(matrix, where="M").check(caller="f")
        assert caught[0].filename == __file__


@pytest.mark.parametrize("estimate", ["posterior_mean", "expected_count", "conditional"])
def test_imputed_layers_are_compared_without_a_word(adata: ad.AnnData, estimate: Any) -> None:
    adata.X = adata.X.toarray() if estimate == "conditional" else adata.X
    scnn.pp.cnn_impute(adata, cluster_key="type", estimate=estimate, n_steps=5, verbose=False)
    found = layer_matrices(adata, [None, "X", "cnn_imputed"], caller="f")
    assert list(found) == ["X", "layer:cnn_imputed"]
    np.testing.assert_array_equal(found["layer:cnn_imputed"].toarray(), dense(adata.layers["cnn_imputed"]))


@pytest.mark.parametrize("change", TRANSFORMED)
def test_transformed_layers_are_not_normalised_again(change: str) -> None:
    transform, looks = TRANSFORMED[change]
    adata = simulate(n_cells=80)
    changed = transform(adata.X.toarray().astype(np.float64))
    adata = adata[:, : changed.shape[1]].copy()
    adata.layers["changed"] = changed
    if looks == "normalised":  # to be normalised again does no harm
        np.testing.assert_allclose(layer_matrices(adata, "changed", caller="f")["layer:changed"].toarray(), changed)
        return
    with pytest.raises(
        ValueError, match=rf"layers\['changed'\] looks {looks}.*adata.X and .*'twin'.* looks like counts"
    ):
        layer_matrices(adata, ["X", "changed"], caller="f")


def test_layers_that_may_be_logged_warn(adata: ad.AnnData) -> None:
    # Logarithms of counts that another tool smoothed: no inverse gives whole numbers.
    adata.layers["smooth"] = np.random.default_rng(0).gamma(2.0, 1.0, adata.shape)
    with pytest.warns(UserWarning, match=r"layers\['smooth'\] may be log-transformed .* f takes it for counts"):
        layer_matrices(adata, "smooth", caller="f")


def test_names_of_layers_to_compare(adata: ad.AnnData) -> None:
    with pytest.raises(TypeError, match="layers=3 is not allowed"):
        layer_matrices(adata, 3, caller="f")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="An entry of layers has type int, expected str"):
        layer_matrices(adata, [3], caller="f")  # type: ignore[list-item]
    assert layer_matrices(adata, None, caller="f") == {}


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, sp.csc_array, sp.coo_array, sp.lil_matrix])
@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint64, np.float16, np.float32, np.float64, ">f4", ">f8"])
def test_probabilities_of_every_dtype(dtype: Any, kind: Any) -> None:
    if kind is not np.asarray and (dtype == np.float16 or str(dtype).startswith(">")):
        pytest.skip("SciPy has no such sparse matrices")
    mask = np.random.default_rng(0).random((6, 5)) < 0.5
    found = check_probabilities(kind(mask.astype(dtype)), where="P")
    assert isinstance(found, np.ndarray if kind is np.asarray else sp.csr_array)
    assert found.dtype == (np.float64 if dtype in {np.float64, ">f8"} else np.float32)
    assert found.dtype.isnative
    np.testing.assert_array_equal(dense(found), mask)


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.5])
def test_no_probabilities(kind: Any, value: float) -> None:
    matrix = np.eye(3)
    matrix[1, 1] = value
    with pytest.raises(ValueError, match=r"P has values outside \[0, 1\] or NaN"):
        check_probabilities(kind(matrix), where="P")
    with pytest.raises(ValueError, match=r"P has values outside \[0, 1\]"):
        check_probabilities(kind(np.array([[2**24 + 1, 0]])), where="P")


# Found by writing each to h5ad and zarr.
UNUSABLE = [
    "",
    ".",
    "..",
    "_index",
    ".zattrs",
    ".zgroup",
    "zarr.json",
    "a/b",
    "a\\b",
    "a\0",
    "\ud800",
    "a" * 256,
    "é" * 128,
]


@pytest.mark.parametrize("key", UNUSABLE)
def test_keys_that_files_cannot_hold(adata: ad.AnnData, key: str) -> None:
    before = adata.copy()
    for call in (
        lambda: scnn.tl.cluster(adata, key_added=key),
        lambda: scnn.pp.dropout_prob(adata, cluster_key="type", key_added=key),
        lambda: scnn.pp.cnn_impute(adata, cluster_key="type", key_added=key, **QUICK),
    ):
        with pytest.raises(ValueError, match=r"key_added=.* is not allowed: "):
            call()
    assert_only_added(before, adata, set())


def test_keys_that_are_too_long_with_what_is_appended(adata: ad.AnnData) -> None:
    before = adata.copy()
    with pytest.raises(ValueError, match=r"cannot be written: it has 2\d\d bytes, allowed are 255. Choose another key"):
        scnn.pp.dropout_prob(adata, cluster_key="type", key_added="a" * 245)
    assert_only_added(before, adata, set())


def test_a_key_that_is_the_name_of_the_index(adata: ad.AnnData) -> None:
    adata.obs.index.name = "cell"
    with pytest.raises(ValueError, match=r"adata.obs\['cell'\] cannot be written: it is the name of the index"):
        Results(adata, function="f", key="cell", keys=[("obs", "cell")])


@pytest.mark.parametrize("key", ["a:b", "é ü", " a", "...", "a" * 230])
def test_odd_keys_survive_files(adata: ad.AnnData, key: str, tmp_path: Path) -> None:
    results = Results(adata, function="f", key=key, keys=[("obs", f"{key}_one"), ("layers", key)])
    results.add("obs", f"{key}_one", np.arange(60.0))
    results.add("layers", key, adata.X.copy())
    results.write({"table": pd.DataFrame({"a": [1]})}, {"n": 1, "nothing": None})
    for back in written_and_read(adata, tmp_path):
        again = Results(back, function="f", key=key, keys=[("obs", f"{key}_one"), ("layers", key)])
        again.write({}, {})
        assert key not in back.layers
        assert f"{key}_one" not in back.obs


def written_and_read(adata: ad.AnnData, folder: Path) -> list[ad.AnnData]:
    adata.write_h5ad(folder / "a.h5ad")
    adata.write_zarr(folder / "a.zarr")
    return [ad.read_h5ad(folder / "a.h5ad"), ad.read_zarr(folder / "a.zarr")]


@pytest.mark.filterwarnings("ignore:Transforming to str index")  # by anndata, when it reads such a file
@pytest.mark.parametrize("model", ["calibrated", "gamma_normal"])
def test_genes_named_by_integers(model: Any, tmp_path: Path) -> None:
    named, adata = simulate(), simulate()
    adata.var["entrez"] = np.arange(1000, 1050)
    adata.var.set_index("entrez", inplace=True)  # noqa: PD002 - anndata makes text of what is assigned
    for data in (named, adata):
        scnn.pp.dropout_prob(data, model=model, cluster_key="type", store="params")
        scnn.pp.cnn_impute(data, **QUICK) if model == "gamma_normal" else None
        scnn.tl.eval_clusters(data, label_key="type", layers="X", n_clusters=2, method="kmeans")
    expected = scnn.get.dropout_prob(named)
    for back in written_and_read(adata, tmp_path):
        assert back.var_names.tolist() == [str(gene) for gene in range(1000, 1050)]
        np.testing.assert_array_equal(scnn.get.dropout_prob(back), expected)
        if model == "gamma_normal":
            np.testing.assert_array_equal(dense(back.layers["cnn_imputed"]), dense(named.layers["cnn_imputed"]))


def test_keys_are_names_not_values(adata: ad.AnnData) -> None:
    for wrong in (adata.obs["type"], ["type"], 3, None):
        with pytest.raises(TypeError, match=f"has type {type(wrong).__name__}, expected str: the name of a key"):
            cluster_codes(adata, wrong, caller="f")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="expected str: the name of a key, not its values"):
            check_keys(wrong, key_added="a")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="key_added has type"):
            check_keys("a", key_added=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="layer has type Series"):
        scnn.pp.dropout_prob(adata, layer=adata.obs["type"], cluster_key="type")
    with pytest.raises(ValueError, match="key_added='a' is taken"):
        check_keys("a", key_added="a")


def test_a_column_that_occurs_twice(adata: ad.AnnData) -> None:
    adata.obs = pd.concat([adata.obs, adata.obs], axis=1)
    with pytest.raises(ValueError, match=r"adata.obs has 2 columns named 'type'; rename or drop all but one"):
        cluster_codes(adata, "type", caller="f")


def test_integers_that_files_cannot_hold() -> None:
    assert check_number("n", np.int64(MAX_INT64), int) == MAX_INT64
    for kind in (int, float):
        with pytest.raises(ValueError, match=f"n={2**70} is not allowed: at most {MAX_INT64}"):
            check_number("n", 2**70, kind)


@pytest.mark.parametrize("name", ["eval_clusters", "eval_de", "eval_gini"])
def test_log_normalised_layers_are_refused_and_the_counts_named(name: str) -> None:
    adata = simulate()
    adata.X = adata.X.log1p()
    before = adata.copy()
    reference = pd.DataFrame({"log2_fold_change": 1.0, "p_value": 0.01}, index=adata.var_names)
    calls: dict[str, dict[str, Any]] = {
        "eval_clusters": {"label_key": "type"},
        "eval_de": {"groupby": "type", "group": "a", "reference_group": "b", "reference": reference},
        "eval_gini": {"reference": {"g0": 0.2}},
    }
    match = rf"adata.X looks log-transformed.*tl.{name} needs counts.*adata.layers\['twin'\] looks like counts"
    with pytest.raises(ValueError, match=match):
        getattr(scnn.tl, name)(adata, layers=["X", "twin"], **calls[name])
    assert_only_added(before, adata, set())


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("cluster_key", scnn.pp.cnn_impute),
        ("dropout_key", scnn.pp.cnn_impute),
        ("layer", scnn.pp.cnn_impute),
        ("key_added", scnn.pp.cnn_impute),
        ("cluster_key", scnn.pp.dropout_prob),
        ("layer", scnn.pp.dropout_prob),
        ("key_added", scnn.pp.dropout_prob),
        ("key_added", scnn.tl.cluster),
    ],
)
def test_keys_of_wrong_types(adata: ad.AnnData, argument: str, call: Callable[..., Any]) -> None:
    before = adata.copy()
    for wrong in (adata.obs["type"], ["type"], 3):
        with pytest.raises(TypeError, match=rf"has type {type(wrong).__name__}, expected str: the name of a key"):
            call(adata, **{argument: wrong})
    assert_only_added(before, adata, set())


def test_lists_in_place_of_names(adata: ad.AnnData) -> None:
    reference = pd.DataFrame({"log2_fold_change": 1.0, "p_value": 0.01}, index=adata.var_names)
    with pytest.raises(ValueError, match=r"group=\['a', 'b'\] names 2 groups, expected one"):
        scnn.tl.eval_de(adata, groupby="type", group=["a", "b"], reference_group="b", reference=reference)
    with pytest.raises(TypeError, match=r"settings=\['n_steps'\]"):
        scnn.tl.eval_imputation(adata, settings=["n_steps"])  # type: ignore[arg-type]


GRAPH_MODE = """
import tensorflow as tf
tf.compat.v1.disable_eager_execution()
import sys
sys.path.insert(0, "tests")
import numpy as np
import scanpy_cnnimpute as scnn
from helpers import simulate

adata = simulate()
for call in (
    lambda: scnn.pp.cnn_impute(adata),
    lambda: scnn.pp.cnn_impute(adata, preset="paper"),
    lambda: scnn.CNNImputer().fit(adata),
):
    try:
        call()
    except RuntimeError as error:
        print(error)
print(sorted(adata.uns), [layer for layer in adata.layers if layer is not None])
"""


def test_graph_mode_of_tensorflow_is_refused_by_name(request: pytest.FixtureRequest) -> None:
    run = subprocess.run(
        [sys.executable, "-c", GRAPH_MODE], cwd=request.config.rootpath, check=True, capture_output=True, text=True
    )
    *errors, left = run.stdout.splitlines()
    assert len(errors) == 3
    for error in errors:
        assert error.startswith("TensorFlow runs in graph mode in this process: another package has called")
        assert "KERAS_BACKEND" in error
    assert left == "['mine'] ['twin']"
