"""Time and memory of the default beside other tools, on the same counts in the same run.

    python benchmarks/speed/run.py --counts FILE.h5ad --peers PEERS_FOLDER --out speed.csv
    python benchmarks/speed/run.py --out speed.csv --sizes 3000x2000 30000x2000 --methods default   # the bundled counts

The counts are resampled from real ones to each size (`benchmarks/suite/counts.py`). Every run is a fresh process:
"wall_s" and "cpu_s" are from dense counts to dense imputed counts, without imports and files, with compilation of what
is not cached; "memory_mb" is the largest resident memory less that after the imports. Methods take turns, so that a
busy machine is busy for all. Every run is added to the CSV file as it ends; one that is there is not repeated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "peers")]
from peers import ENVIRONMENTS, PeerFailed, run_peer
from suite.counts import resample, source

COSTS = ["wall_s", "cpu_s", "memory_mb"]
KEY = ["size", "repeat", "method"]


def main() -> None:
    """Run what is missing, then print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--counts", type=Path, help="h5ad file to resample (default: the bundled counts)")
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--sizes", nargs="+", default=["3000x2000"], help="cells x genes")
    parser.add_argument("--methods", nargs="+", choices=ENVIRONMENTS, default=["default", "magic", "deepimpute", "dca"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds that a run may take")
    options = parser.parse_args()
    rows = pd.read_csv(options.out).to_dict("records") if options.out.exists() else []
    for size in options.sizes:
        counts = resample(source(options.counts), *map(int, size.split("x")))
        for repeat in range(options.repeats):
            for method in options.methods:
                key = dict(zip(KEY, (size, repeat, method), strict=True))
                if any(all(row[name] == value for name, value in key.items()) for row in rows):
                    continue
                try:
                    _, info = run_peer(
                        method, counts, options.peers, repeat, timeout=options.timeout, threads=options.threads
                    )
                    info["memory_mb"] = info["rss_peak_mb"] - info["rss_import_mb"]
                    rows.append({**key, "status": "ok", **{cost: info[cost] for cost in COSTS}})
                except PeerFailed as error:
                    rows.append({**key, "status": str(error).splitlines()[0]})
                print(rows[-1], flush=True)
                pd.DataFrame(rows).to_csv(options.out, index=False)
    report(pd.DataFrame(rows))


def report(runs: pd.DataFrame) -> None:
    """Medians, and how many times those of the default they are."""
    median = runs.reindex(columns=[*KEY, *COSTS]).groupby(["size", "method"])[COSTS].median()
    default = median[median.index.get_level_values("method") == "default"].droplevel("method")
    ratio = median / default.reindex(median.index.get_level_values("size")).to_numpy()
    table = median.round(1).join(ratio.round(2), rsuffix=" / default")
    table.insert(0, "runs", runs[runs["status"] == "ok"].groupby(["size", "method"]).size())
    print(table.to_string())


if __name__ == "__main__":
    main()
