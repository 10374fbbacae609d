"""What ``pp.cnn_impute`` starts from: dropout probabilities, clusters, and genes that may be imputed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .._anndata.counts import layer_names
from .._anndata.fingerprint import check_fingerprint
from .._anndata.models import (
    IMPUTE_FUNCTION,
    dropout_keys,
    has_dropout_model,
    is_as_written,
    load_dropout_model,
    stored_models,
    written_genes,
)
from .._anndata.results import cluster_codes
from .._anndata.selection import selected_genes
from .._checks import warn_user
from .._logging import logger
from .._matrix import check_probabilities
from ..dropout import Clusters, Dropout, GivenProbabilities, ModelledDropout
from ..imputation import FitOptions, Targets, find_imputer
from ..tl._cluster import cluster_cells
from ._dropout_prob import DEFAULT_CLUSTER_KEY, DropoutRequest, fit_and_store, labelled_clusters

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData

    from ._request import Choice, ImputeRequest


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
    return FitOptions(
        settings=choice.settings,
        estimate=choice.estimate,
        random_state=request.random_state,
        targets=Targets.of(model, selected, gate=choice.gate),
        clusters=_clusters(adata, counts, dropout, request),
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
        warn_user(
            f"preset='paper' with the {dropout.model.name} dropout model {request.dropout_key!r} is not the published "
            "procedure: that takes pp.dropout_prob(adata, model='gamma_normal')."
        )
        key = key or DEFAULT_CLUSTER_KEY
        if key == DEFAULT_CLUSTER_KEY and key not in adata.obs:
            cluster_cells(adata, counts, method="adp", layer=request.layer, key_added=key)
    if key is None and DEFAULT_CLUSTER_KEY not in adata.obs:
        return Clusters.single(adata.n_obs)
    codes, names = cluster_codes(adata, key or DEFAULT_CLUSTER_KEY, caller=IMPUTE_FUNCTION)
    return Clusters(codes=codes, names=names)
