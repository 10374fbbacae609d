"""Dropout probabilities as weights of zeros in a test of counts.

    python benchmarks/differential/weights.py DATA_FOLDER --out weights.csv

A zero with the dropout probability p counts as ``1 - p`` observations in Welch's t-test of log1p(CP10k). Data, planted
genes and scores are those of `run.py`, 40 cells of each group. Decoys are permuted with their weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import run
from scipy.stats import false_discovery_control, norm, t

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import metrics
from scanpy_cnnimpute.differential import DecoyNull, permute_counts

MIN_EFFECTIVE = 1.5  # observations of a group, below which there is no variance
MAX_SCORE = 37.0


def main() -> None:
    """Run all sets, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder of h5ad files")
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    run.SETTINGS = ((40, 0.4),)
    rows: list[dict[str, Any]] = []
    for name, first, second, adata, truth, null in run.cases(options.data, options.seeds):
        scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="group", key_added="gamma_normal", store="layer")
        scnn.pp.dropout_prob(adata, count_type="umi", key_added="calibrated", store="layer")
        groups = adata.obs["group"].astype(str).to_numpy()
        compared = np.flatnonzero(np.isin(groups, [first, second]))
        inside = groups[compared] == first
        counts = run.dense(adata.X)
        sizes, own = counts.sum(axis=1)[compared], counts[compared]
        seen, genes = (own > 0).any(axis=0), np.arange(counts.shape[1])
        judged = truth.notna().to_numpy() & seen & ~null
        differs = truth.astype("boolean").fillna(value=False).to_numpy(dtype=bool)
        for weights_of in ("none", "gamma_normal", "calibrated"):
            weights = np.ones(own.shape)
            if weights_of != "none":
                weights = np.where(own > 0, 1.0, 1.0 - adata.layers[weights_of][compared])
            decoys, decoy_weights = (permute_counts(part.T, sizes, genes, 0).T for part in (own, weights))
            logged, decoy_logged = (np.log1p(part / sizes[:, None] * 1e4) for part in (own, decoys))
            fitted = DecoyNull.fit(decoy_logged.mean(axis=0)[seen], welch(decoy_logged, decoy_weights, inside)[seen])
            p_values = np.where(seen, fitted.p_values(logged.mean(axis=0), welch(logged, weights, inside)), 1.0)
            found = np.zeros(null.size, dtype=bool)
            used = judged | (null & seen)
            found[used] = false_discovery_control(p_values[used]) <= run.RATE
            rows.append(
                {
                    "data": name,
                    "weights": weights_of,
                    "null": np.mean(p_values[null & seen] <= 0.05),  # noqa: PLR2004
                    "area": metrics.auroc(differs[judged], 1 - p_values[judged]),
                    "found": int((found & judged).sum()),
                    "right": differs[found & judged].mean() if (found & judged).any() else np.nan,
                }
            )
        pd.DataFrame(rows).to_csv(options.out, index=False)
    print(pd.DataFrame(rows).groupby(["data", "weights"], sort=False).mean().round(3).to_string())


def welch(values: np.ndarray, weights: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Normal scores of Welch's t-test with weights, of as many observations as the weights amount to."""
    means, errors, sizes = [], [], []
    for cells in (inside, ~inside):
        part, weight = values[cells], weights[cells]
        total = np.maximum(weight.sum(axis=0), 1e-9)
        size = total**2 / np.maximum((weight**2).sum(axis=0), 1e-9)
        mean = (weight * part).sum(axis=0) / total
        variance = (weight * (part - mean) ** 2).sum(axis=0) / total * size / np.maximum(size - 1, 1e-3)
        means.append(mean)
        errors.append(variance / size)
        sizes.append(size)
    error = errors[0] + errors[1]
    usable = (error > 0) & (np.minimum(*sizes) > MIN_EFFECTIVE)
    statistic = (means[0] - means[1]) / np.sqrt(np.where(usable, error, 1.0))
    spread = sum(each**2 / np.maximum(size - 1, 0.5) for each, size in zip(errors, sizes, strict=True))
    freedom = np.maximum(np.where(usable, error, 1.0) ** 2 / np.where(usable, spread, 1.0), 1.0)
    size = np.minimum(norm.isf(t.sf(np.abs(statistic), freedom)), MAX_SCORE)
    return np.where(usable, np.sign(statistic) * size, 0.0)


if __name__ == "__main__":
    main()
