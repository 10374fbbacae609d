"""What an output is after the command line was killed while it replaced it: the old one or the new one, whole.

    python benchmarks/robustness/kills.py                # 44 kills: SIGKILL, SIGTERM and SIGINT at random moments
    python benchmarks/robustness/kills.py --n 12 --seed 1

Each command replaces an older output (`--force`) as an h5ad file or a zarr store, and is killed at a random moment of
its time, which is measured first. Half of the moments are in the last fifth, in which the output is written. Fails if
an output is neither the old nor the new one, if SIGTERM or SIGINT leaves other files, or if SIGKILL leaves some that
the next run does not delete.
"""

from __future__ import annotations

import argparse
import collections
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from helpers import simulate

from scanpy_cnnimpute import _cli
from scanpy_cnnimpute._anndata import files

COMMANDS = {"dropout": ["dropout"], "impute": ["impute", "--n-steps", "2"]}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def main() -> int:
    """Kill, look, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=44, help="number of kills")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(options.seed)
    counted: collections.Counter[str] = collections.Counter()
    bad = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "in.h5ad"
        simulate(200, 300).write_h5ad(source)
        seconds = {}
        for number in range(options.n):
            command, suffix = (("dropout", "impute")[number % 2], ("h5ad", "zarr")[number // 2 % 2])
            if (command, suffix) not in seconds:
                seconds[command, suffix] = _seconds(folder, source, command, suffix)
            share = rng.random() if number // 4 % 2 else 0.8 + 0.3 * rng.random()
            sent = SIGNALS[number % 3]
            found = _kill(folder, source, command, suffix, share * seconds[command, suffix], sent)
            counted[f"{sent.name}: {found}"] += 1
            if found not in {"old", "new"}:
                bad.append(found)
            print(f"{number + 1}: {command}, {suffix}, {sent.name} at {share:.0%}: {found}", flush=True)
    print(dict(counted))
    return min(len(bad), 1)


def _run(source: Path, output: Path, command: str) -> subprocess.Popen[bytes]:
    first, *others = COMMANDS[command]
    arguments = [first, str(source), str(output), *others, "--force", "--quiet"]
    return subprocess.Popen([sys.executable, "-m", "scanpy_cnnimpute._cli", *arguments], stderr=subprocess.DEVNULL)  # noqa: S603


def _seconds(folder: Path, source: Path, command: str, suffix: str) -> float:
    """Time that a command takes."""
    for _ in range(2):  # the first loads and compiles
        start = time.perf_counter()
        _run(source, folder / f"timed-{command}.{suffix}", command).wait()
    return time.perf_counter() - start


def _kill(folder: Path, source: Path, command: str, suffix: str, after: float, sent: signal.Signals) -> str:
    """What is left of an output after a kill."""
    place = folder / "place"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    output = place / f"out.{suffix}"
    old = ad.read_h5ad(source)
    old.uns["age"] = "old"
    old.write_h5ad(output) if suffix == "h5ad" else old.write_zarr(output)
    process = _run(source, output, command)
    time.sleep(after)
    if process.poll() is None:
        os.kill(process.pid, sent)
    process.wait()
    others = {path.name for path in place.iterdir()} - {output.name}
    if others and sent != signal.SIGKILL:
        return f"{sent.name} left {others}"
    found = files.read(output)  # puts back what was being replaced
    key = _key(command)
    if (found.X != old.X).nnz or ("age" in found.uns) == (key in found.layers):
        return "neither"
    _cli.main(["dropout", str(source), str(output), "--force", "--quiet"])
    left = {path.name for path in place.iterdir()} - {output.name}
    if left:
        return f"the next run leaves {left}"
    return "old" if "age" in found.uns else "new"


def _key(command: str) -> str:
    return {"dropout": "dropout_prob", "impute": "cnn_imputed"}[command]


if __name__ == "__main__":
    sys.exit(main())
