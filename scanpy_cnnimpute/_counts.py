"""Counts of all cells, in memory, on disk or in a Dask array: read by blocks of rows, with one pass of statistics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from ._checks import warn_user
from ._matrix import (
    MAX_LOGGED,
    N_SAMPLED_CELLS,
    check_matrix,
    evenly_spaced,
    indptr_problem,
    is_integer,
    to_csr,
    transformation,
    values_problem,
)
from ._progress import progress_bar
from ._threads import one_block_at_a_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK_ENTRIES = 2**24
"""Cells x genes of a block that is read from disk: 8,000 cells of 2,000 genes, imputed at most 130 MB."""
MAX_BLOCK_CELLS = 20_000
FEW_FRACTIONS = 0.01  # share of the non-zeros below which their number is told
DOMINANT = 0.5  # share of all counts above which one entry is named: all sizes and depths follow it
MIN_NONZEROS = 20  # among fewer, one is easily more than half


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Statistics of counts, of one pass.

    Attributes
    ----------
    library_size, n_genes
        ``(n_cells,)`` total counts, and number of genes with counts.
    gene_total, n_cells
        ``(n_genes,)`` total counts, and number of cells with counts.
    is_whole
        Whether all counts are whole numbers.
    n_fractions
        Number of counts that are not.
    largest
        Largest count.
    problem
        What is wrong with the values, in words.
    """

    library_size: np.ndarray
    n_genes: np.ndarray
    gene_total: np.ndarray
    n_cells: np.ndarray
    is_whole: bool
    n_fractions: int
    largest: float
    problem: str | None

    @property
    def nnz(self) -> int:
        """Number of entries with counts."""
        return int(self.n_genes.sum())

    @classmethod
    def of(cls, counts: sp.csr_array) -> Totals:
        """Statistics of a block."""
        whole = is_integer(counts.data)
        with np.errstate(invalid="ignore", over="ignore"):  # infinite values are a problem that is told
            return cls(
                library_size=counts.sum(axis=1, dtype=np.float64),
                n_genes=np.diff(counts.indptr).astype(np.int64),
                gene_total=counts.sum(axis=0, dtype=np.float64),
                n_cells=np.bincount(counts.indices, minlength=counts.shape[1]),
                is_whole=whole,
                n_fractions=0 if whole else int((counts.data != np.rint(counts.data)).sum()),
                largest=float(counts.data.max(initial=0)),
                problem=values_problem(counts),
            )

    @classmethod
    def joined(cls, parts: list[Totals], n_genes: int) -> Totals:
        """Statistics of blocks, one after the other, put together."""
        none = np.zeros(n_genes)
        return cls(
            library_size=np.concatenate([np.empty(0), *(part.library_size for part in parts)]),
            n_genes=np.concatenate([np.empty(0, dtype=np.int64), *(part.n_genes for part in parts)]),
            gene_total=sum((part.gene_total for part in parts), none),
            n_cells=sum((part.n_cells for part in parts), none.astype(np.int64)),
            is_whole=all(part.is_whole for part in parts),
            n_fractions=sum(part.n_fractions for part in parts),
            largest=max((part.largest for part in parts), default=0.0),
            problem=next((part.problem for part in parts if part.problem is not None), None),
        )


class Counts(ABC):
    """Counts of cells x genes.

    Attributes
    ----------
    shape, dtype
        Of the matrix.
    matrix
        The counts as the user has them.
    where
        What messages call them.
    """

    matrix: Any
    where: str

    @staticmethod
    def of(matrix: Any, *, where: str = "X") -> Counts:
        """Read a matrix of any kind that is supported.

        Parameters
        ----------
        matrix
            ``(n_cells, n_genes)``: what :func:`~scanpy_cnnimpute._matrix.to_csr` takes; a Dask array chunked by rows,
            of CSR or dense blocks; CSR or dense counts on disk, as anndata, h5py and zarr give them.
        where
            What messages call it.

        Raises
        ------
        TypeError, ValueError
            For other containers, and for Dask arrays and files that cannot be read by rows.
        """
        if isinstance(matrix, Counts):
            return matrix
        if is_dask(matrix):
            return DaskCounts(matrix, where)
        if is_stored(matrix):
            return StoredCounts(matrix, where)
        if _kind(matrix) == "anndata._CSCDataset":
            msg = (
                f"{where} is a CSC matrix on disk, which cannot be read by cells. Store it as CSR, e.g. "
                "adata.X = scipy.sparse.csr_matrix(adata.X) before it is written, or call adata.to_memory()."
            )
            raise TypeError(msg)
        return CountsInMemory(matrix, where)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of cells and genes."""
        n_cells, n_genes = self.matrix.shape
        return int(n_cells), int(n_genes)

    @property
    def dtype(self) -> np.dtype:
        """Of the values, as the user has them."""
        return np.dtype(self.matrix.dtype)

    @property
    @abstractmethod
    def container(self) -> type:
        """Kind of matrix that results become: ``numpy.ndarray``, ``csr_matrix`` or ``csr_array``."""

    @abstractmethod
    def rows(self, positions: np.ndarray) -> sp.csr_array:
        """Counts of some cells, in the order of the positions, which rise."""

    @abstractmethod
    def blocks(self) -> Iterator[tuple[np.ndarray, sp.csr_array]]:
        """Positions and counts of cells that are held at a time; all cells, one block after the other."""

    def map(
        self, function: Callable[..., Any], what: str, *, by_cell: Callable[[np.ndarray], Any] | None = None
    ) -> list[Any]:
        """Apply a function to the counts of every block; results are in the order of the blocks.

        Parameters
        ----------
        function
            Takes the counts and, if there is one, the result of `by_cell`.
        what
            Name of the progress bar.
        by_cell
            A function of the positions of the block.
        """
        results = []
        with progress_bar(what, self.shape[0], unit="cells") as bar:
            for rows, counts in self.blocks():
                results.append(function(counts) if by_cell is None else function(counts, by_cell(rows)))
                bar.update(rows.size)
        return results

    def matrices(self) -> Iterator[tuple[np.ndarray, Any]]:
        """As :meth:`blocks`, in the container that the user has."""
        for rows, counts in self.blocks():
            yield rows, counts.toarray() if self.container is np.ndarray else self.container(counts)

    def load(self) -> sp.csr_array:
        """All counts, in memory."""
        return self.rows(np.arange(self.shape[0]))

    def to_dense(self, dtype: np.dtype) -> np.ndarray:
        """A dense copy in memory, in this dtype."""
        dense = np.empty(self.shape, dtype=dtype)
        for rows, counts in self.blocks():
            dense[rows] = counts.toarray()
        return dense

    @cached_property
    def totals(self) -> Totals:
        """Statistics of one pass."""
        return Totals.joined(self.map(Totals.of, "Reading"), self.shape[1])

    def check(self, *, caller: str, suggestion: str | Callable[[], str] = "", integers: bool = True) -> None:
        """Refuse values that are no raw counts; warn of fractions that may be, and of one count that is most of all.

        Parameters
        ----------
        caller
            What messages call the function that needs counts.
        suggestion
            Sentence that ends an error message, or a function that composes it.
        integers
            Whether a model is to be fitted to them: then fractions, and one count that is most of all, are looked at.
            Otherwise imputed counts are counts, too.

        Raises
        ------
        ValueError
            For NaN, infinite, negative and inexact values, and for values that were normalised, log-transformed or
            root-transformed.
        """
        totals, verb = self.totals, "has"
        problem = totals.problem
        if problem is None and integers and not totals.is_whole:
            filled = np.flatnonzero(totals.n_genes)
            sample = self.rows(filled[evenly_spaced(filled.size, N_SAMPLED_CELLS)])
            verb, problem = "looks", transformation(sample)
            share = totals.n_fractions / totals.nnz
            if problem is None and share > 0.5 and totals.largest < MAX_LOGGED:  # noqa: PLR2004
                problem = (
                    f"log-transformed ({share:.0%} of its non-zeros are fractions, the largest is {totals.largest:.3g})"
                )
            if problem is None:
                few = f"{totals.n_fractions} of {totals.nnz}" if share < FEW_FRACTIONS else f"{share:.0%} of the"
                fractions = f"{few} non-zeros are not whole numbers"
                warn_user(f"{self.where}: {fractions}; {caller} is meant for raw counts.")
        if problem is not None:
            end = suggestion if isinstance(suggestion, str) else suggestion()
            needs = "raw counts" if integers else "counts"
            msg = f"{self.where} {verb} {problem}; {caller} needs {needs}.{end and ' '}{end}"
            raise ValueError(msg)
        share = totals.largest / max(totals.gene_total.sum(), 1)
        if integers and share > DOMINANT and totals.nnz >= MIN_NONZEROS:
            warn_user(
                f"{self.where}: one count, {totals.largest:.4g} (cell {totals.library_size.argmax()}, gene "
                f"{totals.gene_total.argmax()}, from 0), is {share:.1%} of all counts, and what {caller} finds follows "
                "it; look whether it is an error."
            )


class CountsInMemory(Counts):
    """A NumPy array or SciPy matrix, as canonical CSR."""

    def __init__(self, matrix: Any, where: str = "X") -> None:
        self.matrix, self.where = matrix, where
        self.csr = to_csr(matrix, where=where)

    @property
    def container(self) -> type:
        """See :class:`Counts`."""
        return _container_of(self.matrix)

    def rows(self, positions: np.ndarray) -> sp.csr_array:
        """See :class:`Counts`; all cells are not copied."""
        everything = positions.size == self.csr.shape[0] and (positions == np.arange(positions.size)).all()
        return self.csr if everything else self.csr[positions]

    def matrices(self) -> Iterator[tuple[np.ndarray, Any]]:
        """See :class:`Counts`."""
        yield np.arange(self.csr.shape[0]), self.matrix

    def to_dense(self, dtype: np.dtype) -> np.ndarray:
        """See :class:`Counts`."""
        dense = self.matrix.toarray() if sp.issparse(self.matrix) else self.matrix
        return dense.astype(dtype, order="C")

    def blocks(self) -> Iterator[tuple[np.ndarray, sp.csr_array]]:
        """One block of all cells."""
        yield np.arange(self.csr.shape[0]), self.csr


class StoredCounts(Counts):
    """CSR or dense counts in an h5ad file or zarr store, of which blocks are read."""

    def __init__(self, matrix: Any, where: str) -> None:
        self.matrix, self.where = matrix, where
        _check_two_dimensions(matrix, where)
        if hasattr(matrix, "format"):
            _check_stored_csr(matrix, where)
        height = BLOCK_ENTRIES // max(self.shape[1], 1)
        self._height = int(np.clip(height, 1, MAX_BLOCK_CELLS))
        self.n_blocks = -(-self.shape[0] // self._height)

    @property
    def container(self) -> type:
        """See :class:`Counts`."""
        return sp.csr_matrix if hasattr(self.matrix, "format") else np.ndarray

    def block_rows(self, number: int) -> np.ndarray:
        """Positions of the cells of a block."""
        return np.arange(number * self._height, min((number + 1) * self._height, self.shape[0]))

    def block(self, rows: np.ndarray) -> Any:
        """The cells of a block, in the container that the user has."""
        return self.matrix[int(rows[0]) : int(rows[-1]) + 1]

    def _read(self, start: int, stop: int) -> sp.csr_array:
        return _block_csr(self.matrix[start:stop], (stop - start, self.shape[1]), self.where)

    def rows(self, positions: np.ndarray) -> sp.csr_array:
        """See :class:`Counts`; blocks are read as a whole, since files are compressed in chunks."""
        if positions.size and positions[-1] - positions[0] == positions.size - 1:
            return self._read(int(positions[0]), int(positions[-1]) + 1)
        parts = [self._read(0, 0)]
        for block in np.unique(positions // self._height):
            first = int(block) * self._height
            own = positions[positions // self._height == block] - first
            parts.append(self._read(first, min(first + self._height, self.shape[0]))[own])
        return sp.csr_array(sp.vstack(parts, format="csr"))

    def blocks(self) -> Iterator[tuple[np.ndarray, sp.csr_array]]:
        """Blocks of a bounded number of entries."""
        for number in range(self.n_blocks):
            rows = self.block_rows(number)
            yield rows, self._read(int(rows[0]), int(rows[-1]) + 1)


class DaskCounts(Counts):
    """A Dask array whose chunks are rows; what is asked of it is computed by the scheduler that the user has chosen."""

    def __init__(self, matrix: Any, where: str) -> None:
        self.matrix, self.where = matrix, where
        _check_two_dimensions(matrix, where)
        if len(matrix.chunks[1]) > 1 or np.isnan(matrix.shape).any() or np.isnan(matrix.chunks[0]).any():
            chunks = "unknown" if np.isnan(matrix.shape).any() else f"{len(matrix.chunks[1])} blocks of genes"
            msg = (
                f"{where} is a Dask array with chunks that are not whole cells ({chunks}): they have to hold all genes "
                f"of some cells. Call .rechunk((n_cells, -1)) on a dense one, or read it with "
                "anndata.experimental.read_elem_lazy(..., chunks=(n_cells, n_genes))."
            )
            raise ValueError(msg)
        if getattr(matrix._meta, "format", "csr") != "csr":
            msg = (
                f"{where} is a Dask array of {matrix._meta.format.upper()} blocks, which cannot be read by cells. "
                "Store it as CSR, or call .map_blocks(scipy.sparse.csr_matrix) on an array that is chunked by cells."
            )
            raise TypeError(msg)

    @property
    def container(self) -> type:
        """See :class:`Counts`."""
        return _container_of(self.matrix._meta)

    @cached_property
    def _chunk_rows(self) -> list[np.ndarray]:
        """Positions of the cells of each chunk."""
        return np.split(np.arange(self.shape[0]), np.cumsum(self.matrix.chunks[0])[:-1])

    def _chunks(self) -> Iterator[tuple[Any, np.ndarray, tuple[int, int]]]:
        """The delayed chunks, the positions of their cells, and their expected shapes."""
        for block, rows in zip(self.matrix.to_delayed().ravel(), self._chunk_rows, strict=True):
            yield block, rows, (rows.size, self.shape[1])

    def _compute(self, tasks: list[Any]) -> list[Any]:
        import dask

        return list(dask.compute(*tasks))

    def rows(self, positions: np.ndarray) -> sp.csr_array:
        """See :class:`Counts`; only chunks that hold some of the cells are computed."""
        from dask import delayed

        take, tasks = delayed(_rows_of_block, pure=True), []
        for block, rows, shape in self._chunks():
            first = rows[0] if rows.size else 0
            own = positions[slice(*np.searchsorted(positions, [first, first + rows.size]))] - first
            if own.size:
                tasks.append(take(block, own, shape, self.where))
        none = sp.csr_array((0, self.shape[1]), dtype=self.dtype)
        return sp.csr_array(sp.vstack([none, *self._compute(tasks)], format="csr", dtype=self.dtype))

    def map(
        self, function: Callable[..., Any], what: str, *, by_cell: Callable[[np.ndarray], Any] | None = None
    ) -> list[Any]:
        """See :class:`Counts`; chunks are computed at the same time, as the scheduler allows."""
        from dask import delayed

        shared, apply = delayed(function, pure=True), delayed(_apply_to_block, pure=True)
        return self._compute(
            [
                apply(shared, self.where, shape, block, *(() if by_cell is None else (by_cell(rows),)))
                for block, rows, shape in self._chunks()
            ]
        )

    def lazily(
        self,
        function: Callable[..., Any],
        *,
        by_cell: Callable[[np.ndarray], Any],
        layer: Any = None,
        container: type,
        dtype: np.dtype,
    ) -> Any:
        """A lazy Dask array with the same chunks.

        Parameters
        ----------
        function
            Takes a chunk as the user has it, the result of `by_cell` and, if there is one, the chunk of the layer.
            Returns a matrix of the chunk's shape. It is sent to each worker once.
        by_cell
            A function of the positions of a chunk's cells, called at once.
        layer
            Matrix of the same shape, in memory or a Dask array.
        container, dtype
            What the chunks of the result are.
        """
        import dask.array as da
        from dask import delayed
        from dask.base import tokenize

        chunks = self.matrix.chunks
        if layer is not None and not is_dask(layer):
            layer = da.from_array(layer, chunks=chunks, asarray=False)
        token = tokenize(function, self.matrix.name, None if layer is None else layer.name)
        own = {
            (f"cells-{token}", number, 0): _OfChunk(by_cell(rows), (rows.size, self.shape[1]), self.where)
            for number, rows in enumerate(self._chunk_rows)
        }
        cells = da.Array(own, f"cells-{token}", (chunks[0], (1,)), dtype=object)
        layers = [] if layer is None else [layer.rechunk(chunks)]
        return da.map_blocks(
            _call_on_chunk,
            self.matrix,
            cells,
            *layers,
            function=delayed(function, pure=True),
            chunks=chunks,
            dtype=dtype,
            meta=empty_matrix(container, dtype),
            name=f"{getattr(function, 'label', 'block')}-{token}",
        )

    def blocks(self) -> Iterator[tuple[np.ndarray, sp.csr_array]]:
        """The chunks, computed one after the other."""
        for block, rows, shape in self._chunks():
            yield rows, _block_csr(block.compute(), shape, self.where)


def _kind(matrix: Any) -> str:
    return f"{type(matrix).__module__.split('.')[0]}.{type(matrix).__name__}"


def is_dask(matrix: Any) -> bool:
    """Whether a matrix is a Dask array."""
    return hasattr(matrix, "__dask_graph__")


def is_stored(matrix: Any) -> bool:
    """Whether a matrix is in a file that can be read by rows."""
    return _kind(matrix) in {"anndata._CSRDataset", "h5py.Dataset", "zarr.Array"}


def _container_of(matrix: Any) -> type:
    """Kind of a matrix in memory, CSC counted as CSR."""
    if not sp.issparse(matrix):
        return np.ndarray
    return sp.csr_matrix if isinstance(matrix, sp.spmatrix) else sp.csr_array


def empty_matrix(container: type, dtype: np.dtype) -> Any:
    """A matrix of no cells and no genes of this kind."""
    return np.empty((0, 0), dtype=dtype) if container is np.ndarray else container((0, 0), dtype=dtype)


def joined_blocks(parts: list[Any]) -> Any:
    """Matrices of blocks of cells, or tuples of matrices, one after the other."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], tuple):
        return tuple(joined_blocks(list(each)) for each in zip(*parts, strict=True))
    return sp.vstack(parts, format="csr") if sp.issparse(parts[0]) else np.concatenate(parts)


@dataclass(frozen=True)
class _OfChunk:
    """A chunk: what is known of its cells, its expected shape, and the name of the matrix in messages."""

    cells: Any
    shape: tuple[int, int]
    where: str


def _check_block(block: Any, shape: tuple[int, int], where: str) -> None:
    """Refuse a block of an unexpected shape: compiled code would read beyond its end."""
    if np.shape(block) != shape:
        msg = (
            f"A block of {where} has shape {np.shape(block)}, expected {shape}: the chunks of a Dask array, or the "
            "file, do not hold what their shape says."
        )
        raise ValueError(msg)


def _block_csr(block: Any, shape: tuple[int, int], where: str) -> sp.csr_array:
    _check_block(block, shape, where)
    return to_csr(block, where=where)


def _rows_of_block(block: Any, rows: np.ndarray, shape: tuple[int, int], where: str) -> sp.csr_array:
    _check_block(block, shape, where)
    return to_csr(check_matrix(block, where)[rows], where=where)


def _apply_to_block(function: Callable[..., Any], where: str, shape: tuple[int, int], block: Any, *others: Any) -> Any:
    counts = _block_csr(block, shape, where)
    with one_block_at_a_time():
        return function(counts, *others)


def _call_on_chunk(block: Any, chunk: _OfChunk, layer: Any = None, *, function: Callable[..., Any]) -> Any:
    _check_block(block, chunk.shape, chunk.where)
    if layer is not None:
        _check_block(layer, chunk.shape, "the dropout layer")
    with one_block_at_a_time():
        return function(block, chunk.cells) if layer is None else function(block, chunk.cells, layer)


def _check_stored_csr(matrix: Any, where: str) -> None:
    """Refuse a CSR matrix on disk whose rows are not where it says; indices are checked as they are read."""
    n_values, n_indices = (int(matrix.group[name].shape[0]) for name in ("data", "indices"))
    problem = indptr_problem(np.asarray(matrix.group["indptr"][:]), matrix.shape[0], n_values)
    if n_values != n_indices:
        problem = f"{n_indices} indices for {n_values} values"
    if problem is not None:
        msg = f"{where} is a damaged sparse matrix: {problem}."
        raise ValueError(msg)


def _check_two_dimensions(matrix: Any, where: str) -> None:
    if len(matrix.shape) != 2:  # noqa: PLR2004
        msg = f"{where} has {len(matrix.shape)} dimensions, expected 2: cells x genes."
        raise ValueError(msg)
