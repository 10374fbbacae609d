"""Read and write AnnData files. Errors name the file; a file is never half written, and nothing else is replaced."""

from __future__ import annotations

import io
import json
import shutil
import unicodedata
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import anndata

from .. import _atomic
from .stores import H5AD_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anndata import AnnData

SUFFIXES = (".h5ad", ".zarr")
ZARR_ATTRIBUTES = (".zattrs", "zarr.json")  # files with the attributes of a store: zarr formats 2 and 3
STORE_CONTENT = {"X", "layers", "obs", "obsm", "obsp", "raw", "uns", "var", "varm", "varp"}
STORE_CONTENT |= _atomic.ZARR_FILES
"""What the folder of an AnnData store holds."""
SPACE_FACTOR, SPACE_BYTES = 2, 2**24
"""Of an AnnData in memory, and besides: its file takes less, be it incompressible or of many small parts."""
READ_BYTES = 2**20  # of a text that is looked at at a time


def check_suffix(path: Path) -> None:
    """Refuse names that are neither of h5ad nor of zarr."""
    if path.suffix not in SUFFIXES:
        msg = f"{path}: the name must end in one of {', '.join(SUFFIXES)}."
        raise ValueError(msg)


def check_input(path: Path) -> None:
    """Refuse a name of another kind, what is not there, and what is neither a regular file nor a store."""
    check_suffix(path)
    _atomic.recover_killed(_place(path))
    if not path.exists():
        msg = f"{path} does not exist."
        raise FileNotFoundError(msg)
    if not (path.is_dir() if path.suffix == ".zarr" else path.is_file()):
        msg = f"{path} is not a {'folder, as zarr stores are' if path.suffix == '.zarr' else 'regular file'}."
        raise ValueError(msg)


def read(path: Path) -> AnnData:
    """Read an h5ad file or zarr store into memory; a ValueError names a damaged one."""
    check_input(path)
    try:
        return anndata.read_h5ad(path) if path.suffix == ".h5ad" else anndata.read_zarr(path)
    except Exception as error:  # h5py, zarr and anndata raise a dozen kinds for damaged files
        msg = f"{path} cannot be read as an AnnData file, it may be truncated or damaged: {error}"
        raise ValueError(msg) from error


def check_output(path: Path, *, force: bool, is_text: bool = False) -> Path:
    """Check before the work that an output can be written; see :func:`replacing`. Returns its place."""
    with replacing(path, force=force, is_text=is_text, is_check=True):
        return _place(path)


@contextmanager
def replacing(path: Path, *, force: bool, is_text: bool = False, is_check: bool = False) -> Iterator[Path]:
    """Yield a path to write an output to, which gets its name at the end; symbolic links are followed.

    Parameters
    ----------
    path
        The output, which no other process can write to meanwhile.
    force
        Permit to replace an AnnData file or store, or a text; never another file, folder, pipe or device.
    is_text
        Whether the output is a text.
    is_check
        Write nothing.

    Raises
    ------
    FileExistsError
        If there is something that is not replaced, or the place is within a zarr store.
    FileNotFoundError, PermissionError
        If there is no folder for the output, or it cannot be written to.
    InUseError
        If another process writes to the output.
    """
    _check_replaced(path, force=force, is_text=is_text)
    target = _place(path)
    _atomic.check_outside_stores(target)
    if not target.parent.is_dir():
        msg = f"{path}: the folder {target.parent} does not exist."
        raise FileNotFoundError(msg)
    with ExitStack() as stack:
        try:
            place = stack.enter_context((_atomic.reserved if is_check else _atomic.replacing)(target))
        except OSError as error:
            msg = f"{path}: the folder {target.parent} cannot be written to ({error.strerror})."
            raise PermissionError(msg) from error
        # Again: another process may have made one, or one that was killed has been put back.
        _check_replaced(path, force=force, is_text=is_text)
        yield place
        if not is_check:
            _check_replaced(path, force=force, is_text=is_text)


def _place(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError as error:  # Python < 3.13 says so of links that lead to themselves
        raise OSError(str(error)) from error


def _check_replaced(path: Path, *, force: bool, is_text: bool) -> None:
    """Refuse to replace what is there without `force`, or of another kind."""
    if not path.exists():
        return
    if not force:
        msg = f"{path} exists. Pass --force to replace it."
        raise FileExistsError(msg)
    if is_text:
        kind, is_same = "a text file", path.is_file() and _is_text(path)
    elif path.suffix == ".zarr":
        kind, is_same = "an AnnData zarr store alone", path.is_dir() and _is_anndata_store(path)
    else:
        kind, is_same = "an AnnData h5ad file", path.is_file() and _is_anndata_file(path)
    if not is_same:
        msg = f"{path} is not {kind} and is not replaced, not even with --force. Choose another name or remove it."
        raise FileExistsError(msg)


def _is_text(path: Path) -> bool:
    """Whether a file has no control characters but those of texts."""
    with path.open(encoding="utf-8", errors="strict") as file:
        try:
            while part := file.read(READ_BYTES):
                if any(unicodedata.category(letter) == "Cc" and not letter.isspace() for letter in set(part)):
                    return False
        except UnicodeDecodeError:
            return False
    return True


def _is_anndata_file(path: Path) -> bool:
    import h5py

    try:
        if not h5py.is_hdf5(path):
            return False
        with h5py.File(path, mode="r", locking=False) as file:
            return file.attrs.get("encoding-type") == "anndata"
    except Exception:  # h5py raises a dozen kinds for damaged files
        return False


def _is_anndata_store(path: Path) -> bool:
    """Whether a folder is an AnnData store that holds nothing else."""
    if not {each.name for each in path.iterdir()} <= STORE_CONTENT:
        return False
    for file in (path / name for name in ZARR_ATTRIBUTES):
        try:
            content = json.loads(file.read_bytes())
        except (OSError, ValueError):
            continue
        attributes = content.get("attributes", content) if isinstance(content, dict) else {}
        if isinstance(attributes, dict) and attributes.get("encoding-type") == "anndata":
            return True
    return False


def write(adata: AnnData, new: Path, output: Path) -> None:
    """Write an h5ad file or zarr store to a new path, of the kind and for the errors of the output."""
    try:
        if output.suffix == ".zarr":
            adata.write_zarr(new)
        elif shutil.disk_usage(new.parent).free > SPACE_FACTOR * adata.__sizeof__() + SPACE_BYTES:
            adata.write_h5ad(new, **H5AD_OPTIONS)
        else:
            new.write_bytes(_h5ad_in_memory(adata))
    except (OSError, RuntimeError) as error:  # h5py raises both when a disk is full
        msg = f"{output} cannot be written: {error}"
        raise OSError(msg) from error


def _h5ad_in_memory(adata: AnnData) -> memoryview:
    """The content of an h5ad file, for a disk that may be full soon: libhdf5 ends the process when it is."""
    import h5py

    content = io.BytesIO()
    adata.strings_to_categoricals()
    with h5py.File(content, mode="w") as file:
        anndata.io.write_elem(file, "/", adata, dataset_kwargs=H5AD_OPTIONS)
    return content.getbuffer()
