"""``scanpy-cnnimpute``: the package from the command line, from file to file."""

from __future__ import annotations

import argparse
import gc
import inspect
import logging
import os
import re
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ._atomic import InUseError
from ._logging import PACKAGE_NOTE
from ._process import flush, open_standard_streams, say, start_keras, stopped_by_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from types import ModuleType

    import pandas as pd


class _OneLineParser(argparse.ArgumentParser):
    """Parser that reports errors of usage on one line, like all other errors."""

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help, where an error is one, or a message on stderr."""
        if file is sys.stdout:
            file.write(message)
        else:
            say(message.removesuffix("\n"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    open_standard_streams()
    with stopped_by_signals() as stop:
        ended = None
        try:
            _run(arguments)
            code = 0
        except SystemExit as error:  # of the parser
            ended, code = error, int(error.code or 0)
        except (Exception, KeyboardInterrupt) as error:
            if stop.signal is not None or isinstance(error, KeyboardInterrupt):
                say(f"scanpy-cnnimpute: {stop.message}")
                code = stop.code
            else:
                say(f"scanpy-cnnimpute: error: {_description(error)}")
                code = 1
        if code:
            gc.collect()  # files that could not be written fail again when they are closed, which nobody has to see
        lost = flush(sys.stdout)
        if lost is not None and code == 0:
            say(f"scanpy-cnnimpute: error: standard output cannot be written to: {lost.strerror}")
            return 1
        flush(sys.stderr)
    if ended is not None:
        raise ended
    return code


def _run(arguments: Sequence[str] | None) -> None:
    # TensorFlow reads this when it is imported; 3 leaves errors only.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    options = _parser().parse_args(arguments)
    handler = logging.StreamHandler()
    handler.addFilter(logging.Filter("scanpy_cnnimpute"))
    logging.basicConfig(format="%(message)s", handlers=[handler])
    logging.raiseExceptions = False  # of messages that cannot be written
    logging.getLogger("scanpy_cnnimpute").setLevel(logging.WARNING if options.quiet else logging.INFO)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _show_warning
        options.run(options)


def _description(error: BaseException) -> str:
    """An error in one line; the kind of one that is not expected is told."""
    expected = OSError | ValueError | TypeError | KeyError | NotImplementedError | ImportError | InUseError
    # str(KeyError) quotes the message.
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    kind = "" if isinstance(error, expected) else f"{type(error).__name__}: "
    return f"{kind}{_one_line(text)}"


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Show a warning of this package; those of libraries say nothing to users of the command line."""
    if PACKAGE_NOTE in getattr(message, "__notes__", ()):
        say(f"warning: {_one_line(message)}")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _parser() -> argparse.ArgumentParser:
    import scanpy_cnnimpute

    from . import __version__, pp, tl

    parser = _OneLineParser(prog="scanpy-cnnimpute", description="Impute dropouts in single-cell RNA-seq counts.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--quiet", action="store_true", help="report errors and warnings only")
        sub.set_defaults(run=run)
        return sub

    for name, function, run in (
        ("impute", pp.cnn_impute, _impute),
        ("dropout", pp.dropout_prob, _dropout),
    ):
        sub = command(name, run, _summary(function))
        sub.add_argument("input", type=Path, help="h5ad or zarr file with raw counts")
        sub.add_argument("output", type=Path, help="h5ad or zarr file to write")
        sub.add_argument("--force", action="store_true", help="replace an existing file")
        if name == "impute":
            sub.add_argument("--dry-run", action="store_true", help="print what it would take, and stop")
            sub.add_argument(
                "--report", type=Path, metavar="FILE", help="HTML file to write a report of the results to"
            )
            _add_large_data(sub)
        _mirror(sub, function, ["mask_var"] if name == "impute" else [])

    sub = command("estimate", _estimate, _summary(scanpy_cnnimpute.estimate))
    sub.add_argument("input", type=Path, help="h5ad or zarr file with raw counts")
    _add_large_data(sub)
    _mirror(sub, pp.cnn_impute, ["mask_var"])

    sub = command("evaluate", _evaluate, _summary(tl.eval_clusters))
    sub.add_argument("input", type=Path, help="h5ad or zarr file")
    sub.add_argument("--csv", type=Path, help="CSV file to write the table to")
    sub.add_argument("--force", action="store_true", help="replace an existing file")
    _mirror(sub, tl.eval_clusters)

    sub = command("demo", _demo, "Impute the bundled real data and compare the clusters before and after.")
    sub.add_argument(
        "output", type=Path, nargs="?", default=Path("five_cell_lines_imputed.h5ad"), help="file to write (%(default)s)"
    )
    sub.add_argument("--force", action="store_true", help="replace an existing file")
    return parser


def _add_large_data(parser: argparse.ArgumentParser) -> None:
    """Options for data that do not fit into memory."""
    group = parser.add_argument_group("large data")
    group.add_argument(
        "--memory-limit",
        type=_bytes,
        metavar="SIZE",
        help="such as 4GB: data that need more are read and written block by block, in about 2 GB (default: half of "
        "this machine's memory)",
    )
    group.add_argument(
        "--dtype", choices=("float32", "float16"), help="of the layers; float16 layers are dense (default: float32)"
    )
    group.add_argument(
        "--genes",
        metavar="FILE|COLUMN",
        help="genes to impute: a text file with a name on each line, or a column of var",
    )
    group.add_argument(
        "--workers", type=_positive, metavar="N", help="processes of Dask that impute blocks at the same time"
    )
    group.add_argument("--scheduler", metavar="ADDRESS", help="Dask scheduler whose workers see the same files")
    group.add_argument("--restart", action="store_true", help="forget what an interrupted run has finished")


def _positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) == 0:
        msg = f"{text!r} is not allowed: a whole number from 1 on"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _bytes(text: str) -> int:
    """A number of bytes, such as 4GB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", text.strip().upper())
    if found is None:
        msg = f"{text!r} is no size: a number with KB, MB, GB or TB"
        raise argparse.ArgumentTypeError(msg)
    number, prefix, binary = found.groups()
    size = int(float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix or " "))
    if size == 0:
        msg = "a limit of 0 leaves nothing to work with"
        raise argparse.ArgumentTypeError(msg)
    return size


def _mirror(parser: argparse.ArgumentParser, function: Callable[..., Any], unmirrored: Collection[str] = ()) -> None:
    """Add an option for every keyword of the function, with its default and its description."""
    descriptions = _descriptions(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or name in {"copy", "verbose", *unmirrored}:
            continue
        options = {"help": descriptions[name].replace("%", "%%"), "default": parameter.default}
        if parameter.default is inspect.Parameter.empty:
            options.update(default=None, required=True)
        options.update(_kind(name, str(parameter.annotation), sys.modules[function.__module__]))
        parser.add_argument(f"--{name.replace('_', '-')}", **options)


def _kind(name: str, annotation: str, module: ModuleType) -> dict[str, Any]:
    """How an option of this annotation is parsed; arrays are given by their key in the file."""
    first = annotation.partition(" | ")[0]
    if first == "bool":
        return {"action": argparse.BooleanOptionalAction}
    if first.startswith("Sequence"):
        return {"nargs": "+", "metavar": "KEY"}
    if annotation.startswith("float | str"):
        return {"type": _number_or_key, "metavar": "FLOAT|KEY"}
    if first in {"int", "float"}:
        return {"type": {"int": int, "float": float}[first], "metavar": first.upper()}
    if first == "str":
        is_key = annotation.startswith("str | np.ndarray") or "key" in name or name in {"layer", "use_rep"}
        return {"metavar": "KEY" if is_key else name.upper()}
    choices = get_args(getattr(module, first, None))  # of a Literal
    return {"choices": choices} if choices else {"metavar": name.upper()}


def _number_or_key(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _summary(function: Callable[..., Any]) -> str:
    return _plain((inspect.getdoc(function) or "").partition("\n")[0])


def _plain(text: str) -> str:
    """Text without the markup of the documentation."""
    return re.sub(r":func:`~?(?:\w+\.)*(\w+\.\w+)`", r"\1", _one_line(text)).replace("``", "").replace("`", "")


def _descriptions(function: Callable[..., Any]) -> dict[str, str]:
    """Plain text of every parameter in a numpydoc docstring."""
    section = (inspect.getdoc(function) or "").split("Parameters\n----------\n")[1].split("\nReturns\n")[0]
    texts: dict[str, str] = {}
    for names, text in re.findall(r"^(\S.*)\n((?:    .*\n?|\n)+)", section, flags=re.MULTILINE):
        texts.update(dict.fromkeys(names.split(", "), _plain(text)))
    return texts


def _keywords(options: argparse.Namespace) -> dict[str, Any]:
    """The options that stand for keywords of the function."""
    own = {"run", "quiet", "input", "output", "force", "csv"}
    own |= {"memory_limit", "dtype", "genes", "workers", "scheduler", "restart", "dry_run", "report"}
    return {name: value for name, value in vars(options).items() if name not in own}


def _impute(options: argparse.Namespace) -> None:
    from . import pp
    from ._anndata import files
    from ._report import check_report_path, report
    from ._streaming import as_dtype, check_dtype, written_layers

    if options.dry_run:
        _estimate(options)
        return
    files.check_suffix(options.output)
    files.check_output(options.output, force=options.force)
    if options.report is not None:
        check_report_path(options.report, overwrite=options.force)
    if _is_streamed(options):
        _impute_by_blocks(options)
        return
    with files.replacing(options.output, force=options.force) as new:
        adata = files.read(options.input)
        check_dtype(adata, options.layer, options.dtype)
        keywords = _impute_keywords(options, _selected_genes(options, adata.var))
        start_keras(options.n_jobs)
        pp.cnn_impute(adata, **keywords, verbose=not options.quiet)
        for name in written_layers(keywords):
            if name in adata.layers:
                adata.layers[name] = as_dtype(adata.layers[name], options.dtype)
        files.write(adata, new, options.output)
    if options.report is not None:
        report(adata, options.report, key=keywords["key_added"], overwrite=options.force)


def _impute_keywords(options: argparse.Namespace, genes: Any) -> dict[str, Any]:
    """Keywords of pp.cnn_impute, with the key that it takes if none is given."""
    from .pp._cnn_impute import DEFAULT_KEYS

    key = options.key_added or DEFAULT_KEYS[options.entries]
    return {**_keywords(options), "mask_var": genes, "key_added": key}


def _estimate(options: argparse.Namespace) -> None:
    from ._anndata import files, stores
    from ._estimate import estimate
    from .presets import ConditionalSettings, DefaultSettings, DenoisedSettings

    if options.preset != "default":
        msg = (
            f"preset={options.preset!r} cannot be estimated: its time is that of its networks, of which the log tells."
        )
        raise ValueError(msg)
    files.check_input(options.input)
    with stores.opened(options.input) as group:
        genes = _selected_genes(options, stores.without_matrices(group, ["var"]).var)
    start_keras(options.n_jobs)
    names = {name for kind in (DefaultSettings, DenoisedSettings, ConditionalSettings) for name in kind.names()}
    settings = {name: value for name, value in _keywords(options).items() if name in names and value is not None}
    found = estimate(
        options.input,
        layer=options.layer,
        estimate=options.estimate,
        entries=options.entries,
        mask_var=genes,
        store=options.store,
        memory_limit=options.memory_limit,
        **settings,
    )
    print(found)


def _is_streamed(options: argparse.Namespace) -> bool:
    """Whether the data are imputed block by block: they do not fit into memory, or blocks are asked for."""
    from ._anndata import files
    from ._memory import bytes_in_memory, format_size, limit_or_default

    files.check_input(options.input)
    needed = bytes_in_memory(options.input, options.layer)
    limit = limit_or_default(options.memory_limit)
    by_dask = options.workers is not None or options.scheduler is not None
    if needed <= limit and not by_dask:
        return False
    if options.preset == "paper":
        msg = (
            f"preset='paper' reads all counts at once: up to {format_size(needed)}, of which --memory-limit permits "
            f"{format_size(limit)}, in one process. Raise it, or take preset='default'."
        )
        raise ValueError(msg)
    if needed > limit:
        text = "%s may need %s, more than --memory-limit (%s): it is read and written block by block"
        logging.getLogger("scanpy_cnnimpute").info(text, options.input, format_size(needed), format_size(limit))
    return True


def _impute_by_blocks(options: argparse.Namespace) -> None:
    from ._anndata import files, stores
    from ._report import report
    from ._streaming import Job, impute_file

    with stores.opened(options.input) as group:
        genes = _selected_genes(options, stores.without_matrices(group, ["var"]).var)
    keywords = _impute_keywords(options, genes if genes is None or isinstance(genes, str) else genes.tolist())
    start_keras(options.n_jobs)
    impute_file(
        Job(
            source=options.input.resolve(),
            target=files.check_output(options.output, force=options.force),
            keywords=keywords,
            dtype=options.dtype,
        ),
        restart=options.restart,
        workers=options.workers,
        scheduler=options.scheduler,
        verbose=not options.quiet,
    )
    if options.report is not None:
        with stores.opened(options.output) as group:
            adata = stores.without_matrices(group)
        report(adata, options.report, key=keywords["key_added"], overwrite=options.force)


def _selected_genes(options: argparse.Namespace, var: pd.DataFrame) -> Any:
    """The column of `var`, or the genes of the file, that ``--genes`` names; None for all."""
    if options.genes is None or options.genes in var:
        return options.genes
    path = Path(options.genes)
    if not path.is_file():
        msg = f"--genes {options.genes} is neither a column of var nor a file. Columns: {list(var.columns)}."
        raise KeyError(msg)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"--genes {path} is no text file with a name on each line."
        raise ValueError(msg) from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        msg = f"--genes {path} names no gene."
        raise ValueError(msg)
    unknown = [name for name in names if name not in var.index]
    if unknown:
        msg = f"{path}: {len(unknown)} of {len(names)} names are no genes of the input, such as {unknown[:3]}."
        raise ValueError(msg)
    return var.index.isin(names)


def _dropout(options: argparse.Namespace) -> None:
    from . import pp
    from ._anndata import files

    files.check_suffix(options.output)
    with files.replacing(options.output, force=options.force) as new:
        adata = files.read(options.input)
        pp.dropout_prob(adata, **_keywords(options))
        files.write(adata, new, options.output)


def _evaluate(options: argparse.Namespace) -> None:
    from . import tl
    from ._anndata import files

    with ExitStack() as stack:
        if options.csv is not None:
            new = stack.enter_context(files.replacing(options.csv, force=options.force, is_text=True))
        table = tl.eval_clusters(files.read(options.input), **_keywords(options))
        _print(table)
        if options.csv is not None:
            table.to_csv(new, index_label="clustering")


def _demo(options: argparse.Namespace) -> None:
    from . import datasets, pp, tl
    from ._anndata import files
    from ._anndata.counts import layer_names

    files.check_suffix(options.output)
    with files.replacing(options.output, force=options.force) as new:
        adata = datasets.five_cell_lines()
        if not options.quiet:
            print(f"Bundled data: {adata.n_obs} cells x {adata.n_vars} genes of five human cell lines (CEL-seq2).")
        tl.cluster(adata)
        pp.dropout_prob(adata)
        start_keras()
        pp.cnn_impute(adata, verbose=not options.quiet)
        table = tl.eval_clusters(adata, label_key="cell_line", layers=[None, "cnn_imputed"])
        table.index = ["before (X)", "after (layer cnn_imputed)"]
        _print(table)
        files.write(adata, new, options.output)
    if not options.quiet:
        print(f"Wrote {options.output}: layers {layer_names(adata)}.")


def _print(table: pd.DataFrame) -> None:
    print(table.round(4).to_string())


if __name__ == "__main__":
    sys.exit(main())
