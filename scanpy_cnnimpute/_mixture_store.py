"""How fitted mixtures live in an AnnData: one place that writes them and one that reads them back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._results import column_names
from .mixture import PARAMETERS, STATUSES, GammaNormalMixture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from scipy.sparse import csr_array

    from ._results import Results

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
    return key in adata.uns and all(name in getattr(adata, attribute) for attribute, name in stored_keys(key))


def require_mixture(adata: AnnData, key: str) -> None:
    """Raise a KeyError that names what is stored, unless a complete mixture is stored under this key."""
    if not has_mixture(adata, key):
        records = [name for name in adata.uns if has_mixture(adata, name)]
        msg = f"No dropout model is stored under {key!r}. Stored: {records}. Run pp.dropout_prob first."
        raise KeyError(msg)


def load_mixture(adata: AnnData, key: str) -> tuple[GammaNormalMixture, np.ndarray, np.ndarray]:
    """Mixture, library sizes and cluster codes of a (possibly subset) AnnData."""
    require_mixture(adata, key)
    status = adata.varm[f"{key}_status"]
    columns = list(status.columns)
    # anndata drops categories that a subset of the genes does not use: codes are looked up by name.
    code = {name: position for position, name in enumerate(STATUSES)}
    mixture = GammaNormalMixture(
        parameters=np.stack([adata.varm[f"{key}_{name}"][columns].to_numpy(np.float64) for name in PARAMETERS], -1),
        status=np.stack([status[column].map(code).to_numpy(np.int8) for column in columns], axis=1),
    )
    names = adata.uns[key]["clusters"]
    clusters = pd.Categorical(adata.obs[f"{key}_cluster"], categories=list(names)).codes.astype(np.int64)
    return mixture, adata.obs[f"{key}_library_size"].to_numpy(np.float64), clusters


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
