"""``pl.mixture``: the gamma-normal mixture of a gene and the histogram it was fitted to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from .._anndata.counts import get_counts, open_counts
from .._anndata.fingerprint import check_fingerprint
from .._anndata.models import DROPOUT_FUNCTION, load_dropout_model, require_dropout_model
from .._checks import check_key
from ..dropout.gamma_normal import GammaNormalModel, gamma_normal_posterior, log10_cpm
from ..dropout.gamma_normal.model import STATUSES, ZERO
from ._figure import BLUE, LIGHT_GREY, ORANGE, check_figure, check_gene, finish, get_axes, stored_result

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from matplotlib.axes import Axes

N_BINS = 40  # of the histogram; chosen by eye
N_POINTS = 2000  # of the curves; enough to draw a gamma distribution that is narrower than a bin


def mixture(
    adata: AnnData,
    *,
    gene: str,
    cluster: str | None = None,
    key: str = "dropout_prob",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
) -> Axes | None:
    """Plot the gamma-normal mixture of a gene in a cluster, and its dropout probability.

    Parameters
    ----------
    adata
        Annotated data after :func:`~scanpy_cnnimpute.pp.dropout_prob` with ``model="gamma_normal"``.
    gene
        Name of the gene.
    cluster
        Name of the cluster. Default: the largest in which the gene is modelled.
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
        If there is no result under `key`, and for unknown genes and clusters.
    ValueError
        If the model is no gamma-normal mixture, the counts have changed since the fit, or the gene is not modelled.

    Notes
    -----
    The curves on the left axis are equation 1 of the paper, in numbers of cells, over the histogram of
    log10(CPM + 1.01). The right axis has equation 2, with a dot at the probability of a zero.
    :func:`~scanpy_cnnimpute.pp.dropout_prob` limits equation 2 for non-zero counts: to 0.4, and to 0 above the mean of
    the normal distribution where it exceeds 0.5.

    A needle at zero is a gamma distribution that has collapsed onto the zeros: it calls every zero a dropout.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()
    >>> scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="cell_line", store="params")
    >>> scnn.pl.mixture(adata, gene=adata.var_names[1], cluster="A549", show=False).get_xlabel()
    'log10(CPM + 1.01)'
    """
    check_figure(ax, show=show, save=save)
    if cluster is not None:
        check_key("cluster", cluster)
    record = stored_result(adata, key, function=DROPOUT_FUNCTION)
    require_dropout_model(adata, key)
    check_gene(adata, gene)
    layer = record["params"].get("layer")
    part = adata[:, [gene]]
    model, described = load_dropout_model(part, key)
    if not isinstance(model, GammaNormalModel):
        msg = (
            f"The dropout model {key!r} is {record['params']['model']!r}, which is no mixture. "
            "Run scnn.pp.dropout_prob with model='gamma_normal' and another key_added; "
            "scnn.pl.reliability and scnn.pl.dropout_prob show a calibrated model."
        )
        raise ValueError(msg)  # noqa: TRY004
    check_fingerprint(adata, key, open_counts(adata, layer, caller="pl.mixture", integers=False))
    names, codes = model.names.tolist(), described.cluster
    reasons = [STATUSES[code] for code in model.status[0]]
    position = _cluster(model, codes, reasons, gene, cluster)
    cells = np.flatnonzero(codes == position)
    if not cells.size:
        there = sorted({names[code] for code in codes if code >= 0})
        msg = f"No cell of cluster {names[position]!r} is left. Clusters with cells: {there}."
        raise ValueError(msg)
    counts = get_counts(part, layer, caller="pl.mixture", integers=False)[cells].toarray().ravel()
    x = log10_cpm(counts.astype(np.float64), described.library_size[cells])
    parameters = model.parameters[0, position]
    rate, alpha, beta, mu, sigma = parameters
    curve = np.linspace(ZERO, 1.05 * max(x.max(), mu + 2 * sigma), N_POINTS)
    width = (curve[-1] - ZERO) / N_BINS
    # The first bin is centred on the zeros.
    bins = ZERO + width * (np.arange(N_BINS + 1) - 0.5)
    gamma = cells.size * width * rate * stats.gamma.pdf(curve, alpha, scale=1 / beta)
    normal = cells.size * width * (1 - rate) * stats.norm.pdf(curve, mu, sigma)
    at_zero = model.zero_probability()[0, position]

    axes = get_axes(ax, size=(5.6, 3.8))
    heights = np.histogram(x, bins)[0]
    axes.stairs(heights, bins, fill=True, color=LIGHT_GREY, label="cells")
    axes.plot(curve, gamma, color=BLUE, label=f"dropouts (gamma, {rate:.0%})")
    axes.plot(curve, normal, color=ORANGE, label=f"expressed (normal, {1 - rate:.0%})")
    # Limit the axis to the histogram: a collapsed gamma distribution is a needle far above it.
    axes.set_ylim(0, 1.5 * heights.max())
    axes.set(xlabel="log10(CPM + 1.01)", ylabel="cells", title=f"{gene} in {names[position]}")
    probability = axes.twinx()
    probability.grid(visible=False)
    posterior = gamma_normal_posterior(curve, parameters)
    probability.plot(curve, posterior, color="black", linestyle=":", label="dropout probability")
    probability.plot(ZERO, at_zero, "o", color="black", clip_on=False, label=f"of a zero: {at_zero:.2f}")
    probability.set(ylim=(0, 1.5), yticks=np.linspace(0, 1, 6), ylabel="dropout probability (equation 2)")
    handles, labels = (
        a + b for a, b in zip(*(part.get_legend_handles_labels() for part in (axes, probability)), strict=True)
    )
    probability.legend(handles, labels, loc="upper center", ncols=2, frameon=False, fontsize="small")
    return finish(axes, given=ax, show=show, save=save)


def _cluster(model: GammaNormalModel, codes: np.ndarray, reasons: list[str], gene: str, cluster: str | None) -> int:
    """Position of the given cluster, or of the largest in which the gene is modelled."""
    names = model.names.tolist()
    if cluster is None:
        sizes = np.bincount(codes[codes >= 0], minlength=len(names))
        sizes[~model.modelled[0]] = 0
        if not sizes.any():
            msg = f"gene={gene!r} is not modelled in any cluster: {dict(zip(names, reasons, strict=True))}."
            raise ValueError(msg)
        return int(sizes.argmax())
    if cluster not in names:
        msg = f"cluster={cluster!r} is not known. Available: {names}."
        raise KeyError(msg)
    position = names.index(cluster)
    if not model.modelled[0, position]:
        msg = f"gene={gene!r} is not modelled in cluster {cluster!r}: {reasons[position]}."
        raise ValueError(msg)
    return position
