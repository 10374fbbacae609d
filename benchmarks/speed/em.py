"""Time of the gamma-normal EM: its share of pp.dropout_prob, and its densities per second beside exp and log alone.

python benchmarks/speed/em.py --counts FILE.h5ad --cells 3000 --genes 15000
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numba
import numpy as np
import pandas as pd

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute.dropout.gamma_normal import em, log10_cpm
from scanpy_cnnimpute.dropout.gamma_normal.model import PARAMETERS, ZERO

sys.path.append(str(Path(__file__).parents[1]))
from suite.counts import resampled

if TYPE_CHECKING:
    from collections.abc import Callable


@numba.njit
def count_passes(x: np.ndarray, n_zeros: int) -> int:
    """Number of passes of EM over the non-zeros of a gene, counted in a copy of the kernel's loop."""
    if x.size == 0 or x.std() == 0.0:
        return 0
    rate = n_zeros / (n_zeros + x.size) if n_zeros > 0 else 0.01
    p = np.array([rate, 0.5, 1.0, x.mean(), 0.0])
    p[4] = np.sqrt(((x - p[3]) ** 2).sum() / (x.size - 1))
    log_x, weights, previous = np.log(x), np.empty(x.size), 0.0
    _, zero_weight = em._expectation(x, log_x, n_zeros, ZERO, p, weights)
    for passes in range(1, em.MAX_ITERATIONS + 1):
        if not em._maximisation(x, log_x, n_zeros, ZERO, weights, zero_weight, p):
            return passes
        likelihood, zero_weight = em._expectation(x, log_x, n_zeros, ZERO, p, weights)
        if not np.isfinite(likelihood) or (likelihood - previous) ** 2 <= em.TOLERANCE:
            return passes + 1
        previous = likelihood
    return em.MAX_ITERATIONS + 1


@numba.njit(parallel=True)
def exp_and_log(x: np.ndarray, out: np.ndarray) -> None:
    """One exponential and one logarithm of each number, which is what EM evaluates for each non-zero."""
    for i in numba.prange(x.size):
        out[i] = np.log1p(np.exp(-x[i]))


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Median time of several calls, after one that compiles."""
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--counts", type=Path, help="h5ad file to resample (default: the bundled counts)")
    parser.add_argument("--cells", type=int, default=3000)
    parser.add_argument("--genes", type=int, default=15000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    adata = resampled(options.cells, options.genes, options.counts)
    adata.obs["one"] = pd.Categorical(["all"] * adata.n_obs)
    block = adata.X.tocsc()
    x = log10_cpm(block.data.astype(np.float64), np.asarray(adata.X.sum(axis=1)).ravel()[block.indices])
    parameters, codes = np.empty((adata.n_vars, len(PARAMETERS))), np.empty(adata.n_vars, dtype=np.int8)
    whole = median_seconds(
        lambda: scnn.pp.dropout_prob(adata, cluster_key="one", model="gamma_normal"), options.repeats
    )
    fit = median_seconds(lambda: em.fit_genes(x, block.indptr, adata.n_obs, ZERO, parameters, codes), options.repeats)
    genes = [x[start:stop] for start, stop in zip(block.indptr[:-1], block.indptr[1:], strict=True)]
    evaluations = sum(count_passes(values, adata.n_obs - values.size) * values.size for values in genes)
    numbers = np.random.default_rng(0).exponential(size=10_000_000)
    machine = numbers.size / median_seconds(lambda: exp_and_log(numbers, np.empty_like(numbers)), options.repeats)
    print(f"{adata.n_obs} cells x {adata.n_vars} genes, {block.nnz / adata.n_obs / adata.n_vars:.1%} non-zero")
    print(f"pp.dropout_prob {whole:.2f} s, of it EM {fit:.3f} s ({fit / adata.n_vars * 1e6:.1f} us per gene)")
    print(f"evaluations {evaluations / fit / 1e6:.0f} M/s; exp and log alone {machine / 1e6:.0f} M/s")


if __name__ == "__main__":
    main()
