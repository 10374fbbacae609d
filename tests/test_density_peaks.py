"""Density peaks against the authors' program and against a plain transcription."""

from __future__ import annotations

import numba
import numpy as np
import pandas as pd
import pytest
from helpers import DATA
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.metrics import silhouette_score

from scanpy_cnnimpute.clustering.density_peaks import adaptive_density_peaks

# tests/data/reference_cells.csv.gz, reference_density_peaks.csv.gz: R 4.2.2, the authors' adpclust(tsne$Y) on
# Rtsne(t(log2(CPM + 1)), dims = 3, perplexity = 30) with seed 1, sc_celseq2_5cl_p1 (genes seen in >= 10 cells).


@pytest.fixture(scope="module")
def cells() -> pd.DataFrame:
    return pd.read_csv(DATA / "reference_cells.csv.gz")


@pytest.fixture(scope="module")
def points(cells: pd.DataFrame) -> np.ndarray:
    return cells[["tsne1", "tsne2", "tsne3"]].to_numpy()


def blobs(n: int = 120, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = np.array([[0, 0], [8, 0], [0, 9], [9, 9]])
    return rng.normal(size=(n, 2)) + centers[np.arange(n) % 4]


def test_every_combination_of_the_reference_program(points: np.ndarray, cells: pd.DataFrame) -> None:
    peaks = adaptive_density_peaks(points)
    reference = pd.read_csv(DATA / "reference_density_peaks.csv.gz")
    assert len(reference) == 270
    # The reference prints 15 digits.
    for ours, theirs in (
        ("density_quantile", "f_cut"),
        ("density_cut", "f_cut_value"),
        ("n_clusters", "nclust"),
        ("bandwidth", "h"),
        ("silhouette", "silhouette"),
    ):
        np.testing.assert_allclose(peaks.tested[ours], reference[theirs], rtol=1e-12, atol=1e-12)
    assert sorted(peaks.centers) == np.flatnonzero(cells["adp_center"]).tolist()
    np.testing.assert_allclose(peaks.density, cells["adp_density"], rtol=1e-12)
    np.testing.assert_allclose(peaks.separation, cells["adp_delta"], rtol=1e-12)
    assert (pd.crosstab(peaks.labels, cells["adp_cluster"]) > 0).to_numpy().sum() == 5


def test_silhouettes_equal_scikit_learn() -> None:
    points = blobs()
    peaks = adaptive_density_peaks(points)
    standardised = points / points.std(axis=0, ddof=1)
    assert peaks.silhouette == pytest.approx(silhouette_score(standardised, peaks.labels), abs=1e-12)
    assert peaks.silhouette == peaks.tested["silhouette"].max()


def test_density_and_separation_equal_a_plain_transcription() -> None:
    points = blobs(70)
    peaks = adaptive_density_peaks(points)
    distances = cdist(*[points / points.std(axis=0, ddof=1)] * 2)
    density = np.exp(-0.5 * (distances / peaks.bandwidth) ** 2).sum(axis=1)
    np.testing.assert_allclose(peaks.density, density, rtol=1e-12)
    separation = np.array([distances[i, density > density[i]].min(initial=np.inf) for i in range(70)])
    separation[np.argmax(density)] = separation[np.isfinite(separation)].max()
    np.testing.assert_allclose(peaks.separation, separation, rtol=1e-12)


def test_recovers_planted_clusters() -> None:
    peaks = adaptive_density_peaks(blobs(400))
    assert len(peaks.centers) == 4
    assert (pd.crosstab(peaks.labels, np.arange(400) % 4) > 0).to_numpy().sum() == 4


def test_same_bits_for_any_number_of_threads(points: np.ndarray) -> None:
    threads = numba.get_num_threads()
    results = []
    try:
        for n in {1, threads}:
            numba.set_num_threads(n)
            results.append(adaptive_density_peaks(points))
    finally:
        numba.set_num_threads(threads)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].tested["silhouette"], other.tested["silhouette"])
        np.testing.assert_array_equal(results[0].density, other.density)
        np.testing.assert_array_equal(results[0].separation, other.separation)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(3, 30),
    d=st.integers(1, 4),
    seed=st.integers(0, 1000),
    distinct=st.integers(1, 30),
)
@example(n=30, d=2, seed=439, distinct=7)  # two densities that differ in the last bit
def test_invariants_on_any_points(n: int, d: int, seed: int, distinct: int) -> None:
    # Few distinct points: ties, duplicates, constant coordinates.
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(distinct, d))[rng.integers(distinct, size=n)]
    peaks = adaptive_density_peaks(points)
    k = len(peaks.centers)
    assert 2 <= k <= min(10, n - 1)
    assert set(peaks.labels) <= set(range(k))
    assert np.isfinite(peaks.separation).all()
    assert -1 <= peaks.silhouette <= 1
    # Scaling and shifting coordinates changes nothing.
    again = adaptive_density_peaks(4.0 * points + 2.0)
    assert again.silhouette == pytest.approx(peaks.silhouette, abs=1e-6)


def test_refuses_too_few_points_and_impossible_numbers() -> None:
    with pytest.raises(ValueError, match="at least 3 points, got 2"):
        adaptive_density_peaks(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"n_clusters=\[50\] is not possible with 20 points"):
        adaptive_density_peaks(blobs(20), n_clusters=[50])
