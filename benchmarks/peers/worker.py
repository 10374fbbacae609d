"""One imputation tool on one matrix of counts, in the tool's own environment. A peer needs no AnnData.

    python worker.py METHOD in.npz out.npz --seed 0 --threads 1

in.npz holds raw counts, cells x genes, as the parts of a CSR matrix: `data`, `indices`, `indptr`, `shape`.
out.npz holds

imputed             float32, dense, cells x genes: expected counts at each cell's own library size
wall_s, cpu_s       of fit and imputation, imports and files apart; CPU time of all threads and child processes
rss_import_mb       resident memory after the imports
rss_peak_mb         largest resident memory of the whole run
versions            "name version, name version"

A tool sees the genes and cells that have any count; the others come back as they were, all zero. It runs with its
defaults; what differs, and how its output becomes counts, stands at its function. Runs on Python 3.8 and later.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Callable


class Method(NamedTuple):
    """How to run one tool: its function, what it imports beforehand, and which versions to note."""

    function: Callable[[np.ndarray, int, int], np.ndarray]
    modules: tuple[str, ...]
    distributions: tuple[str, ...]


def main() -> None:
    """Read, import, impute, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("method", choices=list(METHODS))
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    method = METHODS[options.method]
    for module in method.modules:
        importlib.import_module(module)
    rss_import = resident_mb("VmRSS")
    with np.load(options.input) as parts:
        counts = sp.csr_matrix((parts["data"], parts["indices"], parts["indptr"]), shape=tuple(parts["shape"]))
    dense = counts.toarray().astype(np.float32)
    np.random.seed(options.seed)  # noqa: NPY002 - the tools draw from the global state
    wall, cpu = time.perf_counter(), cpu_seconds()
    imputed = impute(method, dense, options.seed, options.threads)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    np.savez(
        options.output,
        imputed=imputed,
        wall_s=wall,
        cpu_s=cpu,
        rss_import_mb=rss_import,
        rss_peak_mb=resident_mb("VmHWM"),
        versions=", ".join(f"{name} {metadata.version(name)}" for name in method.distributions),
    )


def impute(method: Method, counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """The tool's estimate of all entries; fails on any that is not a finite number."""
    cells, genes = counts.any(axis=1), counts.any(axis=0)
    estimate = np.asarray(method.function(counts[np.ix_(cells, genes)], seed, threads))
    if estimate.shape != (cells.sum(), genes.sum()):
        message = f"got an estimate of shape {estimate.shape} for {cells.sum()} cells and {genes.sum()} genes"
        raise ValueError(message)
    missing = int((~np.isfinite(estimate)).sum())
    if missing:
        message = f"{missing} of {estimate.size} estimates are NaN or infinite"
        raise ValueError(message)
    imputed = counts.copy()
    imputed[np.ix_(cells, genes)] = estimate
    return imputed


def cpu_seconds() -> float:
    """CPU time of this process and of its ended children."""
    return sum(os.times()[:4])


def resident_mb(field: str) -> float:
    """Resident memory now (VmRSS) or at most (VmHWM).

    From /proc, for ru_maxrss is at least what the parent held when it started this process: too much below a large one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines[field].split()[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024**2 if sys.platform == "darwin" else peak / 1024


def library_sizes(counts: np.ndarray) -> np.ndarray:
    """Total counts of the cells, as a column."""
    return counts.sum(axis=1, keepdims=True, dtype=np.float64)


def run_none(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """The counts as they are."""
    return counts


def run_ours(counts: np.ndarray, seed: int, **settings: object) -> np.ndarray:
    """Our own package: dropout probabilities and imputation, for the paper's preset also clusters."""
    import anndata

    import scanpy_cnnimpute as scnn

    adata = anndata.AnnData(counts.astype(np.float32))
    if settings.get("estimate") == "conditional":  # every zero is imputed
        adata.layers["dropout_prob"] = np.ones(counts.shape, dtype=np.float32)
    scnn.pp.cnn_impute(adata, random_state=seed, store="layer", key_added="imputed", verbose=False, **settings)
    return adata.layers["imputed"]


def run_default(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """As shipped."""
    return run_ours(counts, seed)


def run_conditional(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """The default preset's conditional estimate at every zero."""
    return run_ours(counts, seed, estimate="conditional", threshold=0, gate=False)


def run_denoised(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """The default preset's denoising of all entries."""
    return run_ours(counts, seed, entries="all")


def run_paper(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """The published procedure."""
    return run_ours(counts, seed, preset="paper")


def run_paper_nl(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """cnnImpute_nl: the same without the logarithm."""
    return run_ours(counts, seed, preset="paper", log=False)


def run_magic(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """MAGIC, on the square root of counts normalised to the median library size, as in its authors' tutorial.

    Squared, times the cell's library size over the median.
    """
    return magic_on_scale(counts, seed, threads, np.sqrt, np.square)


def run_magic_log(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """MAGIC, on log1p of counts normalised to the median library size, the usual input in Scanpy.

    Turned back by expm1, times the cell's library size over the median.
    """
    return magic_on_scale(counts, seed, threads, np.log1p, np.expm1)


def magic_on_scale(counts: np.ndarray, seed: int, threads: int, forth: np.ufunc, back: np.ufunc) -> np.ndarray:
    """MAGIC on normalised counts that were transformed, and its output turned back into counts."""
    import magic

    size = library_sizes(counts)
    scale = size / np.median(size)
    operator = magic.MAGIC(random_state=seed, n_jobs=threads, verbose=0)
    return back(operator.fit_transform(forth(counts / scale))) * scale


def run_scvi(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """scVI, its normalised expression (shares of the cell) times the observed library size.

    The same as library_size="latent", as the model takes the observed library size by default. On the CPU, so that
    times compare.
    """
    import anndata as ad
    import scvi
    import torch

    torch.set_num_threads(threads)
    scvi.settings.seed = seed
    scvi.settings.verbosity = 30
    adata = ad.AnnData(sp.csr_matrix(counts))
    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(adata)
    trained, batch = int(np.ceil(0.9 * len(counts))), 128  # the defaults of scVI
    if trained % batch == 1:  # a last batch of one cell stops batch normalisation
        batch -= 1
    model.train(accelerator="cpu", batch_size=batch, enable_progress_bar=False)
    shares = model.get_normalized_expression(library_size=1, return_numpy=True)
    return shares * library_sizes(counts)


def run_dca(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """DCA, its denoised means, which are counts at the cell's own library size.

    It leaves TensorFlow's eager mode after it has set the seed, which the graph then lacks: left beforehand here, or
    no two runs are the same.
    """
    import anndata as ad
    import tensorflow as tf
    from dca.api import dca

    tf.compat.v1.disable_eager_execution()
    adata = ad.AnnData(counts.copy())
    dca(adata, random_state=seed, threads=threads)
    return adata.X


def run_deepimpute(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """DeepImpute, its predictions at the zeros and the counts elsewhere, which is its default.

    minVMR=0 instead of 0.5: all genes are imputed, not the variable ones alone.
    """
    import pandas as pd
    from deepimpute.multinet import MultiNet

    frame = pd.DataFrame(counts, index=labels("cell", counts.shape[0]), columns=labels("gene", counts.shape[1]))
    with tempfile.TemporaryDirectory() as folder:  # its default is made once, at import, and left behind
        net = MultiNet(ncores=threads, seed=seed, verbose=0, output_prefix=folder)
        net.fit(frame, minVMR=0)
        return net.predict(frame).to_numpy()


def run_sanity(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """Sanity, the exponential of its log transcription quotients (shares of the cell) times the library size.

    No randomness: `seed` is not used.
    """
    import pysanity

    result = pysanity.fit(counts.T, n_threads=threads)
    return np.exp(result.ltq).T * library_sizes(counts)


def run_iimpute(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """I-Impute, whose output is counts at the cell's own library size already.

    No randomness, one thread: `seed` and `threads` are not used.
    """
    import pandas as pd
    from iimpute import IImpute

    frame = pd.DataFrame(counts.T, index=labels("gene", counts.shape[1]), columns=labels("cell", counts.shape[0]))
    return IImpute(verbose=0).impute(frame.astype(np.float64)).to_numpy().T


def run_knn_smoothing(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """Our own knn-smoothing, version 2, written from the paper (Wagner, Yan and Yanai 2018).

    Neighbours in steps of 1, 3, 7, ... k, found each time by the principal components of the cells smoothed so far;
    then sums of the raw counts of a cell and its k neighbours, scaled back to the cell's own library size. k=15 and
    10 components; only the randomised PCA uses `seed`.
    """
    from sklearn.decomposition import PCA
    from sklearn.metrics import pairwise_distances

    k, components = min(15, len(counts) - 1), min(10, *counts.shape)
    raw = counts.astype(np.float64)
    smoothed = raw
    for step in range(1, int(np.ceil(np.log2(k + 1))) + 1):
        size = library_sizes(smoothed)
        scaled = smoothed * (np.median(size) / size)
        freeman_tukey = np.sqrt(scaled) + np.sqrt(scaled + 1)
        scores = PCA(components, svd_solver="randomized", random_state=seed).fit_transform(freeman_tukey)
        distance = pairwise_distances(scores)
        np.fill_diagonal(distance, -1)  # a cell comes first among its own, duplicates or not
        nearest = np.argsort(distance, axis=1, kind="stable")[:, : min(2**step - 1, k) + 1]
        smoothed = np.stack([raw[cells].sum(axis=0) for cells in nearest])
    return smoothed * (library_sizes(counts) / library_sizes(smoothed))


def run_alra(counts: np.ndarray, seed: int, threads: int) -> np.ndarray:
    """Our own ALRA, written from the paper (Linderman, Zhao and Kluger 2022).

    On log1p of counts per 10,000, turned back by expm1 and the cell's library size. Rank: the last of 100 singular
    values whose gap to the next is 6 standard deviations above the gaps from the 80th on. Per gene, what is not above
    the size of the 0.001 quantile is zero, the rest gets the mean and sd of the gene's observed non-zeros. An observed
    entry that ends at zero is put back.
    """
    from sklearn.utils.extmath import randomized_svd

    size = library_sizes(counts)
    observed = np.log1p(counts * (1e4 / size))
    most = min(100, min(counts.shape) - 1)
    singular = randomized_svd(observed, n_components=most, n_iter=2, random_state=seed)[1]
    gaps = singular[:-1] - singular[1:]
    noise = gaps[int(0.8 * most) - 1 :]
    above = np.flatnonzero(gaps > noise.mean() + 6 * noise.std(ddof=1))
    rank = above[-1] + 1 if len(above) else 1
    left, values, right = randomized_svd(observed, n_components=rank, n_iter=10, random_state=seed)
    low = (left * values) @ right
    low[low <= np.abs(np.quantile(low, 0.001, axis=0))] = 0
    for gene in range(low.shape[1]):
        kept, seen = low[:, gene] > 0, observed[:, gene] > 0
        if kept.sum() > 1 and seen.sum() > 1 and low[kept, gene].std() > 0:
            centred = (low[kept, gene] - low[kept, gene].mean()) / low[kept, gene].std(ddof=1)
            low[kept, gene] = centred * observed[seen, gene].std(ddof=1) + observed[seen, gene].mean()
    low = np.maximum(low, 0)
    low[low == 0] = observed[low == 0]
    return np.expm1(low) * (size / 1e4)


def labels(kind: str, n: int) -> list[str]:
    """Names, for the tools that want some."""
    return [f"{kind}{i}" for i in range(n)]


# What our package loads when it is first used.
OURS = (
    ("scanpy_cnnimpute", "scanpy", "keras", "igraph", "sklearn.manifold", "sklearn.neighbors"),
    ("scanpy-cnnimpute", "keras", "tensorflow"),
)
METHODS = {
    "none": Method(run_none, (), ("numpy",)),
    "default": Method(run_default, *OURS),
    "conditional": Method(run_conditional, *OURS),
    "denoised": Method(run_denoised, *OURS),
    "paper": Method(run_paper, *OURS),
    "paper_nl": Method(run_paper_nl, *OURS),
    "magic": Method(run_magic, ("magic",), ("magic-impute", "graphtools", "numpy")),
    "magic_log": Method(run_magic_log, ("magic",), ("magic-impute", "graphtools", "numpy")),
    "scvi": Method(run_scvi, ("scvi",), ("scvi-tools", "torch", "numpy")),
    "dca": Method(run_dca, ("dca.api",), ("dca", "tensorflow", "numpy")),
    "deepimpute": Method(run_deepimpute, ("deepimpute.multinet",), ("deepimpute", "tensorflow", "numpy")),
    "sanity": Method(run_sanity, ("pysanity",), ("sanity-py", "numpy")),
    "iimpute": Method(run_iimpute, ("iimpute",), ("i-impute", "scikit-learn", "numpy")),
    "knn_smoothing": Method(
        run_knn_smoothing, ("sklearn.decomposition", "sklearn.metrics"), ("scikit-learn", "numpy", "scipy")
    ),
    "alra": Method(run_alra, ("sklearn.utils.extmath",), ("scikit-learn", "numpy", "scipy")),
}

if __name__ == "__main__":
    main()
