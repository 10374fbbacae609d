"""Read counts: simulated ones with known molecules, and real ones.

    python benchmarks/accuracy/reads.py DATA_FOLDER --out reads.csv
    python benchmarks/accuracy/reads.py --out reads.csv            # the bundled data, simulated

DATA_FOLDER holds h5ad files with raw counts in X. Sets of molecules are turned into reads: each molecule is kept with
the probability of SHARES (0.3 for others) and gives, on average, 50 reads times a factor of its cell (sd of the
logarithm 0.3) and one of its gene (0.5), with the spread of a gamma distribution of shape 1 and Poisson noise. The
truth are all molecules, weighted by the factors of their genes. At most 700 cells, genes seen in a tenth of them.

error         at zeros, of log1p(CP10k), over that of doing nothing; told the share, and not told
brier, auroc  of the dropout probabilities; the first over that of the best constant
auroc_of_molecules
              of the calibrated model on the molecules themselves, told the share
per_molecule  median reads per molecule, estimated and true, and correlation of the logarithms over cells and genes

Sets of reads (with a column of types in `.obs`): share of the zeros that is imputed, and of the 15 nearest neighbours
that have the cell's type, before and after (log1p(CP10k), 2,000 variable genes, 30 components).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from run import MIN_DETECTION, dense, load
from sklearn.neighbors import NearestNeighbors

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import metrics
from scanpy_cnnimpute._counts import Counts
from scanpy_cnnimpute.dropout.read_counts import MIN_READS, reads_per_molecule

SHARES = {"zeisel_saver": 0.2, "mca_spleen": 0.5}
SHARE = 0.3
MEAN_READS, CELL_SD, GENE_SD = 50, 0.3, 0.5
MAX_CELLS, MIN_SIMULATED_DETECTION, MIN_MOLECULES = 700, 0.1, 50
N_NEIGHBOURS, N_VARIABLE, N_COMPONENTS = 15, 2_000, 30


def main() -> None:
    """Run all sets, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder of h5ad files (default: the bundled data)")
    parser.add_argument("--only", nargs="+", help="names of the files to use, without .h5ad")
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, adata in load(options.data, options.only):
        if name.startswith("bulk"):
            continue
        is_reads = reads_per_molecule(Counts.of(adata.X)) >= MIN_READS
        rows.append({"data": name, **(real(adata) if is_reads else simulated(adata, SHARES.get(name, SHARE)))})
        print(
            {key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()}, flush=True
        )
        pd.DataFrame(rows).to_csv(options.out, index=False)


def simulated(adata: ad.AnnData, share: float, seed: int = 0) -> dict[str, Any]:
    """Scores on simulated reads."""
    rng = np.random.default_rng(seed)
    truth = np.rint(dense(adata.X)).astype(np.int64)
    truth = truth[np.sort(rng.permutation(len(truth))[:MAX_CELLS])]
    counted = rng.binomial(truth, share)
    genes = (counted > 0).mean(axis=0) >= MIN_SIMULATED_DETECTION
    cells = counted[:, genes].sum(axis=1) > MIN_MOLECULES
    truth, counted = truth[np.ix_(cells, genes)], counted[np.ix_(cells, genes)]
    per_cell = MEAN_READS * np.exp(rng.normal(0, CELL_SD, len(truth)))
    factor = np.exp(rng.normal(0, GENE_SD, truth.shape[1]))
    mean = rng.gamma(np.maximum(counted, 1e-9)) * (counted > 0) * per_cell[:, None] * factor
    reads = rng.poisson(mean).astype(np.float32)
    target = log_cp10k(truth * factor, (truth * factor).sum(axis=1))
    zero, size = reads == 0, reads.sum(axis=1, dtype=np.float64)
    present = truth[zero] > 0
    row: dict[str, Any] = {"share": share, "cells": len(reads), "genes": reads.shape[1]}
    for name, told in (("told", share), ("not_told", None)):
        part = ad.AnnData(sp.csr_matrix(reads))
        scnn.pp.dropout_prob(part, capture_efficiency=told)
        scnn.pp.cnn_impute(part, verbose=False)
        imputed = log_cp10k(dense(part.layers["cnn_imputed"]), size)
        error = metrics.mse(target[zero], imputed[zero])
        row[f"error_{name}"] = error / metrics.mse(target[zero], np.zeros(int(zero.sum())))
        probability = part.layers["dropout_prob"][zero]
        row[f"auroc_{name}"] = metrics.auroc(present, probability)
        constant = present.mean() * (1 - present.mean())
        row[f"brier_{name}"] = float(metrics.brier_score(present, probability) / constant)
    found = part.obs["dropout_prob_reads_per_molecule"].to_numpy()
    true = size / counted.sum(axis=1)
    found_factor = part.varm["dropout_prob_reads_factor"][:, 0]
    other = ad.AnnData(sp.csr_matrix(counted.astype(np.float32)))
    scnn.pp.dropout_prob(other, capture_efficiency=share)
    return {
        **row,
        "auroc_of_molecules": metrics.auroc(present, other.layers["dropout_prob"][zero]),
        "per_molecule": float(np.median(found)),
        "true_per_molecule": float(np.median(true)),
        "correlation_cells": metrics.pcc(np.log(true), np.log(found)),
        "correlation_genes": metrics.pcc(np.log(factor), np.log(found_factor)),
    }


def real(adata: ad.AnnData) -> dict[str, Any]:
    """What is imputed in real reads, and neighbours of the same type before and after."""
    adata = adata[:, (dense(adata.X) > 0).mean(axis=0) >= MIN_DETECTION].copy()
    adata.X = sp.csr_matrix(adata.X, dtype=np.float32)
    types = next(column for column in adata.obs if 1 < adata.obs[column].nunique() < adata.n_obs / 2)
    labels = adata.obs[types].astype(str).to_numpy()
    scnn.pp.cnn_impute(adata, verbose=False)
    counts, imputed = dense(adata.X), dense(adata.layers["cnn_imputed"])
    size, zero = counts.sum(axis=1, dtype=np.float64), counts == 0
    per_molecule = adata.obs["dropout_prob_reads_per_molecule"].to_numpy()
    factor = adata.varm["dropout_prob_reads_factor"][:, 0]
    molecules = (imputed / per_molecule[:, None] / factor)[zero]
    return {
        "cells": adata.n_obs,
        "genes": adata.n_vars,
        "per_molecule": float(np.median(per_molecule)),
        "molecules": float(np.median(size / per_molecule)),
        "zeros_imputed": float((molecules > 0).mean()),
        "molecules_at_zeros": float(molecules.mean()),
        "molecules_at_a_hundredth": float(np.quantile(molecules, 0.99)),
        "neighbours_before": same_type(log_cp10k(counts, size), labels),
        "neighbours_after": same_type(log_cp10k(imputed, size), labels),
    }


def same_type(logged: np.ndarray, labels: np.ndarray) -> float:
    """Share of the nearest neighbours that have the cell's own label, after Scanpy's usual steps."""
    part = ad.AnnData(logged.astype(np.float32))
    sc.pp.highly_variable_genes(part, n_top_genes=N_VARIABLE)
    sc.pp.pca(part, n_comps=N_COMPONENTS, mask_var="highly_variable")
    cells = part.obsm["X_pca"]
    near = NearestNeighbors(n_neighbors=N_NEIGHBOURS + 1).fit(cells).kneighbors(cells, return_distance=False)[:, 1:]
    return float((labels[near] == labels[:, None]).mean())


def log_cp10k(counts: np.ndarray, library_size: np.ndarray) -> np.ndarray:
    """log1p of counts per 10,000 of a library size."""
    return np.log1p(counts / library_size[:, None] * 1e4)


if __name__ == "__main__":
    main()
