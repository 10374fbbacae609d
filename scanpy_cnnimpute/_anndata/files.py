"""Read and write AnnData files. Errors name the file; a file is never half written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anndata

from .._atomic import replacing, temporary_folder

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

SUFFIXES = (".h5ad", ".zarr")
ZARR_ATTRIBUTES = (".zattrs", "zarr.json")  # files with the attributes of a store: zarr formats 2 and 3


def check_suffix(path: Path) -> None:
    """Refuse names that are neither of h5ad nor of zarr."""
    if path.suffix not in SUFFIXES:
        msg = f"{path}: the name must end in one of {', '.join(SUFFIXES)}."
        raise ValueError(msg)


def check_input(path: Path) -> None:
    """Refuse a name of another kind, and what is not there."""
    check_suffix(path)
    if not path.exists():
        msg = f"{path} does not exist."
        raise FileNotFoundError(msg)


def read(path: Path) -> AnnData:
    """Read an h5ad file or zarr store into memory; a ValueError names a damaged one."""
    check_input(path)
    try:
        return anndata.read_h5ad(path) if path.suffix == ".h5ad" else anndata.read_zarr(path)
    except Exception as error:  # h5py, zarr and anndata raise a dozen kinds for damaged files
        msg = f"{path} cannot be read as an AnnData file, it may be truncated or damaged: {error}"
        raise ValueError(msg) from error


def check_output(path: Path, *, force: bool) -> Path:
    """Check before the work that an output can be written; returns its place, symbolic links followed.

    ``force=True`` permits to replace a regular file, or for ``.zarr`` an AnnData store; never another folder, a pipe
    or a device.
    """
    if path.exists():
        if not force:
            msg = f"{path} exists. Pass --force to replace it."
            raise FileExistsError(msg)
        if not (_is_anndata_store(path) if path.suffix == ".zarr" else path.is_file()):
            kind = "an AnnData zarr store" if path.suffix == ".zarr" else "a regular file"
            msg = f"{path} is not {kind} and is not replaced, not even with --force. Choose another name or remove it."
            raise FileExistsError(msg)
    target = path.resolve()
    if not target.parent.is_dir():
        msg = f"{path}: the folder {target.parent} does not exist."
        raise FileNotFoundError(msg)
    try:
        temporary_folder(target).rmdir()
    except OSError as error:
        msg = f"{path}: the folder {target.parent} cannot be written to ({error.strerror})."
        raise PermissionError(msg) from error
    return target


def _is_anndata_store(path: Path) -> bool:
    for file in (path / name for name in ZARR_ATTRIBUTES):
        try:
            content = json.loads(file.read_bytes())
        except (OSError, ValueError):
            continue
        attributes = content.get("attributes", content) if isinstance(content, dict) else {}
        if isinstance(attributes, dict) and attributes.get("encoding-type") == "anndata":
            return True
    return False


def write(adata: AnnData, path: Path, *, force: bool) -> None:
    """Write an h5ad file or zarr store; the destination is complete or untouched."""
    check_suffix(path)
    with replacing(check_output(path, force=force)) as new:
        if path.suffix == ".h5ad":
            adata.write_h5ad(new, compression="gzip")
        else:
            adata.write_zarr(new)
