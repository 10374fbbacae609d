"""Embedding, k-means and Leiden on arrays, and ``tl.cluster``."""

from __future__ import annotations

import inspect
import logging
import os
import pkgutil
import random
import subprocess
import sys

import anndata as ad
import numba
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from helpers import DATA, assert_only_added, dense, simulate
from scipy.sparse.linalg import eigsh

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import clustering, metrics
from scanpy_cnnimpute._matrix import log_normalised
from scanpy_cnnimpute._threads import single_threaded_blas
from scanpy_cnnimpute.clustering import Clusterer, blocks, methods
from scanpy_cnnimpute.clustering.assignment import majority_labels
from scanpy_cnnimpute.clustering.embedding import embed, log_cpm, principal_components
from scanpy_cnnimpute.clustering.kmeans import kmeans
from scanpy_cnnimpute.clustering.leiden import leiden, shared_neighbors

METHODS = [("adp", None), ("leiden", None), ("kmeans", 2)]


def agreement(a: object, b: object) -> np.ndarray:
    return pd.crosstab(np.asarray(a), np.asarray(b)).to_numpy()


@pytest.mark.parametrize(("method", "n_clusters"), [("adp", None), ("adp", 2), ("leiden", None), ("kmeans", 2)])
def test_every_method_finds_planted_types(method: str, n_clusters: int | None) -> None:
    adata = simulate(150, 400, activity_shape=50)
    scnn.tl.cluster(adata, method=method, n_clusters=n_clusters, resolution=0.2)
    assert scnn.metrics.purity(adata.obs["type"], adata.obs["cnn_cluster"]) > 0.95


def test_normalisation_is_that_of_scanpy() -> None:
    adata = simulate(50, 80)
    adata.X = sp.csr_matrix(adata.X, dtype=np.float32)
    logged = log_normalised(sp.csr_array(adata.X), 1e6)
    sc.pp.normalize_total(adata, target_sum=1e6)
    sc.pp.log1p(adata)
    assert logged.dtype == np.float32
    np.testing.assert_array_equal(logged.toarray(), adata.X.toarray())


@pytest.mark.parametrize("n_cells", [40, 2500])
def test_components_are_those_of_scanpy(n_cells: int) -> None:
    adata = simulate(n_cells, 80, activity_shape=50)
    scnn.tl.cluster(adata)
    logged = log_normalised(sp.csr_array(adata.X).astype(np.float64), 1e6) / np.log(2)
    expected = sc.pp.pca(sp.csr_matrix(logged), n_comps=min(50, n_cells - 1), dtype="float64")
    found = adata.obsm["X_cnn_pca"]
    assert found.shape == expected.shape
    sign = np.sign((found * expected).sum(axis=0))
    # The last components have almost equal variances, which leaves their axes undetermined.
    np.testing.assert_allclose((found * sign)[:, :10], expected[:, :10], atol=2e-3 * expected.std())
    np.testing.assert_allclose(found.var(axis=0), expected.var(axis=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(297, 3500), (297, 120), (60, 3500)])
def test_components_have_the_bits_of_scanpy(shape: tuple[int, int]) -> None:
    # t-SNE amplifies the last bit: published clusters rest on this arithmetic.
    counts = sp.csr_array(scnn.datasets.five_cell_lines().X[: shape[0], : shape[1]])
    logged = log_cpm(counts, np.flatnonzero(counts.sum(axis=0)))
    with single_threaded_blas():
        expected = sc.pp.pca(sp.csr_matrix(logged), n_comps=50, random_state=1)
    np.testing.assert_array_equal(principal_components(logged, random_state=1).scores, expected)


def repeated_cells() -> sp.csr_matrix:
    """Forty cells, each five times: fewer independent cells than principal components."""
    return sp.csr_matrix(sp.vstack([scnn.datasets.five_cell_lines().X[:40, :600]] * 5))


@pytest.mark.skipif("rng" not in inspect.signature(eigsh).parameters, reason="SciPy < 1.17 cannot seed restarts")
@pytest.mark.parametrize(("method", "n_clusters"), METHODS)
def test_same_seed_same_clusters_of_repeated_cells(method: str, n_clusters: int | None) -> None:
    runs = [
        scnn.tl.cluster(ad.AnnData(repeated_cells()), method=method, n_clusters=n_clusters, copy=True) for _ in range(3)
    ]
    for run in runs[1:]:
        assert run.obs["cnn_cluster"].equals(runs[0].obs["cnn_cluster"])
        for key in run.obsm:
            np.testing.assert_array_equal(run.obsm[key], runs[0].obsm[key])


def test_components_beyond_the_rank_are_zero() -> None:
    counts = sp.csr_array(repeated_cells())
    components = embed(counts, np.arange(200), random_state=1)
    assert components.shape == (200, 50)
    assert (components.std(axis=0)[:39] > 0.1).all()
    assert not components[:, 39:].any()
    np.testing.assert_allclose(components[:40], components[160:], atol=1e-3)


@pytest.mark.parametrize(("method", "n_clusters"), METHODS)
@pytest.mark.parametrize(
    "counts", [np.ones((20, 40)), np.outer(np.arange(1, 31), np.ones(5)), np.outer(np.arange(1, 31), np.arange(1, 60))]
)
def test_cells_that_differ_in_depth_only_are_one_cluster(
    counts: np.ndarray, method: str, n_clusters: int | None
) -> None:
    adata = ad.AnnData(counts.astype(np.float32))
    scnn.tl.cluster(adata, method=method, n_clusters=n_clusters)
    assert adata.obs["cnn_cluster"].tolist() == ["0"] * len(counts)


@pytest.mark.parametrize(("method", "n_clusters"), METHODS)
def test_global_random_states_are_left_alone(adata: ad.AnnData, method: str, n_clusters: int | None) -> None:
    random.seed(3)
    before, numpy_before = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    scnn.tl.cluster(adata, method=method, n_clusters=n_clusters)
    assert random.getstate() == before
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    # Nor do they decide anything.
    again = adata.copy()
    random.seed(4)
    scnn.tl.cluster(again, method=method, n_clusters=n_clusters)
    assert again.obs["cnn_cluster"].equals(adata.obs["cnn_cluster"])


def test_shared_neighbors_by_hand() -> None:
    points = np.random.default_rng(0).normal(size=(80, 4))
    distance = np.linalg.norm(points[:, None] - points, axis=2)
    nearest = [set(row[:10]) for row in np.argsort(distance, axis=1)]
    jaccard = np.array([[len(a & b) / len(a | b) for b in nearest] for a in nearest])
    expected = np.where(jaccard >= 1 / 15, jaccard, 0)
    np.testing.assert_allclose(shared_neighbors(points).toarray(), expected)


def test_leiden_orders_clusters_by_size_and_follows_the_resolution() -> None:
    rng = np.random.default_rng(0)
    types = np.repeat([0, 1, 2], [20, 60, 40])
    points = rng.normal(size=(120, 3)) + 20 * np.eye(3)[types]
    labels = leiden(points, resolution=0.1, random_state=1)
    assert labels.dtype == np.int64
    assert [set(labels[types == kind]) for kind in (0, 1, 2)] == [{2}, {0}, {1}]
    np.testing.assert_array_equal(labels, leiden(points, resolution=0.1, random_state=1))
    many = leiden(points, resolution=5.0, random_state=1)
    assert many.max() > labels.max()
    assert (np.diff(np.bincount(many)) <= 0).all()
    assert set(leiden(points, resolution=0.0, random_state=2**32 - 1)) == {0, 1, 2}  # not connected


def test_kmeans_from_given_centers_and_with_empty_clusters() -> None:
    points = np.array([[0.0], [1.0], [10.0], [11.0]])
    assert kmeans(points, n_clusters=2, centers=points[[2, 0]], random_state=1).tolist() == [1, 1, 0, 0]
    assert set(kmeans(np.array([[0.0], [0.0], [5.0]]), n_clusters=3, random_state=1)) == {0, 1}


def test_the_core_knows_no_anndata() -> None:
    for module in pkgutil.walk_packages(clustering.__path__, "scanpy_cnnimpute.clustering."):
        source = inspect.getsource(pkgutil.resolve_name(module.name))
        assert "anndata" not in source.lower(), module.name


def test_log_of_many_clusters_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    points = np.repeat(np.arange(150.0), 4)[:, None] * 100
    adata = ad.AnnData(np.ones((600, 1), np.float32), obsm={"X_p": np.r_[points, points[:10]][:600]})
    with caplog.at_level(logging.INFO, "scanpy_cnnimpute"):
        scnn.tl.cluster(adata, method="kmeans", n_clusters=150, use_rep="X_p")
    expected = "tl.cluster: 150 clusters; the smallest has 4 cells, the median 4, the largest 4"
    assert expected in caplog.messages


def test_leiden_on_more_cells_than_scanpy_searches_exactly() -> None:
    # From 4,096 cells on scanpy would take an approximate neighbour search.
    types = np.arange(4200) % 3
    rng = np.random.default_rng(0)
    points = rng.normal(size=(4200, 3)) + 8 * np.eye(3)[types]
    adata = ad.AnnData(np.ones((4200, 1), np.float32), obsm={"X_p": points.astype(np.float32)})
    scnn.tl.cluster(adata, method="leiden", use_rep="X_p", resolution=0.1)
    assert scnn.metrics.adjusted_rand_index(types, adata.obs["cnn_cluster"]) > 0.99


def test_leiden_of_equal_cells_for_any_number_of_threads() -> None:
    points = np.random.default_rng(0).normal(size=(6000, 20)).round(1)
    points[3000:] = points[:3000]
    adata = ad.AnnData(np.ones((6000, 1), np.float32), obsm={"X_p": points})
    threads, found = numba.get_num_threads(), []
    try:
        for n in {1, threads}:
            numba.set_num_threads(n)
            found.append(scnn.tl.cluster(adata, use_rep="X_p", copy=True).obs["cnn_cluster"])
    finally:
        numba.set_num_threads(threads)
    assert found[0].equals(found[-1])


def test_adp_on_the_reference_coordinates() -> None:
    # The authors' k-means from the centres of ADPclust: Hartigan-Wong there, Lloyd here.
    cells = pd.read_csv(DATA / "reference_cells.csv.gz", index_col=0)
    coordinates = cells[["tsne1", "tsne2", "tsne3"]].to_numpy()
    adata = ad.AnnData(np.ones((len(cells), 1), np.float32), obsm={"X_r": coordinates})
    adata.obs_names = cells.index
    scnn.tl.cluster(adata, method="adp", use_rep="X_r")
    assert (agreement(adata.obs["cnn_cluster"], cells["kmeans_cluster"]) > 0).sum() == 5
    record = adata.uns["cnn_cluster"]
    assert sorted(record["centers"]) == sorted(cells.index[cells["adp_center"]])
    assert len(record["tested"]) == 270
    assert record["silhouette"] == pytest.approx(0.58806479892533, abs=1e-12)
    assert "X_cnn_tsne" not in adata.obsm


@pytest.mark.parametrize("method", ["adp", "leiden", "kmeans"])
def test_writes_what_it_says(adata: ad.AnnData, method: str) -> None:
    before = adata.copy()
    kwargs = {"n_clusters": 2} if method == "kmeans" else {}
    scnn.tl.cluster(adata, method=method, **kwargs)
    key = "X_cnn_tsne" if method == "adp" else "X_cnn_pca"
    assert_only_added(before, adata, {("obs", "cnn_cluster"), ("obsm", key), ("uns", "cnn_cluster")})
    assert adata.obsm[key].dtype == np.float32
    if method == "adp":
        assert adata.obsm[key].shape == (60, 3)
        assert set(adata.uns["cnn_cluster"]) == {
            "params", "written", "centers", "bandwidth", "silhouette", "tested", "density", "separation"
        }  # fmt: skip
    assert adata.uns["cnn_cluster"]["params"]["method"] == method


def test_any_kind_of_matrix_gives_the_same_clusters(any_kind: ad.AnnData) -> None:
    expected = simulate()
    scnn.tl.cluster(expected, method="adp")
    scnn.tl.cluster(any_kind, method="adp")
    pd.testing.assert_series_equal(any_kind.obs["cnn_cluster"], expected.obs["cnn_cluster"])
    np.testing.assert_array_equal(any_kind.obsm["X_cnn_tsne"], expected.obsm["X_cnn_tsne"])


def test_copy_layer_and_key(adata: ad.AnnData) -> None:
    before = adata.copy()
    adata.X = sp.csr_matrix(adata.shape, dtype=np.float32)
    copied = scnn.tl.cluster(adata, method="adp", layer="twin", key_added="other", copy=True)
    assert "other" not in adata.obs
    assert "X_other_tsne" in copied.obsm
    scnn.tl.cluster(before, method="adp")
    assert copied.obs["other"].tolist() == before.obs["cnn_cluster"].tolist()


def test_another_method_replaces_its_own_and_nothing_else(adata: ad.AnnData) -> None:
    scnn.tl.cluster(adata, method="adp")
    scnn.tl.cluster(adata, method="kmeans", n_clusters=2)
    assert "X_cnn_tsne" not in adata.obsm
    adata.obsm["X_cnn_tsne"] = np.ones((60, 2))
    with pytest.raises(ValueError, match=r"adata.obsm\['X_cnn_tsne'\] would be overwritten"):
        scnn.tl.cluster(adata, method="adp")
    assert adata.uns["cnn_cluster"]["params"]["method"] == "kmeans"
    assert (adata.obsm["X_cnn_tsne"] == 1).all()


def test_empty_cells_and_genes_are_kept_without_a_cluster(adata: ad.AnnData) -> None:
    x = adata.X.toarray()
    x[[3, 7]] = 0
    x[:, 5] = 0
    adata.X = sp.csr_matrix(x)
    scnn.tl.cluster(adata, method="adp")
    missing = adata.obs["cnn_cluster"].isna().to_numpy()
    assert np.flatnonzero(missing).tolist() == [3, 7]
    assert np.isnan(adata.obsm["X_cnn_tsne"][missing]).all()
    assert np.isfinite(adata.obsm["X_cnn_tsne"][~missing]).all()
    np.testing.assert_array_equal(dense(adata.X), x)


@pytest.mark.parametrize(("n_cells", "n_genes"), [(1, 50), (2, 50), (9, 50), (12, 50), (60, 1), (60, 2)])
@pytest.mark.parametrize("method", ["adp", "leiden"])
def test_tiny_data(n_cells: int, n_genes: int, method: str) -> None:
    adata = simulate(n_cells, 50)[:, :n_genes].copy()
    scnn.tl.cluster(adata, method=method)
    assert adata.obs["cnn_cluster"].notna().to_numpy().sum() == (np.asarray(adata.X.sum(axis=1)) > 0).sum()


def test_refusals(adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match=r"method='louvain' is not known. Available: \['adp', 'leiden', 'kmeans'\]"):
        scnn.tl.cluster(adata, method="louvain")
    with pytest.raises(ValueError, match="needs n_clusters"):
        scnn.tl.cluster(adata, method="kmeans")
    with pytest.raises(ValueError, match="resolution"):
        scnn.tl.cluster(adata, method="leiden", n_clusters=3)
    with pytest.raises(ValueError, match="n_clusters=61 is more than the 60 cells"):
        scnn.tl.cluster(adata, method="kmeans", n_clusters=61)
    with pytest.raises(ValueError, match="at least 1"):
        scnn.tl.cluster(adata, method="adp", n_clusters=0)
    with pytest.raises(TypeError, match="resolution='a' has type str, expected float"):
        scnn.tl.cluster(adata, method="leiden", resolution="a")
    with pytest.raises(ValueError, match="random_state=-1 is not allowed"):
        scnn.tl.cluster(adata, random_state=-1)
    with pytest.raises(ValueError, match="random_state=4294967296 is not allowed: at most 4294967295"):
        scnn.tl.cluster(adata, random_state=2**32)
    with pytest.raises(ValueError, match=r"method=\['adp'\] is not known"):
        scnn.tl.cluster(adata, method=["adp"])
    for use_rep in (3, ["X_latent"], adata.obsm["X_latent"]):
        with pytest.raises(TypeError, match=f"use_rep has type {type(use_rep).__name__}, expected str"):
            scnn.tl.cluster(adata, use_rep=use_rep)
    with pytest.raises(TypeError, match="n_clusters='2' has type str, expected int"):
        scnn.tl.cluster(adata, method="adp", n_clusters="2")
    with pytest.raises(KeyError, match=r"use_rep='X_pca' is not in adata.obsm. Available: \['X_latent'\]"):
        scnn.tl.cluster(adata, use_rep="X_pca")
    with pytest.raises(ValueError, match="nothing to cluster"):
        scnn.tl.cluster(adata[:0].copy(), use_rep="X_latent")
    adata.obsm["X_latent"][0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        scnn.tl.cluster(adata, use_rep="X_latent")
    empty = ad.AnnData(sp.csr_matrix((4, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="nothing to cluster"):
        scnn.tl.cluster(empty)


@pytest.fixture
def small_draw(monkeypatch: pytest.MonkeyPatch) -> int:
    """Draws of 120 cells from more than 150, in blocks of 64; returns the number of drawn cells."""
    monkeypatch.setattr(methods, "MAX_CELLS", 150)
    monkeypatch.setattr(methods, "DRAWN_CELLS", dict.fromkeys(methods.DRAWN_CELLS, 120))
    monkeypatch.setattr(blocks, "BLOCK_CELLS", 64)
    return 120


@pytest.mark.parametrize(("method", "n_clusters"), METHODS)
def test_many_cells_get_the_clusters_of_a_draw(
    method: str, n_clusters: int | None, small_draw: int, caplog: pytest.LogCaptureFixture
) -> None:
    adata = simulate(400, 400, activity_shape=50)
    x = adata.X.toarray()
    x[[3, 70]] = 0
    adata.X = sp.csr_matrix(x)
    with caplog.at_level(logging.INFO, "scanpy_cnnimpute"):
        scnn.tl.cluster(adata, method=method, n_clusters=n_clusters)
    assert any("found in 120 of the 398, drawn at random" in message for message in caplog.messages)
    found = adata.obs["cnn_cluster"]
    assert np.flatnonzero(found.isna()).tolist() == [3, 70]
    filled = found.notna().to_numpy()
    if method != "adp":
        assert metrics.purity(adata.obs["type"][filled], found[filled]) > 0.95
    # Density peaks in the t-SNE of 120 cells: 0.83 to 0.99 by seed and version of scikit-learn; for points, see below.
    # The drawn cells have the clusters and coordinates that they have alone.
    drawn = Clusterer(method=method, n_clusters=n_clusters).cluster_counts(sp.csr_array(x)).clustered
    assert drawn.size == small_draw
    alone = adata[drawn].copy()
    scnn.tl.cluster(alone, method=method, n_clusters=n_clusters)
    assert alone.obs["cnn_cluster"].tolist() == found.iloc[drawn].tolist()
    key = "X_cnn_tsne" if method == "adp" else "X_cnn_pca"
    np.testing.assert_array_equal(adata.obsm[key][drawn], alone.obsm[key])
    with_coordinates = np.isfinite(adata.obsm[key]).all(axis=1)
    assert np.flatnonzero(with_coordinates).tolist() == (drawn if method == "adp" else np.flatnonzero(filled)).tolist()
    if method == "adp":
        record = adata.uns["cnn_cluster"]
        np.testing.assert_array_equal(np.flatnonzero(~np.isnan(record["density"])), drawn)
        assert record["centers"].tolist() == alone.uns["cnn_cluster"]["centers"].tolist()


@pytest.mark.parametrize(("method", "n_clusters"), METHODS)
def test_many_points_get_the_clusters_of_a_draw(method: str, n_clusters: int | None, small_draw: int) -> None:
    types = np.arange(300) % 2
    points = np.random.default_rng(0).normal(size=(300, 3)) + 20 * types[:, None]
    clusterer = Clusterer(method=method, n_clusters=n_clusters, resolution=0.1)
    found = clusterer.cluster_points(points)
    assert found.clustered.size == small_draw
    assert metrics.adjusted_rand_index(types, found.labels) == 1
    np.testing.assert_array_equal(
        found.labels[found.clustered], clusterer.cluster_points(points[found.clustered]).labels
    )
    other = Clusterer(method=method, n_clusters=n_clusters, random_state=2).cluster_points(points)
    assert other.clustered.tolist() != found.clustered.tolist()


@pytest.mark.usefixtures("small_draw")
def test_clusters_of_more_than_the_drawn_cells_are_refused() -> None:
    adata = simulate(200, 50)
    with pytest.raises(ValueError, match="n_clusters=121 is more than the 120 cells to cluster"):
        scnn.tl.cluster(adata, method="kmeans", n_clusters=121)


@pytest.mark.parametrize("n_genes", [1, 30, 600])
def test_projection_is_that_of_the_fitted_cells(n_genes: int) -> None:
    counts = sp.csr_array(scnn.datasets.five_cell_lines().X[:120, :n_genes])
    counts = counts[np.diff(counts.indptr) > 0]
    n = counts.shape[0]
    points = embed(
        sp.csr_array(sp.vstack([counts, counts, sp.csr_array(counts.shape, dtype=counts.dtype)])),
        np.arange(n),
        random_state=1,
    )
    # float32, in which the components went through an eigenvalue and a singular value decomposition
    np.testing.assert_allclose(points[n : 2 * n], points[:n], atol=1e-4 * np.abs(points[:n]).max())
    assert np.isnan(points[2 * n :]).all()


def test_projection_counts_genes_that_no_fitted_cell_has() -> None:
    # They have no loadings, but they are part of the million.
    counts = sp.csr_array(np.array([[1, 3, 0], [3, 1, 0], [2, 2, 0], [1, 3, 4], [0, 0, 5]], dtype=np.float32))
    points = embed(counts, np.arange(3), random_state=1)
    logged = np.log2(1e6 * counts.toarray() / counts.sum(axis=1)[:, None] + 1)[:, :2]
    centred = logged - logged[:3].mean(axis=0)
    axis = np.linalg.svd(centred[:3])[2][0]
    expected = centred @ axis
    np.testing.assert_allclose(points[:, 0] * np.sign(points[0, 0] * expected[0]), expected, rtol=1e-4, atol=1e-4)


def test_majority_labels_by_hand() -> None:
    # Ten clustered points, all of which vote: of the clusters with four votes, that of the nearest point counts.
    points = np.array([*range(10), -1.0, 11.0, np.nan])[:, None]
    labels = np.array([0, 0, 0, 0, 2, 2, 1, 1, 1, 1])
    assert majority_labels(points, np.arange(10), labels).tolist() == [*labels, 0, 1, -1]
    labels = np.array([0, 0, 0, 1, 2, 2, 1, 1, 1, 1])
    assert majority_labels(points, np.arange(10), labels).tolist() == [*labels, 1, 1, -1]


HASH = """
import hashlib, sys
import scanpy_cnnimpute as scnn
from scanpy_cnnimpute.clustering import blocks, methods
adata = scnn.datasets.five_cell_lines()[::2].copy()
digest = hashlib.sha256()
for method in ("adp", "leiden"):
    scnn.tl.cluster(adata, method=method, key_added=method)
    digest.update(adata.obs[method].cat.codes.to_numpy().tobytes())
digest.update(adata.obsm["X_adp_tsne"].tobytes())
digest.update(adata.obsm["X_leiden_pca"].tobytes())
for model in ("gamma_normal", "calibrated"):
    scnn.pp.dropout_prob(adata, model=model, cluster_key="adp")
    digest.update(adata.layers["dropout_prob"].tobytes())
methods.MAX_CELLS, blocks.BLOCK_CELLS = 100, 16
methods.DRAWN_CELLS = dict.fromkeys(methods.DRAWN_CELLS, 60)
scnn.tl.cluster(adata, key_added="drawn")
digest.update(adata.obs["drawn"].cat.codes.to_numpy().tobytes())
digest.update(adata.obsm["X_drawn_pca"].tobytes())
print(digest.hexdigest())
"""


def test_same_bits_for_any_number_of_threads() -> None:
    digests = set()
    for n in ("1", "2"):
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), n)
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", HASH],
            env=os.environ | threads,
            check=True,
            capture_output=True,
            text=True,
        )
        digests.add(run.stdout.split()[-1])
    assert len(digests) == 1
