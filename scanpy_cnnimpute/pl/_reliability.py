"""``pl.reliability``: calibration of the dropout probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._anndata.models import DROPOUT_FUNCTION
from ._figure import BLUE, GREY, LIGHT_GREY, check_figure, finish, get_axes, stored_result

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from matplotlib.axes import Axes

BAR_WIDTH = 0.03  # of the axis; narrower than the bins of 0.05, so that bars do not touch


def reliability(
    adata: AnnData,
    *,
    key: str = "dropout_prob",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
) -> Axes | None:
    """Plot the observed share of dropouts against the stated dropout probability, and the number of zeros.

    Parameters
    ----------
    adata
        Annotated data after :func:`~scanpy_cnnimpute.pp.dropout_prob` with ``model="calibrated"``.
    key
        The `key_added` of :func:`~scanpy_cnnimpute.pp.dropout_prob`.
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
    ValueError
        If the model has no reliability curve.

    Notes
    -----
    Each point is a bin of probabilities. Calibrated probabilities lie on the diagonal. The intervals are Wilson's 95 %
    intervals for independent zeros. The bars, on the right axis, count the zeros in each bin. The title has the
    expected calibration error: the mean distance to the diagonal, weighted by zeros.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()[:, :500].copy()
    >>> scnn.pp.dropout_prob(adata)
    >>> scnn.pl.reliability(adata, show=False).get_xlabel()
    'stated dropout probability'
    """
    check_figure(ax, show=show, save=save)
    record = stored_result(adata, key, function=DROPOUT_FUNCTION)
    if "reliability" not in record:
        msg = (
            f"The dropout model {key!r} is {record['params']['model']!r}, which has no reliability curve. "
            "Run scnn.pp.dropout_prob with model='calibrated'."
        )
        raise ValueError(msg)
    curve = record.table("reliability")
    if curve.empty:
        msg = f"The reliability curve of {key!r} is empty: no zero was left to judge."
        raise ValueError(msg)
    stated, share, n = (curve[column].to_numpy(np.float64) for column in ("probability", "share", "n"))

    axes = get_axes(ax, size=(4.8, 4.2))
    numbers = axes.twinx()
    numbers.grid(visible=False)
    numbers.bar(stated, n, width=BAR_WIDTH, color=LIGHT_GREY)
    numbers.set(yscale="log", ylim=(0.7, 10 * n.max()), ylabel="zeros in the bin (bars)")
    # Draw the curve over the bars: twin axes lie above by default.
    axes.set_zorder(numbers.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfect")
    axes.errorbar(
        stated, share, yerr=_interval(share, n), color=BLUE, fmt="o-", label="observed, 95 % interval", clip_on=False
    )
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="stated dropout probability",
        ylabel="observed share of dropouts",
        title=f"Calibration error {np.average(np.abs(stated - share), weights=n):.3f}",
    )
    axes.legend(loc="upper left", frameon=False)
    return finish(axes, given=ax, show=show, save=save)


def _interval(share: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Error bars of the 95 % intervals, ``(2, n_bins)``, as in Matplotlib's `yerr`."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(np.rint(share * n), n, method="wilson")
    # Rounding can make a bar negative at a share of 0 or 1.
    return np.maximum([share - low, high - share], 0)
