"""``pl.dropout_prob``: the dropout probability of a gene on an embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import get
from .._anndata.counts import get_counts
from .._anndata.models import DROPOUT_FUNCTION
from .._checks import check_key
from ._figure import LIGHT_GREY, add_colorbar, check_figure, check_gene, finish, get_axes, stored_result

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from matplotlib.axes import Axes

N_DIMENSIONS = 2  # of the plot
TOTAL_DOT_AREA = 120_000  # of all dots, in points squared: the size of Scanpy's embedding plots


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
    """Plot the dropout probability of a gene in each cell on an embedding.

    Parameters
    ----------
    adata
        Annotated data after :func:`~scanpy_cnnimpute.pp.dropout_prob`, with or without the layer.
    gene
        Name of the gene.
    basis
        Key of `.obsm` with the coordinates; the prefix ``"X_"`` can be left out.
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
        If there is no result under `key`, and for unknown genes and coordinates.
    ValueError
        If the counts have changed since the fit, or the coordinates have fewer than two columns.

    Notes
    -----
    Cells with a count of the gene are grey.

    Examples
    --------
    >>> import scanpy as sc
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()[:, :500].copy()
    >>> scnn.pp.dropout_prob(adata, store="params")
    >>> sc.pp.pca(adata)
    >>> scnn.pl.dropout_prob(adata, gene=adata.var_names[0], basis="pca", show=False).get_xlabel()
    'PC1'
    """
    check_figure(ax, show=show, save=save)
    record = stored_result(adata, key, function=DROPOUT_FUNCTION)
    check_gene(adata, gene)
    name = check_key("basis", basis).removeprefix("X_")
    coordinates = next((adata.obsm[there] for there in (basis, f"X_{name}") if there in adata.obsm), None)
    if coordinates is None:
        msg = f"basis={basis!r} is not in adata.obsm. Available: {list(adata.obsm)}."
        raise KeyError(msg)
    points = np.asarray(coordinates)
    if points.ndim != N_DIMENSIONS or points.shape[1] < N_DIMENSIONS:
        msg = f"basis={basis!r} has shape {points.shape}: two columns or more are needed."
        raise ValueError(msg)
    probability = get.dropout_prob(adata, genes=[gene], key=key).ravel()
    layer = record["params"].get("layer")
    counts = get_counts(adata[:, [gene]], layer, caller="pl.dropout_prob", integers=False).toarray().ravel()
    counted = np.flatnonzero(counts > 0)
    zeros = np.flatnonzero(counts == 0)
    # Later dots cover earlier ones: probable dropouts are drawn last.
    zeros = zeros[np.argsort(probability[zeros], kind="stable")]

    axes = get_axes(ax, size=(5.0, 4.0))
    dots = {"s": TOTAL_DOT_AREA / adata.n_obs, "marker": ".", "edgecolors": "none", "rasterized": True}
    axes.scatter(points[counted, 0], points[counted, 1], color=LIGHT_GREY, **dots)
    shown = axes.scatter(points[zeros, 0], points[zeros, 1], c=probability[zeros], vmin=0, vmax=1, **dots)
    label = {"umap": "UMAP", "tsne": "tSNE", "pca": "PC"}.get(name, name)
    axes.set(xticks=[], yticks=[], xlabel=f"{label}1", ylabel=f"{label}2", title=f"{gene} (grey: counted)")
    add_colorbar(axes, shown, label="dropout probability")
    return finish(axes, given=ax, show=show, save=save)
