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
    import scipy.sparse as sp

    from ..dropout import Clusters
    from ..imputation import Imputer

FEW = 0.01  # share of the zeros below which imputing hardly changes the data

WHAT_HELPS = {
    NOTHING_MISSING: "Their dropout probabilities are not above threshold=: lower it, or state capture_efficiency= in "
    "pp.dropout_prob, a number or a protocol, if more is missing than a deeper run would count.",
    NOT_MODELLED: "The dropout model knows nothing of them: drop genes that hardly any cell has with "
    "sc.pp.filter_genes(adata, min_cells=3), or take model='calibrated' in pp.dropout_prob.",
    TOO_FEW_CELLS: f"At least {MIN_CELLS} cells with counts are needed, with preset='paper' in each cluster: pass a "
    "cluster_key= with larger ones.",
    NO_INPUTS: "No gene is left to predict them from: raise max_dropout=.",
    TRAINING_FAILED: "Their networks gave infinite counts: lower learning_rate=.",
    NO_GAIN: "Held-out molecules are predicted worse than by the gene's mean and by zeros; gate=False imputes them all "
    "the same.",
    NOT_SELECTED: "mask_var= chooses the genes.",
}


def report(imputer: Imputer, n_imputed: np.ndarray, counts: sp.csr_array, clusters: Clusters) -> None:
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
    shown = np.diff(counts.indptr)
    n_entries = int(n_imputed[seen].sum())
    everything = imputer.entries == "all"
    asked = (imputer.status != NOT_SELECTED).any(axis=1)
    n_candidates = int(asked.sum()) * int(seen.sum())
    if not everything:
        n_candidates -= int(asked[counts.indices[np.repeat(seen, shown)]].sum())
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
    _warn_of_genes(imputer, share, n_entries, n_candidates)


def _warn_of_cells(imputer: Imputer, shown: np.ndarray, clusters: Clusters) -> None:
    """Warn of cells that stay as they are."""
    n_empty = int((shown == 0).sum())
    if n_empty:
        logger.warning(
            "pp.cnn_impute: %d cells have no counts and stay as they are: sc.pp.filter_cells(adata, min_counts=1) "
            "drops them.",
            n_empty,
        )
    if not imputer.trains_in_clusters:
        return
    n_outside = int(((clusters.codes < 0) & (shown > 0)).sum())
    if n_outside:
        logger.warning(
            "pp.cnn_impute: %d cells have no cluster and stay as they are; cluster_key= takes another column, and "
            "preset='default' needs no clusters.",
            n_outside,
        )
    small = np.flatnonzero((imputer.status == TOO_FEW_CELLS).any(axis=0))
    if small.size and small.size < len(clusters.names):
        logger.warning(
            "pp.cnn_impute: the clusters %s have too few cells, and their %d cells stay as they are. %s",
            quote_some(clusters.names[position] for position in small),
            int(np.isin(clusters.codes, small).sum()),
            WHAT_HELPS[TOO_FEW_CELLS],
        )


def _warn_of_genes(imputer: Imputer, share: float, n_entries: int, n_candidates: int) -> None:
    """Warn if hardly anything is imputed or most genes are left out, with the most frequent reason."""
    status = imputer.status.ravel()
    left_out = pd.Series(status[status != IMPUTED]).value_counts()
    reasons = ", ".join(f"{n} genes {STATUSES[code]!r}" for code, n in left_out.items())
    asked = status != NOT_SELECTED
    most = (status[asked] != IMPUTED).mean() > 0.5 if asked.any() else True  # noqa: PLR2004
    few = share < FEW and n_candidates > 0
    if not (few or most):
        return
    # What the user chose is no reason, unless it is the only one.
    chosen_last = sorted(left_out.items(), key=lambda item: (item[0] == NOT_SELECTED, -item[1]))
    helps = WHAT_HELPS[chosen_last[0][0] if chosen_last else NOTHING_MISSING]
    if n_entries == 0:
        logger.warning("pp.cnn_impute: nothing is imputed (%s). %s", reasons, helps)
    elif few:
        explained = f" ({reasons})" if reasons else ""
        logger.warning("pp.cnn_impute: only %.2g %% of the zeros are imputed%s. %s", 100 * share, explained, helps)
    else:
        logger.warning("pp.cnn_impute: most genes are left as they are (%s). %s", reasons, helps)
