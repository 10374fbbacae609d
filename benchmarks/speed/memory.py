"""Resident memory over repeated calls of `pp.cnn_impute` in one process: it has to level off.

    python benchmarks/speed/memory.py                                  # all cases
    python benchmarks/speed/memory.py --cases posterior_mean --calls 50

Prints a row for each case: resident memory in MB after every call, and its growth over the second half of the calls.
The first calls load and compile the networks, and are expected to grow. Every case runs in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import scanpy_cnnimpute as scnn

sys.path.append(str(Path(__file__).parents[1] / "peers"))
from worker import resident_mb

N_CALLS = 20
N_CELLS, N_GENES = 150, 300  # of the bundled counts: a call takes about a second
SHORT = {"n_steps": 4}
CASES: dict[str, dict[str, Any]] = {
    "posterior_mean": {"estimate": "posterior_mean", **SHORT},
    "expected_count": {"estimate": "expected_count", **SHORT},
    "conditional": {"estimate": "conditional", **SHORT},
    # Fewer targets than genes: several networks in a call.
    "paper": {"preset": "paper", "n_targets": 128, "max_epochs": 2},
}


def main() -> None:
    """Run the cases and print their memory."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--calls", type=int, default=N_CALLS)
    options = parser.parse_args()
    processes = multiprocessing.get_context("spawn")  # a forked process would inherit threads and memory
    for case in options.cases:
        with ProcessPoolExecutor(1, mp_context=processes) as pool:
            memory = pool.submit(measure, CASES[case], options.calls).result()
        growth = memory[-1] - memory[options.calls // 2]
        print(f"{case}: {' '.join(f'{value:.0f}' for value in memory)} MB; second half {growth:+.1f} MB", flush=True)


def measure(settings: dict[str, Any], n_calls: int) -> list[float]:
    """Resident memory in MB after each of several calls on fresh copies of the counts."""
    # One warning a call: the gamma of the paper's mixture collapses on these counts.
    logging.getLogger("scanpy_cnnimpute").setLevel(logging.ERROR)
    counts = scnn.datasets.five_cell_lines()[:N_CELLS, :N_GENES].copy()
    counts.obs["one"] = "all"
    options = {"cluster_key": "one", **settings} if settings.get("preset") == "paper" else settings
    memory = []
    for _ in range(n_calls):
        adata = counts.copy()
        scnn.pp.cnn_impute(adata, verbose=False, **options)
        del adata
        gc.collect()
        memory.append(resident_mb("VmRSS"))
    return memory


if __name__ == "__main__":
    main()
