"""``scanpy-cnnimpute``: the package from the command line, h5ad in, h5ad out."""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd


class _OneLineParser(argparse.ArgumentParser):
    """Errors of usage on one line, like all others."""

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    # Before anything imports TensorFlow: its start-up notes are not for the user of a command.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("scanpy_cnnimpute").setLevel(logging.WARNING if options.quiet else logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _show_warning
            options.run(options)
    except KeyboardInterrupt:
        print("scanpy-cnnimpute: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        expected = isinstance(error, OSError | ValueError | TypeError | KeyError | NotImplementedError | ImportError)
        # str(KeyError) would quote the message.
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        kind = "" if expected else f"{type(error).__name__}: "
        print(f"scanpy-cnnimpute: error: {kind}{_one_line(text)}", file=sys.stderr)
        return 1
    return 0


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {_one_line(message)}", file=sys.stderr)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _start_keras(n_jobs: int | None = None) -> None:
    """Import Keras and look for devices with the C++ chatter of TensorFlow, which no setting silences, left out."""
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            import keras

            from ._threads import limit_keras

            limit_keras(n_jobs)
            if keras.backend.backend() == "tensorflow":
                keras.distribution.list_devices()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
    # Its Python side warns of new input shapes, which clusters of different sizes have.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def _parser() -> argparse.ArgumentParser:
    from . import __version__, pp, tl

    parser = _OneLineParser(prog="scanpy-cnnimpute", description="Recover missing values in single-cell RNA-seq.")
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
        sub.add_argument("--force", action="store_true", help="replace an existing output")
        _mirror(sub, function)

    sub = command("evaluate", _evaluate, _summary(tl.eval_clusters))
    sub.add_argument("input", type=Path, help="h5ad or zarr file")
    sub.add_argument("--csv", type=Path, help="also write the table to this file")
    sub.add_argument("--force", action="store_true", help="replace an existing file")
    _mirror(sub, tl.eval_clusters)

    sub = command("demo", _demo, "Impute the bundled real data and compare the clusters before and after.")
    sub.add_argument(
        "output", type=Path, nargs="?", default=Path("five_cell_lines_imputed.h5ad"), help="file to write (%(default)s)"
    )
    sub.add_argument("--force", action="store_true", help="replace an existing output")
    return parser


def _mirror(parser: argparse.ArgumentParser, function: Callable[..., Any]) -> None:
    """Give the command an option for every keyword of the function, with its default and its description."""
    namespace = sys.modules[function.__module__]
    descriptions = _descriptions(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or name in {"copy", "verbose"}:
            continue
        annotation = str(parameter.annotation)
        first = annotation.partition(" | ")[0]
        options: dict[str, Any] = {"help": descriptions[name].replace("%", "%%"), "default": parameter.default}
        if parameter.default is inspect.Parameter.empty:
            options.update(default=None, required=True)
        if first == "bool":
            options["action"] = argparse.BooleanOptionalAction
        elif first.startswith("Sequence"):
            options.update(nargs="+", metavar="KEY")
        elif annotation.startswith("float | str"):
            options.update(type=_number_or_key, metavar="FLOAT|KEY")
        elif first in {"int", "float"}:
            options.update(type={"int": int, "float": float}[first], metavar=first.upper())
        elif first == "str":
            options["metavar"] = "KEY" if "key" in name or name in {"layer", "use_rep"} else name.upper()
        else:  # a Literal of the function's module
            options["choices"] = get_args(getattr(namespace, first))
        parser.add_argument(f"--{name.replace('_', '-')}", **options)


def _number_or_key(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _summary(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


def _descriptions(function: Callable[..., Any]) -> dict[str, str]:
    """The parameters' texts out of a numpydoc docstring, as plain text."""
    section = (inspect.getdoc(function) or "").split("Parameters\n----------\n")[1].split("\nReturns\n")[0]
    texts: dict[str, str] = {}
    for names, text in re.findall(r"^(\S.*)\n((?:    .*\n?|\n)+)", section, flags=re.MULTILINE):
        plain = re.sub(r":func:`~?(?:\w+\.)*(\w+\.\w+)`", r"\1", _one_line(text)).replace("``", "").replace("`", "")
        texts.update(dict.fromkeys(names.split(", "), plain))
    return texts


def _keywords(options: argparse.Namespace) -> dict[str, Any]:
    """The options that mirror keywords."""
    own = {"run", "quiet", "input", "output", "force", "csv"}
    return {name: value for name, value in vars(options).items() if name not in own}


def _impute(options: argparse.Namespace) -> None:
    from . import pp
    from ._anndata import files as _io

    _check_output(options)
    adata = _io.read(options.input)
    _start_keras(options.n_jobs)
    pp.cnn_impute(adata, **_keywords(options), verbose=not options.quiet)
    _io.write(adata, options.output, force=options.force)


def _dropout(options: argparse.Namespace) -> None:
    from . import pp
    from ._anndata import files as _io

    _check_output(options)
    adata = _io.read(options.input)
    pp.dropout_prob(adata, **_keywords(options))
    _io.write(adata, options.output, force=options.force)


def _check_output(options: argparse.Namespace) -> None:
    from ._anndata import files as _io

    _io.check_suffix(options.output)
    _io.check_output(options.output, force=options.force)


def _evaluate(options: argparse.Namespace) -> None:
    from . import tl
    from ._anndata import files as _io

    csv = None if options.csv is None else _io.check_output(options.csv, force=options.force)
    table = tl.eval_clusters(_io.read(options.input), **_keywords(options))
    _print(table)
    if csv is not None:
        temporary = csv.with_name(f".{csv.name}.{os.getpid()}")
        table.to_csv(temporary, index_label="clustering")
        temporary.replace(csv)


def _demo(options: argparse.Namespace) -> None:
    from . import datasets, pp, tl
    from ._anndata import files as _io
    from ._anndata.counts import layer_names

    _check_output(options)
    adata = datasets.five_cell_lines()
    print(f"Bundled data: {adata.n_obs} cells x {adata.n_vars} genes of five human cell lines (CEL-seq2).")
    tl.cluster(adata)
    pp.dropout_prob(adata)
    _start_keras()
    pp.cnn_impute(adata, verbose=not options.quiet)
    table = tl.eval_clusters(adata, label_key="cell_line", layers=[None, "cnn_imputed"])
    table.index = ["before (X)", "after (layer cnn_imputed)"]
    _print(table)
    _io.write(adata, options.output, force=options.force)
    print(f"Wrote {options.output}: layers {layer_names(adata)}.")


def _print(table: pd.DataFrame) -> None:
    print(table.round(4).to_string())


if __name__ == "__main__":
    sys.exit(main())
