"""How the command line ends on damaged files: in one line, or in a result, never in a crash.

    python benchmarks/robustness/damaged_files.py                        # 50 cuts, 200 changed bytes, all commands
    python benchmarks/robustness/damaged_files.py --formats h5ad --commands dropout --seed 1

Prints how many runs ended in which way, for each format and command, and every run that ended otherwise than in "error"
(one line, no output) or "result" (an output). A changed count that is a count as well cannot be found out in a file
without checksums: such a file gives a result.
"""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from damaged import COMMANDS, damages, outcomes
from helpers import simulate


def main() -> int:
    """Run all damages and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", default=["h5ad", "zarr"], choices=["h5ad", "zarr"])
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--n-cut", type=int, default=50)
    parser.add_argument("--n-changed", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    n_bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for suffix in options.formats:
            source = Path(folder) / f"in.{suffix}"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                simulate().write_h5ad(source) if suffix == "h5ad" else simulate().write_zarr(source)
            found = damages(source, options.n_cut, options.n_changed, options.seed)
            for command in options.commands:
                start, counted = time.perf_counter(), collections.Counter()
                for damage, outcome, text in outcomes(source, found, command):
                    counted[outcome] += 1
                    if outcome not in {"error", "result"}:
                        print(f"--- {outcome}: {suffix}, {command}, {damage}\n{text}", flush=True)
                        n_bad += 1
                print(f"{suffix}, {command}: {dict(counted)} in {time.perf_counter() - start:.0f} s", flush=True)
    return min(n_bad, 1)


if __name__ == "__main__":
    sys.exit(main())
