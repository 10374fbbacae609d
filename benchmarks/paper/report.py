"""From `scores.csv` and `runs.csv` to `report.md`, with one figure for each family of experiments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from pathlib import Path

FAMILIES = {
    "accuracy": ("Masked non-zeros", ["mse", "pcc", "gene_pcc"]),
    "gini": ("Gini coefficients against smFISH", ["gini_mse", "gini_pcc"]),
    "clusters": ("Clusters against known cell types", ["purity", "entropy", "ari", "nmi"]),
    "de": ("Differential expression against a reference", ["auc", "n_up", "n_down", "lfc_pcc", "lfc_mse", "ned"]),
}
RANKS = (
    "Ranks in the scores that the paper has: median over the seeds that all methods have, ties share their mean rank, "
    "a method that failed or has no score is last. Mean and standard deviation are over "
    "the scores that a method was run for."
)
COST = "Medians over the seeds, after the imports."


def write_report(out: Path) -> None:
    """Tables and figures of everything that is in the folder."""
    mpl.use("Agg")
    if not (out / "runs.csv").exists():
        return
    scores, runs = pd.read_csv(out / "scores.csv"), pd.read_csv(out / "runs.csv")
    table = ranks(scores, runs)
    summary = mean_ranks(table)
    order = list(dict.fromkeys([*summary.index, *runs["method"]]))
    lines = ["# The paper's evaluation", ""]
    for family, (title, metrics) in FAMILIES.items():
        part = scores[scores["metric"].isin(metrics)]
        if len(part):
            figure_scores(part, order, metrics, out / f"{family}.png")
            lines += [f"## {title}", "", f"![{title}]({family}.png)", "", *tables(part, order, metrics)]
    drawn = figure_embeddings(out, order)
    lines += [line for name in drawn for line in (f"![t-SNE, {name}](tsne_{name}.png)", "")]
    if len(summary):
        figure_ranks(table, summary, out / "ranks.png")
        lines += ["## Ranks", "", RANKS, "", "![Ranks](ranks.png)", "", summary.round(2).to_markdown(), ""]
    lines += ["## Cost", "", COST, "", *costs(runs)]
    failed = runs[runs["status"] != "ok"]
    if len(failed):
        lines += ["## Failed", "", failed[["experiment", "seed", "method", "status"]].to_markdown(index=False), ""]
    (out / "report.md").write_text("\n".join(lines))


def tables(scores: pd.DataFrame, order: list[str], metrics: list[str]) -> list[str]:
    """For each experiment, methods by scores: the median over the seeds, and the range where there are several."""
    lines = []
    for experiment, part in scores.groupby("experiment", sort=False):
        cells = part.pivot_table(index="method", columns="metric", values="value", aggfunc=["median", "min", "max"])
        n_seeds = part.groupby("method")["seed"].nunique()
        text = pd.DataFrame(index=[method for method in order if method in cells.index])
        for metric in metrics:
            if metric in cells["median"]:
                text[metric] = [
                    f"{middle:.4g}" + (f" ({low:.4g} to {high:.4g})" if n_seeds[method] > 1 else "")
                    for method, (middle, low, high) in cells.xs(metric, axis=1, level=1).loc[text.index].iterrows()
                ]
        text["seeds"] = [n_seeds[m] for m in text.index]
        lines += [f"### {experiment}", "", text.to_markdown(disable_numparse=True), ""]
    return lines


def ranks(scores: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Rank of each method (rows) in each of the paper's scores (columns); 1 is best, NaN where it was not run."""
    columns = {}
    for (experiment, metric), part in scores[scores["in_paper"]].groupby(["experiment", "metric"], sort=False):
        tried = runs[runs["experiment"] == experiment]
        n_methods = tried.groupby("seed")["method"].nunique()
        common = n_methods.index[n_methods == n_methods.max()]
        value = part[part["seed"].isin(common)].groupby("method")["value"].median()
        value = value.reindex(tried["method"].unique())
        columns[f"{experiment} {metric}"] = value.rank(ascending=not part["high_is_best"].iloc[0], na_option="bottom")
    return pd.DataFrame(columns)


def mean_ranks(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread of the ranks, best first."""
    found = pd.DataFrame({"mean rank": table.mean(axis=1), "sd": table.std(axis=1), "scores": table.count(axis=1)})
    return found.sort_values("mean rank")


def costs(runs: pd.DataFrame) -> list[str]:
    """Processor seconds and memory of each method (rows) in each experiment."""
    done = runs[runs["status"] == "ok"].copy()
    if done.empty:
        return []
    done["MB above the imports"] = done["rss_peak_mb"] - done["rss_import_mb"]
    done = done.rename(columns={"cpu_s": "processor seconds"})
    lines = []
    for name in ("processor seconds", "MB above the imports"):
        table = done.pivot_table(index="method", columns="experiment", values=name, aggfunc="median", sort=False)
        lines += [f"{name.capitalize()}:", "", table.round(1).to_markdown(), ""]
    return lines


def figure_scores(scores: pd.DataFrame, order: list[str], metrics: list[str], path: Path) -> None:
    """A panel for each score and experiment; a dot for each seed."""
    from matplotlib import pyplot as plt

    panels = list(dict.fromkeys(zip(scores["experiment"], scores["metric"], strict=True)))
    panels.sort(key=lambda panel: (panel[0], metrics.index(panel[1])))
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    names = [method for method in order if method in set(scores["method"])]
    height = 0.18 * len(names) + 0.6
    size = (2.6 * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (experiment, metric) in zip(axes.flat, panels, strict=False):
        part = scores[(scores["experiment"] == experiment) & (scores["metric"] == metric)]
        y = [len(names) - 1 - names.index(method) for method in part["method"]]
        axis.plot(part["value"], y, "o", ms=3, alpha=0.7, c="C0")
        best = "high" if part["high_is_best"].iloc[0] else "low"
        axis.set_title(f"{experiment}: {metric} ({best} is best)", fontsize=7)
        axis.set_yticks(range(len(names)), names[::-1] if axis in axes[:, 0] else [""] * len(names), fontsize=7)
        # A method without this score must not move the others off their names.
        axis.set_ylim(-0.5, len(names) - 0.5)
        axis.tick_params(axis="x", labelsize=6)
        axis.grid(visible=True, axis="y", lw=0.3)
        if "none" in set(part["method"]):  # what every method has to beat
            axis.axvline(part.loc[part["method"] == "none", "value"].median(), lw=0.6, c="0.5", ls="--")
        if metric in ("mse", "lfc_mse") and part["value"].min() > 0:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        else:
            axis.locator_params(axis="x", nbins=5)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def figure_ranks(table: pd.DataFrame, summary: pd.DataFrame, path: Path) -> None:
    """The paper's figure 6: ranks of all methods in all of its scores, with mean and spread."""
    from matplotlib import pyplot as plt

    table = table.loc[summary.index]
    figure, axis = plt.subplots(figsize=(0.45 * table.shape[1] + 2.5, 0.3 * table.shape[0] + 2), layout="constrained")
    image = axis.imshow(table, cmap="viridis_r", aspect="auto")
    for i, j in np.ndindex(table.shape):
        if np.isfinite(table.iloc[i, j]):
            dark = table.iloc[i, j] > np.nanmax(table) / 2
            axis.text(j, i, f"{table.iloc[i, j]:g}", ha="center", va="center", fontsize=6, c="w" if dark else "k")
    axis.set_xticks(range(table.shape[1]), table.columns, rotation=90, fontsize=7)
    labels = [f"{method}  {row['mean rank']:.1f} ± {row['sd']:.1f}" for method, row in summary.iterrows()]
    axis.set_yticks(range(table.shape[0]), labels, fontsize=7)
    figure.colorbar(image, label="rank")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def figure_embeddings(out: Path, order: list[str]) -> list[str]:
    """t-SNE of all imputed copies of an experiment, coloured by the known types (the paper's figure 4)."""
    from matplotlib import pyplot as plt

    files: dict[str, dict[str, Path]] = {}
    for path in sorted(out.glob("embedding_*.npz")):
        for method in order:
            if path.stem.endswith(f"_{method}"):
                files.setdefault(path.stem.removeprefix("embedding_").removesuffix(f"_{method}"), {})[method] = path
    for name, by_method in files.items():
        columns = min(4, len(by_method))
        rows = -(-len(by_method) // columns)
        size = (2.2 * columns, 2.2 * rows)
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, method in zip(axes.flat, [method for method in order if method in by_method], strict=False):
            stored = np.load(by_method[method])
            codes, types = pd.factorize(stored["labels"], sort=True)
            colors = plt.get_cmap("tab10" if len(types) <= 10 else "tab20")  # noqa: PLR2004
            for code, label in enumerate(types):
                points = stored["tsne"][codes == code]
                axis.plot(points[:, 0], points[:, 1], ".", ms=1.5, c=colors(code), label=label)
            axis.set_title(method, fontsize=8)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=6, markerscale=5, frameon=False)
        figure.savefig(out / f"tsne_{name}.png", dpi=110)
        plt.close(figure)
    return list(files)
