"""What users hand over, as the networks need it, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .._matrix import to_csr, values_problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ._inputs import DropoutBlock


def checked_counts(X: Any) -> sp.csr_array:
    """The counts as a canonical CSR array; a ValueError says what is wrong with them."""
    counts = to_csr(X)
    problem = values_problem(counts)
    if problem is not None:
        msg = f"X has {problem}; counts are needed."
        raise ValueError(msg)
    return counts


def gene_names(genes: Sequence[str] | None, n_genes: int) -> list[str]:
    """The names as given, or the positions."""
    names = [str(name) for name in (range(n_genes) if genes is None else genes)]
    if len(names) != n_genes:
        msg = f"genes has {len(names)} names, X has {n_genes} columns."
        raise ValueError(msg)
    return names


def align(genes: Sequence[str] | None, n_genes: int, trained: list[str]) -> np.ndarray:
    """Column of the new data for every trained gene; errors name genes that are missing or too many."""
    if genes is None:
        if n_genes != len(trained):
            msg = f"X has {n_genes} genes, the imputer was trained on {len(trained)}; pass genes= to align."
            raise ValueError(msg)
        return np.arange(n_genes)
    names = gene_names(genes, n_genes)
    for which, index in (("genes", pd.Index(names)), ("the training data", pd.Index(trained))):
        if not index.is_unique:
            twice = index[index.duplicated()].unique().tolist()
            msg = f"{which} has duplicate names, which cannot be aligned: {some(twice)}."
            raise ValueError(msg)
    missing, extra = sorted(set(trained) - set(names)), sorted(set(names) - set(trained))
    if missing or extra:
        parts = [f"missing: {some(missing)}"] * bool(missing) + [f"not trained on: {some(extra)}"] * bool(extra)
        msg = f"The genes differ from those of the training data; {'; '.join(parts)}."
        raise ValueError(msg)
    return pd.Index(names).get_indexer(trained)


def cluster_codes(clusters: Any, n_cells: int, trained: list[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """Codes of the cells (-1 for none) and names of the clusters: those given, or those trained."""
    if clusters is None:
        return np.zeros(n_cells, dtype=np.int64), ["all"]
    given = pd.Categorical(clusters).remove_unused_categories()
    if len(given) != n_cells:
        msg = f"clusters has {len(given)} labels, X has {n_cells} cells."
        raise ValueError(msg)
    names = [str(name) for name in given.categories]
    if not names:
        msg = "No cell has a cluster."
        raise ValueError(msg)
    if trained is None:
        return given.codes.astype(np.int64), names
    unknown = sorted(set(names) - set(trained))
    if unknown:
        msg = f"clusters {some(unknown)} are unknown. Trained: {some(trained)}."
        raise ValueError(msg)
    # The code -1 picks the last element, which stands for no cluster.
    return np.array([*map(trained.index, names), -1])[given.codes], trained


def trusted_genes(modelled: Mapping[str, np.ndarray] | None, names: list[str], n_genes: int) -> list[np.ndarray]:
    """One mask of genes per cluster."""
    if modelled is None:
        return [np.ones(n_genes, dtype=bool)] * len(names)
    missing = sorted(set(names) - set(modelled))
    if missing:
        msg = f"modelled has no entry for the clusters {some(missing)}."
        raise ValueError(msg)
    masks = [np.asarray(modelled[name]) for name in names]
    for name, mask in zip(names, masks, strict=True):
        if mask.dtype != bool or mask.shape != (n_genes,):
            msg = f"modelled[{name!r}] has shape {mask.shape} and dtype {mask.dtype}, expected ({n_genes},) and bool."
            raise ValueError(msg)
    return masks


def dropout_block(dropout: Any, shape: tuple[int, int], order: np.ndarray) -> DropoutBlock:
    """A function of indices of cells and trained genes; `order` maps trained genes to columns."""
    if dropout is None:
        return lambda cells, genes: np.ones((cells.size, genes.size), dtype=np.float32)
    if callable(dropout):
        return lambda cells, genes: dropout(cells, order[genes])
    if dropout.shape != shape:
        msg = f"dropout has shape {dropout.shape}, X has {shape}."
        raise ValueError(msg)
    if sp.issparse(dropout):
        # Blocks are few genes of many cells.
        by_gene = dropout.tocsc()
        return lambda cells, genes: by_gene[:, order[genes]].toarray()[cells]
    matrix = np.asarray(dropout)
    return lambda cells, genes: matrix[np.ix_(cells, order[genes])]


def log_normalised(counts: sp.csr_array) -> sp.csr_array:
    """log1p of counts per 10,000."""
    totals = np.maximum(counts.sum(axis=1), 1)
    return sp.csr_array(counts.multiply((1e4 / totals)[:, None])).log1p()


def nearest_profile(counts: sp.csr_array, profiles: np.ndarray) -> np.ndarray:
    """For each cell the row of `profiles` (mean log-normalised counts) with which it is most correlated."""
    centred = profiles - profiles.mean(axis=1, keepdims=True)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    # A cell's own mean and length are the same for all profiles, so the product alone decides.
    return np.argmax(log_normalised(counts) @ centred.T, axis=1)


def fill(
    counts: sp.csr_array, cells: np.ndarray, predicted: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> sp.csr_array:
    """The rows `cells` of the counts with predicted values at zeros: triples of rows in the block, genes, values."""
    block = counts[cells].astype(np.result_type(counts.dtype, np.float32))
    parts = [*zip(*predicted, strict=True)]
    if not parts:
        return block
    rows, genes, values = (np.concatenate(part) for part in parts)
    return block + sp.csr_array((values.astype(block.dtype), (rows, genes)), shape=block.shape)


def assemble(X: Any, counts: sp.csr_array, blocks: list[tuple[np.ndarray, sp.csr_array]]) -> Any:
    """Put filled blocks of cells together, and the other cells as they were: dense for dense, else CSR like `X`."""
    rest = np.setdiff1d(np.arange(counts.shape[0]), np.concatenate([[], *(cells for cells, _ in blocks)]))
    blocks = [*blocks, (rest, fill(counts, rest, []))]
    if isinstance(X, np.ndarray):
        dense = np.empty(X.shape, dtype=blocks[0][1].dtype)
        for cells, block in blocks:
            dense[cells] = block.toarray()
        return dense
    order = np.argsort(np.concatenate([cells for cells, _ in blocks]))
    total = sp.vstack([block for _, block in blocks], format="csr")[order]
    return sp.csr_matrix(total) if isinstance(X, sp.spmatrix) else sp.csr_array(total)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, quoted, and how many more there are."""
    shown = ", ".join(map(repr, names[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
