"""Replace a file or folder as a whole: whatever ends the process, the old one or the new one is there."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NEW, OLD, LOCK = "new", "old", "lock"
"""What the folder beside a target holds: what is being written, what is being replaced, and who writes."""
ZARR_FILES = {".zattrs", ".zgroup", ".zmetadata", "zarr.json"}
"""What zarr writes into the folder of a group: of formats 2 and 3."""
MAX_NAME_BYTES = 255  # of a file name on common file systems


class InUseError(RuntimeError):
    """Another process writes to the same place."""


def check_outside_stores(target: Path) -> None:
    """Refuse a place within a zarr store, which would then hold what is not its own."""
    for folder in target.parents:
        if any((folder / name).is_file() for name in ZARR_FILES):
            msg = f"{target} lies in the zarr store {folder}. Choose another place."
            raise FileExistsError(msg)


def unfinished_folder(target: Path) -> Path:
    """Where unfinished work for a target is kept: beside it, so that a rename stays within one file system."""
    name = f".{target.name}.scanpy-cnnimpute"
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        name = f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()}.scanpy-cnnimpute"
    return target.with_name(name)


@contextmanager
def reserved(target: Path) -> Iterator[Path]:
    """Reserve the folder beside a target for this process.

    What a killed process has left there is put back or deleted, except for finished parts of long work
    (:class:`~scanpy_cnnimpute._finished.FinishedParts`). The folder is deleted at the end, unless it holds such parts
    or the only copy of the target.

    Raises
    ------
    InUseError
        If another process writes to the target.
    """
    folder = unfinished_folder(target)
    handle = lock(folder)
    try:
        recover(target, folder)
        yield folder
    finally:
        try:
            _clean_up(target, folder)
        except BaseException:  # an interrupt that comes now does not leave the rest
            _clean_up(target, folder)
            raise
        finally:
            os.close(handle)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a path to write to, and rename it to the target at the end; see :func:`put_in_place`."""
    with reserved(target) as folder:
        yield folder / NEW
        put_in_place(folder / NEW, target, folder / OLD)


def put_in_place(new: Path, target: Path, old: Path) -> None:
    """Rename a file or folder to the target, whose mode it gets.

    A file is replaced in one step. A folder takes two renames: an error or interrupt between them puts the old folder
    back, and if that fails as well, the old folder stays under the name `old`, from where :func:`recover` takes it.
    """
    with suppress(FileNotFoundError):
        new.chmod(stat.S_IMODE(target.stat().st_mode))
    try:
        if target.is_dir():
            target.rename(old)
            new.rename(target)
        else:
            new.replace(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)


def recover(target: Path, folder: Path) -> None:
    """Put back a target that was not replaced, and delete what is unfinished. The caller holds the folder."""
    if (folder / OLD).exists() and not target.exists():
        (folder / OLD).rename(target)
    for path in (folder / NEW, folder / OLD):
        if path.exists():
            remove(path)


def recover_killed(target: Path) -> None:
    """Put back a target that a killed process was replacing."""
    if not target.exists() and (unfinished_folder(target) / OLD).exists():
        with reserved(target):
            pass


def remove(path: Path) -> None:
    """Delete a file or a folder."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    while path.is_dir():
        with suppress(FileNotFoundError):  # after an error, threads of zarr may still be deleting files of their own
            shutil.rmtree(path)


def lock(folder: Path) -> int:
    """Create a folder and lock it; the lock is free again when it is closed, or when the process ends.

    Raises
    ------
    InUseError
        If another process holds it.
    """
    while True:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:  # deleted by the process that held it
            continue
        try:
            _lock_file(handle, folder)
            if os.fstat(handle).st_ino == (folder / LOCK).stat().st_ino:
                return handle
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock_file(handle: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows has other locks; there, two processes are not told apart
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}:  # a file system without locks
            return
        msg = f"Another process uses {folder}: wait for it, or choose another output."
        raise InUseError(msg) from error


def _clean_up(target: Path, folder: Path) -> None:
    """Put back or delete what a process has left, and the folder, if it then holds nothing but its lock."""
    if not folder.exists():
        return
    recover(target, folder)
    if {path.name for path in folder.iterdir()} <= {LOCK}:
        (folder / LOCK).unlink(missing_ok=True)
        # Another process may lock it in between.
        with suppress(OSError):
            folder.rmdir()
