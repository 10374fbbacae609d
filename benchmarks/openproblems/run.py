"""The denoising task of Open Problems for Single Cell Analysis: 90 % of the molecules predict the other 10 %.

    python benchmarks/openproblems/run.py DATA_FOLDER --out results --peers PEERS_FOLDER
    python benchmarks/openproblems/run.py DATA_FOLDER --out results --methods none expected_count
    python benchmarks/openproblems/run.py --out results        # the bundled data, no other tool's environment

DATA_FOLDER holds h5ad files with raw counts of molecules in X. PEERS_FOLDER is what `benchmarks/peers/environments.py`
made; without it the methods that need an environment are left out. Every method runs in a process of its own and is
added to `scores.csv` as it ends: the command resumes where it stopped. A method that fails is noted as failed and not
tried again without `--retry`.

Scores are scaled: 0 is the training counts themselves, 1 is the held-out molecules themselves.

mse               of log1p(counts per 10,000), each matrix by its own cell totals
poisson           Poisson loss of the held-out molecules, with the estimate as the mean
poisson_swapped   the same with its arguments swapped, as the task computes it; for comparison with its published table
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from methods import ENVIRONMENTS as OWN
from methods import TRAIN_SHARE

import scanpy_cnnimpute as scnn

sys.path.append(str(Path(__file__).parents[1] / "peers"))
from peers import ENVIRONMENTS as PEERS
from peers import run_peer, run_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

# Method: its name in the tables.
METHODS = {
    "none": "none",
    "zeros": "zeros",
    "gene_mean": "gene_mean",
    "gene_mean_held_out": "gene_mean at the held-out depth",
    "expected_count": "default, expected_count",
    "posterior_mean": "default, posterior_mean",
    "posterior_mean_quarter": "default, posterior_mean at a quarter of the library size",
    "posterior_mean_held_out": "default, posterior_mean at the held-out depth",
    "magic": "magic",
    "magic_log": "magic_log",
    "magic_reversed": "magic_reversed",
    "magic_shares": "magic_shares",
    "magic_shares_held_out": "magic_shares at the held-out depth",
    "dca": "dca",
    "knn_smoothing": "knn_smoothing",
}
METRICS = ("mse", "poisson", "poisson_swapped")
READS = "reads are not molecules: thinning them is not sampling the cell again"
SKIPPED = {
    "bulk_5cl_gse86337": "bulk, not single cells",
    "bulk_jurkat_293t_gse129240": "bulk, not single cells",
    "islam_es_mef": READS,
    "pollen": READS,
}
MAX_CELLS = 1400  # keeps the slowest peer to minutes
MIN_DETECTION = 0.01  # share of the cells
EPSILON = 1e-6  # inside the logarithm of the task's Poisson loss


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder of h5ad files (default: the bundled data)")
    parser.add_argument("--out", type=Path, required=True, help="folder for scores.csv")
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--only", nargs="+", help="names of the files to use, without .h5ad")
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds that a method may take")
    parser.add_argument("--retry", action="store_true", help="try again what failed")
    options = parser.parse_args()
    if options.methods is None:
        environments = PEERS | OWN
        options.methods = [name for name in METHODS if environments[name] is None or options.peers is not None]
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "scores.csv"
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    for name, adata in load(options.data, options.only):
        for seed in range(options.seeds):
            made = {key(row)[2] for row in rows if key(row)[:2] == (name, seed) and keep(row, retry=options.retry)}
            missing = [method for method in options.methods if method not in made]
            if not missing:
                continue
            train, test = split_molecules(adata.X, seed)
            for method in missing:
                row = {"data": name, "seed": seed, "method": method, "cells": len(train), "genes": train.shape[1]}
                row |= evaluate(method, train, test, seed, options)
                rows = [other for other in rows if key(other) != key(row)] + [row]
                pd.DataFrame(rows).to_csv(file, index=False)
                scores = (f"{column}={row[column]:.3f}" for column in (*METRICS, "wall_s") if column in row)
                print(*key(row), row["status"], *scores, flush=True)
    report(pd.DataFrame(rows))


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What identifies a run."""
    return row["data"], row["seed"], row["method"]


def keep(row: dict[str, Any], *, retry: bool) -> bool:
    """Whether a run stays as it is."""
    return row["status"] == "ok" or not retry


def load(folder: Path | None, only: list[str] | None) -> Iterator[tuple[str, ad.AnnData]]:
    """Names and data."""
    if folder is None:
        yield "five_cell_lines", scnn.datasets.five_cell_lines()
        return
    for path in sorted(folder.glob("*.h5ad")):
        if only is not None and path.stem not in only:
            continue
        if path.stem in SKIPPED:
            print(f"{path.stem} is skipped: {SKIPPED[path.stem]}", flush=True)
            continue
        yield path.stem, ad.read_h5ad(path)


def split_molecules(counts: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out counts, dense; genes and cells that cannot be scored are left out."""
    rng = np.random.default_rng(seed)
    if counts.shape[0] > MAX_CELLS:
        counts = counts[np.sort(rng.permutation(counts.shape[0])[:MAX_CELLS])]
    counts = np.rint(counts.toarray() if sp.issparse(counts) else np.asarray(counts)).astype(np.int64)
    train = rng.binomial(counts, TRAIN_SHARE)
    test = counts - train
    genes = (train.sum(axis=0) > 0) & ((counts > 0).mean(axis=0) > MIN_DETECTION)
    train, test = train[:, genes], test[:, genes]
    cells = (train.sum(axis=1) > 0) & (test.sum(axis=1) > 0)
    return train[cells].astype(np.float64), test[cells].astype(np.float64)


def evaluate(
    method: str, train: np.ndarray, test: np.ndarray, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Scaled scores of a method and what it cost, or why there are none."""
    try:
        denoised, info = run_method(method, train, options.peers, seed, options.timeout)
        found = losses(train, test, denoised.astype(np.float64))
    except Exception as error:  # whatever it is: the other methods go on
        print(error, flush=True)
        # Its last line, without the places of files on this machine.
        reason = re.sub(r"\S*/\S+", "...", str(error).strip().splitlines()[-1])[:200]
        return {"status": f"failed: {type(error).__name__}: {reason}"}
    none, perfect = losses(train, test, train), losses(train, test, test * (train.sum() / test.sum()))
    scores = {metric: (none[metric] - found[metric]) / (none[metric] - perfect[metric]) for metric in METRICS}
    return {"status": "ok", **scores, **info}


def losses(train: np.ndarray, test: np.ndarray, denoised: np.ndarray) -> dict[str, float]:
    """The task's losses of an estimate on the scale of the training counts; low is good."""
    scaled = denoised * (test.sum() / train.sum())
    return {
        "mse": np.mean((log_normalised(test) - log_normalised(denoised)) ** 2),
        "poisson": poisson_loss(scaled, test),
        "poisson_swapped": poisson_loss(test, scaled),
    }


def log_normalised(counts: np.ndarray) -> np.ndarray:
    """log1p of counts per 10,000."""
    return np.log1p(counts * (1e4 / np.maximum(counts.sum(axis=1, keepdims=True), 1e-9)))


def poisson_loss(mean: np.ndarray, observed: np.ndarray) -> float:
    """Negative log-likelihood of counts, without the term that does not depend on the mean."""
    return float(np.mean(mean - observed * np.log(mean + EPSILON)))


def run_method(
    method: str, counts: np.ndarray, root: Path | None, seed: int, timeout: float
) -> tuple[np.ndarray, dict[str, Any]]:
    """A peer, or a method of `methods.py` likewise: its estimate, and its time, memory and versions."""
    if method in PEERS:
        return run_peer(method, counts, root=root, seed=seed, timeout=timeout)
    return run_worker(Path(__file__).with_name("methods.py"), method, OWN[method], counts, root, seed, timeout)


def report(scores: pd.DataFrame) -> None:
    """Scores and seconds of all methods on all data, mean of the seeds, printed."""
    for column in (*METRICS, "wall_s", "cpu_s"):
        if column not in scores:
            continue
        table = scores.pivot_table(index="method", columns="data", values=column)
        table = table.reindex([method for method in METHODS if method in table.index])
        table["mean"] = table.mean(axis=1, skipna=False)  # only of methods that have all sets
        digits = 3 if column in METRICS else 1
        print(f"\n{column}\n\n{table.rename(index=METHODS).round(digits).to_string(na_rep='')}", flush=True)


if __name__ == "__main__":
    main()
