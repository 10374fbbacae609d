"""Accuracy of the imputation on real counts, beside simple methods: one table, CSV files and figures.

    python benchmarks/accuracy/run.py DATA_FOLDER --out results
    python benchmarks/accuracy/run.py DATA_FOLDER --out results --tests masking --seeds 5 --masks MASKS_FOLDER
    python benchmarks/accuracy/run.py --out results        # the bundled data

DATA_FOLDER holds h5ad files with raw counts in X. Three tests, each against a truth that was taken away:

masking   a tenth of the non-zeros of genes seen in half of the cells, log1p(counts) (the paper's test). MASKS_FOLDER
          may hold `<data>_seed0.npz` with `cells`, `genes`, `rows`, `cols` to use instead of a draw for seed 0.
thinning  each molecule kept with probability 0.5 (or a layer "downsampled" of its own), log1p(CP10k), genes seen in 5 %
          of the cells; both with the true capture efficiency and with the assumed one. Also the calibration of
          the dropout probabilities, with a reliability curve.
little    the same with 80 % kept, of any data: there is little to gain and much to spoil.

Every run is added to the CSV files as it ends, and is not repeated when the command is.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute import metrics
from scanpy_cnnimpute._counts import Counts
from scanpy_cnnimpute.dropout.read_counts import MIN_READS, reads_per_molecule

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARES = {"thinning": 0.5, "little": 0.8}
MIN_DETECTION = 0.05


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder of h5ad files (default: the bundled data)")
    parser.add_argument("--out", type=Path, required=True, help="folder for CSV files and figures")
    parser.add_argument("--only", nargs="+", help="names of the files to use, without .h5ad")
    parser.add_argument("--tests", nargs="+", choices=["masking", *SHARES], default=["masking", *SHARES])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--masks", type=Path, help="folder of masks for seed 0")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for test in options.tests:
        table = options.out / f"{test}.csv"
        done = pd.read_csv(table) if table.exists() else pd.DataFrame(columns=["data", "seed"])
        for name, adata in load(options.data, options.only):
            for seed in range(options.seeds):
                if ((done["data"] == name) & (done["seed"] == seed)).any():
                    continue
                if test != "masking" and reads_per_molecule(Counts.of(adata.X)) >= MIN_READS:
                    print(f"{test} {name} is skipped: reads are not molecules; see reads.py", flush=True)
                    break
                started = time.perf_counter()
                if test == "masking":
                    rows = masking(adata, name, seed, options.masks)
                else:
                    thinned = adata.layers.get("downsampled") if test == "thinning" else None
                    rows = thinning(adata, thinned, name, seed, SHARES[test], options.out)
                rows = [{"data": name, "seed": seed, **row} for row in rows]
                done = pd.concat([done, pd.DataFrame(rows)], ignore_index=True)
                done.to_csv(table, index=False)
                print(f"{test} {name} seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
                if test == "thinning" and "downsampled" in adata.layers:
                    break  # there is one thinned copy
        if len(done):
            report(test, done, options.out)


def load(folder: Path | None, only: list[str] | None) -> Iterator[tuple[str, ad.AnnData]]:
    """Names and data."""
    if folder is None:
        yield "five_cell_lines", scnn.datasets.five_cell_lines()
        return
    for path in sorted(folder.glob("*.h5ad")):
        if only is None or path.stem in only:
            yield path.stem, ad.read_h5ad(path)


def masking(adata: ad.AnnData, name: str, seed: int, masks: Path | None) -> list[dict[str, Any]]:
    """Scores of all methods at masked non-zeros."""
    counts = sp.csr_array(adata.X)
    file = None if masks is None else masks / f"{name}_seed0.npz"
    if seed == 0 and file is not None and file.exists():
        mask = np.load(file)
        held = counts[mask["cells"]][:, mask["genes"]].tolil()
        rows, columns = mask["rows"], mask["cols"]
        truth = np.log1p(np.asarray(held[rows, columns].todense()).ravel())
        held[rows, columns] = 0
        held = sp.csr_array(held)
        held.eliminate_zeros()
    else:
        masked = metrics.mask_nonzeros(counts, random_state=seed)
        held, rows, columns, truth = masked.counts, masked.rows, masked.columns, np.log1p(masked.truth)
    started = time.perf_counter()
    part = ad.AnnData(held.astype(np.float32))
    part.layers["dropout_prob"] = np.ones(held.shape, dtype=np.float32)
    scnn.pp.cnn_impute(
        part,
        estimate="conditional",
        threshold=0,
        gate=False,
        return_std=True,
        store="layer",
        random_state=seed,
        verbose=False,
    )
    seconds = time.perf_counter() - started
    estimate = np.log1p(dense(part.layers["cnn_imputed"])[rows, columns])
    deviation = dense(part.layers["cnn_imputed_std"])[rows, columns]
    distance = np.abs(truth - estimate) / deviation
    found = {"cnn_impute": estimate}
    for method in metrics.BASELINES:
        if method != "cluster_mean":  # of one cluster: the gene mean
            values = metrics.baseline_estimates(held, method, random_state=seed)
            found[method] = np.log1p(values[rows, columns])
    return [
        {
            "method": method,
            "mse": metrics.mse(truth, values),
            "pcc": metrics.pcc(truth, values),
            "gene_pcc": metrics.gene_pcc(truth, values, columns),
            **(
                {"within_68": np.mean(distance < 1), "within_95": np.mean(distance < 1.96), "seconds": seconds}  # noqa: PLR2004
                if method == "cnn_impute"
                else {}
            ),
        }
        for method, values in found.items()
    ]


def thinning(adata: ad.AnnData, thinned: Any, name: str, seed: int, share: float, out: Path) -> list[dict[str, Any]]:
    """Scores of all methods against the counts before thinning, to `thinned` or else, here, to a share."""
    truth = np.rint(dense(adata.X))
    if thinned is not None:
        thinned = np.rint(dense(thinned))
        share = thinned.sum() / truth.sum()
    else:
        thinned = dense(metrics.thin_counts(truth, capture_efficiency=share, random_state=seed))
    kept = (thinned > 0).mean(axis=0) >= MIN_DETECTION
    truth, thinned = truth[:, kept], thinned[:, kept]
    used = thinned.sum(axis=1) > 0
    truth, thinned = truth[used], thinned[used]
    library_size, zero = thinned.sum(axis=1), thinned == 0
    target = log_normalised(truth, truth.sum(axis=1))
    part = ad.AnnData(sp.csr_matrix(thinned.astype(np.float32)))
    found, seconds, probability = {}, {}, {}
    for method, efficiency in (("cnn_impute", share), ("cnn_impute, efficiency assumed", None)):
        started = time.perf_counter()
        scnn.pp.dropout_prob(part, capture_efficiency=efficiency, random_state=seed, store="layer")
        seconds[method] = time.perf_counter() - started
        probability[method] = part.layers["dropout_prob"][zero]
        scnn.pp.cnn_impute(part, random_state=seed, store="layer", verbose=False)
        found[method] = dense(part.layers["cnn_imputed"])
    scnn.pp.dropout_prob(part, capture_efficiency=share, random_state=seed, store="params")
    scnn.pp.cnn_impute(part, gate=False, random_state=seed, store="layer", verbose=False)
    found["cnn_impute, no gate"] = dense(part.layers["cnn_imputed"])
    scnn.tl.cluster(part)
    clusters = part.obs["cnn_cluster"].to_numpy()
    for method in metrics.BASELINES:
        found[method] = metrics.baseline_estimates(thinned, method, clusters=clusters, random_state=seed)
    rows = []
    present = truth[zero] > 0
    for method, values in found.items():
        estimate = log_normalised(values, library_size)
        row = {
            "method": method,
            "share": share,
            "mse": metrics.mse(target, estimate),
            "pcc": metrics.pcc(target, estimate),
            "mse_zeros": metrics.mse(target[zero], estimate[zero]),
            "mse_renormalised": metrics.mse(target, log_normalised(values, values.sum(axis=1))),
        }
        if method in probability:
            row |= {
                "auroc": metrics.auroc(present, probability[method]),
                "brier": metrics.brier_score(present, probability[method]),
                "brier_constant": present.mean() * (1 - present.mean()),
                "ece": metrics.expected_calibration_error(present, probability[method]),
                "seconds": seconds[method],
            }
        rows.append(row)
    curve = metrics.reliability_curve(present, probability["cnn_impute"])
    curve.to_csv(out / f"reliability_{name}_{share:.2f}_{seed}.csv", index=False)
    return rows


def report(test: str, scores: pd.DataFrame, out: Path) -> None:
    """Median and range over the seeds: printed, and drawn."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    numbers = scores.drop(columns=["seed"]).groupby(["data", "method"], sort=False)
    median, spread = numbers.median(), numbers.max() - numbers.min()
    text = median.round(4).astype(str) + " (" + spread.round(4).astype(str) + ")"
    print(f"\n{test}: median (range) over seeds\n")
    print(text.where(median.notna(), "").to_string(), "\n")
    names = list(dict.fromkeys(scores["data"]))
    figure, axes = plt.subplots(1, len(names), figsize=(2.6 * len(names) + 2, 4), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        one = median.loc[name]["mse"]
        axis.barh(one.index[::-1], one.to_numpy()[::-1], color=["C1" if "cnn" in m else "C0" for m in one.index[::-1]])
        axis.set(title=name, xlabel="MSE", xlim=(0, 2.5 * one.loc["cnn_impute"]))
    figure.tight_layout()
    figure.savefig(out / f"{test}.png", dpi=100)
    curves = sorted(out.glob("reliability_*.csv"))
    if test == "thinning" and curves:
        figure, axis = plt.subplots(figsize=(6, 6))
        axis.plot([0, 1], [0, 1], color="grey", linewidth=1)
        for file in curves:
            curve = pd.read_csv(file)
            curve = curve[curve["n"] >= 100]  # noqa: PLR2004 - fewer say little
            axis.plot(curve["probability"], curve["share"], marker=".", label=file.stem.removeprefix("reliability_"))
        axis.set(xlabel="stated dropout probability", ylabel="share of the zeros that are dropouts")
        axis.legend(fontsize=6)
        figure.savefig(out / "reliability.png", dpi=100)


def log_normalised(counts: np.ndarray, library_size: np.ndarray) -> np.ndarray:
    """log1p of counts per 10,000 of a given library size."""
    return np.log1p(counts * (1e4 / np.maximum(library_size, 1))[:, None])


def dense(matrix: Any) -> np.ndarray:
    """A NumPy array of floats."""
    return (matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)).astype(np.float64)


if __name__ == "__main__":
    main()
