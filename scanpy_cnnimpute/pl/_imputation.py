"""``pl.imputation``: accuracy of the imputation and of simple methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._checks import check_key
from ._figure import BLUE, GREY, check_figure, finish, get_axes, stored_result

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from matplotlib.axes import Axes

LABELS = {
    "mse": "mean squared error",
    "pcc": "Pearson correlation",
    "gene_pcc": "Pearson correlation within a gene",
    "mse_zeros": "mean squared error at zeros",
    "pcc_zeros": "Pearson correlation at zeros",
    "deviance": "Poisson deviance",
    "auroc": "AUROC of the dropout probabilities",
    "brier": "Brier score of the dropout probabilities",
    "ece": "calibration error of the dropout probabilities",
}
HIGHER_IS_BETTER = ("pcc", "gene_pcc", "pcc_zeros", "auroc")
TESTS = {"molecules": "Held-out molecules", "masking": "Masked counts", "thinning": "Thinned counts"}


def imputation(
    adata: AnnData,
    *,
    score: str | None = None,
    key: str = "eval_imputation",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
) -> Axes | None:
    """Plot a score of the imputation and of the simple methods, best method on top.

    Parameters
    ----------
    adata
        Annotated data after :func:`~scanpy_cnnimpute.tl.eval_imputation`.
    score
        Score to plot, a column of the table of :func:`~scanpy_cnnimpute.tl.eval_imputation`. Default: the first one,
        ``"deviance"`` for ``how="molecules"``, else ``"mse"``.
    key
        The `key_added` of :func:`~scanpy_cnnimpute.tl.eval_imputation`.
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
        If the result has no such score.

    Notes
    -----
    One dot per seed; the median is drawn as a line and printed on the right. Methods with an undefined score are left
    out, for instance correlations of constant estimates.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()[:60, :200].copy()
    >>> table = scnn.tl.eval_imputation(adata, how="masking", settings={"n_steps": 2}, n_seeds=1)
    >>> scnn.pl.imputation(adata, show=False).get_xlabel()
    'mean squared error (lower is better)'
    """
    check_figure(ax, show=show, save=save)
    if score is not None:
        check_key("score", score)
    record = stored_result(adata, key, function="tl.eval_imputation")
    scores = record.table("scores")
    available = [column for column in scores.columns if column not in {"method", "seed"}]
    score = available[0] if score is None else score
    if score not in available:
        msg = f"score={score!r} is not in adata.uns[{key!r}]['scores']. Available: {available}."
        raise ValueError(msg)
    higher = score in HIGHER_IS_BETTER
    median = record.table("table")[score].dropna().sort_values(ascending=higher)

    axes = get_axes(ax, size=(5.6, 3.6))
    for position, (method, value) in enumerate(median.items()):
        color = BLUE if method == "cnn_impute" else GREY
        values = scores.loc[scores["method"] == method, score]
        axes.plot(values, np.full(len(values), position), "o", color=color, alpha=0.6, markeredgewidth=0)
        axes.plot([value, value], [position - 0.3, position + 0.3], color=color, linewidth=2.5)
        axes.text(1.02, position, f"{value:.3f}", transform=axes.get_yaxis_transform(), color=color, va="center")
    axes.set_yticks(np.arange(len(median)), median.index)
    for tick in axes.get_yticklabels():
        tick.set_fontweight("bold" if tick.get_text() == "cnn_impute" else "normal")
    n_seeds = scores["seed"].nunique()
    axes.set(
        xlabel=f"{LABELS[score]} ({'higher' if higher else 'lower'} is better)",
        title=f"{TESTS[record['params']['how']]}, {n_seeds} seed{'s' if n_seeds > 1 else ''}",
    )
    return finish(axes, given=ax, show=show, save=save)
