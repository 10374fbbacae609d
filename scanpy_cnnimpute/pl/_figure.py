"""What all plots share: the stored result, the axes, showing and saving."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from .._anndata.counts import check_adata
from .._anndata.results import written_by

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

# Told apart by most colour-blind eyes, and in print.
BLUE, ORANGE, GREY, LIGHT_GREY = "#0072b2", "#d55e00", "#7f7f7f", "#d3d3d3"


def stored_result(adata: AnnData, key: str, *, function: str) -> dict[str, Any]:
    """What a function of this package wrote under a key of `uns`, or a KeyError that names what there is."""
    check_adata(adata, caller="scanpy_cnnimpute.pl")
    if written_by(adata, key) != function:
        there = [other for other in adata.uns if written_by(adata, other) == function]
        msg = f"No result of {function} is stored under {key!r}. Stored: {there}. Run scnn.{function} first."
        raise KeyError(msg)
    return adata.uns[key]


def check_gene(adata: AnnData, gene: str) -> None:
    """Refuse what is not the name of one gene."""
    if not isinstance(gene, str) or gene not in adata.var_names:
        msg = f"gene={gene!r} is not in adata.var_names, such as {adata.var_names[:3].tolist()}."
        raise KeyError(msg)
    if (adata.var_names == gene).sum() > 1:
        msg = f"gene={gene!r} is the name of several genes; run adata.var_names_make_unique() first."
        raise ValueError(msg)


def get_axes(ax: Axes | None, *, size: tuple[float, float], save: Any) -> Axes:
    """The axes to draw on: those given, or new ones. Called when nothing can be refused any more."""
    if save is not None and not isinstance(save, str | PathLike):
        msg = f"save={save!r} is not allowed: the path of a file to write, such as 'figure.png'."
        raise TypeError(msg)
    if ax is None:
        from matplotlib import pyplot as plt

        ax = plt.subplots(figsize=size, layout="constrained")[1]
    # As Scanpy's own plots, whatever scanpy.set_figure_params says.
    ax.grid(visible=False)
    return ax


def add_colorbar(ax: Axes, mappable: ScalarMappable, *, label: str) -> None:
    """Put a colour bar beside the axes, in the figure that they are in."""
    figure = ax.get_figure()
    if figure is not None:
        figure.colorbar(mappable, ax=ax, label=label)


def finish(ax: Axes, *, given: Axes | None, show: bool | None, save: str | PathLike[str] | None) -> Axes | None:
    """Save and show the figure of the axes; gives the axes back unless it was shown."""
    import scanpy as sc
    from matplotlib import pyplot as plt

    figure = ax.get_figure(root=True)
    show = sc.settings.autoshow if show is None else show
    if save is not None and figure is not None:
        figure.savefig(save, bbox_inches="tight")
    if show:
        plt.show()
    if save is not None and given is None:
        # As Scanpy: what is in a file is not drawn again below a notebook's cell.
        plt.close(figure)
    return None if show else ax
