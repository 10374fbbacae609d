"""What ``pp.cnn_impute`` writes: layers and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .._anndata.results import column_names
from .._counts import DaskCounts
from .._logging import logger
from ..imputation import STATUSES
from ..imputation.assemble import put_in, result_container, result_dtype
from ..imputation.blocks import impute_lazily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._anndata.results import Results
    from .._counts import Counts
    from ..dropout import Clusters, Dropout
    from ..imputation import Imputed, Imputer
    from ._request import ImputeRequest


def add_layers(
    results: Results,
    counts: Counts,
    imputer: Imputer,
    dropout: Dropout,
    predictions: Iterator[Imputed],
    request: ImputeRequest,
) -> tuple[np.ndarray, bool]:
    """Add the layers that the request asks for; of a Dask array they are lazy.

    Returns
    -------
    The number of imputed entries of each cell, and whether layers were written. Without them the numbers are of some
    cells, and -1 for the others.
    """
    key, n_imputed = request.key_added, np.full(counts.shape[0], -1, dtype=np.int64)
    is_lazy = isinstance(counts, DaskCounts) and imputer.is_stored
    if is_lazy or _may_be_large(counts, imputer, request):
        rows, sample = imputer.sample(counts, dropout)
        if is_lazy or not _fits(counts, imputer, rows, sample, request):
            for part in sample:
                n_imputed[rows[part.cells]] = np.diff(part.values.indptr)
            has_layer = is_lazy and request.store != "params"
            if has_layer:
                layers = impute_lazily(counts, imputer, dropout, return_std=request.return_std)  # type: ignore[arg-type]
                _add(results, key, *layers)
            return n_imputed, has_layer
    n_imputed[:] = 0

    def counted() -> Iterator[Imputed]:
        for part in imputer.note_imputed(predictions):
            n_imputed[part.cells] = np.diff(part.values.indptr)
            yield part

    _add(results, key, *put_in(counts, imputer, dropout, counted(), return_std=request.return_std))
    return n_imputed, True


def _add(results: Results, key: str, imputed: Any, deviation: Any) -> None:
    results.add("layers", key, imputed)
    if deviation is not None:
        results.add("layers", f"{key}_std", deviation)


def _is_sparse(counts: Counts, imputer: Imputer) -> bool:
    return result_container(counts, imputer) is not np.ndarray


def _entry_bytes(counts: Counts, imputer: Imputer) -> int:
    """Bytes of an entry of the layer, with its index if it is sparse."""
    return result_dtype(counts.dtype).itemsize + (4 if _is_sparse(counts, imputer) else 0)


def _may_be_large(counts: Counts, imputer: Imputer, request: ImputeRequest) -> bool:
    """Whether layers are not asked for, or might be too large."""
    asked = request.store == "layer" or not imputer.is_stored
    most = counts.shape[0] * counts.shape[1] * _entry_bytes(counts, imputer) * (2 if request.return_std else 1)
    return not (asked or (request.store == "auto" and most <= request.max_layer_bytes))


def _fits(
    counts: Counts,
    imputer: Imputer,
    rows: np.ndarray,
    sample: list[Imputed],
    request: ImputeRequest,
) -> bool:
    """Whether layers are to be written all the same; a warning says how to get at values if they are too large."""
    if request.store == "params":
        return False
    n_entries = n_zeros = counts.shape[0] * counts.shape[1]
    if _is_sparse(counts, imputer):
        n_zeros = round(sum(part.values.nnz for part in sample) / rows.size * counts.shape[0])
        n_entries = counts.totals.nnz + n_zeros
    n_bytes = (n_entries + (n_zeros if request.return_std else 0)) * _entry_bytes(counts, imputer)
    if n_bytes <= request.max_layer_bytes:
        return True
    logger.warning(
        "pp.cnn_impute: the result would take about %.3g GB, more than max_layer_bytes (%.3g GB); the fitted imputer "
        "is stored. get.cnn_imputed(adata, genes=, cells=, key=%r) gives any part; store='layer' writes it all "
        "the same.",
        n_bytes / 1e9,
        request.max_layer_bytes / 1e9,
        request.key_added,
    )
    return False


def history_table(networks: list[dict[str, Any]]) -> pd.DataFrame:
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


def status_table(imputer: Imputer, clusters: Clusters, genes: pd.Index) -> pd.DataFrame:
    """Status of every gene, in each cluster that has networks of its own."""
    columns = column_names(clusters.names) if imputer.trains_in_clusters else ["all"]
    return pd.DataFrame(
        {
            column: pd.Categorical.from_codes(imputer.status[:, position], categories=list(STATUSES))
            for position, column in enumerate(columns)
        },
        index=genes.astype(str),
    )


def summary_table(imputer: Imputer, clusters: Clusters, n_imputed: np.ndarray) -> pd.DataFrame:
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
