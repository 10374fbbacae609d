"""Shared by all plots: stored results, axes, showing and saving."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from .._anndata.counts import check_adata
from .._anndata.results import Record, stored_record, written_by
from .._checks import check_key, check_number

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

# Blue and vermilion of Okabe and Ito (2008), which colour-blind readers tell apart; Matplotlib's grey and light grey.
BLUE, ORANGE, GREY, LIGHT_GREY = "#0072b2", "#d55e00", "#7f7f7f", "#d3d3d3"


def stored_result(adata: AnnData, key: str, *, function: str) -> Record:
    """Result of a function of this package under a key of `uns`; the KeyError names the results that exist."""
    check_adata(adata, caller="scanpy_cnnimpute.pl")
    check_key("key", key)
    if written_by(adata, key) != function:
        there = [other for other in adata.uns if written_by(adata, other) == function]
        msg = f"No result of {function} is stored under {key!r}. Stored: {there}. Run scnn.{function} first."
        raise KeyError(msg)
    return stored_record(adata, key)


def check_gene(adata: AnnData, gene: str) -> None:
    """Check that `gene` is the name of exactly one gene."""
    if not isinstance(gene, str) or gene not in adata.var_names:
        msg = f"gene={gene!r} is not in adata.var_names, such as {adata.var_names[:3].tolist()}."
        raise KeyError(msg)
    if (adata.var_names == gene).sum() > 1:
        msg = f"gene={gene!r} is the name of several genes; run adata.var_names_make_unique() first."
        raise ValueError(msg)


def check_figure(ax: Any, *, show: Any, save: Any) -> None:
    """Check what all plots are told about their figure."""
    if ax is not None and not hasattr(ax, "get_figure"):
        msg = f"ax={ax!r} has type {type(ax).__name__}, expected Matplotlib axes."
        raise TypeError(msg)
    if show is not None:
        check_number("show", show, bool)
    if save is not None and not isinstance(save, str | PathLike):
        msg = f"save={save!r} is not allowed: the path of a file to write, such as 'figure.png'."
        raise TypeError(msg)


def get_axes(ax: Axes | None, *, size: tuple[float, float]) -> Axes:
    """Given or new axes. Called after all checks, so that an error leaves no empty figure."""
    if ax is None:
        from matplotlib import pyplot as plt

        ax = plt.subplots(figsize=size, layout="constrained")[1]
    # Scanpy's own plots have no grid either, whatever scanpy.set_figure_params sets.
    ax.grid(visible=False)
    return ax


def add_colorbar(ax: Axes, mappable: ScalarMappable, *, label: str) -> None:
    """Add a colour bar to the figure of the axes."""
    figure = ax.get_figure()
    if figure is not None:
        figure.colorbar(mappable, ax=ax, label=label)


def finish(ax: Axes, *, given: Axes | None, show: bool | None, save: str | PathLike[str] | None) -> Axes | None:
    """Save and show the figure. Return the axes unless it was shown."""
    import scanpy as sc
    from matplotlib import pyplot as plt

    figure = ax.get_figure(root=True)
    show = sc.settings.autoshow if show is None else show
    if save is not None and figure is not None:
        figure.savefig(save, bbox_inches="tight")
    if show:
        plt.show()
    if save is not None and given is None:
        # A saved figure is not displayed again below the cell of a notebook, as in Scanpy.
        plt.close(figure)
    return None if show else ax
