"""``pp.cnn_impute``: predict probable dropouts from correlated genes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .._anndata.counts import check_adata, get_counts, layer_names, raw_matrix
from .._anndata.fingerprint import add_fingerprint, check_fingerprint
from .._anndata.models import (
    IMPUTE_FUNCTION,
    add_record,
    dropout_keys,
    has_dropout_model,
    imputer_keys,
    is_as_written,
    load_dropout_model,
    stored_models,
    written_genes,
)
from .._anndata.results import Results, check_keys, cluster_codes, column_names
from .._anndata.selection import selected_genes
from .._checks import check_choice, check_key, check_number, check_seed
from .._logging import logger
from .._matrix import check_probabilities
from .._threads import check_n_jobs, limit_keras, limited_threads
from ..dropout import Clusters, Dropout, GivenProbabilities, ModelledDropout
from ..imputation import STATUSES, FitOptions, Imputer, Targets, find_imputer, resolve_settings
from ..imputation.assemble import deviations, fill_zeros
from ..imputation.backend import check_backend
from ..imputation.base import IMPUTED
from ..tl._cluster import cluster_cells
from ._dropout_prob import (
    DEFAULT_CLUSTER_KEY,
    MAX_STORED_BYTES,
    DropoutRequest,
    Store,
    fit_and_store,
    labelled_clusters,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

    from ..imputation import Imputed
    from ..presets import Settings

MAX_LAYER_BYTES = 2**32
GATE = 5.0
"""Standard errors by which a gene has to be predicted worse than by its mean and by zeros to be left as it is."""
SAMPLE_CELLS = 500  # cells whose imputed entries stand for all, where no layer is written


def cnn_impute(
    adata: AnnData,
    *,
    preset: str = "default",
    layer: str | None = None,
    dropout_key: str = "dropout_prob",
    cluster_key: str | None = None,
    estimate: str | None = None,
    gate: bool | None = None,
    mask_var: str | np.ndarray | None = None,
    return_std: bool = False,
    store: Store = "auto",
    max_layer_bytes: int = MAX_LAYER_BYTES,
    threshold: float | None = None,
    n_top: int | None = None,
    learning_rate: float | None = None,
    n_steps: int | None = None,
    n_components: int | None = None,
    n_folds: int | None = None,
    n_targets: int | None = None,
    max_dropout: float | None = None,
    log: bool | None = None,
    batch_size: int | None = None,
    max_epochs: int | None = None,
    patience: int | None = None,
    validation_fraction: float | None = None,
    random_state: int = 0,
    key_added: str = "cnn_imputed",
    n_jobs: int | None = None,
    verbose: bool = True,
    copy: bool = False,
) -> AnnData | None:
    """Predict the counts of probable dropouts with convolutional networks.

    Parameters
    ----------
    adata
        Annotated data with raw counts.
    preset
        ``"default"``: what is recommended, one network for all cells. ``"paper"``: the published procedure with the
        published numbers, networks per cluster and subset of genes. The settings below that are not given have the
        preset's values.
    layer
        Layer with the counts. Default: `X`.
    dropout_key
        Where :func:`~scanpy_cnnimpute.pp.dropout_prob` stored its model, which is used as it is; it is fitted first if
        nothing is there. If there is a layer with this name, its probabilities are used, also if you changed them
        or made them yourself.
    cluster_key
        Column of `.obs` with clusters. The default preset needs none; if they are given, the summary has a row for
        each. The paper's preset trains networks in each: by default in the clusters of the dropout model; for a dropout
        layer of your own in ``"cnn_cluster"`` if it is there, else in all cells together.
    estimate
        ``"posterior_mean"``: what a zero is worth on average, the molecules that its dropout probability implies,
        corrected by the network, on the scale of log1p(CP10k); for log-normalised data. ``"expected_count"``: the same
        on the scale of counts, which is larger; for sums over cells. Both need a calibrated dropout model.
        ``"conditional"``: what the network predicts a count to be if it is not zero. Default: the first where it is
        possible, else the last.
    gate
        Leave a gene as it is, in all cells, if its held-out molecules were predicted worse than by the gene's mean and
        worse than by zeros, by more than five standard errors each. Default: where the dropout model
        knows, not with ``preset="paper"``.
    mask_var
        Genes to impute: a boolean column of `.var`, or a boolean array. All genes serve as inputs, the others stay as
        they are. Default: all.
    return_std
        Default preset: also write the standard deviations.
    store
        ``"layer"`` writes the imputed counts as a layer besides the fitted imputer, ``"params"`` does not (see
        :func:`~scanpy_cnnimpute.get.cnn_imputed`), ``"auto"`` does if it takes at most `max_layer_bytes`. Networks of
        ``preset="paper"`` are too large to be stored: its layer is always written.
    max_layer_bytes
        Largest layer that ``store="auto"`` writes.
    threshold
        A zero is imputed where its dropout probability is above this value (conditional and paper: 0.5; else 0.01).
    n_top
        Input genes chosen for each target gene (5).
    learning_rate
        Adam's learning rate (default: 1e-2 at the first step; paper: 1e-4).
    n_steps
        Default only: batches that the network is trained on (300).
    n_components
        Conditional only: most components of the low rank; fewer for fewer than ten cells each (30).
    n_folds
        Conditional only: parts of the non-zeros, each of which is hidden once (5).
    n_targets
        Paper only: target genes of one network (512).
    max_dropout
        Paper only: largest share of a cluster's cells in which an input gene may be called a dropout (0.5).
    log
        Paper only: train on log1p(counts) (``True``) or on counts, the paper's cnnImpute_nl (``False``).
    batch_size
        Paper only: cells in a training batch (32).
    max_epochs
        Paper only: most epochs a network is trained for (150).
    patience
        Paper only: epochs without a better validation loss before training stops (5).
    validation_fraction
        Paper only: share of the cells of a cluster kept for the validation loss (0.1).
    random_state
        Seed of the networks, and of a dropout model that is fitted on the way.
    key_added
        Key of the results.
    n_jobs
        Threads of numba, BLAS and TensorFlow, which takes their number in its first call only. Default: one per core.
    verbose
        Show a progress bar in a terminal.
    copy
        Return a copy instead of changing `adata`.

    Returns
    -------
    ``None``, or the copy if ``copy=True``. Writes, besides what :func:`~scanpy_cnnimpute.pp.dropout_prob` writes if
    it has to run,

    ``.layers[key_added]``
        ``(n_obs, n_vars)`` counts, the unit of the input, if `store` says so: observed counts bit-identical, dropouts
        predicted. CSR if the input is sparse, else dense; float32 where that holds the counts of the input, else
        float64. Normalise it with the library sizes of the observed counts.
    ``.layers[f"{key_added}_std"]``
        With ``return_std=True``: ``(n_obs, n_vars)`` float32 standard deviations at the imputed entries, 0 elsewhere:
        of log1p(counts) around the conditional estimate, else of log1p(CP10k).
    ``.uns[key_added]``
        ``params`` (with ``units``), ``written`` (the keys of this call); ``history``: DataFrame with
        ``cluster``, ``subset``, ``epoch``, ``loss``, ``val_loss`` (paper: of log1p counts, or counts with
        ``log=False``; default, at each check, the first before any training: Poisson deviance of held-out molecules
        but for a constant, or for the conditional estimate of hidden residuals in standard deviations);
        ``status``: DataFrame genes x clusters (default preset: one column ``"all"``), categorical: ``"imputed"`` or why
        not; ``summary``: per cluster numbers of cells, networks, genes with each status, and imputed entries. Without a
        layer, status and entries are those of 500 cells.

    The further keys that start with `key_added` are the fitted imputer of the default preset.

    Raises
    ------
    ValueError, TypeError, KeyError
        For unusable counts, unknown keys and values that are not allowed.
    RuntimeError
        If TensorFlow runs in graph mode in this process.

    Notes
    -----
    Paper: "CNN-based model construction". The same seed gives the same bits at the same number of threads.
    Keras runs the networks on the backend that is configured, on a GPU where the backend sees one. Memory beyond the
    counts: the imputed layer, some 200 MB of blocks, and with ``preset="paper"`` a network of 132 MB with its
    optimizer. A CSR layer takes 8 bytes per non-zero, more than a dense one when most zeros are imputed.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()[:, :300].copy()
    >>> scnn.pp.cnn_impute(adata, n_steps=2)
    >>> adata.uns["cnn_imputed"]["params"]["units"]
    'counts'
    """
    check_adata(adata, caller=IMPUTE_FUNCTION)
    n_jobs = check_n_jobs(n_jobs)
    request = ImputeRequest(
        preset=preset,
        layer=layer,
        dropout_key=dropout_key,
        cluster_key=cluster_key,
        estimate=estimate,
        gate=gate,
        return_std=return_std,
        store=store,
        max_layer_bytes=max_layer_bytes,
        random_state=random_state,
        key_added=key_added,
    )
    overrides = {
        "threshold": threshold,
        "n_top": n_top,
        "learning_rate": learning_rate,
        "n_steps": n_steps,
        "n_components": n_components,
        "n_folds": n_folds,
        "n_targets": n_targets,
        "max_dropout": max_dropout,
        "log": log,
        "batch_size": batch_size,
        "max_epochs": max_epochs,
        "patience": patience,
        "validation_fraction": validation_fraction,
    }
    choice = choose(adata, request, overrides)
    selected = selected_genes(adata, mask_var)
    adata = adata.copy() if copy else adata
    results = Results(adata, function=IMPUTE_FUNCTION, key=key_added, keys=_result_keys(key_added))
    counts = get_counts(adata, layer, caller=IMPUTE_FUNCTION)
    limit_keras(n_jobs)
    with limited_threads(n_jobs):
        dropout = dropout_of(adata, counts, request)
        options = fit_options(adata, counts, dropout, request, choice, selected, verbose=verbose)
        imputer, predictions = choice.imputer.fit_predict(counts, dropout, options, return_std=return_std)
        written = _add_layers(results, raw_matrix(adata, layer), counts, imputer, dropout, predictions, request)
    params = _params(request, choice, imputer)
    record = {
        "history": _history(imputer.history),
        "status": _status(imputer, options.clusters, adata.var_names),
        "summary": _summary(imputer, options.clusters, written),
    }
    if imputer.is_stored:
        record["arrays"] = add_record(results, key_added, imputer)
        fitted_to = dropout_key if isinstance(dropout, ModelledDropout) else None
        record["fingerprint"] = add_fingerprint(results, key_added, adata, counts, params, built_on=fitted_to)
    results.write(record, params)
    _report(imputer, written, counts)
    return adata if copy else None


@dataclass(frozen=True, kw_only=True)
class ImputeRequest:
    """The keywords of :func:`cnn_impute` that are kept as parameters, but for the settings."""

    preset: str
    layer: str | None
    dropout_key: str
    cluster_key: str | None
    estimate: str | None
    gate: bool | None
    return_std: bool
    store: Store
    max_layer_bytes: int
    random_state: int
    key_added: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a request amounts to: the imputer, its estimate and settings, and whether genes are gated."""

    imputer: type[Imputer]
    estimate: str
    settings: Settings
    gate: bool


def choose(adata: AnnData, request: ImputeRequest, overrides: dict[str, Any]) -> Choice:
    """Imputer, estimate and settings as given, or as the dropout model allows; what is not there is refused."""
    check_seed(request.random_state)
    check_choice("store", request.store, get_args(Store))
    check_number("max_layer_bytes", request.max_layer_bytes, int, 0, MAX_STORED_BYTES)
    for name in ("layer", "cluster_key"):
        if getattr(request, name) is not None:
            check_key(name, getattr(request, name))
    others = [key for key in (request.layer, request.cluster_key) if key is not None]
    check_keys(*others, key_added=request.key_added, dropout_key=request.dropout_key)
    if request.gate is not None:
        check_number("gate", request.gate, bool)
    imputer = find_imputer(request.preset, request.estimate)
    if (
        request.estimate is None
        and imputer.needs_calibrated
        and not _is_calibrated(adata, request.dropout_key, imputer)
    ):
        imputer = find_imputer(request.preset, "conditional")
    estimate = request.estimate or imputer.estimates[0]
    able = imputer.preset != "paper" and _is_calibrated(adata, request.dropout_key, imputer)
    if (imputer.needs_calibrated or request.gate) and not able:
        msg = (
            f"estimate={request.estimate!r}, gate={request.gate!r} need preset='default' and a calibrated dropout "
            f"model; this is preset={request.preset!r} with {_model_name(adata, request.dropout_key, imputer)} under "
            f"{request.dropout_key!r}. Run pp.dropout_prob(adata, model='calibrated') or pass estimate='conditional', "
            "gate=False."
        )
        raise ValueError(msg)
    if request.return_std and imputer.std_units is None:
        msg = f"return_std=True needs preset='default', not {request.preset!r}."
        raise ValueError(msg)
    if request.store == "params" and not imputer.is_stored:
        msg = (
            f"store='params' needs preset='default': the networks of preset={request.preset!r} are too large to be "
            "stored. Pass store='layer', or save them with CNNImputer."
        )
        raise ValueError(msg)
    check_backend()
    settings = resolve_settings(imputer, estimate, overrides)
    return Choice(
        imputer=imputer, estimate=estimate, settings=settings, gate=able if request.gate is None else request.gate
    )


def _model_name(adata: AnnData, key: str, imputer: type[Imputer]) -> str:
    """The dropout model that will be used: the stored one, none for a layer of the user's own, else the preset's."""
    if has_dropout_model(adata, key):
        return adata.uns[key]["params"]["model"]
    return "a layer of your own" if key in layer_names(adata) else imputer.dropout_model


def _is_calibrated(adata: AnnData, key: str, imputer: type[Imputer]) -> bool:
    return _model_name(adata, key, imputer) == "calibrated"


def dropout_of(adata: AnnData, counts: sp.csr_array, request: ImputeRequest) -> Dropout:
    """Dropout probabilities: a layer of the user's own, the stored model, or one that is fitted and stored first."""
    key, layer = request.dropout_key, None
    if key in layer_names(adata):
        layer = check_probabilities(adata.layers[key], where=f"adata.layers[{key!r}]")
        if not has_dropout_model(adata, key):
            _refuse_remnants(adata, key)
            return GivenProbabilities(layer)
    if not has_dropout_model(adata, key):
        return _fit_dropout(adata, counts, request)
    _check_origin(adata, counts, request)
    if layer is not None and is_as_written(adata, key):
        layer = None
    model, cells = load_dropout_model(adata, key)
    return ModelledDropout(counts, model, cells, layer, written_genes(adata, key))


def _fit_dropout(adata: AnnData, counts: sp.csr_array, request: ImputeRequest) -> ModelledDropout:
    """Fit the preset's dropout model; a warning says so if others are stored, as the key may be mistyped."""
    others = stored_models(adata)
    if others:
        logger.warning(
            "pp.cnn_impute: no dropout model is stored under %r, fitting one; stored: %s", request.dropout_key, others
        )
    fitted = DropoutRequest(
        layer=request.layer,
        cluster_key=request.cluster_key,
        model=find_imputer(request.preset).dropout_model,
        random_state=request.random_state,
        key_added=request.dropout_key,
    )
    return fit_and_store(adata, counts, fitted, selected_genes(adata, None))


def _check_origin(adata: AnnData, counts: sp.csr_array, request: ImputeRequest) -> None:
    """The stored dropout model must belong to the counts and, if it was fitted in clusters, to those asked for."""
    key = request.dropout_key
    params = adata.uns[key]["params"]
    if params.get("layer") != request.layer:
        msg = (
            f"The dropout model {key!r} was fitted to layer={params.get('layer')!r}, not to layer={request.layer!r}. "
            "Pass that layer, or run pp.dropout_prob with another key_added and pass it as dropout_key."
        )
        raise ValueError(msg)
    check_fingerprint(adata, key, counts)
    if params["model"] != "gamma_normal":
        return
    fitted_key = params["cluster_key"]
    if request.cluster_key not in {None, fitted_key}:
        msg = (
            f"The dropout model {key!r} was fitted in the clusters of {fitted_key!r}, not of "
            f"{request.cluster_key!r}. Leave cluster_key out, or run pp.dropout_prob with another key_added for these."
        )
        raise ValueError(msg)
    if fitted_key in adata.obs:
        model, cells = load_dropout_model(adata, key)
        clusters = model.clusters(cells)
        names = np.array([*clusters.names, None], dtype=object)  # the code -1 picks the last
        fitted = pd.Series(names[clusters.codes], index=adata.obs_names, dtype=object)
        today = adata.obs[fitted_key].astype(object).map(str, na_action="ignore")
        if (fitted.notna() & (fitted != today)).any():
            msg = (
                f"adata.obs[{fitted_key!r}] has changed since the dropout model {key!r} was fitted in it. "
                "Run pp.dropout_prob again."
            )
            raise ValueError(msg)


def _refuse_remnants(adata: AnnData, key: str) -> None:
    """A dropout layer whose model is incomplete is not a layer of the user's own."""
    remnants = [
        f"adata.{attribute}[{name!r}]" for attribute, name in dropout_keys(key) if name in getattr(adata, attribute)
    ]
    if remnants:
        msg = (
            f"adata.layers[{key!r}] comes from a dropout model of which only {', '.join(remnants)} is left, as "
            f"after anndata.concat. Delete these and run pp.dropout_prob again; to use the layer alone, rename it."
        )
        raise ValueError(msg)


def fit_options(
    adata: AnnData,
    counts: sp.csr_array,
    dropout: Dropout,
    request: ImputeRequest,
    choice: Choice,
    selected: np.ndarray,
    *,
    verbose: bool,
) -> FitOptions:
    """Clusters and genes of the fit, as the dropout model and the request have them."""
    model = dropout.model if isinstance(dropout, ModelledDropout) else None
    no_gain = np.zeros(adata.n_vars, dtype=bool)
    if choice.gate and model is not None and model.gain is not None:
        no_gain = model.gain < -GATE
    modelled = np.ones((adata.n_vars, 1), dtype=bool) if model is None else model.modelled
    return FitOptions(
        settings=choice.settings,
        estimate=choice.estimate,
        random_state=request.random_state,
        targets=Targets(selected=selected, no_gain=no_gain),
        clusters=_clusters(adata, counts, dropout, request),
        modelled=modelled,
        verbose=verbose,
    )


def _clusters(adata: AnnData, counts: sp.csr_array, dropout: Dropout, request: ImputeRequest) -> Clusters:
    """Clusters that the paper's networks are trained in, or that the default's summary reports."""
    key = request.cluster_key
    if request.preset != "paper":
        if key is not None:
            return labelled_clusters(adata, key, caller=IMPUTE_FUNCTION)
        return Clusters.single(adata.n_obs)
    if isinstance(dropout, ModelledDropout) and dropout.model.needs_clusters:
        return dropout.model.clusters(dropout.cells)
    if isinstance(dropout, ModelledDropout):
        warnings.warn(
            f"preset='paper' with the {dropout.model.name} dropout model {request.dropout_key!r} is not the published "
            "procedure: that takes pp.dropout_prob(adata, model='gamma_normal').",
            UserWarning,
            stacklevel=4,
        )
        key = key or DEFAULT_CLUSTER_KEY
        if key == DEFAULT_CLUSTER_KEY and key not in adata.obs:
            cluster_cells(adata, counts, method="adp", layer=request.layer, key_added=key)
    if key is None and DEFAULT_CLUSTER_KEY not in adata.obs:
        return Clusters.single(adata.n_obs)
    codes, names = cluster_codes(adata, key or DEFAULT_CLUSTER_KEY, caller=IMPUTE_FUNCTION)
    return Clusters(codes=codes, names=names)


def _result_keys(key: str) -> list[tuple[str, str]]:
    return [("layers", key), ("layers", f"{key}_std"), *imputer_keys(key)]


def _add_layers(
    results: Results,
    matrix: Any,
    counts: sp.csr_array,
    imputer: Imputer,
    dropout: Dropout,
    predictions: Iterator[Imputed],
    request: ImputeRequest,
) -> np.ndarray:
    """Add the layers that the request asks for; returns the number of imputed entries of each cell.

    Without a layer these are numbers of `SAMPLE_CELLS` cells, -1 for the others.
    """
    key, n_imputed = request.key_added, np.zeros(counts.shape[0], dtype=np.int64)
    kept: list[Imputed] = []

    def counted(parts: Iterator[Imputed]) -> Iterator[Imputed]:
        for part in parts:
            n_imputed[part.cells] = np.diff(part.values.indptr)
            if request.return_std:
                kept.append(part)
            yield part

    if _is_written(matrix, counts, imputer, dropout, request):
        results.add("layers", key, fill_zeros(matrix, counts, counted(predictions)))
        if request.return_std:
            results.add("layers", f"{key}_std", deviations(matrix, counts.shape, kept))
        return n_imputed
    rows, sample = _sample(counts, imputer, dropout)
    n_imputed[:] = -1
    n_imputed[rows] = 0
    for part in sample:
        n_imputed[rows[part.cells]] = np.diff(part.values.indptr)
    return n_imputed


def _is_written(matrix: Any, counts: sp.csr_array, imputer: Imputer, dropout: Dropout, request: ImputeRequest) -> bool:
    """Whether the layer is asked for or small; a warning says how to get at values if it is too large."""
    if request.store != "auto" or not imputer.is_stored:
        return request.store != "params"
    item = np.result_type(matrix.dtype, np.float32).itemsize
    n_entries = counts.shape[0] * counts.shape[1]
    n_bytes = n_entries * item
    if sp.issparse(matrix) and n_entries * (item + 4) > request.max_layer_bytes:
        rows, sample = _sample(counts, imputer, dropout)
        filled = sum(part.values.nnz for part in sample) / max(rows.size, 1)
        n_bytes = round((counts.nnz + filled * counts.shape[0]) * (item + 4))
    if n_bytes <= request.max_layer_bytes:
        return True
    logger.warning(
        "pp.cnn_impute: the layer would take about %.1f GB, more than max_layer_bytes (%.1f GB); the fitted imputer is "
        "stored. get.cnn_imputed(adata, genes=, cells=, key=%r) gives any part; store='layer' writes it all the same.",
        n_bytes / 1e9,
        request.max_layer_bytes / 1e9,
        request.key_added,
    )
    return False


def _sample(counts: sp.csr_array, imputer: Imputer, dropout: Dropout) -> tuple[np.ndarray, list[Imputed]]:
    """Evenly spaced cells, and what is imputed in them."""
    rows = np.unique(np.linspace(0, counts.shape[0] - 1, SAMPLE_CELLS).round().astype(np.int64))
    return rows, list(imputer.predict(counts[rows], dropout.take(rows)))


def _params(request: ImputeRequest, choice: Choice, imputer: Imputer) -> dict[str, Any]:
    params = vars(request) | {"estimate": choice.estimate, "gate": choice.gate, **choice.settings.as_dict()}
    del params["key_added"]
    return params | {"units": "counts", "std_units": imputer.std_units if request.return_std else None}


def _history(networks: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per network and epoch."""
    columns = ("cluster", "subset", "epoch", "loss", "val_loss")
    rows = [
        (network["cluster"], network["subset"], epoch, loss, val_loss)
        for network in networks
        for epoch, (loss, val_loss) in enumerate(zip(network["loss"], network["val_loss"], strict=True), start=1)
    ]
    frame = pd.DataFrame(rows, columns=list(columns), index=pd.RangeIndex(len(rows)).astype(str))
    kinds = {"cluster": str, "subset": np.int64, "epoch": np.int64, "loss": np.float64, "val_loss": np.float64}
    return frame.astype(kinds)


def _status(imputer: Imputer, clusters: Clusters, genes: pd.Index) -> pd.DataFrame:
    """Status of every gene, in each cluster that has networks of its own."""
    columns = column_names(clusters.names) if imputer.status.shape[1] == len(clusters.names) > 1 else ["all"]
    if imputer.preset == "paper":
        columns = column_names(clusters.names)
    return pd.DataFrame(
        {
            column: pd.Categorical.from_codes(imputer.status[:, position], categories=list(STATUSES))
            for position, column in enumerate(columns)
        },
        index=genes.astype(str),
    )


def _summary(imputer: Imputer, clusters: Clusters, n_imputed: np.ndarray) -> pd.DataFrame:
    """Numbers per cluster: cells, networks, imputed entries, genes of each status."""
    rows = {}
    for position, name in enumerate(clusters.names):
        cells = clusters.codes == position
        status = imputer.status[:, min(position, imputer.status.shape[1] - 1)]
        genes = np.bincount(status, minlength=len(STATUSES))
        rows[name] = {
            "n_cells": int(cells.sum()),
            "n_networks": sum(network["cluster"] in {name, "all"} for network in imputer.history),
            "n_entries": int(np.maximum(n_imputed[cells], 0).sum()),
            **{f"genes {status}": int(n) for status, n in zip(STATUSES, genes, strict=True)},
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _report(imputer: Imputer, n_imputed: np.ndarray, counts: sp.csr_array) -> None:
    """Log what was imputed, in one line; warn if it is nothing, or if cells were left out."""
    seen = n_imputed >= 0
    zeros = counts.shape[1] * int(seen.sum()) - int(np.diff(counts.indptr)[seen].sum())
    n_entries = int(n_imputed[seen].sum())
    logger.info(
        "pp.cnn_impute: %d networks; %.1f %% of the zeros %s imputed",
        len(imputer.history),
        100 * n_entries / max(zeros, 1),
        "are" if seen.all() else f"of {int(seen.sum())} sampled cells would be",
    )
    if n_entries == 0:
        status = pd.Series(imputer.status.ravel()).value_counts()
        reasons = ", ".join(f"{n} genes {STATUSES[code]!r}" for code, n in status.items() if code != IMPUTED)
        logger.warning(
            "pp.cnn_impute: nothing is imputed (%s). Lower threshold=, or state a lower capture_efficiency= in "
            "pp.dropout_prob if more is missing than a deeper run would count.",
            reasons,
        )
