"""Runs an imputation method, ours or a peer, in its own environment and brings back its estimate.

sys.path.insert(0, "benchmarks/peers")
from peers import PeerFailed, run_peer
imputed, info = run_peer("magic", counts, Path("environments"), seed=0, timeout=3600)
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

# Method: its environment. None: this interpreter, which has our package.
ENVIRONMENTS: dict[str, str | None] = {
    "none": None,
    "default": None,
    "conditional": None,
    "denoised": None,
    "paper": None,
    "paper_nl": None,
    "magic": "magic",
    "magic_log": "magic",
    "scvi": "scvi",
    "dca": "dca",
    "deepimpute": "deepimpute",
    "sanity": "sanity",
    "iimpute": "iimpute",
    "knn_smoothing": None,
    "alra": None,
}
THREADS = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA")
FIXED = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}  # no GPU, so that times compare


class PeerFailed(RuntimeError):  # noqa: N818 - what happened, not an error of ours
    """A peer is not there, failed, or took too long."""


def run_peer(
    method: str, counts: Any, root: Path | None, seed: int = 0, timeout: float | None = None, threads: int = 1
) -> tuple[np.ndarray, dict[str, Any]]:
    """Expected counts of a peer, float32, cells x genes, and its wall_s, cpu_s, rss_import_mb, rss_peak_mb, versions.

    Parameters
    ----------
    method
        One of `ENVIRONMENTS`.
    counts
        Raw counts, cells x genes, sparse or dense.
    root
        Folder of the environments that `environments.py` made; None if there is none.
    seed
        Seed of the peer.
    timeout
        Seconds after which it is stopped, imports included; None: never.
    threads
        Threads that it may use.

    Raises
    ------
    PeerFailed
        With the last lines of its output.
    """
    if method not in ENVIRONMENTS:
        message = f"method={method!r} is not a peer. Available: {list(ENVIRONMENTS)}."
        raise ValueError(message)
    return run_worker(
        Path(__file__).with_name("worker.py"), method, ENVIRONMENTS[method], counts, root, seed, timeout, threads
    )


def run_worker(
    script: Path,
    method: str,
    environment: str | None,
    counts: Any,
    root: Path | None,
    seed: int = 0,
    timeout: float | None = None,
    threads: int = 1,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Run a method of a script that takes the arguments of `worker.py`; see :func:`run_peer`."""
    python = Path(sys.executable)
    if environment is not None:
        # Made absolute but not resolved: the interpreter knows its environment by the link that it was started by.
        python = Path(root or "").absolute() / environment / "bin" / "python"
        if root is None or not python.exists():
            message = f"{method} has no environment; make it by benchmarks/peers/environments.py"
            raise PeerFailed(message)
    matrix = sp.csr_matrix(counts)
    matrix.eliminate_zeros()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, target = folder / "in.npz", folder / "out.npz"
        np.savez(source, data=matrix.data, indices=matrix.indices, indptr=matrix.indptr, shape=matrix.shape)
        command = [python, script, method, source, target]
        command += ["--seed", str(seed), "--threads", str(threads)]
        limits = {f"{library}_NUM_THREADS": str(threads) for library in THREADS}
        limits |= {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_NUM_INTEROP_THREADS": str(threads)}
        # Another environment must not see this interpreter's packages. The folder is temporary: some peers leave files.
        hidden = ("PYTHONPATH", "PYTHONHOME") if environment is not None else ()
        kept = {key: value for key, value in os.environ.items() if key not in hidden}
        if environment == "dca":  # kopt, of DCA, makes ~/.kopt when it is imported
            kept["HOME"] = name
        try:
            done = subprocess.run(  # noqa: S603
                [str(part) for part in command],
                cwd=folder,
                env={**kept, **limits, **FIXED},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            message = f"{method}: stopped after {timeout:g} s"
            raise PeerFailed(message) from error
        if done.returncode != 0 or not target.exists():
            message = f"{method}: exit status {done.returncode}\n" + "\n".join(done.stdout.splitlines()[-20:])
            raise PeerFailed(message)
        with np.load(target) as found:
            return found["imputed"], {key: found[key].item() for key in found if key != "imputed"}
