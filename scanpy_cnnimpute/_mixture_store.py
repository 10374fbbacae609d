"""How fitted mixtures live in an AnnData: one place that writes them and one that reads them back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._results import column_names, written_by
from .mixture import PARAMETERS, STATUSES, GammaNormalMixture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from scipy.sparse import csr_array

    from ._results import Results

FUNCTION = "pp.dropout_prob"
# Cells of a block whose dense probabilities take about this much memory.
BLOCK_BYTES = 2**27


def stored_keys(key: str) -> list[tuple[str, str]]:
    """Every attribute and key that a stored mixture takes."""
    varm = [("varm", f"{key}_{name}") for name in (*PARAMETERS, "status")]
    return [*varm, ("obs", f"{key}_library_size"), ("obs", f"{key}_cluster")]


def store_mixture(
    results: Results,
    key: str,
    mixture: GammaNormalMixture,
    library_size: np.ndarray,
    clusters: np.ndarray,
    names: list[str],
    genes: pd.Index,
) -> None:
    """Add the mixture, and what it takes to evaluate it after genes or cells were dropped, to the results."""
    columns = column_names(names)
    for position, name in enumerate(PARAMETERS):
        frame = pd.DataFrame(mixture.parameters[:, :, position], index=genes, columns=columns)
        results.add("varm", f"{key}_{name}", frame)
    status = {
        column: pd.Categorical.from_codes(mixture.status[:, position], categories=list(STATUSES))
        for position, column in enumerate(columns)
    }
    results.add("varm", f"{key}_status", pd.DataFrame(status, index=genes))
    results.add("obs", f"{key}_library_size", library_size.astype(np.float64))
    results.add("obs", f"{key}_cluster", pd.Categorical.from_codes(clusters, categories=names))


def has_mixture(adata: AnnData, key: str) -> bool:
    """Whether a complete mixture is stored under this key."""
    complete = all(name in getattr(adata, attribute) for attribute, name in stored_keys(key))
    return complete and written_by(adata, key) == FUNCTION


def stored_mixtures(adata: AnnData) -> list[str]:
    """Keys of all stored mixtures."""
    return [key for key in adata.uns if has_mixture(adata, key)]


def require_mixture(adata: AnnData, key: str) -> None:
    """Raise a KeyError that names what is stored, unless a complete mixture is stored under this key."""
    if not has_mixture(adata, key):
        msg = f"No dropout model is stored under {key!r}. Stored: {stored_mixtures(adata)}. Run pp.dropout_prob first."
        raise KeyError(msg)


def load_mixture(adata: AnnData, key: str) -> tuple[GammaNormalMixture, np.ndarray, np.ndarray]:
    """Mixture, library sizes and cluster codes of a (possibly subset) AnnData."""
    names = list(adata.uns[key]["clusters"])
    labels = pd.Categorical(adata.obs[f"{key}_cluster"], categories=names)
    status = adata.varm[f"{key}_status"]
    columns = column_names(names)
    # anndata drops categories that a subset of the genes does not use: codes are looked up by name.
    code = {name: position for position, name in enumerate(STATUSES)}
    mixture = GammaNormalMixture(
        parameters=np.stack([adata.varm[f"{key}_{name}"][columns].to_numpy(np.float64) for name in PARAMETERS], -1),
        status=np.stack([status[column].map(code).to_numpy(np.int8) for column in columns], axis=1),
    )
    return mixture, adata.obs[f"{key}_library_size"].to_numpy(np.float64), labels.codes.astype(np.int64)


def check_unchanged(adata: AnnData, key: str, counts: csr_array) -> None:
    """Counts and cells that were replaced since, or merged with others, would get probabilities of something else."""
    record, again = adata.uns[key], "Run pp.dropout_prob again."
    library_size = adata.obs[f"{key}_library_size"].to_numpy(np.float64)
    labels = pd.Categorical(adata.obs[f"{key}_cluster"]).remove_unused_categories()
    unknown = sorted(set(labels.categories) - set(record["clusters"]))
    if unknown:
        msg = f"adata.obs['{key}_cluster'] has clusters {unknown} that the dropout model does not have. {again}"
        raise ValueError(msg)
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    tolerance = 1e-6 * library_size
    # Dropped genes took their counts along.
    complete = adata.n_vars == record["params"]["n_vars"]
    difference = np.abs(totals - library_size) if complete else totals - library_size
    if not (difference <= tolerance).all():
        msg = (
            f"The counts are not those that the dropout model {key!r} was fitted to: the totals of "
            f"{int((~(difference <= tolerance)).sum())} cells differ from adata.obs['{key}_library_size']. {again}"
        )
        raise ValueError(msg)
    fitted = record["summary"]["n_cells"]
    fitted = pd.Series(fitted.to_numpy(), index=fitted.index.astype(str))
    present = pd.Series(labels).value_counts()
    present.index = present.index.astype(str)
    more = present[present > fitted.reindex(present.index)].index.tolist()
    if more:
        msg = f"The clusters {more} have more cells than the dropout model {key!r} was fitted to. {again}"
        raise ValueError(msg)


def block_slices(n_cells: int, n_genes: int) -> Iterator[slice]:
    """Cut the cells so that the probabilities of a block take at most `BLOCK_BYTES`."""
    height = max(1, BLOCK_BYTES // (4 * max(n_genes, 1)))
    for start in range(0, n_cells, height):
        yield slice(start, min(start + height, n_cells))


def probability_blocks(
    mixture: GammaNormalMixture, counts: csr_array, library_size: np.ndarray, clusters: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """Dropout probabilities by blocks of cells, float32."""
    for rows in block_slices(*counts.shape):
        yield rows, mixture.probability(counts[rows], library_size[rows], clusters[rows])
