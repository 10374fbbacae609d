"""Time and memory of `scanpy-cnnimpute impute` from zarr to zarr on data of any size, beside what `estimate` says.

    python benchmarks/size/run.py --counts FILE.h5ad --folder SCRATCH --out size.csv
    python benchmarks/size/run.py --counts FILE.h5ad --folder SCRATCH --sizes 100000x15000 --methods estimate layer

Counts are resampled from real ones (`benchmarks/suite/counts.py`). Every run is a process of its own. "wall_s" and
"cpu_s" are of the whole command, imports included, "memory_mb" is the largest resident memory of the process, "disk_mb"
what the output takes more than the input. Methods: "estimate" (what `scanpy-cnnimpute estimate` says), "layer" and
"params" (what `store` writes), "workers1" and "workers2" (Dask processes with one thread each).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr

sys.path.append(str(Path(__file__).parents[1]))
from suite.counts import KEPT, source

SIZES = ["10000x2000", "100000x2000", "300000x2000", "1000000x2000", "100000x15000"]
BLOCK = 50_000  # cells that are resampled at a time
METHODS = {
    "estimate": [],
    "layer": ["--memory-limit", "4GB"],
    "params": ["--memory-limit", "4GB", "--store", "params"],
    "workers1": ["--memory-limit", "4GB", "--workers", "1"],
    "workers2": ["--memory-limit", "4GB", "--workers", "2"],
}
UNITS = {"MB": 1.0, "GB": 1000.0, "s": 1.0, "min": 60.0, "h": 3600.0}


def main() -> None:
    """Run all and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--counts", type=Path, help="h5ad file that cells are drawn from (default: the bundled one)")
    parser.add_argument("--folder", type=Path, required=True, help="for inputs and outputs")
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="CELLSxGENES")
    parser.add_argument("--methods", nargs="+", default=["estimate", "layer", "params"], choices=METHODS)
    parser.add_argument("--out", type=Path, help="CSV file")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for size in options.sizes:
        path = made(options.counts, options.folder, size)
        for method in options.methods:
            rows.append({"cells x genes": size, "method": method, **run(path, method, options.folder)})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    if options.out is not None:
        table.to_csv(options.out, index=False)


def made(counts: Path | None, folder: Path, size: str) -> Path:
    """A zarr store of this size."""
    path = folder / f"{size}.zarr"
    if path.exists():
        return path
    n_cells, n_genes = map(int, size.split("x"))
    unfinished = path.with_name(f"unfinished-{path.name}")
    group = zarr.open_group(unfinished, mode="w", zarr_format=2)
    group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    for start in range(0, n_cells, BLOCK):
        block = resample_block(counts, min(BLOCK, n_cells - start), n_genes, start)
        if start == 0:
            ad.io.write_elem(group, "X", block)
        else:
            ad.io.sparse_dataset(group["X"]).append(block)
    ad.io.write_elem(group, "obs", pd.DataFrame(index=[f"cell{i}" for i in range(n_cells)]))
    ad.io.write_elem(group, "var", pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]))
    zarr.consolidate_metadata(unfinished)
    unfinished.rename(path)
    return path


def resample_block(counts: Path | None, n_cells: int, n_genes: int, seed: int) -> sp.csr_matrix:
    """Cells drawn with replacement, of the same genes in every block, each molecule kept by chance."""
    real, rng = source(counts), np.random.default_rng(seed)
    detected = np.flatnonzero(real.getnnz(axis=0) > 0)
    genes = np.resize(np.random.default_rng(0).permutation(detected), n_genes)
    drawn = sp.csr_matrix(real[:, genes][rng.integers(real.shape[0], size=n_cells)])
    drawn.data = rng.binomial(np.rint(drawn.data).astype(np.int64), KEPT).astype(np.float32)
    drawn.eliminate_zeros()
    return drawn


def run(path: Path, method: str, folder: Path) -> dict[str, float]:
    """One command: its figures."""
    command = [sys.executable, "-m", "scanpy_cnnimpute._cli"]
    if method == "estimate":
        printed = subprocess.run(  # noqa: S603
            [*command, "estimate", str(path), "--memory-limit", "4GB", "--quiet"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        found = dict(re.findall(r"^(time|memory|added).*about ([\d.]+ \w+)$", printed, flags=re.MULTILINE))
        seconds, memory, disk = (value(found[name]) for name in ("time", "memory", "added"))
        return {"wall_s": seconds, "cpu_s": np.nan, "memory_mb": memory, "disk_mb": disk}
    output = folder / "output.zarr"
    shutil.rmtree(output, ignore_errors=True)
    started = time.perf_counter()
    process = subprocess.Popen([*command, "impute", str(path), str(output), "--quiet", *METHODS[method]])  # noqa: S603
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{method} on {path} failed")
    return {
        "wall_s": round(time.perf_counter() - started, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "memory_mb": round(usage.ru_maxrss / 1024),
        "disk_mb": round((folder_bytes(output) - folder_bytes(path)) / 1e6, 1),
    }


def value(text: str) -> float:
    """A number with its unit, in seconds or MB."""
    number, unit = text.split()
    return float(number) * UNITS[unit]


def folder_bytes(path: Path) -> int:
    """Bytes of all files."""
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


if __name__ == "__main__":
    main()
