"""What ``pp.cnn_impute`` starts from: dropout probabilities, clusters, and genes that may be imputed."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .._anndata.counts import layer_names
from .._anndata.models import (
    IMPUTE_FUNCTION,
    dropout_keys,
    has_dropout_model,
    load_dropout,
    stored_models,
)
from .._anndata.results import cluster_codes, stored_record
from .._anndata.selection import selected_genes
from .._checks import warn_user
from .._finished import FinishedParts
from .._logging import logger
from .._threads import load_keras
from ..dropout import Clusters, Dropout, ModelledDropout
from ..imputation import FitOptions, Targets, find_imputer
from ..tl._cluster import cluster_cells
from ._dropout_prob import DEFAULT_CLUSTER_KEY, DropoutRequest, fit_and_store, labelled_clusters

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

    from .._counts import Counts
    from ._request import Choice, ImputeRequest


def dropout_of(adata: AnnData, counts: Counts, request: ImputeRequest) -> Dropout:
    """Dropout probabilities: a layer of the user's own, the stored model, or one that is fitted and stored first."""
    key = request.dropout_key
    if has_dropout_model(adata, key):
        _check_origin(adata, request)
    dropout = load_dropout(adata, key, counts)
    if dropout is None:
        return _fit_dropout(adata, counts, request)
    if isinstance(dropout, ModelledDropout) and dropout.model.needs_clusters:
        _check_clusters(adata, dropout, request)
    return dropout


def _fit_dropout(adata: AnnData, counts: Counts, request: ImputeRequest) -> ModelledDropout:
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
        count_type=request.count_type,
        random_state=request.random_state,
        key_added=request.dropout_key,
    ).checked()
    return fit_and_store(adata, counts, fitted, selected_genes(adata, None))


def _check_origin(adata: AnnData, request: ImputeRequest) -> None:
    """The stored dropout model must have been fitted to the layer and the type of counts that are asked for."""
    key = request.dropout_key
    layer = stored_record(adata, key)["params"].get("layer")
    if layer != request.layer:
        msg = (
            f"The dropout model {key!r} was fitted to layer={layer!r}, not to layer={request.layer!r}. "
            "Pass that layer, or run pp.dropout_prob with another key_added and pass it as dropout_key."
        )
        raise ValueError(msg)
    counted = stored_record(adata, key)["params"].get("count_type", "auto")
    if request.count_type not in {"auto", counted}:
        msg = (
            f"The dropout model {key!r} was fitted with count_type={counted!r}, not {request.count_type!r}. Leave it "
            "out, or run pp.dropout_prob again with the other."
        )
        raise ValueError(msg)


def _check_clusters(adata: AnnData, dropout: ModelledDropout, request: ImputeRequest) -> None:
    """The clusters of the stored dropout model must be those that are asked for, as they are today."""
    key = request.dropout_key
    fitted_key = stored_record(adata, key)["params"]["cluster_key"]
    if request.cluster_key not in {None, fitted_key}:
        msg = (
            f"The dropout model {key!r} was fitted in the clusters of {fitted_key!r}, not of "
            f"{request.cluster_key!r}. Leave cluster_key out, or run pp.dropout_prob with another key_added for these."
        )
        raise ValueError(msg)
    if fitted_key in adata.obs:
        clusters = dropout.model.clusters(dropout.cells)
        names = np.array([*clusters.names, None], dtype=object)  # the code -1 picks the last
        fitted = pd.Series(names[clusters.codes], index=adata.obs_names, dtype=object)
        today = adata.obs[fitted_key].astype(object).map(str, na_action="ignore")
        if (fitted.notna() & (fitted != today)).any():
            msg = (
                f"adata.obs[{fitted_key!r}] has changed since the dropout model {key!r} was fitted in it. "
                "Run pp.dropout_prob again."
            )
            raise ValueError(msg)


def refuse_remnants(adata: AnnData, key: str) -> None:
    """A dropout layer whose model is incomplete is not a layer of the user's own."""
    if has_dropout_model(adata, key) or key not in layer_names(adata):
        return
    remnants = [
        f"adata.{attribute}[{name!r}]" for attribute, name in dropout_keys(key) if name in getattr(adata, attribute)
    ]
    if remnants:
        msg = (
            f"adata.layers[{key!r}] comes from a dropout model of which only {', '.join(remnants)} is left, as "
            f"after anndata.concat. Delete these and run pp.dropout_prob again; to use the layer alone, rename it."
        )
        raise ValueError(msg)


@contextmanager
def opened_checkpoint(folder: Any, preset: str) -> Iterator[FinishedParts | None]:
    """The folder of finished networks, if one is asked for."""
    if folder is None:
        yield None
        return
    if not isinstance(folder, str | Path):
        msg = f"checkpoint={folder!r} has type {type(folder).__name__}, expected the path of a folder."
        raise TypeError(msg)
    if not find_imputer(preset).trains_in_clusters:
        msg = f"checkpoint={str(folder)!r} means nothing to preset={preset!r}, which trains one network: leave it out."
        raise ValueError(msg)
    from .. import __version__

    backend = load_keras().backend.backend()
    parts = FinishedParts(Path(folder), {"networks": preset, "version": __version__, "backend": backend})
    try:
        yield parts
    finally:
        parts.close()


def fit_options(
    adata: AnnData,
    counts: Counts,
    dropout: Dropout,
    request: ImputeRequest,
    choice: Choice,
    selected: np.ndarray,
    checkpoint: FinishedParts | None,
) -> FitOptions:
    """Clusters and genes of the fit, as the dropout model and the request have them."""
    model = dropout.model if isinstance(dropout, ModelledDropout) else None
    return FitOptions(
        settings=choice.settings,
        estimate=choice.estimate,
        random_state=request.random_state,
        targets=Targets.of(model, selected, gate=choice.gate),
        clusters=_clusters(adata, counts, dropout, request, choice),
        checkpoint=checkpoint,
    )


def _clusters(adata: AnnData, counts: Counts, dropout: Dropout, request: ImputeRequest, choice: Choice) -> Clusters:
    """Clusters that the paper's networks are trained in, or that the default's summary reports."""
    key = request.cluster_key
    if not choice.imputer.trains_in_clusters:
        if key is not None:
            return labelled_clusters(adata, key, caller=IMPUTE_FUNCTION)
        return Clusters.single(adata.n_obs)
    if isinstance(dropout, ModelledDropout) and dropout.model.needs_clusters:
        return dropout.model.clusters(dropout.cells)
    if isinstance(dropout, ModelledDropout):
        warn_user(
            f"preset='paper' with the {dropout.model.name} dropout model {request.dropout_key!r} is not the published "
            "procedure: that takes pp.dropout_prob(adata, model='gamma_normal')."
        )
        key = key or DEFAULT_CLUSTER_KEY
        if key == DEFAULT_CLUSTER_KEY and key not in adata.obs:
            cluster_cells(adata, counts.load(), method="adp", layer=request.layer, key_added=key)
    if key is None and DEFAULT_CLUSTER_KEY not in adata.obs:
        return Clusters.single(adata.n_obs)
    codes, names = cluster_codes(adata, key or DEFAULT_CLUSTER_KEY, caller=IMPUTE_FUNCTION)
    return Clusters(codes=codes, names=names)
