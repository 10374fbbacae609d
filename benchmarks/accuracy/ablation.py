"""What each part of the default contributes: masked accuracy and recovery with parts changed or left out.

    python benchmarks/accuracy/ablation.py DATA_FOLDER --only jurkat_293t_10x grun_mesc --out ablation.csv

One training step leaves a network where it starts, which is without it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from run import MIN_DETECTION, dense, load, log_normalised

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import metrics

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no network": {"n_steps": 1},
    "10 correlated genes": {"n_top": 10},
    "at most 5 components": {"n_components": 5},
}
MOLECULE_VARIANTS = ("default", "no network", "10 correlated genes")  # n_components is of the conditional estimate


def main() -> None:
    """Run all variants, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder of h5ad files (default: the bundled data)")
    parser.add_argument("--only", nargs="+", help="names of the files to use, without .h5ad")
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, adata in load(options.data, options.only):
        for scores in (*masked(adata), *thinned(adata)):
            rows.append({"data": name, **scores})
            print(rows[-1], flush=True)
            pd.DataFrame(rows).to_csv(options.out, index=False)


def masked(adata: ad.AnnData) -> list[dict[str, Any]]:
    """MSE of log1p(counts) at masked non-zeros, conditional estimate of every zero."""
    held = metrics.mask_nonzeros(adata.X)
    truth = np.log1p(held.truth)
    rows = []
    for variant, settings in VARIANTS.items():
        imputer = scnn.CNNImputer(estimate="conditional", threshold=0, verbose=False, **settings)
        counts = held.counts.astype(np.float32)
        imputed = imputer.fit_transform(counts, dropout=np.ones(counts.shape, dtype=np.float32))
        estimate = np.log1p(dense(imputed[held.rows, held.columns]).ravel())
        rows.append({"test": "masking", "variant": variant, "mse": metrics.mse(truth, estimate)})
    return rows


def thinned(adata: ad.AnnData) -> list[dict[str, Any]]:
    """MSE of log1p(CP10k) at zeros after 50 % thinning, posterior mean."""
    truth = np.rint(dense(adata.X))
    counts = dense(metrics.thin_counts(truth, capture_efficiency=0.5))
    kept = (counts > 0).mean(axis=0) >= MIN_DETECTION
    truth, counts = truth[:, kept], counts[:, kept]
    zero = counts == 0
    part = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)))
    scnn.pp.dropout_prob(part, capture_efficiency=0.5, store="params")
    target = log_normalised(truth, truth.sum(axis=1))[zero]
    rows = []
    for variant in MOLECULE_VARIANTS:
        scnn.pp.cnn_impute(part, gate=False, store="layer", verbose=False, **VARIANTS[variant])
        estimate = log_normalised(dense(part.layers["cnn_imputed"]), counts.sum(axis=1))[zero]
        rows.append({"test": "thinning", "variant": variant, "mse": metrics.mse(target, estimate)})
    return rows


if __name__ == "__main__":
    main()
