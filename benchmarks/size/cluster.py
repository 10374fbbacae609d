"""Time, memory and agreement of `tl.cluster` on many cells, of which it clusters a draw.

    python benchmarks/size/cluster.py --counts FILE.h5ad                     # time and memory
    python benchmarks/size/cluster.py --simulated --sizes 40000 --whole      # agreement

The counts are resampled from real ones to each size (`benchmarks/suite/counts.py`): good for costs, but copies of a
cell are each other's neighbours. Simulated counts have known groups and no copies. Every run is a fresh process, which
compiles beforehand: "wall_s" is the time of the call, "cpu_s" that of all its threads, "memory_mb" its largest resident
memory above that before it, which holds the counts of "counts_mb". With --whole all cells are clustered at once as
well, in a time that grows with the square of the cells: "ari_whole" is the adjusted Rand index with these clusters,
"ari_seeds" that of these with those of another seed. "ari_groups" and "ari_groups_whole" are with the known groups.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute.clustering import Clusterer, methods

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "peers")]
from suite.counts import resample, source
from worker import cpu_seconds, resident_mb

N_WARM = 500  # cells of a first call, which compiles and loads
N_GROUPS = 10  # of simulated cells


def main() -> None:
    """Run all sizes and methods and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--counts", type=Path, help="h5ad file to resample (default: the bundled counts)")
    parser.add_argument("--simulated", action="store_true", help="simulate counts instead")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 50_000, 200_000], help="numbers of cells")
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--methods", nargs="+", choices=methods.DRAWN_CELLS, default=["leiden", "kmeans"])
    parser.add_argument("--clusters", type=int, default=10, help="number of clusters of k-means")
    parser.add_argument("--whole", action="store_true", help="cluster all cells at once as well")
    options = parser.parse_args()
    processes = multiprocessing.get_context("spawn")  # a forked process would inherit threads and memory
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            if options.simulated:
                counts, groups = simulated(size, options.genes)
            else:
                counts, groups = resample(source(options.counts), size, options.genes), None
            path = Path(folder) / f"{size}.npz"
            sp.save_npz(path, counts, compressed=False)
            for method in options.methods:
                n_clusters = options.clusters if method == "kmeans" else None
                with ProcessPoolExecutor(1, mp_context=processes) as pool:
                    costs, found = pool.submit(measure, path, method, n_clusters).result()
                row = {"cells": size, "method": method, **costs, "clusters": int(found.max()) + 1}
                if groups is not None:
                    row["ari_groups"] = agreement(groups, found)
                if options.whole:
                    whole = [cluster_whole(counts, method, n_clusters, seed) for seed in (1, 2)]
                    row |= {"ari_whole": agreement(whole[0], found), "ari_seeds": agreement(*whole)}
                    if groups is not None:
                        row["ari_groups_whole"] = agreement(groups, whole[0])
                rows.append(row)
                print(row, flush=True)
    print(pd.DataFrame(rows).round(2).to_string(index=False))


def simulated(n_cells: int, n_genes: int) -> tuple[sp.csr_matrix, np.ndarray]:
    """Counts and groups of cells, the rarest group a tenth as large as the largest."""
    shares = np.geomspace(1, 10, N_GROUPS)
    shares /= shares.sum()
    # No dropout, and more genes that differ than by default, or no clustering finds the groups.
    adata = scnn.datasets.simulate(
        n_cells=n_cells, n_genes=n_genes, group_probabilities=shares, de_probability=0.3, dropout_mid=None
    )
    return sp.csr_matrix(adata.X), adata.obs["group"].to_numpy()


def measure(path: Path, method: str, n_clusters: int | None) -> tuple[dict[str, float], np.ndarray]:
    """Costs of a call, and the cluster of each cell, -1 for those without counts."""
    adata = ad.AnnData(sp.load_npz(path))
    counts_mb = (adata.X.data.nbytes + adata.X.indices.nbytes + adata.X.indptr.nbytes) / 1e6
    scnn.tl.cluster(adata[:N_WARM].copy(), method=method, n_clusters=n_clusters)
    before = resident_mb("VmRSS")
    wall, cpu = time.perf_counter(), cpu_seconds()
    scnn.tl.cluster(adata, method=method, n_clusters=n_clusters)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    costs = {"wall_s": wall, "cpu_s": cpu, "memory_mb": resident_mb("VmHWM") - before, "counts_mb": counts_mb}
    return costs, adata.obs["cnn_cluster"].cat.codes.to_numpy()


def cluster_whole(counts: sp.csr_matrix, method: str, n_clusters: int | None, seed: int) -> np.ndarray:
    """Clusters of all cells at once, whatever their number."""
    limit, methods.MAX_CELLS = methods.MAX_CELLS, counts.shape[0]
    try:
        clusterer = Clusterer(method=method, n_clusters=n_clusters, random_state=seed)
        return clusterer.cluster_counts(sp.csr_array(counts)).labels
    finally:
        methods.MAX_CELLS = limit


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Adjusted Rand index of the cells that have a cluster; those without counts have none in any clustering."""
    known = b >= 0
    return scnn.metrics.adjusted_rand_index(a[known], b[known])


if __name__ == "__main__":
    main()
