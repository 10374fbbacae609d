"""``pl.history``: losses of the networks during training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._figure import BLUE, ORANGE, check_figure, finish, get_axes, stored_result

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from matplotlib.axes import Axes


def history(
    adata: AnnData,
    *,
    key: str = "cnn_imputed",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
) -> Axes | None:
    """Plot the training and the validation loss of the networks.

    Parameters
    ----------
    adata
        Annotated data after :func:`~scanpy_cnnimpute.pp.cnn_impute`.
    key
        The `key_added` of :func:`~scanpy_cnnimpute.pp.cnn_impute`.
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
        If no network was trained.

    Notes
    -----
    Several networks are drawn as thin lines, with the median of the networks that are still trained at an epoch.

    The default network is checked a few times, first before any training, and keeps the weights of the lowest
    validation loss. Its training loss, on the right axis, is the mean since the previous check.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()[:, :300].copy()
    >>> scnn.pp.cnn_impute(adata, n_steps=6)
    >>> scnn.pl.history(adata, show=False).get_ylabel()
    'validation loss'
    """
    check_figure(ax, show=show, save=save)
    record = stored_result(adata, key, function="pp.cnn_impute")
    frame = record.table("history")
    if frame.empty:
        msg = f"No network was trained for {key!r}: adata.uns[{key!r}]['summary'] says why."
        raise ValueError(msg)
    from matplotlib.ticker import MaxNLocator

    published = record["params"]["preset"] == "paper"
    networks = frame.groupby(["cluster", "subset"], sort=False, observed=True)

    axes = get_axes(ax, size=(4.8, 3.6))
    # The two losses of the default preset differ in scale: training batches are noisier than the validation set.
    training = axes if published else axes.twinx()
    training.grid(visible=False)
    lines = []
    for column, label, color, on in (
        ("val_loss", "validation", ORANGE, axes),
        ("loss", "training", BLUE, training),
    ):
        if networks.ngroups > 1:
            for _, network in networks:
                on.plot(network["epoch"], network[column], color=color, linewidth=0.6, alpha=0.35)
        median = frame.groupby("epoch")[column].median()
        lines += on.plot(median.index, median, color=color, marker="o", markersize=3.5, label=label)
        if not published:
            on.set_ylabel(f"{label} loss", color=color)
            on.ticklabel_format(axis="y", useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if published:
        axes.set(xlabel="epoch", ylabel="loss")
        axes.legend(handles=lines, frameon=False)
    else:
        axes.set_xlabel("check (the first before any training)")
    axes.set_title("1 network" if networks.ngroups == 1 else f"{networks.ngroups} networks and their median")
    return finish(axes, given=ax, show=show, save=save)
