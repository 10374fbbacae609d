"""``pp.cnn_impute``: predict probable dropouts from correlated genes."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .._anndata.counts import check_adata, get_counts, layer_names, raw_matrix
from .._anndata.models import all_keys, check_unchanged, has_model, load_model, stored_models
from .._anndata.results import Results, check_keys, cluster_codes, column_names
from .._checks import check_number
from .._logging import logger
from .._matrix import check_probabilities
from .._threads import limit_keras, limited_threads
from ..dropout import CalibratedModel, fit_calibrated
from ..estimator import CNNImputer
from ..imputation import ALL, STATUSES, ExpectedCounts
from ._dropout_prob import DEFAULT_CLUSTER_KEY, MAX_LAYER_BYTES, fit_dropout_prob

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

    from .._anndata.models import StoredModel
    from ..dropout import CalibratedFit

Estimate = Literal["posterior_mean", "expected_count", "conditional"]
POSTERIOR = ("posterior_mean", "expected_count")
CONDITIONAL_THRESHOLD = 0.5
# Standard errors. A gene that the model predicts no better than the cluster's mean is better imputed than left at zero.
GATE = 5.0


def cnn_impute(
    adata: AnnData,
    *,
    preset: str = "default",
    layer: str | None = None,
    dropout_key: str = "dropout_prob",
    cluster_key: str | None = None,
    estimate: Estimate | None = None,
    gate: bool | None = None,
    return_std: bool = False,
    threshold: float | None = None,
    n_top: int | None = None,
    learning_rate: float | None = None,
    n_components: int | None = None,
    n_folds: int | None = None,
    n_members: int | None = None,
    n_steps: int | None = None,
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
        Where :func:`~scanpy_cnnimpute.pp.dropout_prob` stored its results; it is run first if nothing is there, with
        the preset's model. If there is a layer with this name, its probabilities are used, also if you changed them
        or made them yourself.
    cluster_key
        Column of `.obs` with clusters. Default: the clusters of the dropout model; for a dropout layer of your own
        ``"cnn_cluster"`` if it is there, else all cells together. The paper trains networks in each; the default
        uses them for the gate and for the report.
    estimate
        ``"posterior_mean"``: what a zero is worth on average, the molecules that its dropout probability implies,
        corrected by the network, on the scale of log1p(CP10k); for log-normalised data. ``"expected_count"``: the same
        on the scale of counts, which is larger; for sums over cells. Both need a calibrated dropout model.
        ``"conditional"``: what the network predicts a count to be if it is not zero. Default: the first where it is
        possible, else the last.
    gate
        Leave a gene as it is, in all cells, if its held-out molecules were predicted worse than by the means of the
        clusters and worse than by zeros, by more than five standard errors each. Default: where the dropout model
        knows, not with ``preset="paper"``.
    return_std
        Default preset: also write the standard deviations.
    threshold
        A zero is imputed where its dropout probability is above this value (conditional: 0.5; else 0.01: what is
        rarer stays zero and keeps sparse data sparse).
    n_top
        Input genes chosen for each target gene (5).
    learning_rate
        Adam's learning rate (default: 1e-2 at the first step; paper: 1e-4).
    n_components
        Default only: most components of the low rank; fewer for fewer than ten cells each (30).
    n_folds
        Default only: parts of the non-zeros, each of which is hidden once (5).
    n_members
        Default only: networks that are averaged (1).
    n_steps
        Default only: batches that a network is trained on (300).
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
        Seed; every network draws from a stream of its own.
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
        ``(n_obs, n_vars)`` counts, the unit of the input: observed counts bit-identical, dropouts predicted. CSR if
        the input is sparse, else dense; float32 where that holds the counts of the input, else float64.
    ``.layers[f"{key_added}_std"]``
        With ``return_std=True``: ``(n_obs, n_vars)`` float32 standard deviations at the imputed entries, 0 elsewhere:
        of log1p(counts) around the conditional estimate, else of log1p(CP10k).
    ``.uns[key_added]``
        ``params`` (with ``units``), ``written`` (the keys of this call); ``history``: DataFrame with
        ``cluster``, ``subset``, ``epoch``, ``loss``, ``val_loss`` (paper: of log1p counts, or counts with
        ``log=False``; default, at each check, the first before any training: Poisson deviance of held-out molecules
        but for a constant, or for the conditional estimate of hidden residuals in standard deviations);
        ``status``: DataFrame genes x clusters, categorical: ``"imputed"`` or why not;
        ``summary``: per cluster numbers of cells, networks, genes with each status, and imputed entries.

    Raises
    ------
    ValueError, TypeError, KeyError
        For unusable counts, unknown keys and values that are not allowed.

    Notes
    -----
    Paper: "CNN-based model construction". The same seed gives the same bits at the same number of threads.
    Keras runs the networks on the backend that is configured, on a GPU where the backend sees one. Memory: one
    network at a time (paper: 132 MB with its optimizer), the counts, and the imputed layer; in CSR about twice that
    while it is put together, and 8 to 12 bytes per non-zero, which is more than dense when most zeros are imputed.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()[:, :300].copy()
    >>> scnn.pp.cnn_impute(adata, cluster_key="cell_line", n_steps=2)
    >>> adata.uns["cnn_imputed"]["params"]["units"]
    'counts'
    """
    check_adata(adata, caller="pp.cnn_impute")
    _check_choices(preset, estimate, gate, return_std)
    if n_jobs is not None:
        check_number("n_jobs", n_jobs, int, 1)
    others = [key for key in (layer, cluster_key) if key is not None]
    check_keys(*others, key_added=key_added, dropout_key=dropout_key)
    adata = adata.copy() if copy else adata
    written = [("layers", key_added), ("layers", f"{key_added}_std")]
    results = Results(adata, function="pp.cnn_impute", key=key_added, keys=written)
    counts = get_counts(adata, layer, caller="pp.cnn_impute")
    estimate, gate = _choose(adata, preset, dropout_key, estimate, gate)
    if threshold is None and estimate == "conditional":
        threshold = CONDITIONAL_THRESHOLD
    imputer = CNNImputer(
        preset=preset,
        threshold=threshold,
        n_top=n_top,
        learning_rate=learning_rate,
        n_components=n_components,
        n_folds=n_folds,
        n_members=n_members,
        n_steps=n_steps,
        n_targets=n_targets,
        max_dropout=max_dropout,
        log=log,
        batch_size=batch_size,
        max_epochs=max_epochs,
        patience=patience,
        validation_fraction=validation_fraction,
        random_state=random_state,
        keep_models=False,
        verbose=verbose,
    )
    options: dict[str, Any] = {"return_std": True} if return_std else {}
    stored: StoredModel | None = None
    limit_keras(n_jobs)
    with limited_threads(n_jobs):
        if _is_own_layer(adata, dropout_key):
            clusters, names = _clusters_for_own_layer(adata, dropout_key, cluster_key)
        else:
            stored, fit = _dropout_model(adata, preset, dropout_key, layer, cluster_key, counts)
            clusters, names = stored.clusters, stored.names
            options |= _options(stored, fit, counts, estimate, gate)
        dropout: Any
        if dropout_key in layer_names(adata):
            dropout = adata.layers[dropout_key]
            check_probabilities(dropout, where=f"adata.layers[{dropout_key!r}]")
        elif stored is not None:
            dropout = _probability(stored, counts)
        labels = pd.Categorical.from_codes(clusters, categories=names)
        matrix = raw_matrix(adata, layer)
        imputed = imputer.fit_transform_counts(
            matrix, counts, dropout=dropout, clusters=labels, genes=adata.var_names, **options
        )
    if return_std:
        imputed, deviation = imputed
        results.add("layers", f"{key_added}_std", deviation)
    results.add("layers", key_added, imputed)
    summary = _summary(imputer, labels, counts, imputed)
    units = "log1p(CP10k)" if estimate in POSTERIOR else "log1p(counts)"
    results.write(
        {
            "history": _history(imputer.history_),
            "status": _status(imputer, adata.var_names),
            "summary": summary,
        },
        {
            "preset": preset,
            "layer": layer,
            "dropout_key": dropout_key,
            "cluster_key": cluster_key,
            "estimate": estimate,
            "gate": gate,
            **imputer.settings.as_dict(),
            "random_state": random_state,
            "units": "counts",
            "std_units": units if return_std else None,
        },
    )
    logger.info(
        "pp.cnn_impute: %d networks, %d entries imputed (%.1f %% of the zeros)",
        len(imputer.history_),
        summary["n_entries"].sum(),
        100 * summary["n_entries"].sum() / max(counts.shape[0] * counts.shape[1] - counts.nnz, 1),
    )
    return adata if copy else None


def _check_choices(preset: str, estimate: str | None, gate: Any, return_std: bool) -> None:
    """Refuse what is not there before anything is computed."""
    if estimate is not None and estimate not in get_args(Estimate):
        msg = f"estimate={estimate!r} is not known. Available: {list(get_args(Estimate))}."
        raise ValueError(msg)
    if gate is not None:
        check_number("gate", gate, bool)
    if preset == "paper" and (estimate in POSTERIOR or gate or return_std):
        msg = f"estimate in {list(POSTERIOR)}, gate=True and return_std=True need preset='default', not 'paper'."
        raise ValueError(msg)


def _is_own_layer(adata: AnnData, key: str) -> bool:
    return key in layer_names(adata) and not has_model(adata, key)


def _choose(
    adata: AnnData, preset: str, dropout_key: str, estimate: Estimate | None, gate: bool | None
) -> tuple[Estimate, bool]:
    """Estimate and gate as given, or as the dropout model allows."""
    own = _is_own_layer(adata, dropout_key)
    stored = has_model(adata, dropout_key)
    calibrated = adata.uns[dropout_key]["params"]["model"] == "calibrated" if stored else not own
    able = preset != "paper" and calibrated
    if (estimate in POSTERIOR or gate) and not able:
        msg = (
            f"estimate in {list(POSTERIOR)} and gate=True need a calibrated dropout model, and {dropout_key!r} is none."
            " Run pp.dropout_prob(adata, model='calibrated') or pass estimate='conditional', gate=False."
        )
        raise ValueError(msg)
    return estimate or ("posterior_mean" if able else "conditional"), able if gate is None else gate


def _dropout_model(
    adata: AnnData, preset: str, key: str, layer: str | None, cluster_key: str | None, counts: sp.csr_array
) -> tuple[StoredModel, CalibratedFit | None]:
    """The stored dropout model; if there is none, it is fitted first, and a calibrated fit returned whole."""
    published, fit = preset == "paper", None
    if not has_model(adata, key):
        _announce_fit(adata, key)
        fit = fit_dropout_prob(
            adata,
            counts,
            layer=layer,
            cluster_key=cluster_key or DEFAULT_CLUSTER_KEY,
            model="gamma_normal" if published else "calibrated",
            capture_efficiency=None,
            random_state=0,
            store="params",
            max_layer_bytes=MAX_LAYER_BYTES,
            key_added=key,
        )
    if published and adata.uns[key]["params"]["model"] != "gamma_normal":
        warnings.warn(
            f"preset='paper' with the calibrated dropout model {key!r} is not the published procedure: "
            "that takes pp.dropout_prob(adata, model='gamma_normal').",
            UserWarning,
            stacklevel=3,
        )
    _check_same_origin(adata, key, layer, cluster_key, counts)
    return load_model(adata, key), fit


def _options(
    stored: StoredModel, fit: CalibratedFit | None, counts: sp.csr_array, estimate: Estimate, gate: bool
) -> dict[str, Any]:
    """What the imputer needs to know of the dropout model."""
    options: dict[str, Any] = {
        "modelled": {name: stored.modelled[:, position] for position, name in enumerate(stored.names)}
    }
    if gate and stored.gain is not None:
        # In all clusters or in none: a gene that is imputed in some only would differ between them by that alone.
        options["no_gain"] = dict.fromkeys(stored.names, stored.gain < -GATE)
    if estimate in POSTERIOR and isinstance(stored.model, CalibratedModel):
        options |= _posterior(stored, stored.model, fit, counts, logarithmic=estimate == "posterior_mean")
    return options


def _probability(stored: StoredModel, counts: sp.csr_array) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Dropout probabilities of any block, from the stored parameters."""
    by_gene: sp.csc_array | None = None

    def probability(cells: np.ndarray, genes: np.ndarray) -> np.ndarray:
        nonlocal by_gene
        # The published networks ask for few genes of many cells, the default for all genes of few cells.
        if genes.size == counts.shape[1]:
            return stored.probability(counts[cells], cells, genes)
        by_gene = counts.tocsc() if by_gene is None else by_gene
        return stored.probability(by_gene[:, genes].tocsr()[cells], cells, genes)

    return probability


def _posterior(
    stored: StoredModel, model: CalibratedModel, fit: CalibratedFit | None, counts: sp.csr_array, *, logarithmic: bool
) -> dict[str, Any]:
    """The estimate and what its network learns from, as the imputer asks for them."""
    # A stored model is fitted again, rather than storing what only the network needs: halved counts and their factors.
    fit = fit or fit_calibrated(
        counts,
        stored.clusters,
        len(stored.names),
        capture_efficiency=model.capture_efficiency,
        random_state=stored.random_state,
    )

    def estimate(
        cells: np.ndarray, indptr: np.ndarray, genes: np.ndarray, correction: np.ndarray, probability: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return model.posterior_mean(
            cells, indptr, genes, probability, correction, stored.library_size, logarithmic=logarithmic
        )

    expected = ExpectedCounts(
        cells=fit.cells,
        train=fit.train,
        test=fit.test,
        train_scores=fit.train_scores,
        train_loadings=fit.train_loadings,
        scores=fit.model.scores,
        loadings=fit.model.loadings,
        shape=fit.model.shape,
    )
    return {"expected": expected, "estimate": estimate}


def _clusters_for_own_layer(adata: AnnData, dropout_key: str, cluster_key: str | None) -> tuple[np.ndarray, list[str]]:
    """Clusters to go with a dropout layer that no stored model stands behind."""
    remnants = [
        f"adata.{attribute}[{key!r}]" for attribute, key in all_keys(dropout_key) if key in getattr(adata, attribute)
    ]
    if remnants:
        msg = (
            f"adata.layers[{dropout_key!r}] comes from a dropout model of which only {', '.join(remnants)} is left, as "
            f"after anndata.concat. Delete these and run pp.dropout_prob again; to use the layer alone, rename it."
        )
        raise ValueError(msg)
    if cluster_key is None and DEFAULT_CLUSTER_KEY in adata.obs:
        cluster_key = DEFAULT_CLUSTER_KEY
    if cluster_key is None:
        return np.zeros(adata.n_obs, dtype=np.int64), ["all"]
    return cluster_codes(adata, cluster_key, caller="pp.cnn_impute")


def _announce_fit(adata: AnnData, key: str) -> None:
    """Say loudly that a model is fitted although others are stored: the key may be mistyped."""
    others = stored_models(adata)
    if others:
        logger.warning("pp.cnn_impute: no dropout model is stored under %r, fitting one; stored: %s", key, others)


def _check_same_origin(
    adata: AnnData, key: str, layer: str | None, cluster_key: str | None, counts: sp.csr_array
) -> None:
    """The stored dropout model must belong to the counts and the clusters that are asked for."""
    params = adata.uns[key]["params"]
    if params.get("layer") != layer:
        msg = (
            f"The dropout model {key!r} was fitted to layer={params.get('layer')!r}, not to layer={layer!r}. "
            "Pass that layer, or run pp.dropout_prob with another key_added and pass it as dropout_key."
        )
        raise ValueError(msg)
    if cluster_key is not None and params["cluster_key"] != cluster_key:
        msg = (
            f"The dropout model {key!r} was fitted in the clusters of {params['cluster_key']!r}, not of "
            f"{cluster_key!r}. Leave cluster_key out, or run pp.dropout_prob with another key_added for these."
        )
        raise ValueError(msg)
    check_unchanged(adata, key, counts)
    if params["cluster_key"] in adata.obs:
        fitted = pd.Series(adata.obs[f"{key}_cluster"].astype(object), dtype=object)
        today = adata.obs[params["cluster_key"]].astype(object).map(str, na_action="ignore")
        if (fitted.notna() & (fitted != today)).any():
            msg = (
                f"adata.obs[{params['cluster_key']!r}] has changed since the dropout model {key!r} was fitted in it. "
                "Run pp.dropout_prob again."
            )
            raise ValueError(msg)


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


def _status(imputer: CNNImputer, genes: pd.Index) -> pd.DataFrame:
    """Status of every gene in every cluster."""
    return pd.DataFrame(
        {
            column: pd.Categorical.from_codes(imputer.status_[:, position], categories=list(STATUSES))
            for position, column in enumerate(column_names(imputer.clusters_))
        },
        index=genes,
    )


def _summary(imputer: CNNImputer, labels: pd.Categorical, counts: sp.csr_array, imputed: Any) -> pd.DataFrame:
    """Numbers per cluster: cells, networks, imputed entries, genes of each status."""
    filled = np.diff(imputed.indptr) if sp.issparse(imputed) else np.count_nonzero(imputed, axis=1)
    filled = filled - np.diff(counts.indptr)
    rows = {}
    for position, cluster in enumerate(imputer.clusters_):
        cells = np.asarray(labels == cluster)
        genes = np.bincount(imputer.status_[:, position], minlength=len(STATUSES))
        rows[cluster] = {
            "n_cells": int(cells.sum()),
            "n_networks": sum(network["cluster"] in {cluster, ALL} for network in imputer.history_),
            "n_entries": int(filled[cells].sum()),
            **{f"genes {status}": int(n) for status, n in zip(STATUSES, genes, strict=True)},
        }
    return pd.DataFrame.from_dict(rows, orient="index")
