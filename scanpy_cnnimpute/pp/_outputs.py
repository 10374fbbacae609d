"""What ``pp.cnn_impute`` writes: layers, tables, and what it says in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .._anndata.results import column_names
from .._logging import logger
from ..imputation import STATUSES
from ..imputation.assemble import deviations, fill_zeros
from ..imputation.base import IMPUTED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._anndata.results import Results
    from ..dropout import Clusters, Dropout
    from ..imputation import Imputed, Imputer
    from ._request import ImputeRequest

SAMPLE_CELLS = 500  # cells whose imputed entries stand for all, where no layer is written


def add_layers(
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


def report(imputer: Imputer, n_imputed: np.ndarray, counts: sp.csr_array) -> None:
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
