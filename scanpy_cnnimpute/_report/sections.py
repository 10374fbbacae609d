"""The sections of the report: tables and figures from the stored results."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from .. import pl
from ..imputation import STATUSES
from ..imputation.base import IMPUTED, SAMPLE_CELLS
from ..pp._report import WHAT_HELPS, WITHOUT_CLUSTERS
from .conclusions import HELD_OUT, OURS, RIVALS, SCORES, calibration, is_sampled, mean_over_cells
from .figures import Drawing, draw
from .words import DENOISED, REASONS, percent, plain, score_text, spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .._anndata.results import Record
    from .records import Records

N_EXAMPLES = 5  # genes that are named for each reason
MAX_BARS = 8  # layers that a figure of tests has room for
# What results depend on, in the order of dependencies.
PACKAGES = ("scanpy-cnnimpute", "scanpy", "anndata", "numpy", "scipy", "numba", "scikit-learn", "keras", "tensorflow")
ESTIMATED = {
    "molecules": "The molecules of each entry are split in two; the first part predicts the second (expected counts).",
    "masking": "A tenth of the non-zeros of frequent genes is hidden and predicted (conditional estimate).",
    "thinning": "A part of the molecules is discarded; the rest predicts the counts before (posterior means).",
}


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes
    ----------
    caption
        Above the table.
    head
        Headings of the columns; not shown if the first is empty.
    rows
        Rows, whose first cell names the row.
    numeric
        Positions of the columns that are aligned to the right.
    marked
        Position of the row that stands out.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()
    marked: int | None = None


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, figures and tables; a paragraph says why there is none."""

    name: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    drawings: list[Drawing] = field(default_factory=list)


def _numeric_table(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, n_names: int = 1, marked: int | None = None
) -> Table:
    """A table whose columns are numbers but for the first ones."""
    return Table(caption, head, rows, frozenset(range(n_names, len(head))), marked)


def sections(records: Records) -> list[Section]:
    """All sections, in the order of the page."""
    found = [_data(records), _what_was_imputed(records), _dropout(records), _held_out(records), _false_signals(records)]
    return [*found, _training(records), _parameters(records), _versions(records)]


def _data(records: Records) -> Section:
    layer = records.layer
    rows = [
        ("Cells", f"{records.n_cells:,}"),
        ("Genes", f"{records.n_genes:,}"),
        ("Counts", "X" if layer is None else f"layers[{plain(layer)!r}]"),
    ]
    if records.n_zeros is not None:
        n_entries = max(records.n_cells * records.n_genes, 1)
        rows.append(("Zeros", f"{records.n_zeros:,} ({percent(records.n_zeros / n_entries)} of the entries)"))
    params = {} if records.dropout is None else records.dropout["params"]
    if "count_type" in params and params["model"] == "calibrated":
        rows.append(("Counted", {"umi": "molecules", "reads": "reads"}.get(params["count_type"], "unknown")))
    if records.library_size is not None and records.library_size.size:
        rows.append(("Library size, median", spread(records.library_size)))
    if records.capture_efficiency is not None and records.capture_efficiency.size:
        stated = "stated" if "capture_efficiency" in params else "assumed"
        rows.append((f"Capture efficiency, {stated}", spread(records.capture_efficiency)))
    paragraphs = []
    fitted = int(records.newest.table("summary")["n_cells"].sum())
    if fitted != records.n_cells:
        paragraphs.append(
            f"The results below are of {fitted:,} cells: cells without a cluster are left out, and cells or genes may "
            "have been dropped since."
        )
    return Section("data", "Data", paragraphs, [Table("Counts and cells", ("", ""), rows)])


def _what_was_imputed(records: Records) -> Section:
    title = "What was imputed, and why not"
    if records.imputed is None:
        text = "Nothing: only a dropout model is stored. scnn.pp.cnn_impute(adata) goes on from it."
        return Section("imputed", title, [text])
    record = records.imputed
    params, status, summary = record["params"], record.table("status"), record.table("summary")
    everything, in_clusters = params.get("entries") == "all", status.shape[1] > 1
    helps = WHAT_HELPS if params["preset"] == "paper" else WHAT_HELPS | WITHOUT_CLUSTERS
    codes = np.column_stack([status[column].astype(str) for column in status])
    rows = []
    for code, name in enumerate(STATUSES):
        where = codes == name
        if not where.any():
            continue
        genes = [plain(gene) for gene in status.index[where.any(axis=1)][:N_EXAMPLES]]
        reason = DENOISED if everything and code == IMPUTED else REASONS[code]
        rows.append((name, reason, f"{where.sum():,}", percent(where.mean()), ", ".join(genes), helps.get(code, "")))
    unit = "genes in a cluster" if in_clusters else "genes"
    head = ("Status", "In words", unit.capitalize(), "Share", "Such as", "What changes it")
    paragraphs = []
    if is_sampled(records):
        paragraphs.append(f"No values are stored, so that status and entries are those of {SAMPLE_CELLS} cells.")
    if params["preset"] == "paper" and not in_clusters:
        paragraphs.append("All cells are one cluster.")
    tables = [Table(f"Status of the {unit}", head, rows, frozenset({2, 3}))]
    columns = ["n_cells", "n_networks", "n_entries", *(f"genes {name}" for name in STATUSES)]
    columns = [name for name in columns if name in summary and (summary[name].any() or not name.startswith("genes"))]
    names = {"n_cells": "Cells", "n_networks": "Networks", "n_entries": "Imputed entries"}
    body = [(plain(name), *(f"{int(value):,}" for value in row)) for name, row in summary[columns].iterrows()]
    titles = ["Cluster", *(names.get(name, name.replace("genes ", "Genes: ")) for name in columns)]
    tables.append(_numeric_table("Summary by cluster", titles, body))
    return Section("imputed", title, paragraphs, tables)


def _dropout(records: Records) -> Section:
    title, record = "Dropout probabilities", records.dropout
    if record is None:
        text = f"No model is stored under {plain(records.dropout_key)!r}."
        return Section("dropout", title, [text])
    summary, paragraphs, drawings = record.table("summary"), [], []
    curve = record.get("reliability")
    if curve is not None and not curve.empty:
        error, _ = calibration(curve)
        alt = (
            f"Observed share of dropouts against stated probability in {len(curve)} bins of {int(curve['n'].sum()):,} "
            f"zeros; the mean distance to the diagonal is {error:.3f}."
        )
        caption = (
            "Probabilities are stated from one part of the molecules and compared with the other part. Points on the "
            "diagonal mean what they say; bars count the zeros."
        )
        drawings.append(
            draw(
                partial(pl.reliability, records.adata),
                size=(4.8, 4.2),
                alt=alt,
                caption=caption,
                key=records.dropout_key,
            )
        )
    elif curve is not None:
        paragraphs.append("No reliability curve: no zero was left to judge.")
    else:
        paragraphs.append(
            "The gamma-normal model of the paper has no reliability curve: its probabilities are not tested."
        )
    names = {
        "n_cells": ("Cells", False),
        "n_modelled": ("Modelled genes", False),
        "zeros_called": ("Zeros with probability above 0.5", True),
        "dropouts": ("Mean probability of the zeros", True),
        "collapsed": ("Collapsed mixtures", True),
        "gain": ("Genes better than mean or zeros", True),
    }
    shown = [name for name in names if name in summary]
    rows = [
        (plain(label), *(percent(row[name]) if names[name][1] else f"{int(row[name]):,}" for name in shown))
        for label, row in summary.iterrows()
    ]
    if len(summary) > 1:
        total = (
            f"{int(summary['n_cells'].sum()):,}",
            *("" if not names[name][1] else percent(mean_over_cells(summary, name)) for name in shown[1:]),
        )
        rows.append(("All, by cells", *total))
    head = ("Cluster", *(names[name][0] for name in shown))
    return Section(
        "dropout",
        title,
        paragraphs,
        [_numeric_table("Dropout model by cluster", head, rows)],
        drawings,
    )


def _held_out(records: Records) -> Section:
    title = "Held-out counts"
    if not records.evaluations:
        return Section("held-out", title, ["Not tested. scnn.tl.eval_imputation(adata) tests it on these data."])
    parts = [_evaluation(records, key, record) for key, record in records.evaluations.items()]
    paragraphs, tables, drawings = map(list, zip(*parts, strict=True))
    return Section("held-out", title, paragraphs, tables, drawings)


def _evaluation(records: Records, key: str, record: Record) -> tuple[str, Table, Drawing]:
    """Words, table and figure of one result of :func:`~scanpy_cnnimpute.tl.eval_imputation`."""
    params, table = record["params"], record.table("table")
    scores = [name for name in table if not name.endswith("_range")]
    n_seeds, first = record.table("scores")["seed"].nunique(), scores[0]
    repeated = f"{n_seeds} repetition{'' if n_seeds == 1 else 's'}"
    words = f"{plain(key)}: {ESTIMATED[params['how']]} Tested with preset={plain(params['preset'])!r}, {repeated}."
    rows = [
        (name, "this imputation" if name == OURS else RIVALS.get(name, ""), *(score_text(row[each]) for each in scores))
        for name, row in table.iterrows()
    ]
    head = ("Method", "What it predicts", *(SCORES.get(each, each) for each in scores))
    caption = f"{HELD_OUT[params['how']]}, medians of {repeated} ({plain(key)})"
    drawing = draw(
        partial(pl.imputation, records.adata),
        size=(5.6, 3.6),
        alt=f"{SCORES[first].capitalize()} of {len(table)} methods; the imputation has {table.loc[OURS, first]:.3f}.",
        caption="One dot for each repetition; the best method is on top.",
        key=key,
    )
    return words, _numeric_table(caption, head, rows, n_names=2, marked=list(table.index).index(OURS)), drawing


def _false_signals(records: Records) -> Section:
    title = "Genes that do not differ"
    if not records.false_signals:
        text = "Not tested. scnn.tl.eval_false_signals(adata, groupby) says how many of them tests call."
        return Section("false-signals", title, [text])
    paragraphs, tables, drawings = [], [], []
    for key, record in records.false_signals.items():
        params, table = record["params"], record.table("table")
        groups = plain(", ".join(map(str, np.ravel(params["groups"]))))
        paragraphs.append(
            f"{plain(key)}: decoys are genes whose counts are permuted among the compared cells. A test that is right "
            f"calls 5 % of them. Compared: obs[{plain(params['groupby'])!r}], {groups} against "
            f"{plain(params['reference'])}."
        )
        rows = [
            (
                plain(row["layer"]),
                row["method"],
                percent(row["called"]),
                percent(row["false_discoveries"]),
                score_text(row["correlation"]),
            )
            for _, row in table.iterrows()
        ]
        head = ("Layer", "Test", "Called with p ≤ 0.05", "False discoveries, allowed 10 %", "Correlations, right is 1")
        tables.append(_numeric_table(f"Tests of decoys ({plain(key)})", head, rows, n_names=2))
        n_layers = table["layer"].nunique()
        if n_layers <= MAX_BARS and np.isfinite(table["called"]).any():
            # A dollar would start a formula.
            named = table.assign(layer=[plain(name).replace("$", r"\$") for name in table["layer"]])
            drawings.append(
                draw(
                    partial(pl.false_signals, AnnData(uns={key: {**record, "table": named}})),
                    size=(max(4.2, 1.6 + 1.1 * n_layers), 3.6),
                    alt=f"Share of decoys called: {', '.join(' '.join(row[:3]) for row in rows)}.",
                    caption="The dashed line is where bars of a right test end.",
                    key=key,
                )
            )
    return Section("false-signals", title, paragraphs, tables, drawings)


def _training(records: Records) -> Section:
    title = "Training"
    history = None if records.imputed is None else records.imputed.table("history")
    if records.imputed is None or history is None or history.empty:
        return Section("training", title, ["No network was trained."])
    networks = history.groupby(["cluster", "subset"], sort=False, observed=True)
    n_networks, is_paper = networks.ngroups, records.imputed["params"]["preset"] == "paper"
    steps = "epochs" if is_paper else "checks"
    first, best = networks["val_loss"].first().median(), networks["val_loss"].min().median()
    number_of = f"{n_networks:,} networks" if n_networks > 1 else "One network"
    last = networks["epoch"].max().median()
    paragraphs = [
        f"{number_of}, {last:g} {steps}: validation loss {first:.5g} at the first, {best:.5g} at the best"
        + (" (medians)." if n_networks > 1 else ".")
    ]
    caption = "Thin lines are networks." if n_networks > 1 else "The weights of the lowest validation loss are kept."
    alt = (
        f"Training and validation loss over {last:g} {steps}; the validation loss goes from {first:.5g} to {best:.5g}."
    )
    return Section(
        "training",
        title,
        paragraphs,
        [],
        [draw(partial(pl.history, records.adata), size=(4.8, 3.6), alt=alt, caption=caption, key=records.imputed_key)],
    )


def _parameters(records: Records) -> Section:
    tables = [
        Table(f"{record['params']['function']}, uns[{plain(key)!r}]", ("Parameter", "Value"), list(_settings(record)))
        for key, record in ((records.imputed_key, records.imputed), (records.dropout_key, records.dropout))
        if record is not None
    ]
    return Section("parameters", "Parameters", ["What is not listed was not given and has no default."], tables)


def _settings(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in sorted(record["params"].items()):
        if name not in {"function", "version"}:
            yield plain(name), plain(value)


def _versions(records: Records) -> Section:
    rows = [("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            continue
    made = plain(records.newest["params"].get("version", "unknown"))
    text = f"The results were written by scanpy-cnnimpute {made}. The table has the versions that made this report."
    return Section("versions", "Versions", [text], [Table("Versions", ("Package", "Version"), rows)])
