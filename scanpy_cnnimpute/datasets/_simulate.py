"""The Splatter model: counts of which the truth is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.special import expit

from .._anndata.results import storable
from .._checks import check_number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BLOCK = 2**21  # entries drawn at a time: a few dense temporaries of 16 MB
LARGEST = 2.0**23  # rate up to which a Poisson count is exact in float32


def simulate(
    *,
    n_cells: int = 2000,
    n_genes: int = 4000,
    group_probabilities: Sequence[float] = (0.1, 0.1, 0.2, 0.2, 0.4),
    mean_shape: float = 0.6,
    mean_rate: float = 0.3,
    library_location: float = 11.0,
    library_scale: float = 0.2,
    outlier_probability: float = 0.05,
    outlier_location: float = 4.0,
    outlier_scale: float = 0.5,
    de_probability: float = 0.1,
    de_down_probability: float = 0.5,
    de_location: float = 0.1,
    de_scale: float = 0.4,
    bcv_common: float = 0.1,
    bcv_df: float = 60.0,
    dropout_mid: float | None = 1.0,
    dropout_shape: float = -0.5,
    random_state: int = 0,
) -> AnnData:
    """Counts of groups of cells before and after dropout, by the Splatter model; the defaults are the paper's setting.

    Parameters
    ----------
    n_cells, n_genes
        Size.
    group_probabilities
        Probability of each group of cells; they sum to 1.
    mean_shape, mean_rate
        Gamma distribution of the gene means.
    library_location, library_scale
        Mean and standard deviation of the natural log of the library sizes.
    outlier_probability
        Probability that a gene's mean is the median of the means times an outlier factor instead.
    outlier_location, outlier_scale
        Mean and standard deviation of the natural log of the outlier factors.
    de_probability
        Probability that a gene is differentially expressed (DE) in a group.
    de_down_probability
        Probability that a DE gene is lower in the group rather than higher.
    de_location, de_scale
        Mean and standard deviation of the natural log of the DE factors, before they get their direction.
    bcv_common
        Biological coefficient of variation (BCV) that highly expressed genes approach.
    bcv_df
        Degrees of freedom of the BCV's chi-squared distribution; many make it the same for all genes.
    dropout_mid
        Natural log of the rate at which half of the counts are dropped; None for no dropout.
    dropout_shape
        Slope of the logistic curve of the dropout; negative: low rates lose more.
    random_state
        Seed. The dropout has a random stream of its own: other dropout values leave the true counts as they are.

    Returns
    -------
    AnnData with the observed counts, after dropout, in `X` (CSR, float32) and

    - ``layers["true_counts"]``: counts before dropout (CSR, float32);
    - ``layers["true_means"]``: their Poisson rates, with the BCV, in counts (dense, float32);
    - ``layers["dropped"]``: where a count was dropped (CSR, bool); a true count of 0 has nothing to drop and is False;
    - ``obs["group"]``: categorical, Group1 and on; ``obs["library_size"]``: expected counts of the cell before dropout;
    - ``var["base_mean"]``: gamma draw; ``var["outlier_factor"]``: 1 for no outlier; ``var["mean"]``: what follows from
      the two; relative expression without a unit;
    - ``varm["de_factor"]``: genes x groups, 1 for not DE;
    - ``uns["simulate"]["params"]``: the values above; without dropout no ``dropout_mid``.

    Raises
    ------
    TypeError
        If a value is not a number.
    ValueError
        If a number is not allowed, or an expected count is beyond 2**23, where float32 counts stop being exact.

    Notes
    -----
    Zappia, Phipson and Oshlack, Genome Biol 18, 174 (2017), with the defaults of the R package, as it draws groups
    without batches and dropout of type "experiment". A factor that differs from 1 is ``exp(|z|)``, or ``exp(-|z|)`` if
    lower, with z normal. With ``m = library_size * share of the gene`` the BCV is
    ``(bcv_common + 1 / sqrt(m)) * sqrt(bcv_df / chi2)``, chi2 drawn once for a gene; the rate is gamma distributed with
    mean m and standard deviation ``m * BCV``. A count is dropped with probability
    ``1 / (1 + exp(-dropout_shape * (log(rate) - dropout_mid)))``: of the rate with the BCV, as in the R package.

    The paper's setting: 2,000 cells, 4,000 genes, five groups, dropout_mid 1, dropout_shape -0.5.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.simulate(n_cells=100, n_genes=200, group_probabilities=[0.5, 0.5])
    >>> adata.shape, adata.layers["dropped"].dtype
    ((100, 200), dtype('bool'))
    >>> bool(adata.layers["true_counts"].sum() > adata.X.sum())
    True
    """
    probabilities = _group_probabilities(group_probabilities)
    params = _checked(
        {
            "n_cells": n_cells,
            "n_genes": n_genes,
            "mean_shape": mean_shape,
            "mean_rate": mean_rate,
            "library_location": library_location,
            "library_scale": library_scale,
            "outlier_probability": outlier_probability,
            "outlier_location": outlier_location,
            "outlier_scale": outlier_scale,
            "de_probability": de_probability,
            "de_down_probability": de_down_probability,
            "de_location": de_location,
            "de_scale": de_scale,
            "bcv_common": bcv_common,
            "bcv_df": bcv_df,
            "dropout_mid": dropout_mid,
            "dropout_shape": dropout_shape,
        }
    )
    params["random_state"] = check_number("random_state", random_state, int, 0)
    params["group_probabilities"] = probabilities

    rng = np.random.default_rng(random_state)
    # Above 0, which a gamma draw of a small shape can round to: a cell's shares need a sum to be divided by.
    base_mean = np.maximum(rng.gamma(mean_shape, 1 / mean_rate, n_genes), np.finfo(float).tiny)
    outlier_factor = _factors(rng, (n_genes,), outlier_probability, 0.0, outlier_location, outlier_scale)
    mean = np.where(outlier_factor == 1, base_mean, np.median(base_mean) * outlier_factor)
    de_factor = _factors(rng, (n_genes, probabilities.size), de_probability, de_down_probability, de_location, de_scale)
    overdispersion = bcv_df / rng.chisquare(bcv_df, n_genes)
    group = rng.choice(probabilities.size, n_cells, p=probabilities)
    library_size = rng.lognormal(library_location, library_scale, n_cells)
    shares = de_factor.T * mean
    shares /= shares.sum(axis=1, keepdims=True)

    # One stream for each kind of draw, used cell by cell: the size of the blocks changes nothing.
    rate_rng, count_rng, dropout_rng = rng.spawn(3)
    true_means = np.empty((n_cells, n_genes), dtype=np.float32)
    blocks, kept = [], []
    n_rows = max(1, BLOCK // n_genes)
    for start in range(0, n_cells, n_rows):
        cells = slice(start, start + n_rows)
        expected = shares[group[cells]] * library_size[cells, None]
        _check_exact(expected)
        # The gamma's scale, expected * BCV**2, in a form that does not divide by an expected count of 0.
        scale = (1 + bcv_common * np.sqrt(expected)) ** 2 * overdispersion
        rate = rate_rng.standard_gamma(expected / scale) * scale
        _check_exact(rate)
        counts = count_rng.poisson(rate)
        true_means[cells] = rate
        blocks.append(sp.csr_matrix(counts.astype(np.float32)))
        if dropout_mid is not None:
            dropout = expit(dropout_shape * (np.log(rate[counts > 0]) - dropout_mid))
            kept.append(dropout_rng.random(dropout.size) >= dropout)
    true_counts = sp.vstack(blocks, format="csr")
    keep = np.concatenate(kept) if kept else np.ones(true_counts.nnz, dtype=bool)

    names = [f"Group{number}" for number in range(1, probabilities.size + 1)]
    genes = pd.Index([f"Gene{number}" for number in range(1, n_genes + 1)])
    return AnnData(
        _entries(true_counts, keep, np.float32),
        obs=pd.DataFrame(
            {"group": pd.Categorical.from_codes(group, categories=names), "library_size": library_size},
            index=[f"Cell{number}" for number in range(1, n_cells + 1)],
        ),
        var=pd.DataFrame({"base_mean": base_mean, "outlier_factor": outlier_factor, "mean": mean}, index=genes),
        varm={"de_factor": pd.DataFrame(de_factor, index=genes, columns=names)},
        layers={
            "true_counts": true_counts,
            "true_means": true_means,
            "dropped": _entries(true_counts, ~keep, np.bool_),
        },
        uns={"simulate": {"params": storable({"function": "datasets.simulate", "units": "counts", **params})}},
    )


def _factors(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    probability: float,
    down_probability: float,
    location: float,
    scale: float,
) -> np.ndarray:
    """1, or with a probability a log-normal factor that is below 1 if it points down, above 1 otherwise."""
    chosen = rng.random(shape) < probability
    sign = np.where(rng.random(shape) < down_probability, -1, 1)
    return np.where(chosen, np.exp(sign * np.abs(rng.normal(location, scale, shape))), 1.0)


def _entries(matrix: sp.csr_matrix, chosen: np.ndarray, dtype: type) -> sp.csr_matrix:
    """Some of the stored entries."""
    data = (matrix.data * chosen).astype(dtype)
    new = sp.csr_matrix((data, matrix.indices.copy(), matrix.indptr.copy()), shape=matrix.shape)
    new.eliminate_zeros()
    return new


def _group_probabilities(given: Any) -> np.ndarray:
    try:
        probabilities = np.asarray(given, dtype=float)
    except (TypeError, ValueError) as error:
        msg = f"group_probabilities={given!r} is not allowed: a list of numbers, one for each group."
        raise TypeError(msg) from error
    if probabilities.ndim != 1 or not probabilities.size:
        msg = f"group_probabilities={given!r} has the shape {probabilities.shape}, expected a list: one for each group."
        raise ValueError(msg)
    total = probabilities.sum()
    if not (probabilities.min() >= 0 and np.isclose(total, 1)):  # NaN fails both
        msg = (
            f"group_probabilities={given!r} is not allowed: the smallest is {probabilities.min():.6g} and the sum "
            f"{total:.6g}, expected at least 0 and 1. Divide weights by their sum."
        )
        raise ValueError(msg)
    return probabilities / total


def _checked(params: Mapping[str, Any]) -> dict[str, Any]:
    """The values as plain numbers; what is allowed follows from what a parameter is."""
    checked: dict[str, Any] = {}
    for name, value in params.items():
        if name == "dropout_mid" and value is None:
            continue
        plain = check_number(name, value, int if name in {"n_cells", "n_genes"} else float)
        if name in {"n_cells", "n_genes"}:
            fits, allowed = plain >= 1, "at least 1"
        elif name in {"mean_shape", "mean_rate", "bcv_df"}:
            fits, allowed = plain > 0, "above 0"
        elif name.endswith("_probability"):
            fits, allowed = 0 <= plain <= 1, "between 0 and 1"
        elif name.endswith("_scale") or name == "bcv_common":
            fits, allowed = plain >= 0, "at least 0"
        else:
            fits, allowed = True, "any number"
        if not (fits and np.isfinite(plain)):
            msg = f"{name}={value!r} is not allowed: {allowed}, and finite."
            raise ValueError(msg)
        checked[name] = plain
    return checked


def _check_exact(rate: np.ndarray) -> None:
    if not rate.max() <= LARGEST:  # NaN too
        msg = (
            f"A gene would have {rate.max():.3g} expected counts in a cell, more than the 2**23 up to which float32 "
            f"counts are exact. Lower library_location, the natural log of a typical cell's counts, or bcv_common."
        )
        raise ValueError(msg)
