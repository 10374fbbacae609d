"""``pl.dropout_prob``: the dropout probability of a gene on an embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import get
from .._anndata.counts import get_counts
from .._anndata.models import DROPOUT_FUNCTION
from ._figure import LIGHT_GREY, add_colorbar, check_gene, finish, get_axes, stored_result

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from matplotlib.axes import Axes

AXES = 2
DOT = 120_000  # area of all dots together, as Scanpy has it


def dropout_prob(
    adata: AnnData,
    *,
    gene: str,
    basis: str = "X_umap",
    key: str = "dropout_prob",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
) -> Axes | None:
    """Plot on an embedding how probable it is that a gene dropped out of each cell.

    Parameters
    ----------
    adata
        Annotated data after :func:`~scanpy_cnnimpute.pp.dropout_prob`; the layer need not be stored.
    gene
        Name of the gene.
    basis
        Coordinates of `.obsm`, with or without their ``"X_"``.
    key
        The `key_added` of :func:`~scanpy_cnnimpute.pp.dropout_prob`.
    ax
        Axes to draw on. Default: a new figure.
    show
        Show the figure. Default: ``scanpy.settings.autoshow``.
    save
        Path of a file to write the figure to; its ending decides the format.

    Returns
    -------
    The axes, or ``None`` if the figure is shown.

    Raises
    ------
    KeyError
        If there is no result under `key`, and for unknown genes and coordinates.
    ValueError
        If the counts have changed since, or the coordinates have one column.

    Notes
    -----
    Cells in which the gene was counted are grey.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()[:, :500].copy()
    >>> scnn.tl.cluster(adata)
    >>> scnn.pp.dropout_prob(adata, store="params")
    >>> scnn.pl.dropout_prob(adata, gene=adata.var_names[0], basis="cnn_pca", show=False).get_xlabel()
    'cnn_pca1'
    """
    record = stored_result(adata, key, function=DROPOUT_FUNCTION)
    check_gene(adata, gene)
    name = basis.removeprefix("X_")
    coordinates = next((adata.obsm[there] for there in (basis, f"X_{name}") if there in adata.obsm), None)
    if coordinates is None:
        msg = f"basis={basis!r} is not in adata.obsm. Available: {list(adata.obsm)}."
        raise KeyError(msg)
    points = np.asarray(coordinates)
    if points.ndim != AXES or points.shape[1] < AXES:
        msg = f"basis={basis!r} has shape {points.shape}: two columns or more are needed."
        raise ValueError(msg)
    probability = get.dropout_prob(adata, genes=[gene], key=key).ravel()
    layer = record["params"].get("layer")
    counts = get_counts(adata[:, [gene]], layer, caller="pl.dropout_prob", integers=False).toarray().ravel()
    counted = np.flatnonzero(counts > 0)
    zeros = np.flatnonzero(counts == 0)
    # The most probable dropouts on top, and all of them over the counted cells.
    zeros = zeros[np.argsort(probability[zeros], kind="stable")]

    axes = get_axes(ax, size=(5.0, 4.0), save=save)
    dots = {"s": DOT / adata.n_obs, "marker": ".", "edgecolors": "none", "rasterized": True}
    axes.scatter(points[counted, 0], points[counted, 1], color=LIGHT_GREY, **dots)
    shown = axes.scatter(points[zeros, 0], points[zeros, 1], c=probability[zeros], vmin=0, vmax=1, **dots)
    label = {"umap": "UMAP", "tsne": "tSNE", "pca": "PC"}.get(name, name)
    axes.set(xticks=[], yticks=[], xlabel=f"{label}1", ylabel=f"{label}2", title=f"{gene} (grey: counted)")
    add_colorbar(axes, shown, label="dropout probability")
    return finish(axes, given=ax, show=show, save=save)
