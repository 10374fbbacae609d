"""Impute from file to file, block by block, and go on after an interrupt."""

from __future__ import annotations

import errno
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import scipy.sparse as sp

from ._anndata import files, stores
from ._anndata.counts import layer_names, open_counts, raw_matrix
from ._anndata.models import IMPUTE_FUNCTION, load_dropout, load_imputer
from ._anndata.results import written_by
from ._atomic import OLD, put_in_place, reserved, unfinished_folder
from ._counts import StoredCounts
from ._finished import FinishedParts, save_arrays, writing
from ._logging import logger
from ._memory import format_size
from ._process import start_keras
from ._progress import progress_bar, show_progress
from ._threads import one_block_at_a_time, worker_threads
from .imputation import find_imputer
from .imputation.assemble import result_container
from .imputation.blocks import BlockImputer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anndata import AnnData

FITTED = "fitted.h5ad"
MAX_EXACT = {"float16": 2**11}
"""Largest whole number up to which a type holds all."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one run writes, from which file, and how.

    Attributes
    ----------
    source, target
        Input and output, symbolic links followed.
    keywords
        Of :func:`~scanpy_cnnimpute.pp.cnn_impute`; arrays as lists.
    dtype
        Of the layers; None for that of :func:`~scanpy_cnnimpute.pp.cnn_impute`.
    """

    source: Path
    target: Path
    keywords: dict[str, Any]
    dtype: str | None

    @property
    def folder(self) -> Path:
        """Where finished parts are kept, beside the output."""
        return unfinished_folder(self.target)

    def layer_names(self) -> list[str]:
        """Layers that are written."""
        return written_layers(self.keywords)

    def key(self) -> dict[str, Any]:
        """What finished parts depend on."""
        from . import __version__

        paths = sorted(self.source.rglob("*")) if self.source.is_dir() else [self.source]
        states = [path.stat() for path in paths]
        identity = [
            str(self.source),
            len(states),
            sum(state.st_size for state in states),
            max(state.st_mtime_ns for state in states),
        ]
        kept = {name: value for name, value in self.keywords.items() if name not in {"n_jobs", "verbose"}}
        return {"input": identity, "keywords": kept, "dtype": self.dtype, "version": __version__}


def impute_file(
    job: Job,
    *,
    restart: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    verbose: bool = True,
) -> None:
    """Impute a file block by block; what is finished is kept until the output is complete.

    Parameters
    ----------
    job
        What to do.
    restart
        Do not go on from an interrupted run.
    workers, scheduler
        Processes of Dask to start for the blocks, or the address of its scheduler, whose workers see the same files.
    verbose
        Show progress.

    Raises
    ------
    ValueError
        If the input cannot be read by blocks, or its counts are not exact in the type that is asked for.
    """
    with reserved(job.target):
        pass  # puts back what a process was replacing when it was killed
    parts = FinishedParts(job.folder, job.key(), restart=restart)
    output = parts.path(f"output{job.target.suffix}")
    try:
        with show_progress(verbose):
            is_known = FITTED in parts
            if is_known:
                logger.info("Going on from %s", job.folder)
            else:
                _fit(job, parts)
            # The input may have changed since an earlier run.
            with _opened_fit(job, check=is_known) as fit, parts.writing(output.name) as new:
                if job.layer_names():
                    _impute_blocks(fit, parts, workers, scheduler)
                _check_space(job)
                _write(job, fit, parts, new)
        put_in_place(output, job.target, parts.path(OLD))
        parts.remove()
    except BaseException:
        if FITTED in parts:
            parts.close()
            logger.warning(
                "What is finished is kept in %s: the same command goes on from it; delete the folder to forget it.",
                job.folder,
            )
        else:
            parts.remove()
        raise


def _check_space(job: Job) -> None:
    """Refuse to write an h5ad file that may not fit on the disk: libhdf5 ends the process when it is full."""
    if job.target.suffix != ".h5ad":
        return
    paths = [job.source, *job.source.rglob("*"), *job.folder.iterdir()]
    most = sum(path.stat().st_size for path in paths if path.is_file())
    free = shutil.disk_usage(job.folder).free
    if free < most:
        msg = f"{job.target} may take {format_size(most)}, and {format_size(free)} of the disk are free"
        raise OSError(errno.ENOSPC, msg)


def _fit(job: Job, parts: FinishedParts) -> None:
    """Fit the models and keep everything but the matrices."""
    from . import pp

    with stores.opened(job.source) as group:
        adata = stores.with_matrices(stores.without_matrices(group), group, _layers(job))
        keywords = {**job.keywords, "store": "params", "return_std": False}
        if isinstance(job.keywords["mask_var"], list):
            keywords["mask_var"] = np.array(job.keywords["mask_var"], dtype=bool)
        check_dtype(adata, job.keywords["layer"], job.dtype)
        pp.cnn_impute(adata, **keywords)
        _record_layers(job, adata)
        adata.X = None
        for name in layer_names(adata):
            del adata.layers[name]
        with parts.writing(FITTED) as new:
            files.write(adata, new, parts.path(FITTED))


def _record_layers(job: Job, adata: AnnData) -> None:
    """Note in the record that the layers are written, too."""
    record = adata.uns[job.keywords["key_added"]]
    record["written"] = np.array([*record["written"], *(f"layers:{name}" for name in job.layer_names())], dtype=str)
    record["params"] |= {"store": job.keywords["store"], "return_std": job.keywords["return_std"]}
    if job.keywords["return_std"]:
        params = record["params"]
        imputer = find_imputer(params["preset"], params["estimate"], params["entries"])
        params["std_units"] = imputer.std_units


def _layers(job: Job) -> list[str]:
    """Layers that are read: the counts and, if there are any, the dropout probabilities."""
    return [name for name in (job.keywords["layer"], job.keywords["dropout_key"]) if name is not None]


def check_dtype(adata: AnnData, layer: str | None, dtype: str | None) -> None:
    """Refuse a type that does not hold the observed counts."""
    most = MAX_EXACT.get(dtype or "")
    if most is None:
        return
    largest = open_counts(adata, layer, caller="--dtype", integers=False).totals.largest
    if largest > most:
        msg = f"The largest count is {largest:.0f}; {dtype} holds whole numbers up to {most} only: take float32."
        raise ValueError(msg)


def as_dtype(layer: Any, dtype: str | None) -> Any:
    """A layer in another type; SciPy has no sparse matrices of float16."""
    if dtype is None:
        return layer
    return (layer.toarray() if sp.issparse(layer) and dtype == "float16" else layer).astype(dtype)


def written_layers(keywords: dict[str, Any]) -> list[str]:
    """Layers that :func:`~scanpy_cnnimpute.pp.cnn_impute` writes with these keywords, whatever their size."""
    key = keywords["key_added"]
    if keywords["store"] == "params":
        return []
    return [key, f"{key}_std"] if keywords["return_std"] else [key]


class _Fit:
    """The fitted models of a job, and its counts in their file."""

    def __init__(self, job: Job, group: Any, *, check: bool) -> None:
        self.job, self.group = job, group
        keys = job.keywords
        self.adata = stores.with_matrices(anndata.read_h5ad(job.folder / FITTED), group, _layers(job))
        self.counts = StoredCounts(raw_matrix(self.adata, keys["layer"]), "The counts")
        self.imputer = load_imputer(self.adata, keys["key_added"])
        dropout: Any = load_dropout(self.adata, keys["dropout_key"], self.counts, check=check)
        self.dropout = dropout
        self._impute = BlockImputer.of(self.imputer, dropout, return_std=keys["return_std"])

    @property
    def container(self) -> type:
        """Of the layers."""
        return np.ndarray if self.job.dtype == "float16" else result_container(self.counts, self.imputer)

    def layers(self, number: int) -> list[Any]:
        """The layers of one block."""
        rows = self.counts.block_rows(number)
        layer = None if self.dropout.layer is None else self.dropout.layer.rows(rows).matrix
        found = self._impute(self.counts.block(rows), self.dropout.description(rows), layer)
        layers = found if isinstance(found, tuple) else (found,)
        return [as_dtype(layer, self.job.dtype) for layer in layers]


@contextmanager
def _opened_fit(job: Job, *, check: bool) -> Iterator[_Fit]:
    with stores.opened(job.source) as group:
        yield _Fit(job, group, check=check)


def _name(number: int) -> str:
    return f"block-{number:06d}.npz"


def _impute_blocks(fit: _Fit, parts: FinishedParts, workers: int | None, scheduler: str | None) -> None:
    """Impute the blocks that are not finished."""
    sizes = {number: fit.counts.block_rows(number).size for number in range(fit.counts.n_blocks)}
    missing = [number for number in sizes if _name(number) not in parts]
    if len(missing) < len(sizes):
        logger.info("%d of %d blocks are finished", len(sizes) - len(missing), len(sizes))
    with progress_bar("Imputing", sum(sizes[number] for number in missing), unit="cells") as bar:
        if workers is None and scheduler is None:
            for number in missing:
                parts.save(_name(number), _arrays(fit.layers(number)))
                bar.update(sizes[number])
            return
        from distributed import as_completed

        with _client(workers, scheduler) as client:
            futures = [client.submit(_impute_on_worker, fit.job, number, pure=False) for number in missing]
            for future in as_completed(futures):
                bar.update(sizes[future.result()])


@contextmanager
def _client(workers: int | None, scheduler: str | None) -> Iterator[Any]:
    """A client of the user's scheduler, or of as many new processes with a thread each."""
    import distributed

    with ExitStack() as stack:
        address: Any = scheduler
        if address is None:
            cluster = distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
            address = stack.enter_context(cluster)
        yield stack.enter_context(distributed.Client(address))


_of_worker: dict[str, tuple[ExitStack, _Fit]] = {}
"""The job that this process, a worker of Dask, has opened."""


def _impute_on_worker(job: Job, number: int) -> int:
    """Impute a block and keep it in the folder of the job; returns its number."""
    if not _of_worker:
        start_keras(worker_threads())
    with one_block_at_a_time():
        identity = repr(job) + str((job.folder / FITTED).stat().st_mtime_ns)
        if identity not in _of_worker:
            while _of_worker:
                _of_worker.popitem()[1][0].close()
            stack = ExitStack()
            _of_worker[identity] = stack, stack.enter_context(_opened_fit(job, check=False))
        arrays = _arrays(_of_worker[identity][1].layers(number))
        with writing(job.folder / _name(number)) as new:
            save_arrays(new, arrays)
    return number


def _arrays(layers: list[Any]) -> dict[str, np.ndarray]:
    """Matrices as named arrays."""
    arrays: dict[str, np.ndarray] = {}
    for position, layer in enumerate(layers):
        parts = {"": layer}
        if sp.issparse(layer):
            parts = {name: getattr(layer, name) for name in ("data", "indices", "indptr")}
        arrays |= {f"{position}{name}": value for name, value in parts.items()}
    return arrays


def _matrix(arrays: dict[str, np.ndarray], position: int, n_genes: int) -> Any:
    """One of the matrices again."""
    if f"{position}" in arrays:
        return arrays[f"{position}"]
    parts = [arrays[f"{position}{name}"] for name in ("data", "indices", "indptr")]
    return sp.csr_matrix(tuple(parts), shape=(parts[2].size - 1, n_genes))


def _write(job: Job, fit: _Fit, parts: FinishedParts, new: Path) -> None:
    """Write the output: everything of the input, what was fitted, and the layers."""
    options = stores.dataset_options(new)
    written = job.layer_names()
    replaced = {*written, *_earlier_layers(job, fit.group)}
    with stores.created(new) as target:
        for name in fit.group:
            if name not in {*stores.IN_MEMORY, "layers"}:
                stores.copy(fit.group, target, name, options)
        for name in stores.IN_MEMORY:
            value = getattr(fit.adata, name)
            anndata.io.write_elem(
                target, name, value if name in {"obs", "var"} else dict(value), dataset_kwargs=options
            )
        anndata.io.write_elem(target, "layers", {})
        for name in fit.group.get("layers", {}):
            if name not in replaced:
                stores.copy(fit.group["layers"], target["layers"], name, options)
        for position, name in enumerate(written):
            blocks = stores.counted(_blocks(fit, parts, position), fit.counts.shape[0], f"Writing {name}")
            if fit.container is np.ndarray:
                stores.write_dense(target["layers"], name, fit.counts.shape, blocks, options)
            else:
                stores.write_sparse(target["layers"], name, blocks, options)


def _earlier_layers(job: Job, group: Any) -> list[str]:
    """Layers that an earlier run wrote under the same key."""
    earlier, key = stores.without_matrices(group, ["uns"]), job.keywords["key_added"]
    if written_by(earlier, key) != IMPUTE_FUNCTION:
        return []
    pairs = [str(name).partition(":") for name in earlier.uns[key]["written"]]
    return [name for attribute, _, name in pairs if attribute == "layers"]


def _blocks(fit: _Fit, parts: FinishedParts, position: int) -> Iterator[Any]:
    """The finished blocks of a layer."""
    for number in range(fit.counts.n_blocks):
        arrays = parts.load(_name(number))
        if arrays is None:
            msg = f"{parts.path(_name(number))} is damaged and was deleted: run the same command again."
            raise ValueError(msg)
        yield _matrix(arrays, position, fit.counts.shape[1])
