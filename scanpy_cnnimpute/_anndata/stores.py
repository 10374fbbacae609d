"""AnnData files and stores that are not read as a whole: opened, and copied block by block."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
from anndata import AnnData

from .._progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

COPIED_BYTES = 2**26  # of a matrix at a time
CHUNK_BYTES = 2**22  # of a dense array that is compressed at a time
IN_MEMORY = ("obs", "var", "obsm", "varm", "uns")
"""Elements that are read as a whole: a row for each cell or gene, or small."""
H5AD_OPTIONS = {"compression": "gzip"}


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The group of an h5ad file or zarr store, to be read; a ValueError names a damaged one."""
    try:
        if path.suffix == ".zarr":
            import zarr

            group: Any = zarr.open_group(path, mode="r")
        else:
            import h5py

            group = h5py.File(path, mode="r")
        if group.attrs.get("encoding-type") != "anndata":
            found = group.attrs.get("encoding-type", "nothing of AnnData")
            msg = f"{path} holds {found!r}, expected 'anndata' as anndata >= 0.8 writes it."
            raise ValueError(msg)
    except (OSError, KeyError, FileNotFoundError) as error:
        msg = f"{path} cannot be read as an AnnData file, it may be truncated or damaged: {error}"
        raise ValueError(msg) from error
    try:
        yield group
    finally:
        if path.suffix != ".zarr":
            group.close()


@contextmanager
def created(path: Path) -> Iterator[Any]:
    """The group of a new file or store."""
    if path.suffix == ".zarr":
        import zarr

        group: Any = zarr.open_group(path, mode="w", zarr_format=anndata.settings.zarr_write_format)
    else:
        import h5py

        group = h5py.File(path, mode="w")
    group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    try:
        yield group
    finally:
        if path.suffix != ".zarr":
            group.close()
    if path.suffix == ".zarr":
        zarr.consolidate_metadata(path)


def matrix_of(element: Any) -> Any:
    """A matrix that stays where it is stored."""
    if element.attrs.get("encoding-type") in {"csr_matrix", "csc_matrix"}:
        return anndata.io.sparse_dataset(element)
    return element


def stored_bytes(element: Any) -> int:
    """Bytes that a matrix takes in memory."""
    if element.attrs.get("encoding-type") in {"csr_matrix", "csc_matrix"}:
        return sum(element[name].shape[0] * element[name].dtype.itemsize for name in ("data", "indices"))
    return int(np.prod(element.shape)) * element.dtype.itemsize


def dataset_options(path: Path) -> dict[str, Any]:
    """Options of the datasets of a file or store; zarr compresses by itself."""
    return H5AD_OPTIONS if path.suffix == ".h5ad" else {}


def without_matrices(group: Any, names: Iterable[str] = IN_MEMORY) -> AnnData:
    """The AnnData without `X`, layers, `obsp`, `varp` and `raw`, or with some of the other elements alone."""
    return AnnData(**{name: anndata.io.read_elem(group[name]) for name in names if name in group})


def with_matrices(adata: AnnData, group: Any, layers: Iterable[str]) -> AnnData:
    """The same with `X` and some layers, which stay in the store."""
    matrix = matrix_of(group["X"]) if "X" in group else None
    stored = group.get("layers", {})
    kept = {name: matrix_of(stored[name]) for name in layers if name in stored}
    parts = {name: getattr(adata, name) for name in IN_MEMORY}
    return AnnData(X=matrix, layers=kept, **parts)


def copy(source: Any, target: Any, name: str, options: dict[str, Any]) -> None:
    """Copy an element of any kind to another group, matrices block by block.

    Parameters
    ----------
    source, target
        Groups of h5py or zarr.
    name
        Of the element.
    options
        Of new datasets, such as their compression.

    Raises
    ------
    ValueError
        If the element cannot be read.
    """
    element = source[name]
    kind = element.attrs.get("encoding-type")
    if kind in {"csr_matrix", "csc_matrix"}:
        _copy_sparse(anndata.io.sparse_dataset(element), target, name, options)
    elif kind in {"dict", "raw", "anndata"}:
        group = target.create_group(name)
        group.attrs.update(dict(element.attrs))
        for each in element:
            copy(element, group, each, options)
    elif kind == "array" and len(element.shape) > 1 and all(element.shape) and element.dtype.kind in "iufb":
        height = max(1, COPIED_BYTES // max(int(np.prod(element.shape[1:])) * element.dtype.itemsize, 1))
        blocks = _read_blocks(element, element.__getitem__, element.shape[0], height)
        write_dense(target, name, element.shape, blocks, options)
    else:
        with _reading(element):
            value = anndata.io.read_elem(element)
        anndata.io.write_elem(target, name, value, dataset_kwargs=options)


@contextmanager
def _reading(element: Any) -> Iterator[None]:
    """Name the element that cannot be read."""
    try:
        yield
    except Exception as error:  # h5py, zarr and anndata raise a dozen kinds for damaged files
        msg = f"{element.name} of the input cannot be read, it may be damaged: {error}"
        raise ValueError(msg) from error


def _read_blocks(element: Any, read: Callable[[slice], Any], size: int, height: int) -> Iterator[Any]:
    """The rows of an element, or the columns, as `read` gives them, so many at a time; at least one block."""
    for start in range(0, max(size, 1), height):
        with _reading(element):
            part = read(slice(start, min(start + height, size)))
        yield part


def _copy_sparse(matrix: Any, target: Any, name: str, options: dict[str, Any]) -> None:
    is_csr = matrix.format == "csr"
    size = matrix.shape[0 if is_csr else 1]
    n_bytes = matrix.group["data"].shape[0] * (matrix.dtype.itemsize + 4)
    step = max(1, int(size * COPIED_BYTES / max(n_bytes, 1)))
    read = matrix.__getitem__ if is_csr else lambda columns: matrix[:, columns]
    write_sparse(target, name, _read_blocks(matrix.group, read, size, step), options)


def write_sparse(target: Any, name: str, parts: Iterable[Any], options: dict[str, Any]) -> None:
    """Write a sparse matrix whose rows, or columns, come one block after the other."""
    stored = None
    for part in parts:
        if stored is None:
            # 64 bits from the start: more entries may come than 32 bits can count.
            part.indptr = part.indptr.astype(np.int64)
            anndata.io.write_elem(target, name, part, dataset_kwargs=options)
            stored = anndata.io.sparse_dataset(target[name])
        else:
            stored.append(part)


def write_dense(
    target: Any, name: str, shape: tuple[int, ...], parts: Iterable[np.ndarray], options: dict[str, Any]
) -> None:
    """Write an array whose rows come one block after the other."""
    array, start = None, 0
    for part in parts:
        if array is None:
            height = max(1, min(len(part), CHUNK_BYTES // max(part[:1].nbytes, 1)))
            layout = {"shape": shape, "dtype": part.dtype, "chunks": (height, *shape[1:])}
            create = target.create_array if hasattr(target, "create_array") else target.create_dataset
            array = create(name, **layout, **options)
            array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        array[start : start + len(part)] = part
        start += len(part)


def counted(parts: Iterable[Any], n_cells: int, what: str) -> Iterator[Any]:
    """The parts, with a progress bar of their cells."""
    with progress_bar(what, n_cells, unit="cells") as bar:
        for part in parts:
            yield part
            bar.update(part.shape[0])
