"""``pl.clusters``: agreement of clusters with known labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._figure import check_figure, finish, get_axes, stored_result

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from matplotlib.axes import Axes

SCORES = {
    "purity": "purity",
    "ari": "adjusted\nRand index",
    "nmi": "normalised mutual\ninformation",
    "entropy": "entropy",
}
GROUP_WIDTH = 0.8  # width of all bars of a score; scores are 1 apart. Matplotlib's default width of a bar
BAR_SHARE = 0.92  # width of a bar as a share of its slot, so that neighbours do not touch; chosen by eye
MAX_LABELLED = 4  # most bars per score whose printed values do not overlap at the default size


def clusters(
    adata: AnnData,
    *,
    key: str = "eval_clusters",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
) -> Axes | None:
    """Plot purity, adjusted Rand index, normalised mutual information and entropy of each clustering.

    Parameters
    ----------
    adata
        Annotated data after :func:`~scanpy_cnnimpute.tl.eval_clusters`.
    key
        The `key_added` of :func:`~scanpy_cnnimpute.tl.eval_clusters`.
    ax
        Axes to draw on. Default: a new figure.
    show
        Show the figure. Default: ``scanpy.settings.autoshow``.
    save
        File to write the figure to. Its ending decides the format.

    Returns
    -------
    The axes, or ``None`` if the figure is shown.

    Raises
    ------
    KeyError
        If there is no result under `key`.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()
    >>> table = scnn.tl.eval_clusters(adata, label_key="cell_line", layers="X", method="kmeans", n_clusters=5)
    >>> len(scnn.pl.clusters(adata, show=False).containers)
    1
    """
    check_figure(ax, show=show, save=save)
    record = stored_result(adata, key, function="tl.eval_clusters")
    table = record.table("table")

    axes = get_axes(ax, size=(7.2, 3.8))
    middle = np.arange(len(SCORES))
    width = GROUP_WIDTH / len(table)
    for position, (name, row) in enumerate(table.iterrows()):
        shift = (position - (len(table) - 1) / 2) * width
        bars = axes.bar(middle + shift, row[list(SCORES)].astype(float), width=BAR_SHARE * width, label=str(name))
        if len(table) <= MAX_LABELLED:
            axes.bar_label(bars, fmt="%.2f", fontsize="x-small", padding=1)
    best = {score: 0 if score == "entropy" else 1 for score in SCORES}
    axes.set_xticks(middle, [f"{label}\n({best[score]} is best)" for score, label in SCORES.items()], fontsize="small")
    axes.axhline(0, color="black", linewidth=0.8)
    # The adjusted Rand index can be negative.
    axes.set_ylim(min(0.0, 1.2 * float(table["ari"].min())), 1.08)
    axes.set(ylabel="score", title=f"Agreement of clusters with {record['params']['label_key']}")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return finish(axes, given=ax, show=show, save=save)
