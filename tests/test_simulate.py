"""``datasets.simulate`` against the formulas of the Splatter model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import dense
from scipy import stats

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute.datasets import _simulate

if TYPE_CHECKING:
    from pathlib import Path

simulate = scnn.datasets.simulate
SMALL: dict[str, Any] = {"n_cells": 60, "n_genes": 50}
# Shares and means of draws are compared within 4 of their standard errors, distributions at this p-value.
ERRORS = 4
MIN_P = 1e-3


@pytest.fixture(scope="module")
def paper() -> ad.AnnData:
    """The groups, genes and dropout of the paper, in fewer cells."""
    return simulate(n_cells=150)


@pytest.fixture(scope="module")
def genes() -> ad.AnnData:
    """Many genes of one cell."""
    return simulate(n_cells=1, n_genes=100_000, outlier_probability=0.1, de_probability=0.3, de_down_probability=0.2)


def assert_mean(values: np.ndarray, expected: float) -> None:
    assert abs(values.mean() - expected) < ERRORS * values.std() / np.sqrt(values.size)


def assert_share(chosen: np.ndarray, expected: float) -> None:
    assert abs(chosen.mean() - expected) < ERRORS * np.sqrt(expected * (1 - expected) / chosen.size)


def assert_same(one: ad.AnnData, other: ad.AnnData) -> None:
    pd.testing.assert_frame_equal(one.obs, other.obs)
    pd.testing.assert_frame_equal(one.var, other.var)
    pd.testing.assert_frame_equal(one.varm["de_factor"], other.varm["de_factor"])
    for left, right in ((one.X, other.X), *((one.layers[key], other.layers[key]) for key in one.layers)):
        assert left.dtype == right.dtype
        assert sp.issparse(left) == sp.issparse(right)
        np.testing.assert_array_equal(dense(left), dense(right))


def test_the_paper_is_the_default() -> None:
    default = simulate.__kwdefaults__
    assert (default["n_cells"], default["n_genes"]) == (2000, 4000)
    assert default["group_probabilities"] == (0.1, 0.1, 0.2, 0.2, 0.4)
    assert (default["dropout_mid"], default["dropout_shape"]) == (1, -0.5)


def test_structure(paper: ad.AnnData) -> None:
    assert paper.shape == (150, 4000)
    for matrix, dtype in ((paper.X, "f4"), (paper.layers["true_counts"], "f4"), (paper.layers["dropped"], "?")):
        assert isinstance(matrix, sp.csr_matrix)
        assert matrix.dtype == dtype
        assert matrix.has_canonical_format
        assert (matrix.data > 0).all()
        assert (matrix.data == np.round(matrix.data)).all()
    means = paper.layers["true_means"]
    assert isinstance(means, np.ndarray)
    assert means.dtype == np.float32
    assert list(paper.obs["group"].cat.categories) == ["Group1", "Group2", "Group3", "Group4", "Group5"]
    assert list(paper.varm["de_factor"].columns) == list(paper.obs["group"].cat.categories)
    assert paper.obs_names[0] == "Cell1"
    assert paper.var_names[-1] == "Gene4000"


def test_cell_sizes_and_groups() -> None:
    adata = simulate(n_cells=20_000, n_genes=2, library_location=6, library_scale=0.5)
    logs = np.log(adata.obs["library_size"].to_numpy())
    assert stats.kstest(logs, stats.norm(6, 0.5).cdf).pvalue > MIN_P
    observed = adata.obs["group"].value_counts(sort=False).to_numpy()
    assert stats.chisquare(observed, 20_000 * np.array([0.1, 0.1, 0.2, 0.2, 0.4])).pvalue > MIN_P


def test_gene_means(genes: ad.AnnData) -> None:
    base, mean, factor = (genes.var[key].to_numpy() for key in ("base_mean", "mean", "outlier_factor"))
    assert stats.kstest(base, stats.gamma(0.6, scale=1 / 0.3).cdf).pvalue > MIN_P
    assert_mean(base, 0.6 / 0.3)
    assert_mean((base - 2) ** 2, 0.6 / 0.3**2)
    outlier = factor != 1
    assert_share(outlier, 0.1)
    assert stats.kstest(np.log(factor[outlier]), stats.norm(4, 0.5).cdf).pvalue > MIN_P
    np.testing.assert_array_equal(mean[~outlier], base[~outlier])
    np.testing.assert_allclose(mean[outlier], np.median(base) * factor[outlier])


def test_de_factors(genes: ad.AnnData) -> None:
    for factor in genes.varm["de_factor"].to_numpy().T:
        changed = factor[factor != 1]
        assert_share(factor != 1, 0.3)
        assert_share(changed < 1, 0.2)
        # The direction is drawn on its own, so that the size of the log is that of a normal, folded at 0.
        size = stats.foldnorm(0.1 / 0.4, scale=0.4)
        assert stats.kstest(np.abs(np.log(changed)), size.cdf).pvalue > MIN_P
    drawn = genes.varm["de_factor"].to_numpy() != 1
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < ERRORS / np.sqrt(drawn.shape[0])


def test_expected_counts_follow_groups_and_library_sizes() -> None:
    # Without the BCV's constant part and with many degrees of freedom, var(rate) = m: sums are well determined.
    adata = simulate(
        n_cells=300, n_genes=200, library_location=12, bcv_common=0, bcv_df=1e9, de_probability=0.5, mean_shape=5
    )
    relative = adata.varm["de_factor"].mul(adata.var["mean"], axis=0)
    shares = (relative / relative.sum())[adata.obs["group"]].to_numpy().T
    expected = shares * adata.obs["library_size"].to_numpy()[:, None]
    deviation = (adata.layers["true_means"] - expected) / np.sqrt(expected)
    assert_mean(deviation, 0)
    assert_mean(deviation**2, 1)
    # Gene by gene: no gene is off.
    assert np.abs(deviation.mean(axis=0)).max() < 5 / np.sqrt(adata.n_obs)


@pytest.mark.parametrize("df", [10.0, 1e9])
def test_mean_and_variance_follow_the_bcv(df: float) -> None:
    n_cells = 2000
    adata = simulate(
        n_cells=n_cells,
        n_genes=300,
        group_probabilities=[1],
        library_location=np.log(300 * 50),
        library_scale=0,
        mean_shape=3,
        outlier_probability=0,
        de_probability=0,
        bcv_common=0.3,
        bcv_df=df,
        dropout_mid=None,
    )
    expected = 50 * (adata.var["mean"] / adata.var["mean"].mean()).to_numpy()
    variance = (expected * (0.3 + 1 / np.sqrt(expected))) ** 2
    for values, noise in ((adata.layers["true_means"], 0), (adata.X.toarray(), expected)):
        ratio = (np.var(values, axis=0, ddof=1, dtype=float) - noise) / variance
        # df / chi2 of a gene, whose mean is df / (df - 2).
        assert_mean(ratio, df / (df - 2))
        np.testing.assert_allclose(values.mean(axis=0), expected, rtol=6 * 0.6 / np.sqrt(n_cells))
    if df == 10:
        # One factor for a gene, not one for an entry: it shows as the spread of genes, known to 10 % from 2,000 cells.
        assert stats.kstest(df / ratio, stats.chi2(df).cdf).pvalue > MIN_P
    # Given its rate, a count is Poisson distributed.
    rate = adata.layers["true_means"].astype(float)
    deviation = (adata.X.toarray() - rate)[rate > 1] / np.sqrt(rate[rate > 1])
    assert_mean(deviation, 0)
    assert_mean(deviation**2, 1)


@pytest.mark.parametrize(("mid", "shape"), [(1.0, -0.5), (3.0, -1.5), (2.0, 0.0), (2.0, 0.5)])
def test_dropout_is_logistic_in_the_log_of_the_rate(mid: float, shape: float) -> None:
    adata = simulate(n_cells=300, n_genes=500, dropout_mid=mid, dropout_shape=shape)
    there = adata.layers["true_counts"].toarray() > 0
    log_rate = np.log(adata.layers["true_means"][there], dtype=float)
    dropped = adata.layers["dropped"].toarray()[there]
    probability = 1 / (1 + np.exp(-shape * (log_rate - mid)))
    bins = np.digitize(log_rate, np.arange(-2.5, 6))
    for group in np.unique(bins):
        inside = bins == group
        spread = np.sqrt((probability[inside] * (1 - probability[inside])).sum())
        assert abs(dropped[inside].sum() - probability[inside].sum()) <= ERRORS * spread


def test_dropout_takes_whole_counts_and_nothing_else(paper: ad.AnnData) -> None:
    observed, true, dropped = (dense(x) for x in (paper.X, paper.layers["true_counts"], paper.layers["dropped"]))
    np.testing.assert_array_equal(observed[~dropped], true[~dropped])
    assert (observed[dropped] == 0).all()
    assert (true[dropped] > 0).all()
    assert 0.3 < dropped[true > 0].mean() < 0.5


def test_no_dropout_and_the_same_truth(paper: ad.AnnData) -> None:
    adata = simulate(n_cells=150, dropout_mid=None)
    assert adata.layers["dropped"].nnz == 0
    assert (adata.layers["true_counts"] != adata.X).nnz == 0
    assert "dropout_mid" not in adata.uns["simulate"]["params"]
    # Dropout has its own random stream.
    assert (paper.layers["true_counts"] != adata.X).nnz == 0
    np.testing.assert_array_equal(adata.layers["true_means"], paper.layers["true_means"])
    # No two matrices share memory: one may be edited.
    adata.X.data[:] = 7
    assert adata.layers["true_counts"].data.min() == 1


def test_same_seed_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    once = simulate(**SMALL, random_state=3)
    assert_same(once, simulate(**SMALL, random_state=np.int64(3)))
    assert (once.X != simulate(**SMALL, random_state=4).X).nnz > 0
    for block in (1, 7 * 50 + 1):
        monkeypatch.setattr(_simulate, "BLOCK_ENTRIES", block)
        assert_same(once, simulate(**SMALL, random_state=3))


def test_the_global_random_state_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    simulate(**SMALL)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("dropout_mid", [1.0, None])
@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_round_trip(tmp_path: Path, suffix: str, dropout_mid: float | None) -> None:
    adata = simulate(**SMALL, dropout_mid=dropout_mid)
    path = tmp_path / f"simulated.{suffix}"
    getattr(adata, f"write_{suffix}")(path)
    back = {"h5ad": ad.read_h5ad, "zarr": ad.read_zarr}[suffix](path)
    assert_same(adata, back)
    old, new = adata.uns["simulate"]["params"], back.uns["simulate"]["params"]
    assert set(old) == set(new)
    for key, value in old.items():
        np.testing.assert_array_equal(new[key], value)
    # The record is enough to repeat the call.
    call = {key: value for key, value in new.items() if key not in {"function", "units"}}
    assert_same(adata, simulate(**{"dropout_mid": None, **call}))


def test_degenerate_sizes_and_values() -> None:
    assert simulate(n_cells=1, n_genes=1).shape == (1, 1)
    # Gamma draws that round to 0, and no spread at all.
    for extreme in ({"mean_shape": 1e-4}, {"library_scale": 0, "outlier_scale": 0, "de_scale": 0, "bcv_common": 0}):
        adata = simulate(n_cells=20, n_genes=3, library_location=3, **extreme)
        assert np.isfinite(adata.layers["true_means"]).all()
    empty = simulate(**SMALL, library_location=-50)
    assert empty.X.nnz == empty.layers["true_counts"].nnz == 0
    unused = simulate(**SMALL, group_probabilities=np.array([0, 1]))
    assert unused.obs["group"].value_counts().to_dict() == {"Group2": 60, "Group1": 0}


@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        ({"n_cells": 0}, ValueError, "n_cells=0 is not allowed: at least 1"),
        ({"n_genes": 2.5}, TypeError, "n_genes=2.5 has type float, expected int"),
        ({"group_probabilities": [0.5, 0.4]}, ValueError, "the sum 0.9, expected .* Divide weights by their sum"),
        ({"group_probabilities": [1.5, -0.5]}, ValueError, "the smallest is -0.5"),
        ({"group_probabilities": [np.nan, 1]}, ValueError, "group_probabilities=.* is not allowed"),
        ({"group_probabilities": []}, ValueError, "a list: one for each group"),
        ({"group_probabilities": 1.0}, ValueError, "a list: one for each group"),
        ({"group_probabilities": [[0.5, 0.5]]}, ValueError, "a list: one for each group"),
        ({"group_probabilities": ["a", "b"]}, TypeError, "a list of numbers"),
        ({"group_probabilities": [[0.5], [0.25, 0.25]]}, TypeError, "a list of numbers"),
        ({"mean_shape": 0}, ValueError, "mean_shape=0 is not allowed: above 0"),
        ({"mean_rate": -1}, ValueError, "mean_rate=-1 is not allowed: above 0"),
        ({"bcv_df": np.inf}, ValueError, "bcv_df=inf is not allowed: a finite number"),
        ({"bcv_common": -0.1}, ValueError, "bcv_common=-0.1 is not allowed: at least 0"),
        ({"library_scale": -1}, ValueError, "library_scale=-1 is not allowed: at least 0"),
        ({"library_location": None}, TypeError, "library_location=None has type NoneType"),
        ({"library_location": 60_000}, ValueError, "Lower library_location, the natural log"),
        ({"library_location": 20}, ValueError, "more than the 2"),
        ({"outlier_probability": 1.1}, ValueError, "outlier_probability=1.1 is not allowed: between 0 and 1"),
        ({"de_location": np.nan}, ValueError, "de_location=nan is not allowed: a finite number"),
        ({"dropout_mid": "1"}, TypeError, "dropout_mid='1' has type str, expected float"),
        ({"dropout_shape": None}, TypeError, "dropout_shape=None has type NoneType"),
        ({"random_state": -1}, ValueError, "random_state=-1 is not allowed: at least 0"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_bad_input(bad: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        simulate(**{**SMALL, **bad})


def test_overdispersion_beyond_exact_counts_is_refused() -> None:
    with pytest.raises(ValueError, match="or bcv_common"):
        simulate(n_cells=200, n_genes=1, library_location=15, bcv_common=5)
