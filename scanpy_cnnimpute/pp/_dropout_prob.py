"""``pp.dropout_prob``: how probable it is that each zero is a dropout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd

from .. import metrics
from .._anndata.counts import check_adata, get_counts
from .._anndata.models import (
    FUNCTION,
    StoredModel,
    all_keys,
    probability_blocks,
    store_calibrated,
    store_cells,
    store_mixture,
)
from .._anndata.results import Results, check_keys, cluster_codes
from .._checks import check_number
from .._logging import logger
from .._threads import limited_threads
from ..dropout import depth_efficiency, fit_calibrated, fit_mixture
from ..tl._cluster import cluster_cells

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_array

    from ..dropout import CalibratedFit
    from ..tl._cluster import Method as ClusterMethod

Model = Literal["calibrated", "gamma_normal"]
Store = Literal["auto", "layer", "params"]
DEFAULT_CLUSTER_KEY = "cnn_cluster"
MAX_LAYER_BYTES = 2**30
# How each model's clusters are found if there are none.
CLUSTERED_BY: dict[str, ClusterMethod] = {"calibrated": "leiden", "gamma_normal": "adp"}
CALLED = 0.5


def dropout_prob(
    adata: AnnData,
    *,
    layer: str | None = None,
    cluster_key: str | None = None,
    model: Model = "calibrated",
    capture_efficiency: float | str | None = None,
    random_state: int = 0,
    store: Store = "auto",
    max_layer_bytes: int = MAX_LAYER_BYTES,
    key_added: str = "dropout_prob",
    n_jobs: int | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Estimate for every entry the probability that it is a dropout.

    Parameters
    ----------
    adata
        Annotated data with raw counts.
    layer
        Layer with the counts. Default: `X`.
    cluster_key
        Column of `.obs` with clusters. Default: ``"cnn_cluster"``, which :func:`~scanpy_cnnimpute.tl.cluster`
        computes first if it is not there. The gamma-normal model is fitted in each; the calibrated model is one for
        all cells, and is only compared with the cluster means.
    model
        ``"calibrated"``: the probability that the transcript was present though none was counted, given what is
        expected of the gene in the cell, its library size and the capture efficiency. ``"gamma_normal"``: the paper's
        mixture of a gamma (dropouts) and a normal distribution on log10(CPM + 1.01).
    capture_efficiency
        For the calibrated model: which share of the molecules was counted, between 0 and 1, or the column of `.obs`
        that holds it for each cell, as estimated from spike-ins. Counts alone cannot tell it. Default: what could
        still be counted in a deeper run is missing, that is 4,000 more molecules of the cell, or at most 1.65 times
        those that were counted.
    random_state
        Seed of the calibrated model.
    store
        ``"layer"`` writes the probabilities as a dense layer besides the parameters, ``"params"`` does not,
        ``"auto"`` does if it takes at most `max_layer_bytes`.
    max_layer_bytes
        Largest layer that ``store="auto"`` writes.
    key_added
        Key of the results.
    n_jobs
        Threads of numba and BLAS; the results do not depend on them. Default: one per core.
    copy
        Return a copy instead of changing `adata`.

    Returns
    -------
    ``None``, or the copy if ``copy=True``. Writes

    ``.layers[key_added]``
        ``(n_obs, n_vars)`` float32 probabilities, if `store` says so. At counts 0 (calibrated) or at most 0.4; 0 for
        genes that are not modelled (in the cell's cluster) and for cells without counts.
    ``.obsm[f"{key_added}_scores"]``, ``.varm[f"{key_added}_loadings"]``
        Calibrated: ``(n_obs, 20)`` and ``(n_vars, 20)`` float32, whose product is the expected count.
    ``.var[f"{key_added}_shape"]``
        Calibrated: shape of the negative binomial distribution around it; small is over-dispersed.
    ``.varm[f"{key_added}_gain"]``
        Calibrated: DataFrame, genes x clusters: how much better than by the cluster's mean held-out molecules were
        predicted, in standard errors; above 0 is better, NaN if there was nothing to compare. In
        ``.var[f"{key_added}_gain"]`` the same over all clusters, or the gain over leaving the zeros if it is larger.
    ``.obs[f"{key_added}_capture_efficiency"]``
        Calibrated: as given, or assumed.
    ``.varm[f"{key_added}_{name}"]``
        Gamma-normal: DataFrames, genes x clusters, float64, for the names ``rate`` (proportion of the gamma),
        ``alpha`` and ``beta`` (its shape and rate), ``mu`` and ``sigma`` (mean and standard deviation of the normal),
        in units of log10(CPM + 1.01); NaN where nothing was fitted. ``status``: categorical, ``"modelled"`` or why
        not.
    ``.obs[f"{key_added}_library_size"]``, ``.obs[f"{key_added}_cluster"]``
        Total counts and cluster of each cell, as used here, so that the parameters stay usable when genes or cells
        are dropped.
    ``.uns[key_added]``
        ``params``, ``written`` (the keys of this call), ``clusters`` (their names), ``summary``: per cluster
        ``n_cells``, ``n_modelled`` (genes) and ``zeros_called`` (share of its zeros with a probability above 0.5);
        for the gamma-normal model ``collapsed``, the share of modelled genes whose gamma describes the zeros alone;
        for the calibrated model ``dropouts`` (mean probability of its zeros) and ``gain`` (share of the genes that
        gain). For the calibrated model also ``reliability``: stated probability against observed share at zeros of
        one part of the molecules, whose other part is the truth. It judges what is expected and its spread (fitted to
        the same split), not the capture efficiency.

    Raises
    ------
    ValueError, TypeError, KeyError
        For unusable counts and unknown options or keys.

    Notes
    -----
    Calibrated: :func:`scanpy_cnnimpute.mixture.fit_calibrated`. Gamma-normal: equations 1 and 2 of the paper with the
    published program's rules; see :func:`scanpy_cnnimpute.mixture.fit_mixture`. Neither depends on the number of
    threads. :func:`scanpy_cnnimpute.get.dropout_prob` gives any part of the matrix without the layer.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()[:, :500].copy()
    >>> scnn.pp.dropout_prob(adata, cluster_key="cell_line", capture_efficiency=0.2)
    >>> adata.layers["dropout_prob"].shape == adata.shape
    True
    """
    check_adata(adata, caller="pp.dropout_prob")
    for name, value, allowed in (("model", model, get_args(Model)), ("store", store, get_args(Store))):
        if value not in allowed:
            msg = f"{name}={value!r} is not known. Available: {list(allowed)}."
            raise ValueError(msg)
    check_number("max_layer_bytes", max_layer_bytes, int, 0)
    check_number("random_state", random_state, int, 0)
    if n_jobs is not None:
        check_number("n_jobs", n_jobs, int, 1)
    if cluster_key is None:
        cluster_key = DEFAULT_CLUSTER_KEY
    check_keys(cluster_key, key_added=key_added)
    adata = adata.copy() if copy else adata
    with limited_threads(n_jobs):
        fit_dropout_prob(
            adata,
            get_counts(adata, layer, caller="pp.dropout_prob"),
            layer=layer,
            cluster_key=cluster_key,
            model=model,
            capture_efficiency=capture_efficiency,
            random_state=random_state,
            store=store,
            max_layer_bytes=max_layer_bytes,
            key_added=key_added,
        )
    return adata if copy else None


def fit_dropout_prob(
    adata: AnnData,
    counts: csr_array,
    *,
    layer: str | None,
    cluster_key: str,
    model: Model,
    capture_efficiency: float | str | None,
    random_state: int,
    store: Store,
    max_layer_bytes: int,
    key_added: str,
) -> CalibratedFit | None:
    """Fit to the counts in `layer` and write. A calibrated fit is also returned: it holds more than what is stored."""
    results = Results(adata, function=FUNCTION, key=key_added, keys=[("layers", key_added), *all_keys(key_added)])
    library_size = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    if not library_size.any():
        msg = "No cell has any counts: there is nothing to fit."
        raise ValueError(msg)
    efficiency = _efficiency(adata, model, capture_efficiency, library_size)
    if cluster_key == DEFAULT_CLUSTER_KEY and cluster_key not in adata.obs:
        cluster_cells(adata, counts, method=CLUSTERED_BY[model], layer=layer, key_added=cluster_key)
    clusters, names = cluster_codes(adata, cluster_key, caller="pp.dropout_prob")
    # A cell without counts has no library to scale to, and tells nothing about any gene.
    clusters = np.where(library_size > 0, clusters, -1)

    record: dict[str, Any] = {}
    fit: CalibratedFit | None = None
    if model == "calibrated":
        fit = fit_calibrated(counts, clusters, len(names), capture_efficiency=efficiency, random_state=random_state)
        stored = StoredModel(
            model=fit.model,
            library_size=library_size,
            clusters=clusters,
            names=names,
            modelled=np.repeat(np.asarray(fit.model.loadings.any(axis=1))[:, None], len(names), axis=1),
            gain=fit.total_gain,
        )
        store_calibrated(results, key_added, fit, names, adata.var_names)
        summary = _calibrated_summary(stored, fit.gain, counts)
        record["reliability"] = _reliability(fit.present, fit.stated)
    else:
        mixture = fit_mixture(counts, library_size, clusters, len(names))
        stored = StoredModel(
            model=mixture,
            library_size=library_size,
            clusters=clusters,
            names=names,
            modelled=mixture.status == 0,
            gain=None,
        )
        store_mixture(results, key_added, mixture, names, adata.var_names)
        summary = mixture.summary(counts, clusters)
    store_cells(results, key_added, library_size, clusters, names)

    n_bytes = 4 * adata.n_obs * adata.n_vars
    if store == "layer" or (store == "auto" and n_bytes <= max_layer_bytes):
        probabilities = np.empty(adata.shape, dtype=np.float32)
        for rows, block in probability_blocks(stored, counts):
            probabilities[rows] = block
        results.add("layers", key_added, probabilities)
    elif store == "auto":
        logger.warning(
            "pp.dropout_prob: the layer would take %.1f GB, more than max_layer_bytes (%.1f GB); only the parameters "
            "are stored. get.dropout_prob gives any part of it, pp.cnn_impute works with the parameters.",
            n_bytes / 1e9,
            max_layer_bytes / 1e9,
        )
    summary.insert(0, "cluster", names)
    results.write(
        {"clusters": np.array(names, dtype=str), "summary": summary.set_index("cluster"), **record},
        {
            "layer": layer,
            "cluster_key": cluster_key,
            "model": model,
            "capture_efficiency": capture_efficiency,
            "random_state": random_state if model == "calibrated" else None,
            "store": store,
            "max_layer_bytes": max_layer_bytes,
            "n_vars": adata.n_vars,
            "units": "probability",
        },
    )
    logger.info(
        "pp.dropout_prob: in the clusters, %s of the zeros have a probability above 0.5",
        ", ".join(f"{share:.0%}" for share in summary["zeros_called"]),
    )
    if model == "gamma_normal" and (summary["collapsed"] > CALLED).any():
        logger.warning(
            "pp.dropout_prob: in %d of %d clusters the gamma of most genes has collapsed onto the zeros: their "
            "probabilities say that a zero is a zero, not that a transcript was missed (uns[%r]['summary']). "
            "model='calibrated' has no such fault.",
            int((summary["collapsed"] > CALLED).sum()),
            len(names),
            key_added,
        )
    return fit


def _efficiency(
    adata: AnnData, model: Model, capture_efficiency: float | str | None, library_size: np.ndarray
) -> np.ndarray:
    """Capture efficiency of every cell."""
    if model != "calibrated" and capture_efficiency is not None:
        msg = f"capture_efficiency={capture_efficiency!r} means nothing to model={model!r}: leave it out."
        raise ValueError(msg)
    if capture_efficiency is None:
        return depth_efficiency(library_size)
    if isinstance(capture_efficiency, str):
        if capture_efficiency not in adata.obs:
            msg = (
                f"capture_efficiency={capture_efficiency!r} is not in adata.obs. Available: {list(adata.obs.columns)}."
            )
            raise KeyError(msg)
        column = adata.obs[capture_efficiency]
        if not pd.api.types.is_numeric_dtype(column):
            msg = f"adata.obs[{capture_efficiency!r}] has dtype {column.dtype}, expected numbers."
            raise TypeError(msg)
        efficiency = column.to_numpy(np.float64)
        name = f"adata.obs[{capture_efficiency!r}]"
    else:
        value = check_number("capture_efficiency", capture_efficiency, float)
        efficiency, name = np.full(adata.n_obs, float(value)), f"capture_efficiency={capture_efficiency!r}"
    # Cells without counts have no dropout probability, and often no efficiency either.
    efficiency = np.where(library_size > 0, efficiency, 1.0)
    fits = (efficiency > 0) & (efficiency <= 1)
    if not fits.all():
        which = f"{name} is not allowed ({np.count_nonzero(~fits)} cells, the first {efficiency[~fits][0]})"
        msg = f"{which}: a share of the molecules, above 0 and at most 1."
        raise ValueError(msg)
    return efficiency


def _calibrated_summary(stored: StoredModel, gain: np.ndarray, counts: csr_array) -> pd.DataFrame:
    """Per cluster: cells, modelled genes, zeros called dropouts, mean probability of the zeros, genes that gain."""
    n_clusters = len(stored.names)
    n_zeros, called, total = np.zeros((3, n_clusters + 1))
    for rows, block in probability_blocks(stored, counts):
        of_cell = stored.clusters[rows]
        n_zeros += np.bincount(of_cell + 1, block.shape[1] - np.diff(counts[rows].indptr), minlength=n_clusters + 1)
        called += np.bincount(of_cell + 1, (block > CALLED).sum(axis=1), minlength=n_clusters + 1)
        total += np.bincount(of_cell + 1, block.sum(axis=1, dtype=np.float64), minlength=n_clusters + 1)
    sizes = np.bincount(stored.clusters + 1, minlength=n_clusters + 1)
    zeros = np.maximum(n_zeros, 1)[1:]
    return pd.DataFrame(
        {
            "n_cells": sizes[1:],
            "n_modelled": stored.modelled.sum(axis=0),
            "zeros_called": called[1:] / zeros,
            "dropouts": total[1:] / zeros,
            "gain": (gain > 0).sum(axis=0) / np.maximum(np.isfinite(gain).sum(axis=0), 1),
        }
    )


def _reliability(present: np.ndarray, stated: np.ndarray) -> pd.DataFrame:
    """The reliability curve, or an empty one if no zero was left to judge."""
    if not stated.size:
        return pd.DataFrame({"probability": [], "share": [], "n": []})
    curve = metrics.reliability_curve(present, stated)
    curve.index = curve.index.astype(str)
    return curve
