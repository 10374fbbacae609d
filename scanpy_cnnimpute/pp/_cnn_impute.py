"""``pp.cnn_impute``: predict probable dropouts from correlated genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .._counts import check_adata, get_counts, layer_names, raw_matrix
from .._logging import logger
from .._matrix import check_probabilities
from .._mixture_store import check_unchanged, has_mixture, load_mixture, stored_keys, stored_mixtures
from .._results import Results, check_keys, cluster_codes, column_names
from ..network import STATUSES, CNNImputer
from ._dropout_prob import DEFAULT_CLUSTER_KEY, dropout_prob

if TYPE_CHECKING:
    from anndata import AnnData


def cnn_impute(
    adata: AnnData,
    *,
    preset: str = "paper",
    layer: str | None = None,
    dropout_key: str = "dropout_prob",
    cluster_key: str | None = None,
    threshold: float | None = None,
    n_targets: int | None = None,
    n_top: int | None = None,
    max_dropout: float | None = None,
    log: bool | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    max_epochs: int | None = None,
    patience: int | None = None,
    validation_fraction: float | None = None,
    random_state: int = 0,
    key_added: str = "cnn_imputed",
    verbose: bool = True,
    copy: bool = False,
) -> AnnData | None:
    """Predict the counts of probable dropouts with convolutional networks.

    Parameters
    ----------
    adata
        Annotated data with raw counts.
    preset
        Named set of values for the settings below that are not given. ``"paper"``: the published numbers.
    layer
        Layer with the counts. Default: `X`.
    dropout_key
        Where :func:`~scanpy_cnnimpute.pp.dropout_prob` stored its results; it is run first if nothing is there. If
        there is a layer with this name, its probabilities are used, also if you changed them or made them yourself.
    cluster_key
        Column of `.obs` with clusters; networks are trained in each. Default: the clusters of the dropout model; for
        a dropout layer of your own ``"cnn_cluster"`` if it is there, else all cells together.
    threshold
        A zero is imputed where its dropout probability is above this value (paper: 0.5).
    n_targets
        Target genes of one network (512).
    n_top
        Input genes chosen for each target gene (5).
    max_dropout
        Largest share of the cells of a cluster in which an input gene may be called a dropout (0.5).
    log
        Train on log1p(counts) (``True``) or on counts, the paper's cnnImpute_nl (``False``).
    learning_rate
        Adam's learning rate (1e-4).
    batch_size
        Cells in a training batch (32).
    max_epochs
        Most epochs a network is trained for (150).
    patience
        Epochs without a better validation loss before training stops (5).
    validation_fraction
        Share of the cells of a cluster kept for the validation loss (0.1).
    random_state
        Seed; every network draws from a stream of its own.
    key_added
        Key of the results.
    verbose
        Show a progress bar over the networks in a terminal.
    copy
        Return a copy instead of changing `adata`.

    Returns
    -------
    ``None``, or the copy if ``copy=True``. Writes, besides what :func:`~scanpy_cnnimpute.pp.dropout_prob` writes if
    it has to run,

    ``.layers[key_added]``
        ``(n_obs, n_vars)`` counts, the unit of the input: observed counts bit-identical, dropouts predicted. CSR if
        the input is sparse, else dense; float32 where that holds the counts of the input, else float64.
    ``.uns[key_added]``
        ``params`` (with ``units``), ``written`` (the keys of this call); ``history``: DataFrame with
        ``cluster``, ``subset``, ``epoch``, ``loss``, ``val_loss`` (of log1p counts, or counts with
        ``log=False``); ``status``: DataFrame genes x clusters, categorical: ``"imputed"`` or why not;
        ``summary``: per cluster numbers of cells, networks, genes with each status, and imputed entries.

    Raises
    ------
    ValueError, TypeError, KeyError
        For unusable counts, unknown keys and values that are not allowed.

    Notes
    -----
    The paper, "CNN-based model construction". The same seed gives the same bits at the same number of threads.
    Keras runs the networks on the backend that is configured, on a GPU where the backend sees one. Memory: one
    network of the paper's size at a time (132 MB with its optimizer), the counts of a cluster, and about twice the
    imputed layer while it is put together; in CSR that layer takes 8 to 12 bytes per non-zero, which is more than
    dense when most zeros are imputed.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()[:, :300].copy()
    >>> scnn.pp.cnn_impute(adata, cluster_key="cell_line", n_targets=32, max_epochs=2)
    >>> adata.uns["cnn_imputed"]["params"]["units"]
    'counts'
    """
    check_adata(adata, caller="pp.cnn_impute")
    imputer = CNNImputer(
        preset=preset,
        threshold=threshold,
        n_targets=n_targets,
        n_top=n_top,
        max_dropout=max_dropout,
        log=log,
        learning_rate=learning_rate,
        batch_size=batch_size,
        max_epochs=max_epochs,
        patience=patience,
        validation_fraction=validation_fraction,
        random_state=random_state,
        keep_models=False,
        verbose=verbose,
    )
    others = [key for key in (layer, cluster_key) if key is not None]
    check_keys(*others, key_added=key_added, dropout_key=dropout_key)
    adata = adata.copy() if copy else adata
    results = Results(adata, function="pp.cnn_impute", key=key_added, keys=[("layers", key_added)])
    counts = get_counts(adata, layer, caller="pp.cnn_impute")
    if dropout_key in layer_names(adata) and not has_mixture(adata, dropout_key):
        clusters, names = _clusters_for_own_layer(adata, dropout_key, cluster_key)
        modelled = None
    else:
        if not has_mixture(adata, dropout_key):
            _announce_fit(adata, dropout_key)
            dropout_prob(adata, layer=layer, cluster_key=cluster_key, store="params", key_added=dropout_key)
        _check_same_origin(adata, dropout_key, layer, cluster_key, counts)
        mixture, library_size, clusters = load_mixture(adata, dropout_key)
        names = list(adata.uns[dropout_key]["clusters"])
        modelled = {name: mixture.status[:, position] == 0 for position, name in enumerate(names)}
    dropout: Any
    if dropout_key in layer_names(adata):
        dropout = adata.layers[dropout_key]
        check_probabilities(dropout, where=f"adata.layers[{dropout_key!r}]")
    else:
        by_gene = counts.tocsc()

        def dropout(cells: np.ndarray, genes: np.ndarray) -> np.ndarray:
            part = by_gene[:, genes].tocsr()[cells]
            return mixture.take(genes).probability(part, library_size[cells], clusters[cells])

    labels = pd.Categorical.from_codes(clusters, categories=names)
    matrix = raw_matrix(adata, layer)
    imputed = imputer.fit_transform(matrix, dropout=dropout, clusters=labels, modelled=modelled, genes=adata.var_names)
    results.add("layers", key_added, imputed)
    summary = _summary(imputer, labels, counts, imputed)
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
            **imputer.settings.as_dict(),
            "random_state": random_state,
            "units": "counts",
        },
    )
    logger.info(
        "pp.cnn_impute: %d networks, %d entries imputed (%.1f %% of the zeros)",
        len(imputer.history_),
        summary["n_entries"].sum(),
        100 * summary["n_entries"].sum() / max(counts.shape[0] * counts.shape[1] - counts.nnz, 1),
    )
    return adata if copy else None


def _clusters_for_own_layer(adata: AnnData, dropout_key: str, cluster_key: str | None) -> tuple[np.ndarray, list[str]]:
    """Clusters to go with a dropout layer that no stored model stands behind."""
    remnants = [
        f"adata.{attribute}[{key!r}]" for attribute, key in stored_keys(dropout_key) if key in getattr(adata, attribute)
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
    others = stored_mixtures(adata)
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
            "n_networks": sum(network["cluster"] == cluster for network in imputer.history_),
            "n_entries": int(filled[cells].sum()),
            **{f"genes {status}": int(n) for status, n in zip(STATUSES, genes, strict=True)},
        }
    return pd.DataFrame.from_dict(rows, orient="index")
