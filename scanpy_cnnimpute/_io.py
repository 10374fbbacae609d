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


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        msg = f"{path}: the name must end in one of {', '.join(SUFFIXES)}."
        raise ValueError(msg)


def read(path: Path) -> AnnData:
    """Read an h5ad or zarr file into memory; whatever is wrong with it is a ValueError with its name."""
    _check_suffix(path)
    if not path.exists():
        msg = f"{path} does not exist."
        raise FileNotFoundError(msg)
    try:
        return anndata.read_h5ad(path) if path.suffix == ".h5ad" else anndata.read_zarr(path)
    except Exception as error:  # h5py, zarr and anndata raise a dozen kinds for damaged files
        msg = f"{path} cannot be read as an AnnData file, it may be truncated or damaged: {error}"
        raise ValueError(msg) from error


def check_output(path: Path, *, force: bool) -> None:
    """Refuse an output before any work is done for it."""
    _check_suffix(path)
    if path.exists() and not force:
        msg = f"{path} exists. Pass --force to replace it."
        raise FileExistsError(msg)
    if not path.resolve().parent.is_dir():
        msg = f"{path}: the folder {path.resolve().parent} does not exist."
        raise FileNotFoundError(msg)


def write(adata: AnnData, path: Path, *, force: bool) -> None:
    """Write beside the destination, then rename: the destination is complete or untouched."""
    check_output(path, force=force)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.resolve().parent))
    try:
        temporary = folder / path.name
        if path.suffix == ".h5ad":
            adata.write_h5ad(temporary, compression="gzip")
        else:
            adata.write_zarr(temporary)
        if path.is_dir():
            path.rename(folder / "replaced")
        temporary.replace(path)
    finally:
        shutil.rmtree(folder)
