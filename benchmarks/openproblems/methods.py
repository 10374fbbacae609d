"""The methods of this benchmark that are not peers: our estimates of all entries, controls and variants of MAGIC.

    python methods.py METHOD in.npz out.npz --seed 0 --threads 1

The same files and the same accounting of time and memory as `benchmarks/peers/worker.py`, whose list of methods is
extended here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "peers"))
import worker

TRAIN_SHARE = 0.9
MAGIC = (("magic",), ("magic-impute", "graphtools", "numpy"))

# Method: its environment, as in `peers.ENVIRONMENTS`.
ENVIRONMENTS: dict[str, str | None] = {
    "expected_count": None,
    "posterior_mean": None,
    "posterior_mean_quarter": None,
    "posterior_mean_held_out": None,
    "zeros": None,
    "gene_mean": None,
    "gene_mean_held_out": None,
    "magic_reversed": "magic",
    "magic_shares": "magic",
    "magic_shares_held_out": "magic",
}


def run_expected_count(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """Posterior mean of every entry, at the cell's own library size."""
    return impute_all(counts, seed, estimate="expected_count")


def run_posterior_mean(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """Posterior mean of log1p(CP10k), at the cell's own library size."""
    return impute_all(counts, seed, estimate="posterior_mean")


def run_posterior_mean_quarter(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """Posterior mean of log1p(CP10k), at a quarter of the mean library size."""
    return impute_all(counts, seed, estimate="posterior_mean", depth=float(worker.library_sizes(counts).mean() / 4))


def run_posterior_mean_held_out(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """Posterior mean of log1p(CP10k), at the mean library size of the held-out molecules."""
    return impute_all(counts, seed, estimate="posterior_mean", depth=held_out_depth(counts))


def held_out_depth(counts: np.ndarray) -> float:
    """Mean library size of the held-out molecules, from the training counts and the known share."""
    return float(worker.library_sizes(counts).mean() * (1 - TRAIN_SHARE) / TRAIN_SHARE)


def impute_all(counts: np.ndarray, seed: int, **settings: object) -> np.ndarray:
    """Our package through its public calls, told that 90 % of the molecules are counted."""
    import anndata

    import scanpy_cnnimpute as scnn

    adata = anndata.AnnData(counts)
    scnn.pp.dropout_prob(adata, capture_efficiency=TRAIN_SHARE, random_state=seed, store="params")
    scnn.pp.cnn_impute(adata, entries="all", key_added="denoised", random_state=seed, verbose=False, **settings)
    return adata.layers["denoised"]


def run_zeros(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """Nothing at all: what a loss pays for shrinking."""
    return np.zeros_like(counts)


def run_gene_mean(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """The gene's share of all molecules, times the cell's library size: no cell differs from another."""
    return worker.library_sizes(counts) * (counts.sum(axis=0) / counts.sum())


def run_gene_mean_held_out(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """The same, as the mean of the logarithm at the held-out depth."""
    return log_mean_at_held_out_depth(run_gene_mean(counts, seed, threads), counts)


def log_mean_at_held_out_depth(mean: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Expected counts turned into the estimate that suits the MSE, as `posterior_mean` with `depth` does for ours.

    The mean of log1p(CP10k) of Poisson counts at the held-out depth, turned back into counts at the cell's own library
    size. Interpolated between 400 means.
    """
    from scipy.stats import poisson

    size, depth = worker.library_sizes(counts), held_out_depth(counts)
    expected = mean * (depth / size)
    grid = np.append(0, np.geomspace(1e-5, max(1, expected.max()), 400))
    logs = []
    for value in grid:
        drawn = np.arange(value + 12 * np.sqrt(value) + 30)
        logs.append(poisson.pmf(drawn, value) @ np.log1p(drawn * (1e4 / depth)))
    return np.expm1(np.interp(expected, grid, logs)) * (size / 1e4)


def run_magic_reversed(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """MAGIC as the task's "reversed normalization": square root first, then division by the total of the roots.

    The task squares the output and multiplies it by the total of the roots. That undoes the steps in the wrong order:
    a count x without any smoothing comes back as x / sum(sqrt(x)), so that a cell adds up to about one molecule.
    """
    root = np.sqrt(counts)
    total = worker.library_sizes(root)
    return np.square(smooth(root / total, seed, threads)) * total


def run_magic_shares(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """MAGIC as the second version of the task: log1p of shares of the cell, which is all but linear."""
    size = worker.library_sizes(counts)
    return np.expm1(smooth(np.log1p(counts / size), seed, threads)) * size


def run_magic_shares_held_out(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """The same, as the mean of the logarithm at the held-out depth."""
    return log_mean_at_held_out_depth(run_magic_shares(counts, seed, threads), counts)


def smooth(values: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """MAGIC with its defaults, which are those of the task (exact solver, decay=1, t=3)."""
    import magic

    return magic.MAGIC(random_state=seed, n_jobs=threads, verbose=0).fit_transform(values)


worker.METHODS |= {
    "expected_count": worker.Method(run_expected_count, *worker.OURS),
    "posterior_mean": worker.Method(run_posterior_mean, *worker.OURS),
    "posterior_mean_quarter": worker.Method(run_posterior_mean_quarter, *worker.OURS),
    "posterior_mean_held_out": worker.Method(run_posterior_mean_held_out, *worker.OURS),
    "zeros": worker.Method(run_zeros, (), ("numpy",)),
    "gene_mean": worker.Method(run_gene_mean, (), ("numpy",)),
    "gene_mean_held_out": worker.Method(run_gene_mean_held_out, ("scipy.stats",), ("numpy", "scipy")),
    "magic_reversed": worker.Method(run_magic_reversed, *MAGIC),
    "magic_shares": worker.Method(run_magic_shares, *MAGIC),
    "magic_shares_held_out": worker.Method(run_magic_shares_held_out, *MAGIC),
}

if __name__ == "__main__":
    worker.main()
