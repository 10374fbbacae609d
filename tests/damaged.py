"""Damage AnnData files, run the command line on them in processes that may die, and say how each run ended."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS = {
    "dropout": ["dropout"],
    "impute": ["impute", "--n-steps", "2"],
    "impute by blocks": ["impute", "--n-steps", "2", "--memory-limit", "1KB"],
}
MAX_BYTES = 2**35  # of address space: damaged shapes may ask for more than any machine has


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A copy of a file or store, cut after some bytes or with a byte changed."""

    kind: str
    file: str  # within a store; "" for a file
    position: int
    change: int  # by which the byte is exclusive-or-ed; 0 to cut here

    def apply(self, source: Path, path: Path) -> None:
        """Write the damaged copy."""
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, path)
        damaged = path / self.file if self.file else path
        content = bytearray(damaged.read_bytes())
        if self.change:
            content[self.position] ^= self.change
        damaged.write_bytes(content if self.change else content[: self.position])

    def __str__(self) -> str:
        return f"{self.kind} {self.file or 'file'} at {self.position} ^ {self.change}"


def damages(source: Path, n_cut: int, n_changed: int, seed: int = 0) -> list[Damage]:
    """Cuts and changed bytes at random places; of a store, every file is as likely."""
    rng = np.random.default_rng(seed)
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    files = [path for path in files if path.stat().st_size]
    found = []
    for number in range(n_cut + n_changed):
        path = files[rng.integers(len(files))]
        file = "" if path == source else str(path.relative_to(source))
        is_cut = number < n_cut
        found.append(
            Damage(
                kind="cut" if is_cut else "changed",
                file=file,
                position=int(rng.integers(path.stat().st_size)),
                change=0 if is_cut else int(rng.integers(1, 256)),
            )
        )
    return found


def outcomes(
    source: Path, found: list[Damage], command: str, *, n_together: int = 25, seconds: float = 300
) -> Iterator[tuple[Damage, str, str]]:
    """Each damage with how the command ended, and what it said.

    Several runs share a process, until one ends it; the others go on in a new one. The outcomes are ``"error"`` for one
    line and no output, ``"result"`` for an output that can be read, and ``"died"``, ``"stuck"`` or ``"unclear"``.
    """
    with tempfile.TemporaryDirectory() as folder:
        left = list(found)
        while left:
            done = 0
            for outcome, text in _together(Path(folder), source, left[:n_together], command, seconds):
                yield left[done], outcome, text
                done += 1
            left = left[done:]


def _together(
    folder: Path, source: Path, found: list[Damage], command: str, seconds: float
) -> Iterator[tuple[str, str]]:
    """Outcomes of the runs of one process, up to one that ends it."""
    tasks = []
    for damage in found:
        place = Path(tempfile.mkdtemp(dir=folder))
        path, output = place / f"in{source.suffix}", place / f"out{source.suffix}"
        damage.apply(source, path)
        tasks.append([COMMANDS[command][0], str(path), str(output), *COMMANDS[command][1:], "--quiet"])
    run = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        printed, said = run.communicate(json.dumps(tasks), timeout=seconds)
        ended = "died" if run.returncode else ""
    except subprocess.TimeoutExpired:
        run.kill()
        printed, said = run.communicate()
        ended = "stuck"
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("[")]
    for number, (code, text) in enumerate(lines):
        output = Path(tasks[number][2])
        left = [path.name for path in output.parent.iterdir() if path.name not in {output.name, f"in{source.suffix}"}]
        if command == "impute by blocks":  # keeps what is finished, as it says
            left = [name for name in left if not name.endswith(".scanpy-cnnimpute")]
        yield _outcome(code, text, output, left), text
    if len(lines) < len(tasks):
        yield ended or "died", said[-3000:]


def _outcome(code: int, text: str, output: Path, left: list[str]) -> str:
    if left:
        return "unclear"
    lines = [line for line in text.splitlines() if not line.startswith(("warning: ", "What is finished is kept"))]
    if code == 0 and output.exists() and not lines:
        return "result"
    if code == 1 and not output.exists() and len(lines) == 1 and lines[0].startswith("scanpy-cnnimpute: error: "):
        return "error"
    return "unclear"


def _main() -> None:
    """Run the commands of stdin in this process, and print how each ended."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from scanpy_cnnimpute import _cli

    for arguments in json.loads(sys.stdin.read()):
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = _cli.main(arguments)
        print(json.dumps([code, said.getvalue()]), flush=True)


if __name__ == "__main__":
    _main()
