"""Tests of real groups with planted genes that do not differ, beside bulk.

    python benchmarks/differential/run.py DATA_FOLDER --out results.csv
    python benchmarks/differential/run.py --out results.csv      # simulated data, whose truth is known

DATA_FOLDER holds the h5ad files of SETS with raw counts in X and groups in ``obs["cell_type"]``, and the bulk data. The
counts of a fifth of the genes are permuted among the cells of both groups, within quarters of the library sizes, before
anything is fitted. Counts are thinned, and so many cells taken of each group (SETTINGS); others stay.
For each test, Scanpy's and ours (`tl.rank_genes_groups`):

null        share of the planted genes with p <= .05
area        under the ROC curve of the p-values, for genes whose bulk fold change is above 2
found       genes at a false discovery rate of 10 %, without the planted ones
right       share of these whose bulk fold change is above 2

Simulated data (`datasets.simulate`): null is of the genes that do not differ, right the share of found ones that do.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from scipy.stats import false_discovery_control

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Data: its bulk, and how bulk names the groups.
SETS: dict[str, tuple[str, dict[str, str]]] = {
    "mix_sc_dropseq": ("bulk_5cl_gse86337", {}),
    "mix_sc_celseq2_5cl_p1": ("bulk_5cl_gse86337", {}),
    "jurkat_293t_10x": ("bulk_jurkat_293t_gse129240", {"Jurkat": "jurkat", "293T": "293t"}),
    "soumillon_hasc": ("", {}),
}
BULK_CHANGE = "bulk_log2fc_d7_d0_sorted"  # of soumillon_hasc, in .var
SETTINGS = ((10, 0.4), (40, 0.4), (200, 0.2))  # cells of each group, share of the molecules
MAX_CELLS = 600
MAX_PAIRS = 2
MIN_DETECTION = 0.05
N_BINS, MIN_BIN = 4, 15
PLANTED = 0.2
RATE = 0.1
N_SIMULATED = {"n_cells": 600, "n_genes": 3_000}
METHODS = ("wilcoxon", "t-test")


def main() -> None:
    """Run all sets, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder of h5ad files (default: simulated data)")
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, first, second, adata, truth, null in cases(options.data, options.seeds):
        scnn.pp.cnn_impute(adata, count_type="umi", verbose=False)
        seen = np.asarray(adata[adata.obs["group"].isin([first, second])].X.sum(axis=0)).ravel() > 0
        for layer, method, (test, function) in itertools.product((None, "cnn_imputed"), METHODS, TESTS.items()):
            p_values = function(adata, layer, method, first, second)
            judged = truth.notna().to_numpy() & seen & ~(null if options.data else np.zeros(null.size, dtype=bool))
            differs = truth.astype("boolean").fillna(value=False).to_numpy(dtype=bool)
            used = judged | (null & seen)
            found = np.zeros(null.size, dtype=bool)
            found[used] = false_discovery_control(p_values[used]) <= RATE
            rows.append(
                {
                    "data": name,
                    "test": f"{test}, {layer or 'counts'}, {method}",
                    "null": np.mean(p_values[null & seen] <= 0.05),  # noqa: PLR2004
                    "area": metrics.auroc(differs[judged], 1 - p_values[judged]),
                    "found": int((found & judged).sum()),
                    "right": differs[found & judged].mean() if (found & judged).any() else np.nan,
                }
            )
        pd.DataFrame(rows).to_csv(options.out, index=False)
    table = pd.DataFrame(rows).groupby(["data", "test"], sort=False).mean()
    print(table.round(3).to_string())


def cases(folder: Path | None, n_seeds: int) -> Iterator[tuple[str, str, str, ad.AnnData, pd.Series, np.ndarray]]:
    """Name, both groups, counts, whether each gene differs (or not known), and which do not."""
    if folder is None:
        for seed in range(n_seeds):
            simulated = scnn.datasets.simulate(random_state=seed, dropout_mid=None, **N_SIMULATED)
            factor = np.asarray(simulated.varm["de_factor"])
            adata = ad.AnnData(simulated.X, obs=simulated.obs[["group"]], var=simulated.var[[]])
            for first, second in ((2, 3), (0, 1)):
                truth = pd.Series(factor[:, first] != factor[:, second], index=adata.var_names)
                groups = f"Group{first + 1}", f"Group{second + 1}"
                yield "simulated", *groups, adata.copy(), truth, ~truth.to_numpy()
        return
    for name, (bulk, names) in SETS.items():
        adata = ad.read_h5ad(folder / f"{name}.h5ad")
        adata = adata[adata.obs["cell_type"].notna(), ~adata.var_names.duplicated()].copy()
        groups = sorted(set(adata.obs["cell_type"].astype(str)))
        changes = None if bulk else adata.var[BULK_CHANGE]
        expression = None if not bulk else bulk_expression(folder / f"{bulk}.h5ad")
        for (n_cells, share), seed in itertools.product(SETTINGS, range(n_seeds)):
            rng = np.random.default_rng(seed)
            for first, second in list(itertools.combinations(groups, 2))[:MAX_PAIRS]:
                if (adata.obs["cell_type"].value_counts()[[first, second]] < n_cells).any():
                    continue
                part, null = planted(adata, first, second, n_cells, share, rng)
                change = changes
                if expression is not None:
                    change = expression[names.get(first, first)] - expression[names.get(second, second)]
                found = change.reindex(part.var_names)  # type: ignore[union-attr]
                truth = (found.abs() > 1).astype(object).where(found.notna())
                yield f"{name}, {n_cells} cells, {share:.0%}", first, second, part, truth, null


def bulk_expression(path: Path) -> pd.DataFrame:
    """Mean log2(CPM + 1) of each type."""
    bulk = ad.read_h5ad(path)
    counts = dense(bulk.X)
    logged = pd.DataFrame(np.log2(1 + 1e6 * counts / counts.sum(axis=1, keepdims=True)).T, index=bulk.var_names)
    return logged[~logged.index.duplicated()].T.groupby(bulk.obs["cell_type"].astype(str).to_numpy()).mean().T


def planted(
    adata: ad.AnnData, first: str, second: str, n_cells: int, share: float, rng: np.random.Generator
) -> tuple[ad.AnnData, np.ndarray]:
    """Thinned counts of so many cells of each group and of all others; and which genes were permuted."""
    labels = adata.obs["cell_type"].astype(str).to_numpy()
    if adata.n_obs > MAX_CELLS:
        chosen = [rng.permutation(np.flatnonzero(labels == group)) for group in sorted(set(labels))]
        kept = np.concatenate([each[: max(n_cells, MAX_CELLS // len(chosen))] for each in chosen])
        adata, labels = adata[kept], labels[kept]
    counts = rng.binomial(np.rint(dense(adata.X)).astype(np.int64), share).astype(np.float32)
    pair = np.concatenate([rng.permutation(np.flatnonzero(labels == group))[:n_cells] for group in (first, second)])
    order = np.concatenate([pair, np.flatnonzero(~np.isin(labels, [first, second]))])
    genes = (counts > 0).mean(axis=0) >= MIN_DETECTION
    counts, pair = counts[order][:, genes], np.arange(pair.size)
    null = rng.random(counts.shape[1]) < PLANTED
    sizes = counts.sum(axis=1)[pair]
    for part in np.array_split(pair[np.argsort(sizes)], int(np.clip(pair.size // MIN_BIN, 1, N_BINS))):
        counts[np.ix_(part, null)] = rng.permuted(counts[np.ix_(part, null)], axis=0)
    made = ad.AnnData(sp.csr_matrix(counts), var=pd.DataFrame(index=adata.var_names[genes]))
    made.obs["group"] = pd.Categorical(labels[order])
    return made[counts.sum(axis=1) > 0].copy(), null


def of_scanpy(adata: ad.AnnData, layer: str | None, method: str, first: str, second: str) -> np.ndarray:
    """P-values of Scanpy's test of log1p(CP10k) at the observed library sizes."""
    values = dense(adata.X if layer is None else adata.layers[layer])
    logged = np.log1p(values / np.maximum(dense(adata.X).sum(axis=1, keepdims=True), 1) * 1e4)
    part = ad.AnnData(sp.csr_matrix(logged), obs=adata.obs[["group"]], var=adata.var[[]])
    with np.errstate(invalid="ignore"):
        sc.tl.rank_genes_groups(
            part, "group", groups=[first], reference=second, method=method, tie_correct=method == "wilcoxon"
        )
    return p_values_of(part, first)


def of_decoys(adata: ad.AnnData, layer: str | None, method: str, first: str, second: str) -> np.ndarray:
    """P-values that decoys calibrate."""
    scnn.tl.rank_genes_groups(adata, "group", groups=[first], reference=second, layer=layer, method=method)
    return p_values_of(adata, first)


def p_values_of(adata: ad.AnnData, group: str) -> np.ndarray:
    """P-values of all genes in their order; 1 where there is none."""
    table = sc.get.rank_genes_groups_df(adata, group).set_index("names")["pvals"]
    return table.reindex(adata.var_names).fillna(1.0).to_numpy()


def dense(matrix: Any) -> np.ndarray:
    """As a NumPy array."""
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


TESTS: dict[str, Callable[..., np.ndarray]] = {"Scanpy": of_scanpy, "decoys": of_decoys}

if __name__ == "__main__":
    main()
