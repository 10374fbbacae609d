"""Read and write AnnData files: clear about what is wrong, and never half a file."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import anndata

if TYPE_CHECKING:
    from anndata import AnnData

SUFFIXES = (".h5ad", ".zarr")


def check_suffix(path: Path) -> None:
    """Refuse what is named neither h5ad nor zarr."""
    if path.suffix not in SUFFIXES:
        msg = f"{path}: the name must end in one of {', '.join(SUFFIXES)}."
        raise ValueError(msg)


def read(path: Path) -> AnnData:
    """Read an h5ad or zarr file into memory; whatever is wrong with it is a ValueError with its name."""
    check_suffix(path)
    if not path.exists():
        msg = f"{path} does not exist."
        raise FileNotFoundError(msg)
    try:
        return anndata.read_h5ad(path) if path.suffix == ".h5ad" else anndata.read_zarr(path)
    except Exception as error:  # h5py, zarr and anndata raise a dozen kinds for damaged files
        msg = f"{path} cannot be read as an AnnData file, it may be truncated or damaged: {error}"
        raise ValueError(msg) from error


def check_output(path: Path, *, force: bool) -> Path:
    """Refuse an output before any work is done for it; returns where it really goes, symbolic links followed."""
    if path.exists() and not force:
        msg = f"{path} exists. Pass --force to replace it."
        raise FileExistsError(msg)
    target = path.resolve()
    if not target.parent.is_dir():
        msg = f"{path}: the folder {target.parent} does not exist."
        raise FileNotFoundError(msg)
    try:
        _temporary_folder(target).rmdir()
    except OSError as error:
        msg = f"{path}: the folder {target.parent} cannot be written to ({error.strerror})."
        raise PermissionError(msg) from error
    return target


def _temporary_folder(target: Path) -> Path:
    """A folder beside the target, so that renaming stays within a file system."""
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))


def write(adata: AnnData, path: Path, *, force: bool) -> None:
    """Write an h5ad or zarr file beside the destination, then rename: that is complete or untouched."""
    check_suffix(path)
    target = check_output(path, force=force)
    folder = _temporary_folder(target)
    try:
        new, old = folder / "new", folder / "old"
        if path.suffix == ".h5ad":
            adata.write_h5ad(new, compression="gzip")
        else:
            adata.write_zarr(new)
        if target.is_dir():
            target.rename(old)
            try:
                new.rename(target)
            except OSError:
                old.rename(target)
                raise
        else:
            new.replace(target)
    finally:
        shutil.rmtree(folder)
