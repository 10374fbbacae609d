"""Finished parts of long work in a folder: an interrupted run goes on from them."""

from __future__ import annotations

import json
import os
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ._atomic import LOCK, NEW, OLD, lock, remove
from ._logging import logger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

KEY = "key.json"
UNFINISHED = "unfinished"


class FinishedParts:
    """Arrays of the parts that are finished, each in a file that is there as a whole or not at all.

    Parameters
    ----------
    folder
        Created if it is not there. One process uses it at a time.
    key
        What the parts depend on, as JSON can hold it. Parts of another key are deleted.
    restart
        Delete the parts of the same key, too.

    Raises
    ------
    FileExistsError
        If the folder holds other files.
    RuntimeError
        If another process uses it.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], *, restart: bool = False) -> None:
        self.folder = folder
        foreign = self._foreign_files()
        if foreign:
            msg = f"{folder} holds other files, such as {foreign[0]!r}: choose a folder that is empty or not there."
            raise FileExistsError(msg)
        self._lock = lock(folder)
        known = self._known_key()
        for path in folder.glob(f"{UNFINISHED}-*"):
            remove(path)
        wanted = json.loads(json.dumps(key))
        if restart or known != wanted:
            if known is not None and not restart:
                logger.info("%s holds parts of another input, other settings or another version: starting anew", folder)
            self.clear()
            self._write_text(KEY, json.dumps(wanted))

    def _known_key(self) -> Any:
        try:
            return json.loads((self.folder / KEY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _foreign_files(self) -> list[str]:
        """Files of a folder without a key, except for those of a process that was killed before it wrote one."""
        if not self.folder.exists() or self._known_key() is not None:
            return []
        names = [path.name for path in self.folder.iterdir()]
        return [name for name in names if name not in {LOCK, NEW, OLD} and not name.startswith(f"{UNFINISHED}-")]

    def __contains__(self, name: str) -> bool:
        return self.path(name).exists()

    def path(self, name: str) -> Path:
        """Where a finished part is."""
        return self.folder / name

    def save(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Keep a part as arrays."""
        with self.writing(name) as new:
            save_arrays(new, arrays)

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays of a part; None if it is not there, or damaged."""
        try:
            with np.load(self.path(name), allow_pickle=False) as arrays:
                return {each: arrays[each] for each in arrays.files}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            self.path(name).unlink()
            return None

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """See :func:`writing`."""
        return writing(self.path(name))

    def clear(self) -> None:
        """Delete all parts. The key goes last: without it, the others are foreign."""
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == KEY):
            if path.name not in {LOCK, OLD}:  # the old output may be the only one
                remove(path)

    def remove(self) -> None:
        """Delete the folder."""
        self.clear()
        remove(self.folder)
        self.close()

    def close(self) -> None:
        """Release the folder for other processes."""
        os.close(self._lock)

    def _write_text(self, name: str, text: str) -> None:
        with self.writing(name) as new:
            new.write_text(text, encoding="utf-8")


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which gets its name at the end, or is deleted."""
    new = path.with_name(f"{UNFINISHED}-{os.getpid()}-{path.name}")
    try:
        yield new
        new.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # NumPy does not say which disk is full
            error.filename = str(path)
        raise
    finally:
        if new.exists():
            remove(new)


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays to a file, which :meth:`FinishedParts.load` reads."""
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **{name: np.asarray(value) for name, value in arrays.items()})
