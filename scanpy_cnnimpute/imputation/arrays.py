"""What users hand over, as the networks need it, and back."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .._labels import distinct_names
from .._matrix import check_probabilities, log_normalised, to_csr, values_problem
from .default.kernels import fill_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .paper.inputs import DropoutBlock

    Predicted = tuple[np.ndarray, sp.csr_array]


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
    names = distinct_names(given)
    if trained is None:
        if not names:
            msg = "No cell has a cluster."
            raise ValueError(msg)
        return given.codes.astype(np.int64), names
    unknown = sorted(set(names) - set(trained))
    if unknown:
        msg = f"clusters {some(unknown)} are unknown. Trained: {some(trained)}."
        raise ValueError(msg)
    # The code -1 picks the last element, which stands for no cluster.
    return np.array([*map(trained.index, names), -1])[given.codes], trained


def gene_masks(
    what: str, given: Mapping[str, np.ndarray] | None, names: list[str], n_genes: int, *, default: bool
) -> list[np.ndarray]:
    """One mask of genes per cluster."""
    if given is None:
        return [np.full(n_genes, default)] * len(names)
    missing = sorted(set(names) - set(given))
    if missing:
        msg = f"{what} has no entry for the clusters {some(missing)}."
        raise ValueError(msg)
    masks = [np.asarray(given[name]) for name in names]
    for name, mask in zip(names, masks, strict=True):
        if mask.dtype != bool or mask.shape != (n_genes,):
            msg = f"{what}[{name!r}] has shape {mask.shape} and dtype {mask.dtype}, expected ({n_genes},) and bool."
            raise ValueError(msg)
    return masks


def dropout_block(dropout: Any, shape: tuple[int, int], order: np.ndarray) -> DropoutBlock:
    """A function of indices of cells and trained genes; `order` maps trained genes to columns."""
    if dropout is None:
        return lambda cells, genes: np.ones((cells.size, genes.size), dtype=np.float32)
    if callable(dropout):
        return lambda cells, genes: dropout(cells, order[genes])
    check_probabilities(dropout, where="dropout")
    if dropout.shape != shape:
        msg = f"dropout has shape {dropout.shape}, X has {shape}."
        raise ValueError(msg)
    if sp.issparse(dropout):
        # Blocks are few genes of many cells.
        by_gene = dropout.tocsc()
        return lambda cells, genes: by_gene[:, order[genes]].toarray()[cells]
    matrix = np.asarray(dropout)
    return lambda cells, genes: matrix[np.ix_(cells, order[genes])]


def mean_profile(counts: sp.csr_array) -> np.ndarray:
    """Mean of the log-normalised counts; zeros for no cells."""
    return log_normalised(counts).sum(axis=0) / max(counts.shape[0], 1)


def nearest_profile(counts: sp.csr_array, profiles: np.ndarray) -> np.ndarray:
    """For each cell the row of `profiles` (mean log-normalised counts) with which it is most correlated."""
    centred = profiles - profiles.mean(axis=1, keepdims=True)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    # A cell's own mean and length are the same for all profiles, so the product alone decides.
    return np.argmax(log_normalised(counts) @ centred.T, axis=1)


def assemble(X: Any, counts: sp.csr_array, clusters: Iterable[tuple[np.ndarray, list[Predicted]]]) -> Any:
    """A copy of the counts with predictions at zeros: dense for dense, else CSR like `X`.

    `clusters` gives the cells of each cluster and, for each of its networks, the target genes and a CSR array of
    predictions (cells of the cluster x targets). Cells of no cluster stay as they are. The memory is that of the
    result, and in CSR as much again.
    """
    dtype = np.result_type(X.dtype, np.float32)
    if isinstance(X, np.ndarray):
        parts = iter(clusters)
        first = next(parts, None)  # trains: the copy is not held meanwhile
        dense = X.astype(dtype, order="C")
        for cells, predictions in chain([] if first is None else [first], parts):
            for genes, values in predictions:
                fill_rows(cells, values.indptr, values.indices, values.data, genes, dense)
        return dense
    filled = [(cells, _filled(counts[cells].astype(dtype), predictions)) for cells, predictions in clusters]
    rest = np.setdiff1d(np.arange(counts.shape[0]), np.concatenate([[], *(cells for cells, _ in filled)]))
    filled.append((rest, counts[rest].astype(dtype)))
    sizes = np.zeros(counts.shape[0], dtype=np.int64)
    for cells, part in filled:
        sizes[cells] = np.diff(part.indptr)
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    width = np.int32 if indptr[-1] <= np.iinfo(np.int32).max else np.int64
    indices, data = np.empty(indptr[-1], dtype=width), np.empty(indptr[-1], dtype=dtype)
    for cells, part in filled:
        places = np.repeat(indptr[cells] - part.indptr[:-1], sizes[cells]) + np.arange(part.nnz)
        indices[places], data[places] = part.indices, part.data
    kind = sp.csr_matrix if isinstance(X, sp.spmatrix) else sp.csr_array
    return kind((data, indices, indptr.astype(width)), shape=counts.shape)


def _filled(counts: sp.csr_array, predictions: list[Predicted]) -> sp.csr_array:
    """Counts of some cells with predictions at zeros."""
    for genes, values in predictions:
        everywhere = sp.csr_array((values.data, genes[values.indices], values.indptr), shape=counts.shape)
        everywhere.sort_indices()  # the genes may stand in another order
        counts = counts + everywhere
    return counts


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, quoted, and how many more there are."""
    shown = ", ".join(map(repr, names[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
