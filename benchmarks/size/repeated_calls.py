"""Resident memory over repeated imputations in one process: it has to level off.

    python benchmarks/size/repeated_calls.py                                     # all cases, every kind of call
    python benchmarks/size/repeated_calls.py --cases paper --kinds varying

Prints a row for each case and kind of call: resident memory in MB after the calls of `SHOWN`, and its growth from the
first to the last of them. The calls before load and compile the networks. Fails if one grows by more than 5 %. Every
row is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import scanpy_cnnimpute as scnn

sys.path.append(str(Path(__file__).parents[1] / "peers"))
from worker import resident_mb

if TYPE_CHECKING:
    import anndata as ad

SHOWN = (5, 10, 20, 40)  # calls
MAX_GROWTH = 0.05
N_CELLS, N_GENES = 150, 300  # of the bundled counts: a call takes about a second
SHORT = {"n_steps": 4}
CASES: dict[str, dict[str, Any]] = {
    "posterior_mean": {"estimate": "posterior_mean", **SHORT},
    "conditional": {"estimate": "conditional", **SHORT},
    "all entries": {"entries": "all", **SHORT},
    # Fewer targets than genes: several networks in a call.
    "paper": {"preset": "paper", "n_targets": 128, "max_epochs": 2},
}
KINDS = ("equal", "varying", "failing", "estimator")


def main() -> None:
    """Run the cases, print their memory, and fail if one grows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    processes = multiprocessing.get_context("spawn")  # a forked process would inherit threads and memory
    print(f"| case | calls | {' | '.join(f'call {call}' for call in SHOWN)} | growth |")
    print("| --- " * (len(SHOWN) + 3) + "|")
    largest = 0.0
    for case in options.cases:
        for kind in options.kinds:
            with ProcessPoolExecutor(1, mp_context=processes) as pool:
                memory = pool.submit(measure, CASES[case], kind).result()
            growth = memory[-1] / memory[0] - 1
            largest = max(largest, growth)
            print(f"| {case} | {kind} | {' | '.join(f'{value:.0f}' for value in memory)} | {growth:+.1%} |", flush=True)
    if largest > MAX_GROWTH:
        sys.exit(f"Resident memory grows by {largest:.1%}, more than {MAX_GROWTH:.0%}.")


def measure(settings: dict[str, Any], kind: str) -> list[float]:
    """Resident memory in MB after the calls of `SHOWN`, each on a fresh copy of the counts."""
    # One warning a call: the gamma of the paper's mixture collapses on these counts.
    logging.getLogger("scanpy_cnnimpute").setLevel(logging.ERROR)
    counts = scnn.datasets.five_cell_lines()
    counts.obs["one"] = "all"
    memory = []
    for call in range(1, SHOWN[-1] + 1):
        n_cells, n_genes = N_CELLS, N_GENES
        if kind == "varying":
            n_cells, n_genes = n_cells - 7 * call % 50, n_genes - 13 * call % 100
        impute(counts[:n_cells, :n_genes].copy(), settings, kind)
        gc.collect()
        if call in SHOWN:
            memory.append(resident_mb("VmRSS"))
    return memory


def impute(adata: ad.AnnData, settings: dict[str, Any], kind: str) -> None:
    """One call: of the function, of the estimator, or of a function whose training fails."""
    if kind == "estimator":
        scnn.CNNImputer(verbose=False, **settings).fit_transform(adata.X)
        return
    if settings.get("preset") == "paper":
        settings = {"cluster_key": "one", **settings}
    if kind != "failing":
        scnn.pp.cnn_impute(adata, verbose=False, **settings)
        return
    from keras import Model

    evaluate, n_calls = Model.test_on_batch, 0

    def fail_at_second(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls > 1:
            raise InterruptedError
        return evaluate(*args, **kwargs)

    with patch.object(Model, "test_on_batch", fail_at_second):
        try:
            scnn.pp.cnn_impute(adata, verbose=False, **settings)
        except InterruptedError:
            return
    sys.exit("The training did not fail.")


if __name__ == "__main__":
    main()
