"""``pl.held_out``: imputed against true values where counts were held out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import metrics
from .._anndata.counts import check_adata, get_counts
from .._anndata.results import stored_record, written_by
from .._checks import check_key
from ._figure import GREY, add_colorbar, check_figure, finish, get_axes

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from matplotlib.axes import Axes

BLOCK_CELLS = 500  # cells that are made dense at a time; 80 MB for 20,000 genes in float64
GRID_SIZE = 40  # hexagons along the axes; chosen by eye
# Counts with a tick. The axes are on the scale of log1p(counts).
TICKS = np.array([0, 1, 2, 5, 10, 20, 50, 100, 1000, 10_000, 100_000])


def held_out(
    adata: AnnData,
    *,
    truth: str,
    layer: str = "cnn_imputed",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
) -> Axes | None:
    """Plot imputed against true counts at the entries that were held out.

    Parameters
    ----------
    adata
        Annotated data with counts of which a part was set to zero, and their imputation.
    truth
        Layer with the complete counts.
    layer
        Layer with the imputed counts.
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
    KeyError, ValueError
        If a layer does not exist or holds no counts, or if no entry was held out.

    Notes
    -----
    The held-out entries are those above zero in `truth` and zero in the imputed counts' source: `X`, or the `layer` of
    :func:`~scanpy_cnnimpute.pp.cnn_impute`. Both axes and the scores in the title are on the scale of log1p(counts).
    A held-out entry is known to be above zero. The matching estimate is ``estimate="conditional"`` with
    ``threshold=0``, as in :func:`~scanpy_cnnimpute.tl.eval_imputation`.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> full = scnn.datasets.five_cell_lines()[:, :300]
    >>> masked = scnn.metrics.mask_nonzeros(full.X, min_detection=0.0)
    >>> adata = full[:, masked.genes].copy()
    >>> adata.layers["truth"], adata.X = adata.X, masked.counts
    >>> scnn.pp.cnn_impute(adata, estimate="conditional", threshold=0.0, n_steps=2)
    >>> scnn.pl.held_out(adata, truth="truth", show=False).get_xlabel()
    'true count'
    """
    check_figure(ax, show=show, save=save)
    check_adata(adata, caller="pl.held_out")
    check_key("truth", truth)
    check_key("layer", layer)
    source = stored_record(adata, layer)["params"].get("layer") if written_by(adata, layer) == "pp.cnn_impute" else None
    matrices = [get_counts(adata, name, caller="pl.held_out", integers=False) for name in (source, truth, layer)]
    parts = []
    for start in range(0, adata.n_obs, BLOCK_CELLS):
        rows = slice(start, start + BLOCK_CELLS)
        counts, true, imputed = (matrix[rows].toarray() for matrix in matrices)
        where = (counts == 0) & (true > 0)
        parts.append(np.log1p([true[where], imputed[where]]))
    x, y = np.concatenate(parts, axis=1)
    if x.size == 0:
        msg = f"Nothing was held out: the layer {truth!r} is zero wherever the counts that were imputed are."
        raise ValueError(msg)
    scores = f"MSE {metrics.mse(x, y):.3f}, PCC {metrics.pcc(x, y):.3f}"

    axes = get_axes(ax, size=(4.8, 4.2))
    largest = 1.03 * max(x.max(), y.max())
    extent = (0.0, largest, 0.0, largest)
    cells = axes.hexbin(x, y, gridsize=GRID_SIZE, bins="log", mincnt=1, extent=extent, linewidths=0.2)
    axes.plot([0, largest], [0, largest], color=GREY, linestyle="--", linewidth=1)
    ticks = TICKS[np.log1p(TICKS) <= largest]
    axes.set_xticks(np.log1p(ticks), [str(tick) for tick in ticks])
    axes.set_yticks(np.log1p(ticks), [str(tick) for tick in ticks])
    margin = 0.02 * largest
    axes.set(
        xlim=(-margin, largest),
        ylim=(-margin, largest),
        xlabel="true count",
        ylabel="imputed count",
        title=f"{x.size:,} held-out entries\nlog1p(counts): {scores}",
    )
    add_colorbar(axes, cells, label="entries")
    return finish(axes, given=ax, show=show, save=save)
