"""``estimate``: what an imputation will take, from a short calibration on some of the cells."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import anndata
import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from ._anndata import files, stores
from ._anndata.counts import raw_matrix
from ._anndata.selection import selected_genes
from ._checks import check_choice, check_number
from ._counts import BLOCK_ENTRIES, Counts, CountsInMemory
from ._matrix import evenly_spaced
from ._memory import LIBRARY_BYTES, bytes_in_memory, format_size, limit_or_default
from .dropout import MODELS, Clusters, ModelledDropout, check_efficiency
from .dropout.calibrated.model import MAX_CELLS
from .imputation import Entries, FitOptions, Targets, find_imputer, resolve_settings
from .imputation.assemble import result_container
from .imputation.blocks import BlockImputer

if TYPE_CHECKING:
    from collections.abc import Callable

    from .imputation import Imputer

Result = TypeVar("Result")

SMALL, LARGE = 150, 450  # cells of the calibration: two sizes tell what grows with the cells from what does not
N_SLICES = 3  # the cells come from so many places of the data
STEPS = 12  # of the training
TIMED_ENTRIES = 8_000_000  # cells x genes whose prediction and reading is timed: 4,000 cells of 2,000 genes
N_READS = 5  # passes over the counts: statistics, description, and cells of the fits
# Memory beyond that of the libraries, measured at 6,000 to 1,000,000 cells: bytes for each entry of the cells that a
# model is fitted to, and of a block; copies of the result while it is put together.
FIT_BYTES, BLOCK_BYTES, RESULT_COPIES = 16, 26, 1.3
CELL_BYTES, GENE_BYTES = 100, 250  # of the fitted models
HIGH_THRESHOLD, FEW_GENES = 0.5, 2_000  # that the advice is about: a sensible threshold, and Scanpy's variable genes


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What an imputation will take.

    Attributes
    ----------
    n_cells, n_genes
        Size of the data.
    n_entries
        Entries that are imputed.
    seconds
        Time on this machine, with reading and, from file to file, writing.
    peak_bytes
        Largest memory of the process.
    added_bytes
        Added on disk, compressed as the output is.
    by_blocks
        Whether the data are read block by block rather than held in memory.
    advice
        What would make it smaller.
    """

    n_cells: int
    n_genes: int
    n_entries: int
    seconds: float
    peak_bytes: int
    added_bytes: int
    by_blocks: bool
    advice: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """The estimate in words."""
        lines = [
            f"{self.n_cells:,} cells x {self.n_genes:,} genes, {'block by block' if self.by_blocks else 'in memory'}",
            f"entries to impute: {self.n_entries:,} ({self.n_entries / max(self.n_cells * self.n_genes, 1):.0%})",
            f"time on this machine: about {_time(self.seconds)}",
            f"memory: about {format_size(self.peak_bytes)}",
            f"added on disk: about {format_size(self.added_bytes)}",
            *(f"smaller: {each}" for each in self.advice),
        ]
        return "\n".join(lines)


def estimate(
    data: AnnData | str | Path,
    *,
    layer: str | None = None,
    estimate: str | None = None,
    entries: Entries = "zeros",
    mask_var: str | np.ndarray | None = None,
    store: str = "auto",
    capture_efficiency: float | None = None,
    memory_limit: int | None = None,
    **settings: Any,
) -> Estimate:
    """Estimate what :func:`~scanpy_cnnimpute.pp.cnn_impute` will take, by running it on some hundred cells.

    Parameters
    ----------
    data
        Annotated data, or the path of an h5ad file or zarr store, which the command line would impute.
    layer, estimate, entries, mask_var, store
        As for :func:`~scanpy_cnnimpute.pp.cnn_impute`, with ``preset="default"``.
    capture_efficiency
        As for :func:`~scanpy_cnnimpute.pp.dropout_prob`, one number.
    memory_limit
        Bytes above which a file is read block by block. Default: half of this machine's memory.
    settings
        Further settings, such as ``threshold`` and ``n_steps``.

    Returns
    -------
    The estimate, which prints as text. Time and memory are right within a factor of two on the machine that it was made
    on.

    Raises
    ------
    ValueError, TypeError, KeyError
        For counts, keys and settings that an imputation refuses, too.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> found = scnn.estimate(scnn.datasets.five_cell_lines()[:, :300].copy(), n_steps=20)
    >>> found.n_cells, found.by_blocks
    (297, False)
    """
    check_choice("store", store, ("auto", "layer", "params"))
    if not isinstance(data, AnnData | str | PathLike):
        msg = f"data has type {type(data).__name__}, expected an AnnData or the path of an h5ad file or zarr store."
        raise TypeError(msg)
    if capture_efficiency is not None:
        efficiency = np.array([check_number("capture_efficiency", capture_efficiency, float)])
        check_efficiency(efficiency, np.ones(1, dtype=bool), where=f"capture_efficiency={capture_efficiency!r}")
    if memory_limit is not None:
        memory_limit = check_number("memory_limit", memory_limit, int, 0)
    kind = find_imputer("default", estimate, entries)
    with ExitStack() as stack:
        if isinstance(data, AnnData):
            adata, suffix = data, None
        else:
            path = Path(data)
            files.check_input(path)
            suffix = path.suffix
            is_large = bytes_in_memory(path, layer) > limit_or_default(memory_limit)
            group = stack.enter_context(stores.opened(path))
            adata = stores.with_matrices(stores.without_matrices(group), group, [] if layer is None else [layer])
        counts, selected = Counts.of(raw_matrix(adata, layer)), selected_genes(adata, mask_var)
        by_blocks = not isinstance(counts, CountsInMemory) if suffix is None else is_large
        chosen = resolve_settings(kind, estimate or kind.estimates[0], settings)
        (sample, n_read), read_seconds = _timed(lambda: _sample(counts))
        calibration = _Calibration(
            sample=sample,
            container=result_container(counts, kind),
            kind=kind,
            estimate=estimate or kind.estimates[0],
            settings=resolve_settings(kind, estimate or kind.estimates[0], {"n_steps": STEPS, **settings}),
            selected=selected,
            capture_efficiency=capture_efficiency,
            suffix=suffix,
        )
        n_steps = chosen.as_dict()["n_steps"]
        read = 0.0 if isinstance(counts, CountsInMemory) else read_seconds / max(n_read, 1)
        return calibration.scaled_to(counts.shape[0], n_steps=n_steps, read=read, store=store, by_blocks=by_blocks)


@dataclass(frozen=True, kw_only=True)
class _Times:
    """Seconds and imputed entries of some cells; seconds, and bytes of the result, for each cell."""

    n_cells: int
    fit: float
    train: float
    n_entries: int
    high_entries: int
    describe: float
    predict: float
    write: float
    stored_bytes: float
    result_bytes: float


@dataclass(frozen=True, kw_only=True)
class _Calibration:
    """Runs of an imputation on few cells."""

    sample: sp.csr_array
    container: type
    kind: type[Imputer]
    estimate: str
    settings: Any
    selected: np.ndarray
    capture_efficiency: float | None
    suffix: str | None

    def run(self, n_cells: int) -> _Times:
        """Impute some of the cells, timing each stage."""
        counts = CountsInMemory(
            self.container(self.sample[:n_cells]) if self._is_sparse else self.sample[:n_cells].toarray()
        )
        model, efficiency = MODELS["calibrated"], None
        if self.capture_efficiency is not None:
            efficiency = np.full(n_cells, self.capture_efficiency)
        fit, fit_seconds = _timed(
            lambda: model.fit(counts, clusters=None, capture_efficiency=efficiency, count_type="umi", random_state=0)
        )
        dropout = ModelledDropout(counts, fit.model, fit.cells)
        options = FitOptions(
            settings=self.settings,
            estimate=self.estimate,
            random_state=0,
            targets=Targets.of(fit.model, self.selected, gate=self.kind.can_gate),
            clusters=Clusters.single(n_cells),
        )
        imputer, train_seconds = _timed(lambda: self.kind.fit(counts, dropout, options))
        block = BlockImputer(imputer=imputer, model=fit.model)
        many = np.resize(np.arange(n_cells), max(n_cells, TIMED_ENTRIES // counts.shape[1]))
        repeated, cells = CountsInMemory(counts.matrix[many]), fit.cells.take(cells=many)
        block(counts.matrix, fit.cells)  # compiles
        result, predict_seconds = _timed(lambda: block(repeated.matrix, cells))
        _, describe_seconds = _timed(lambda: fit.model.describe(repeated.csr))
        (stored_bytes, result_bytes), write_seconds = _timed(lambda: _stored_size(result, self.suffix))
        probability = fit.model.probabilities(counts.csr, fit.cells)
        n_high = int((probability[:, self.selected] > HIGH_THRESHOLD).sum())
        n_values = result.nnz if sp.issparse(result) else int(np.count_nonzero(result))
        n_zeros = (n_values - repeated.csr.nnz) * n_cells / many.size
        everything = self.kind.entries == "all"
        return _Times(
            n_cells=n_cells,
            fit=fit_seconds,
            train=train_seconds,
            describe=describe_seconds / many.size,
            predict=predict_seconds / many.size,
            write=write_seconds / many.size,
            n_entries=n_cells * int(self.selected.sum()) if everything else round(n_zeros),
            stored_bytes=stored_bytes / many.size,
            result_bytes=result_bytes / many.size,
            high_entries=n_high,
        )

    @property
    def _is_sparse(self) -> bool:
        return self.container is not np.ndarray

    def scaled_to(self, n_cells: int, *, n_steps: int, read: float, store: str, by_blocks: bool) -> Estimate:
        """What the runs say of all cells."""
        n_genes, n_large = self.sample.shape[1], self.sample.shape[0]
        n_small = max(n_large * SMALL // LARGE, 1)
        _, seconds_of_first = _timed(lambda: self.run(n_small))
        small, seconds_of_small = _timed(lambda: self.run(n_small))
        self.run(n_large)  # compiles for its shapes
        large = self.run(n_large)
        n_fitted = min(n_cells, MAX_CELLS)
        start_up = max(seconds_of_first - seconds_of_small, 0.0)
        train_start, train_slope = _line(small.n_cells, small.train, large.n_cells, large.train)
        fit_start, fit_slope = _line(small.n_cells, small.fit, large.n_cells, large.fit)
        writes = store != "params"
        per_cell = large.describe + (large.predict if writes else 0.0)
        n_reads = N_READS + (2 if writes else 0)
        if writes and self.suffix is not None:
            per_cell += large.write
        seconds = start_up + fit_start + fit_slope * n_fitted
        seconds += train_start * n_steps / STEPS + train_slope * n_fitted + n_cells * (per_cell + n_reads * read)
        share = n_cells / n_large
        result_bytes = large.result_bytes * n_cells if writes else 0.0
        counts_bytes = self.sample.nnz * 8 * share if self._is_sparse else self.sample.shape[1] * n_cells * 4
        held = 0.0 if by_blocks else 2 * counts_bytes + RESULT_COPIES * result_bytes
        peak = LIBRARY_BYTES + FIT_BYTES * n_fitted * n_genes + CELL_BYTES * n_cells + held
        peak += BLOCK_BYTES * min(BLOCK_ENTRIES, n_cells * n_genes) if by_blocks and writes else 0
        params = CELL_BYTES * n_cells + GENE_BYTES * n_genes
        added = params + (large.stored_bytes * n_cells if writes else 0)
        return Estimate(
            n_cells=n_cells,
            n_genes=n_genes,
            n_entries=round(large.n_entries * share),
            seconds=seconds,
            peak_bytes=round(peak),
            added_bytes=round(added),
            by_blocks=by_blocks,
            advice=self._advice(large, n_cells, params, added) if writes else [],
        )

    def _advice(self, large: _Times, n_cells: int, params: float, added: float) -> list[str]:
        """What would make it smaller, with figures."""
        advice = [f"store='params' adds {format_size(params)}, and get.cnn_imputed gives any part"]
        n_selected = int(self.selected.sum())
        if n_selected > FEW_GENES:
            fewer = params + (added - params) * FEW_GENES / n_selected
            advice.append(f"mask_var= with {FEW_GENES:,} genes adds {format_size(fewer)}")
        if self.kind.entries == "zeros" and large.high_entries < large.n_entries / 2:
            n_high = large.high_entries * n_cells // large.n_cells
            advice.append(f"threshold={HIGH_THRESHOLD} imputes {n_high:,} entries")
        return advice


def _sample(counts: Counts) -> tuple[sp.csr_array, int]:
    """Cells of the calibration from several places of the data, and how many cells were read for them."""
    n_cells = counts.shape[0]
    length = min(max(TIMED_ENTRIES // max(counts.shape[1], 1), LARGE // N_SLICES), n_cells)
    starts = np.linspace(0, n_cells - length, N_SLICES).astype(np.int64)
    chosen = evenly_spaced(length, LARGE // N_SLICES)
    parts = [counts.rows(np.arange(start, start + length))[chosen] for start in starts]
    return sp.csr_array(sp.vstack(parts, format="csr")), N_SLICES * length


def _timed(call: Callable[[], Result]) -> tuple[Result, float]:
    started = perf_counter()
    return call(), perf_counter() - started


def _line(n_small: int, small: float, n_large: int, large: float) -> tuple[float, float]:
    """Seconds that do not grow with the cells, and seconds for each cell."""
    slope = max((large - small) / max(n_large - n_small, 1), 0.0)
    return max(small - slope * n_small, 0.0), slope


def _stored_size(result: Any, suffix: str | None) -> tuple[int, int]:
    """Bytes of a matrix in a file or store, and in memory."""
    parts = [result.data, result.indices] if sp.issparse(result) else [result]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"sample{suffix or '.h5ad'}"
        with stores.created(path) as group:
            anndata.io.write_elem(group, "X", result, dataset_kwargs=stores.dataset_options(path))
        found = [path, *path.rglob("*")] if path.is_dir() else [path]
        return sum(each.stat().st_size for each in found if each.is_file()), sum(part.nbytes for part in parts)


def _time(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"  # noqa: PLR2004
