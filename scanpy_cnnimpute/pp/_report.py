"""What ``pp.cnn_impute`` says in the log: what was imputed, and what was left out, why, and how to change that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .._checks import quote_some
from .._logging import logger
from ..imputation import STATUSES
from ..imputation.base import (
    IMPUTED,
    MIN_CELLS,
    NO_GAIN,
    NO_INPUTS,
    NOT_MODELLED,
    NOT_SELECTED,
    NOTHING_MISSING,
    TOO_FEW_CELLS,
    TRAINING_FAILED,
)

if TYPE_CHECKING:
    from .._counts import Counts
    from ..dropout import Clusters
    from ..imputation import Imputer

FEW = 0.01  # share of the zeros below which imputing hardly changes the data
MOST = 0.5  # share of the genes

WHAT_HELPS = {
    NOTHING_MISSING: "Their dropout probabilities are not above threshold=: lower it, or state capture_efficiency= in "
    "pp.dropout_prob, a number or a protocol, if more is missing than a deeper run would count.",
    NOT_MODELLED: "The gamma-normal mixture does not model them: model='calibrated' in pp.dropout_prob does.",
    TOO_FEW_CELLS: f"Networks need {MIN_CELLS} cells in a cluster: cluster_key= takes a column with larger ones.",
    NO_INPUTS: "No gene is left to predict them from: raise max_dropout=.",
    TRAINING_FAILED: "Their networks gave infinite counts: lower learning_rate=.",
    NO_GAIN: "Held-out molecules are predicted worse than by the gene's mean and by zeros; gate=False imputes them all "
    "the same.",
    NOT_SELECTED: "mask_var= chooses the genes.",
}
WITHOUT_CLUSTERS = {
    NOT_MODELLED: "No cell that the dropout model was fitted to has them: sc.pp.filter_genes(adata, min_cells=3) drops "
    "them.",
    TOO_FEW_CELLS: f"At least {MIN_CELLS} cells with counts are needed; pp.cnn_impute has no keyword that changes it.",
}
"""What helps with imputers that train one network for all cells."""


def report(imputer: Imputer, n_imputed: np.ndarray, counts: Counts, clusters: Clusters) -> None:
    """Log what was imputed, in one line; warn of cells, genes and zeros that were left out.

    Parameters
    ----------
    imputer
        After the predictions.
    n_imputed
        ``(n_cells,)`` number of imputed entries, -1 for cells that were not predicted.
    counts, clusters
        Of the same cells.
    """
    seen = n_imputed >= 0
    shown = counts.totals.n_genes
    n_entries = int(n_imputed[seen].sum())
    everything = imputer.entries == "all"
    asked = (imputer.status != NOT_SELECTED).any(axis=1)
    n_candidates = int(asked.sum()) * int(seen.sum())
    if not everything:
        observed = counts.totals.n_cells if seen.all() else counts.rows(np.flatnonzero(seen)).count_nonzero(axis=0)
        n_candidates -= int(observed[asked].sum())
    share = n_entries / max(n_candidates, 1)
    logger.info(
        "pp.cnn_impute: %d network%s; %.1f %% of the %s%s %s %s",
        len(imputer.history),
        "" if len(imputer.history) == 1 else "s",
        100 * share,
        "entries" if everything else "zeros",
        "" if asked.all() else " of the selected genes",
        "are" if seen.all() else f"of {int(seen.sum())} sampled cells would be",
        "denoised" if everything else "imputed",
    )
    _warn_of_cells(imputer, shown, clusters)
    if n_candidates:
        _warn_of_genes(imputer, _reasons(imputer, clusters), share, n_entries)


def _reasons(imputer: Imputer, clusters: Clusters) -> np.ndarray:
    """Status of each gene: imputed if it is so in any cluster, else that in the largest cluster."""
    if imputer.status.shape[1] == 1:
        return imputer.status[:, 0]
    sizes = np.bincount(clusters.codes[clusters.codes >= 0], minlength=imputer.status.shape[1])
    return np.where((imputer.status == IMPUTED).any(axis=1), IMPUTED, imputer.status[:, np.argmax(sizes)])


def _warn_of_cells(imputer: Imputer, shown: np.ndarray, clusters: Clusters) -> None:
    """Warn of cells that stay as they are."""
    n_empty = int((shown == 0).sum())
    if n_empty:
        logger.warning(
            "pp.cnn_impute: cells without counts stay as they are (%d): sc.pp.filter_cells(adata, min_counts=1) drops "
            "them.",
            n_empty,
        )
    if not imputer.trains_in_clusters:
        return
    n_outside = int(((clusters.codes < 0) & (shown > 0)).sum())
    if n_outside:
        logger.warning(
            "pp.cnn_impute: cells without a cluster stay as they are (%d); cluster_key= takes another column, and "
            "preset='default' needs no clusters.",
            n_outside,
        )
    small = np.flatnonzero((imputer.status == TOO_FEW_CELLS).any(axis=0))
    if small.size and small.size < len(clusters.names):
        logger.warning(
            "pp.cnn_impute: cells of clusters that are too small stay as they are (%s: %d). %s",
            quote_some(clusters.names[position] for position in small),
            int(np.isin(clusters.codes, small).sum()),
            WHAT_HELPS[TOO_FEW_CELLS],
        )


def _warn_of_genes(imputer: Imputer, status: np.ndarray, share: float, n_entries: int) -> None:
    """Warn if hardly anything is imputed or most genes are left out, with the most frequent reason.

    Parameters
    ----------
    imputer
        After the predictions.
    status
        ``(n_genes,)`` positions in :data:`STATUSES`.
    share, n_entries
        Share of the entries that might be imputed, and number of those that are.
    """
    asked = status[status != NOT_SELECTED]
    few, most = share < FEW, (asked != IMPUTED).mean() > MOST if asked.size else True
    if not (few or most):
        return
    left_out = pd.Series(status[status != IMPUTED]).value_counts()
    counted = [f"{n} gene{'' if n == 1 else 's'} {STATUSES[code]!r}" for code, n in left_out.items()]
    reasons = f" ({', '.join(counted)})" if counted else ""
    # What the user chose is no reason, unless it is the only one.
    first = min(left_out.index, key=lambda code: (code == NOT_SELECTED, -left_out[code]), default=NOTHING_MISSING)
    helps = WHAT_HELPS if imputer.trains_in_clusters else WHAT_HELPS | WITHOUT_CLUSTERS
    entries, imputed = ("entries", "denoised") if imputer.entries == "all" else ("zeros", "imputed")
    if n_entries == 0:
        logger.warning("pp.cnn_impute: nothing is %s%s. %s", imputed, reasons, helps[first])
    elif few:
        text = "pp.cnn_impute: only %.2g %% of the %s are %s%s. %s"
        logger.warning(text, 100 * share, entries, imputed, reasons, helps[first])
    else:
        logger.warning("pp.cnn_impute: most genes are left as they are%s. %s", reasons, helps[first])
