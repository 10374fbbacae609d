"""How fitted dropout models live in an AnnData: one place that writes them and one that reads them back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..dropout import PARAMETERS, STATUSES, CalibratedModel, GammaNormalMixture
from .results import column_names, written_by

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from scipy.sparse import csr_array

    from ..dropout import CalibratedFit
    from .results import Results

FUNCTION = "pp.dropout_prob"
# Cells of a block whose dense probabilities take about this much memory.
BLOCK_BYTES = 2**23


def stored_keys(key: str, model: str) -> list[tuple[str, str]]:
    """Every attribute and key that a stored model takes."""
    cells = [("obs", f"{key}_library_size"), ("obs", f"{key}_cluster")]
    if model == "calibrated":
        genes = [("varm", f"{key}_loadings"), ("varm", f"{key}_gain")]
        genes += [("var", f"{key}_{name}") for name in ("shape", "gain")]
        return [*genes, ("obsm", f"{key}_scores"), ("obs", f"{key}_capture_efficiency"), *cells]
    return [*(("varm", f"{key}_{name}") for name in (*PARAMETERS, "status")), *cells]


def all_keys(key: str) -> list[tuple[str, str]]:
    """Every attribute and key that some model stored under this key takes."""
    return list(dict.fromkeys([*stored_keys(key, "calibrated"), *stored_keys(key, "gamma_normal")]))


def store_cells(results: Results, key: str, library_size: np.ndarray, clusters: np.ndarray, names: list[str]) -> None:
    """Add what it takes to evaluate a model after genes or cells were dropped."""
    results.add("obs", f"{key}_library_size", library_size.astype(np.float64))
    results.add("obs", f"{key}_cluster", pd.Categorical.from_codes(clusters, categories=names))


def store_mixture(results: Results, key: str, mixture: GammaNormalMixture, names: list[str], genes: pd.Index) -> None:
    """Add the parameters of a gamma-normal mixture to the results."""
    columns = column_names(names)
    for position, name in enumerate(PARAMETERS):
        frame = pd.DataFrame(mixture.parameters[:, :, position], index=genes, columns=columns)
        results.add("varm", f"{key}_{name}", frame)
    status = {
        column: pd.Categorical.from_codes(mixture.status[:, position], categories=list(STATUSES))
        for position, column in enumerate(columns)
    }
    results.add("varm", f"{key}_status", pd.DataFrame(status, index=genes))


def store_calibrated(results: Results, key: str, fit: CalibratedFit, names: list[str], genes: pd.Index) -> None:
    """Add the parameters of a calibrated model to the results."""
    model = fit.model
    results.add("obsm", f"{key}_scores", model.scores)
    results.add("varm", f"{key}_loadings", model.loadings)
    results.add("var", f"{key}_shape", model.shape)
    results.add("var", f"{key}_gain", fit.total_gain)
    results.add("varm", f"{key}_gain", pd.DataFrame(fit.gain, index=genes, columns=column_names(names)))
    results.add("obs", f"{key}_capture_efficiency", model.capture_efficiency)


def has_model(adata: AnnData, key: str) -> bool:
    """Whether a complete model is stored under this key."""
    if written_by(adata, key) != FUNCTION:
        return False
    stored = stored_keys(key, adata.uns[key]["params"]["model"])
    return all(name in getattr(adata, attribute) for attribute, name in stored)


def stored_models(adata: AnnData) -> list[str]:
    """Keys of all stored models."""
    return [key for key in adata.uns if has_model(adata, key)]


def require_model(adata: AnnData, key: str) -> None:
    """Raise a KeyError that names what is stored, unless a complete model is stored under this key."""
    if not has_model(adata, key):
        msg = f"No dropout model is stored under {key!r}. Stored: {stored_models(adata)}. Run pp.dropout_prob first."
        raise KeyError(msg)


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A dropout model of the cells and genes of an AnnData.

    Attributes
    ----------
    model
        The fitted model.
    library_size
        ``(n_cells,)`` total counts at the time of the fit.
    clusters, names
        Cluster of each cell as codes, -1 for none, and the names of the clusters.
    modelled
        ``(n_genes, n_clusters)`` bool: whether the probabilities of a gene mean something there.
    gain
        ``(n_genes,)``: how much better held-out molecules were predicted than by the means of the clusters, in standard
        errors; ``None`` for models that do not know.
    random_state
        Seed of the fit.
    """

    model: GammaNormalMixture | CalibratedModel
    library_size: np.ndarray
    clusters: np.ndarray
    names: list[str]
    modelled: np.ndarray
    gain: np.ndarray | None
    random_state: int = 0

    def probability(self, counts: csr_array, cells: np.ndarray | slice, genes: np.ndarray | slice) -> np.ndarray:
        """Dropout probabilities of a block of cells and genes, of which `counts` are the counts, float32."""
        if isinstance(self.model, CalibratedModel):
            return self.model.take(cells, genes).probability(counts)
        return self.model.take(genes).probability(counts, self.library_size[cells], self.clusters[cells])


def load_model(adata: AnnData, key: str) -> StoredModel:
    """The stored model of a (possibly subset) AnnData."""
    names = [str(name) for name in adata.uns[key]["clusters"]]
    labels = pd.Categorical(adata.obs[f"{key}_cluster"], categories=names)
    columns = column_names(names)
    model: GammaNormalMixture | CalibratedModel
    gain = None
    if adata.uns[key]["params"]["model"] == "calibrated":
        model = CalibratedModel(
            scores=np.asarray(adata.obsm[f"{key}_scores"]),
            loadings=np.asarray(adata.varm[f"{key}_loadings"]),
            shape=adata.var[f"{key}_shape"].to_numpy(np.float64),
            capture_efficiency=adata.obs[f"{key}_capture_efficiency"].to_numpy(np.float64),
        )
        gain = adata.var[f"{key}_gain"].to_numpy(np.float64)
        modelled = np.repeat(np.asarray(model.loadings.any(axis=1))[:, None], len(names), axis=1)
    else:
        status = adata.varm[f"{key}_status"]
        # anndata drops categories that a subset of the genes does not use: codes are looked up by name.
        code = {name: position for position, name in enumerate(STATUSES)}
        model = GammaNormalMixture(
            parameters=np.stack([adata.varm[f"{key}_{name}"][columns].to_numpy(np.float64) for name in PARAMETERS], -1),
            status=np.stack([status[column].map(code).to_numpy(np.int8) for column in columns], axis=1),
        )
        modelled = model.status == 0
    return StoredModel(
        model=model,
        library_size=adata.obs[f"{key}_library_size"].to_numpy(np.float64),
        clusters=labels.codes.astype(np.int64),
        names=names,
        modelled=modelled,
        gain=gain,
        random_state=int(adata.uns[key]["params"].get("random_state", 0)),
    )


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


def probability_blocks(stored: StoredModel, counts: csr_array) -> Iterator[tuple[slice, np.ndarray]]:
    """Dropout probabilities by blocks of cells, float32."""
    for rows in block_slices(*counts.shape):
        yield rows, stored.probability(counts[rows], rows, slice(None))
