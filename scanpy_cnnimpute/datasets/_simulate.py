"""The Splatter model: simulated counts with known truth."""

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

BLOCK_ENTRIES = 2**21  # entries drawn at a time: dense temporaries of 16 MB each
MAX_RATE = 2.0**23  # float32 holds integers up to 2**24, and a Poisson count of this rate is below that


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
    """Simulate counts of groups of cells, with and without dropout, by the Splatter model.

    Parameters
    ----------
    n_cells, n_genes
        Numbers of cells and genes.
    group_probabilities
        Probability of each group of cells; they sum to 1.
    mean_shape, mean_rate
        Gamma distribution of the gene means.
    library_location, library_scale
        Mean and standard deviation of the natural log of the library sizes.
    outlier_probability
        Probability that the mean of a gene is replaced by the median of the means times an outlier factor.
    outlier_location, outlier_scale
        Mean and standard deviation of the natural log of the outlier factors.
    de_probability
        Probability that a gene is differentially expressed (DE) in a group.
    de_down_probability
        Probability that a DE gene is lower in the group rather than higher.
    de_location, de_scale
        Mean and standard deviation of the natural log of the DE factors, before the direction is applied.
    bcv_common
        Biological coefficient of variation (BCV) that highly expressed genes approach.
    bcv_df
        Degrees of freedom of the BCV's chi-squared distribution. The more, the less the BCV varies between genes.
    dropout_mid
        Natural log of the rate at which half of the counts are dropped. ``None``: no dropout.
    dropout_shape
        Slope of the logistic dropout curve. If negative, low rates drop out more often.
    random_state
        Seed. Dropout has its own random stream, so that the true counts do not depend on the dropout parameters.

    Returns
    -------
    AnnData with the observed counts, after dropout, in `X` (CSR, float32) and

    - ``layers["true_counts"]``: counts before dropout (CSR, float32);
    - ``layers["true_means"]``: Poisson rates of the true counts, with the BCV, in counts (dense, float32);
    - ``layers["dropped"]``: whether a count above 0 was dropped (CSR, bool);
    - ``obs["group"]``: categorical, ``"Group1"``, ``"Group2"`` and so on; ``obs["library_size"]``: expected counts of
      the cell before dropout;
    - ``var["base_mean"]``: gamma draw; ``var["outlier_factor"]``: 1 for genes that are no outliers; ``var["mean"]``:
      relative expression with the outlier factor, without a unit;
    - ``varm["de_factor"]``: ``(n_genes, n_groups)``, 1 for genes that are not DE;
    - ``uns["simulate"]["params"]``: the parameters; ``dropout_mid`` is left out if there is no dropout.

    Raises
    ------
    TypeError
        If a value is not a number.
    ValueError
        If a number is not allowed, or an expected count is above 2**23, beyond which float32 counts may be inexact.

    Notes
    -----
    Model: Zappia, Phipson and Oshlack, Genome Biol 18, 174 (2017), groups without batches, dropout of type
    "experiment". The defaults are the paper's setting (2,000 cells, 4,000 genes, five groups, ``dropout_mid=1``,
    ``dropout_shape=-0.5``), and those of the R package otherwise.

    A factor other than 1 is ``exp(|z|)``, or ``exp(-|z|)`` if it lowers expression, with normal z. With
    ``m = library_size * share of the gene``, the BCV is ``(bcv_common + 1 / sqrt(m)) * sqrt(bcv_df / chi2)``, where
    chi2 is drawn once per gene. The rate is gamma distributed with mean m and standard deviation ``m * BCV``. A count
    is dropped with probability ``1 / (1 + exp(-dropout_shape * (log(rate) - dropout_mid)))``; this rate includes the
    BCV, as in the R package.

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
    # A gamma draw of a small shape can round to 0. All means 0 would leave the shares undefined.
    base_mean = np.maximum(rng.gamma(mean_shape, 1 / mean_rate, n_genes), np.finfo(float).tiny)
    outlier_factor = _factors(rng, (n_genes,), outlier_probability, 0.0, outlier_location, outlier_scale)
    mean = np.where(outlier_factor == 1, base_mean, np.median(base_mean) * outlier_factor)
    de_factor = _factors(rng, (n_genes, probabilities.size), de_probability, de_down_probability, de_location, de_scale)
    overdispersion = bcv_df / rng.chisquare(bcv_df, n_genes)
    group = rng.choice(probabilities.size, n_cells, p=probabilities)
    library_size = rng.lognormal(library_location, library_scale, n_cells)
    shares = de_factor.T * mean
    shares /= shares.sum(axis=1, keepdims=True)

    # Each kind of draw has its own stream, so that results do not depend on the block size.
    rate_rng, count_rng, dropout_rng = rng.spawn(3)
    true_means = np.empty((n_cells, n_genes), dtype=np.float32)
    blocks, kept = [], []
    n_rows = max(1, BLOCK_ENTRIES // n_genes)
    for start in range(0, n_cells, n_rows):
        cells = slice(start, start + n_rows)
        expected = shares[group[cells]] * library_size[cells, None]
        _check_exact(expected)
        # Scale of the gamma distribution: expected * BCV**2, without a division by an expected count of 0.
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
    """Factors: 1, or with the given probability log-normal, some of them (`down_probability`) inverted to below 1."""
    chosen = rng.random(shape) < probability
    sign = np.where(rng.random(shape) < down_probability, -1, 1)
    return np.where(chosen, np.exp(sign * np.abs(rng.normal(location, scale, shape))), 1.0)


def _entries(matrix: sp.csr_matrix, chosen: np.ndarray, dtype: type) -> sp.csr_matrix:
    """The chosen stored entries as a new matrix."""
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
    """Checked values as plain Python numbers. The allowed range follows from the name."""
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
    if not rate.max() <= MAX_RATE:  # NaN too
        msg = (
            f"A gene would have {rate.max():.3g} expected counts in a cell, more than the 2**23 up to which float32 "
            f"counts are exact. Lower library_location, the natural log of a typical cell's counts, or bcv_common."
        )
        raise ValueError(msg)
