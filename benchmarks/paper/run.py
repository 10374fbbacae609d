"""The paper's evaluation: imputed copies of real and simulated data, by all methods, scored in its experiments.

    python benchmarks/paper/run.py DATA_FOLDER --out results --peers PEERS_FOLDER
    python benchmarks/paper/run.py --out results --experiments simulation --methods none default   # needs no data

DATA_FOLDER (or the environment variable SCNN_DATA) holds the files that `experiments.SOURCES` names; an experiment
whose files are not there is left out, with a message. PEERS_FOLDER is what `benchmarks/peers/environments.py` made;
without it the peers are left out. Every method runs in a process of its own, one at a time, and is added to
`scores.csv` and `runs.csv` as it ends: the command resumes where it stopped. A method that fails is shown as failed,
and the rest goes on (`--retry` tries it again). At the end `report.md` and its figures are written.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from experiments import EXPERIMENTS, HIGH_IS_BEST, DataMissingError, Experiment
from report import write_report

sys.path.append(str(Path(__file__).parents[1] / "peers"))
from peers import ENVIRONMENTS, run_peer

SCORES = ["experiment", "seed", "method", "metric", "value", "high_is_best", "in_paper"]
KEY = ["experiment", "seed", "method"]


def main() -> None:
    """Run what is missing, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    folder = os.environ.get("SCNN_DATA")
    parser.add_argument("data", type=Path, nargs="?", default=folder and Path(folder), help="folder of h5ad files")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables, report and figures")
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--methods", nargs="+", choices=ENVIRONMENTS)
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, default=5, help="for experiments whose data depend on the seed")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds that a method may take")
    parser.add_argument("--retry", action="store_true", help="try again what failed")
    options = parser.parse_args()
    if options.methods is None:
        options.methods = [name for name, place in ENVIRONMENTS.items() if place is None or options.peers is not None]
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out, retry=options.retry)
    # Seeds outermost: a run that is cut short has every experiment once.
    for seed in range(options.seeds):
        for name in options.experiments:
            experiment = EXPERIMENTS[name]
            if seed == 0 or experiment.seeded:
                run(name, experiment, seed, options, results)
    write_report(options.out)


class Results:
    """The two tables: what was scored, and what every run cost or why it failed."""

    def __init__(self, out: Path, *, retry: bool) -> None:
        self.out = out
        self.scores = self._read("scores.csv")
        self.runs = self._read("runs.csv")
        self.retry = retry

    def _read(self, file: str) -> list[dict[str, Any]]:
        path = self.out / file
        return pd.read_csv(path).to_dict("records") if path.exists() else []

    def has(self, *key: Any) -> bool:
        """Whether this run was made, and need not be tried again."""
        return any(_key(run) == key and (run["status"] == "ok" or not self.retry) for run in self.runs)

    def add(self, key: tuple[Any, ...], status: str, scores: list[dict[str, Any]], info: dict[str, Any]) -> None:
        """Append and write."""
        named = dict(zip(KEY, key, strict=True))
        self.runs = [run for run in self.runs if _key(run) != key]
        self.runs.append({**named, "status": status, **info})
        self.scores += [{**named, **row} for row in scores]
        pd.DataFrame(self.scores, columns=SCORES).to_csv(self.out / "scores.csv", index=False)
        pd.DataFrame(self.runs).to_csv(self.out / "runs.csv", index=False)
        print(*key, status, *(f"{row['metric']}={row['value']:.4f}" for row in scores), flush=True)


def _key(run: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(run[name] for name in KEY)


def run(name: str, experiment: Experiment, seed: int, options: argparse.Namespace, results: Results) -> None:
    """Impute the data of one experiment by every method that has not, and score them."""
    missing = [method for method in options.methods if not results.has(name, seed, method)]
    if not missing:
        return
    try:
        case = experiment.load(options.data, seed)
    except DataMissingError as error:
        print(f"{name} is left out: {error}", flush=True)
        return
    for method in missing:
        key = (name, seed, method)
        try:
            imputed, info = run_peer(method, case.counts, root=options.peers, seed=seed, timeout=options.timeout)
            scores = case.scores(imputed)
        except Exception as error:  # whatever it is: the other methods go on
            print(error, flush=True)
            # Its last line, without the places of files on this machine.
            reason = re.sub(r"\S*/\S+", "...", str(error).strip().splitlines()[-1])[:200].replace("|", "/")
            results.add(key, f"failed: {type(error).__name__}: {reason}", [], {})
            continue
        if case.embeddings and seed == 0:
            np.savez_compressed(options.out / f"embedding_{name}_{method}.npz", **case.embeddings)
        rows = [
            {
                "metric": metric,
                "value": value,
                "high_is_best": HIGH_IS_BEST[metric],
                "in_paper": metric in experiment.paper,
            }
            for metric, value in scores.items()
        ]
        results.add(key, "ok", rows, info)


if __name__ == "__main__":
    main()
