"""Replace a file or folder as a whole: an error or interrupt leaves the old one or the new one."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def temporary_folder(target: Path) -> Path:
    """Create a folder beside the target, so that a rename stays within one file system."""
    return Path(tempfile.mkdtemp(prefix=".scanpy-cnnimpute-", dir=target.parent))


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a path to write to, and rename it to the target at the end; see :func:`put_in_place`."""
    folder = temporary_folder(target)
    new, old = folder / "new", folder / "old"
    try:
        yield new
        put_in_place(new, target, old)
    finally:
        # What could not be put back stays.
        if target.exists() or not old.exists():
            shutil.rmtree(folder)


def put_in_place(new: Path, target: Path, old: Path) -> None:
    """Rename a file or folder to the target.

    A file is replaced in one step. A folder takes two renames: an error or interrupt between them puts the old folder
    back, and if that fails as well, the old folder stays under the name `old`.
    """
    try:
        if target.is_dir():
            target.rename(old)
            new.rename(target)
        else:
            new.replace(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)


def remove(path: Path) -> None:
    """Delete a file or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
