"""``report``: one HTML file that says what was imputed, how well, and what to conclude."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._anndata.counts import check_adata
from .._atomic import check_outside_stores, replacing
from .._checks import check_key, check_number
from .._logging import logger
from .conclusions import conclusions
from .records import read_records
from .sections import sections
from .words import plain

if TYPE_CHECKING:
    from anndata import AnnData

SUFFIXES = (".html", ".htm")
GENERATOR = "scanpy-cnnimpute"
MARK = f'<meta name="generator" content="{GENERATOR}'
"""Tells reports from other files."""
MARK_BYTES = 1000  # of the start of a file, within which the mark stands


def report(adata: AnnData, path: str | PathLike[str], *, key: str = "cnn_imputed", overwrite: bool = False) -> Path:
    """Write a report of an imputation: one HTML file that needs no network.

    Parameters
    ----------
    adata
        Annotated data after :func:`~scanpy_cnnimpute.pp.cnn_impute` or :func:`~scanpy_cnnimpute.pp.dropout_prob`, in
        memory, backed, or of Dask arrays.
    path
        File to write, whose name ends in ``.html``. An older report is replaced.
    key
        The `key_added` of either function. For a dropout model alone pass its key, ``"dropout_prob"``.
    overwrite
        Also replace a file that is no report of this function.

    Returns
    -------
    The path of the report. It has what to conclude in words, the data, what was imputed and why not, the reliability
    curve of the dropout model, all results of :func:`~scanpy_cnnimpute.tl.eval_imputation` and
    :func:`~scanpy_cnnimpute.tl.eval_false_signals` in `.uns`, the training, parameters and versions.

    Raises
    ------
    KeyError
        If neither function stored a result under `key`.
    FileExistsError, FileNotFoundError
        If `path` is a file of another kind, or its folder does not exist.
    ValueError, TypeError
        If `path` does not end in ``.html``, or an argument has another type.

    Notes
    -----
    Only `.uns` and columns of `.obs` are read. No layer is needed, and none is computed. The number of zeros is told if
    the counts are in memory. The same results give the same file, byte for byte, with the same versions.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()[:, :300].copy()
    >>> scnn.pp.cnn_impute(adata, n_steps=2, verbose=False)
    >>> path = scnn.report(adata, Path(tempfile.mkdtemp()) / "report.html")
    >>> path.read_text(encoding="utf-8").startswith("<!doctype html>")
    True
    """
    check_adata(adata, caller="report", in_memory=False)
    check_number("overwrite", overwrite, bool)
    target = check_report_path(path, overwrite=overwrite)
    text = render(adata, check_key("key", key))
    with replacing(target) as new:
        new.write_text(text, encoding="utf-8", newline="\n")
    logger.info("report: wrote %s", target)
    return Path(path)


def render(adata: AnnData, key: str) -> str:
    """The report as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from .. import __version__

    records = read_records(adata, key)
    environment = Environment(
        loader=PackageLoader("scanpy_cnnimpute._report", "."),
        autoescape=True,  # names of genes, clusters and keys may hold markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.jinja").render(
        key=plain(key),
        has_imputation=records.imputed is not None,
        n_cells=records.n_cells,
        n_genes=records.n_genes,
        conclusions=conclusions(records),
        sections=sections(records),
        generator=f"{GENERATOR} {__version__}",
    )


def check_report_path(path: str | PathLike[str], *, overwrite: bool) -> Path:
    """Check that a report may be written to a path; returns its place, symbolic links followed."""
    given: Any = path
    if not isinstance(given, str | PathLike):
        msg = f"path has type {type(path).__name__}, expected the name of an HTML file, such as 'report.html'."
        raise TypeError(msg)
    file = Path(path)
    if file.suffix.lower() not in SUFFIXES:
        msg = f"{file}: the name of a report must end in one of {', '.join(SUFFIXES)}."
        raise ValueError(msg)
    target = file.resolve()
    check_outside_stores(target)
    if not target.parent.is_dir():
        msg = f"{file}: the folder {target.parent} does not exist."
        raise FileNotFoundError(msg)
    if target.exists() and not (target.is_file() and (overwrite or _is_report(target))):
        msg = f"{file} exists and is no report of scanpy-cnnimpute. Choose another name"
        raise FileExistsError(
            f"{msg}, or pass overwrite=True (--force)." if target.is_file() else f"{msg}: it is no file."
        )
    return target


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return MARK.encode() in file.read(MARK_BYTES)
