"""``pl.false_signals``: how often tests call genes that do not differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._figure import BLUE, GREY, ORANGE, check_figure, finish, get_axes, stored_result

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from matplotlib.axes import Axes

WIDTH = 0.38  # of a bar
NOMINAL = 0.05


def false_signals(
    adata: AnnData,
    *,
    key: str = "eval_false_signals",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
) -> Axes | None:
    """Plot which share of genes that do not differ each test calls in each layer.

    Parameters
    ----------
    adata
        Annotated data after :func:`~scanpy_cnnimpute.tl.eval_false_signals`.
    key
        Its `key_added`.
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
        If no result is stored under `key`.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()[:, :300].copy()
    >>> groups = {"groups": ["A549"], "reference": "H838"}
    >>> table = scnn.tl.eval_false_signals(adata, "cell_line", layers="X", **groups)
    >>> scnn.pl.false_signals(adata, show=False).get_ylabel()
    'decoys with p <= 0.05'
    """
    check_figure(ax, show=show, save=save)
    table = stored_result(adata, key, function="tl.eval_false_signals").table("table")
    layers, methods = list(dict.fromkeys(table["layer"])), list(dict.fromkeys(table["method"]))
    axes = get_axes(ax, size=(1.6 + 1.1 * len(layers), 3.6))
    for position, (method, color) in enumerate(zip(methods, (BLUE, ORANGE), strict=False)):
        part = table[table["method"] == method].set_index("layer").loc[layers, "called"]
        places = np.arange(len(layers)) + WIDTH * (position - (len(methods) - 1) / 2)
        bars = axes.bar(places, part, WIDTH, color=color, label=method)
        axes.bar_label(bars, fmt="{:.2f}", fontsize=8, padding=2)
    axes.axhline(NOMINAL, color=GREY, linestyle="--", linewidth=1)
    axes.set_xticks(np.arange(len(layers)), layers)
    axes.set(
        ylabel="decoys with p <= 0.05",
        title="genes that do not differ",
        ylim=(0, max(1.15 * table["called"].max(), 0.12)),
    )
    axes.legend(frameon=False)
    return finish(axes, given=ax, show=show, save=save)
