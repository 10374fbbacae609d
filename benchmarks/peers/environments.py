"""A virtual environment for each peer, from the package registries.

    python benchmarks/peers/environments.py ROOT
    python benchmarks/peers/environments.py ROOT --only magic dca
    python benchmarks/peers/environments.py ROOT --python 3.8=/usr/bin/python3.8

Makes ROOT/<peer> with the versions of requirements/<peer>.txt, tries whether the peer imports, and writes
ROOT/<peer>/status.json: {"ok": ..., "reason": ...}. What is there and ok stays; what failed is made anew. One that
fails does not stop the others.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent


class Peer(NamedTuple):
    """The Python version of a peer, what to import as a trial, and packages that come without their requirements."""

    python: str
    module: str
    alone: tuple[str, ...] = ()


PEERS = {
    "magic": Peer("3.11", "magic"),
    "scvi": Peer("3.11", "scvi"),
    "dca": Peer("3.8", "dca.api"),
    "deepimpute": Peer("3.8", "deepimpute.multinet", ("deepimpute==1.2",)),
    "sanity": Peer("3.11", "pysanity"),
    "iimpute": Peer("3.11", "iimpute"),
}


class InstallError(RuntimeError):
    """A step that did not work, with what it said."""


def main() -> int:
    """Make what is missing, print the table; 1 if any peer is not there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path, help="folder for the environments")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--python", nargs="+", default=[], metavar="X.Y=PATH", help="interpreters to use")
    options = parser.parse_args()
    given = dict(pair.split("=", 1) for pair in options.python)
    table = {}
    for name in options.only:
        folder = options.root.absolute() / name
        status = read_status(folder)
        if not status["ok"]:
            started = time.perf_counter()
            try:
                install(name, PEERS[name], folder, given)
                status = {"ok": True, "reason": ""}
            except InstallError as error:
                status = {"ok": False, "reason": str(error)}
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "status.json").write_text(json.dumps(status, indent=1) + "\n")
            print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
        table[name] = status
    print(f"\n{'peer':<12}{'Python':<8}{'ok':<5}reason")
    for name, status in table.items():
        last = status["reason"].strip().splitlines()[-1:] or [""]
        print(f"{name:<12}{PEERS[name].python:<8}{'yes' if status['ok'] else 'no':<5}{last[0][:120]}")
    return 0 if all(status["ok"] for status in table.values()) else 1


def read_status(folder: Path) -> dict[str, bool | str]:
    """What the last run said of this environment."""
    try:
        return json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return {"ok": False, "reason": "not made yet"}


def install(name: str, peer: Peer, folder: Path, given: dict[str, str]) -> None:
    """An environment with the peer in it, tried."""
    base = interpreter(peer.python, given)
    shutil.rmtree(folder, ignore_errors=True)
    call(base, "-m", "venv", str(folder))
    python = str(folder / "bin" / "python")
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    call(*pip, "-r", str(HERE / "requirements" / f"{name}.txt"))
    for package in peer.alone:
        call(*pip, "--no-deps", package)
    with tempfile.TemporaryDirectory() as home:  # where DCA's kopt leaves files when it is imported
        call(python, "-c", f"import {peer.module}", HOME=home)


def interpreter(version: str, given: dict[str, str]) -> str:
    """A Python of this version: a given one, this one, one on PATH, or one of pyenv's."""
    if version in given:
        return given[version]
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"versions/{version}.*/bin/python"))]
    for candidate in filter(None, candidates):
        # pyenv puts a python3.8 on PATH that refuses to run where that version is not chosen
        found = subprocess.run([str(candidate), "--version"], capture_output=True, text=True, check=False)  # noqa: S603
        if found.returncode == 0 and f" {version}." in found.stdout:
            return str(candidate)
    message = f"no Python {version} found on PATH or among pyenv's versions; give one by --python {version}=PATH"
    raise InstallError(message)


def call(*command: str, **variables: str) -> None:
    """Run a step without the caller's Python paths."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(  # noqa: S603
            command, env={**kept, **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except OSError as error:
        raise InstallError(str(error)) from error
    if done.returncode != 0:
        message = f"{' '.join(command)}\n" + "\n".join(done.stdout.splitlines()[-15:])
        raise InstallError(message)


if __name__ == "__main__":
    sys.exit(main())
