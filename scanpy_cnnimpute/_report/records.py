"""What an AnnData holds of the results of this package: small tables and parameters, without any matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from .._anndata.counts import layer_names, raw_matrix
from .._anndata.models import DROPOUT_FUNCTION, IMPUTE_FUNCTION
from .._anndata.results import Record, as_series, is_mapping, written_by
from .._counts import Counts, CountsInMemory, is_dask

if TYPE_CHECKING:
    from collections.abc import Mapping

EVALUATION_FUNCTION, FALSE_SIGNALS_FUNCTION = "tl.eval_imputation", "tl.eval_false_signals"


@dataclass(frozen=True, kw_only=True)
class Records:
    """The results that one report is about.

    Attributes
    ----------
    adata
        An AnnData with these results in `.uns` and nothing else, for the plots.
    newest
        The record that the report is named after.
    imputed_key, imputed
        Key and record of :func:`~scanpy_cnnimpute.pp.cnn_impute`; None for a dropout model alone.
    dropout_key, dropout
        The same of :func:`~scanpy_cnnimpute.pp.dropout_prob`; the record is None if no model is stored under the key.
    evaluations, false_signals
        Records of :func:`~scanpy_cnnimpute.tl.eval_imputation` and :func:`~scanpy_cnnimpute.tl.eval_false_signals`.
    n_cells, n_genes
        Size of the data.
    n_zeros
        Zeros among the counts; None if the counts are not in memory.
    is_lazy
        Whether the imputed layer is a Dask array.
    library_size, capture_efficiency
        Of the cells that have them; None if the dropout model does not store them.
    """

    adata: AnnData
    newest: Record
    imputed_key: str | None
    imputed: Record | None
    dropout_key: str
    dropout: Record | None
    evaluations: Mapping[str, Record]
    false_signals: Mapping[str, Record]
    n_cells: int
    n_genes: int
    n_zeros: int | None
    is_lazy: bool
    library_size: np.ndarray | None
    capture_efficiency: np.ndarray | None

    @property
    def has_own_probabilities(self) -> bool:
        """Whether the imputation used a layer of probabilities that is not as the model wrote it."""
        return self.imputed is not None and bool(self.imputed.get("fingerprint", {}).get("has_own_layer", False))

    @property
    def layer(self) -> str | None:
        """Layer with the counts; None for `X`."""
        return self.newest["params"].get("layer")


def read_records(adata: AnnData, key: str) -> Records:
    """Read the results that belong to a key; a KeyError names what is stored."""
    function = written_by(adata, key)
    if function not in {IMPUTE_FUNCTION, DROPOUT_FUNCTION}:
        there = [other for other in adata.uns if written_by(adata, other) in {IMPUTE_FUNCTION, DROPOUT_FUNCTION}]
        help_ = f"Pass key={there[-1]!r}, or run" if there else "Run"
        msg = (
            f"No result of {IMPUTE_FUNCTION} or {DROPOUT_FUNCTION} is stored under {key!r}. Stored: {there}. "
            f"{help_} scnn.{IMPUTE_FUNCTION} first."
        )
        raise KeyError(msg)
    newest = _record(adata, key)
    imputed = newest if function == IMPUTE_FUNCTION else None
    dropout_key = key if imputed is None else imputed["params"]["dropout_key"]
    dropout = _record(adata, dropout_key) if written_by(adata, dropout_key) == DROPOUT_FUNCTION else None
    evaluations = _written(adata, EVALUATION_FUNCTION)
    false_signals = _written(adata, FALSE_SIGNALS_FUNCTION)
    stored: dict[str, Any] = {**evaluations, **false_signals}
    stored |= {name: record for name, record in ((dropout_key, dropout), (key, imputed)) if record is not None}
    layer = newest["params"].get("layer")
    return Records(
        adata=AnnData(uns=stored),
        newest=newest,
        imputed_key=None if imputed is None else key,
        imputed=imputed,
        dropout_key=dropout_key,
        dropout=dropout,
        evaluations=evaluations,
        false_signals=false_signals,
        n_cells=adata.n_obs,
        n_genes=adata.n_vars,
        n_zeros=_n_zeros(adata, layer),
        is_lazy=key in layer_names(adata) and is_dask(adata.layers[key]),
        library_size=_column(adata, f"{dropout_key}_library_size"),
        capture_efficiency=_column(adata, f"{dropout_key}_capture_efficiency"),
    )


def in_memory(value: Any) -> Any:
    """A record, of which an AnnData that was read lazily holds parts in its file."""
    if is_mapping(value):
        return {name: in_memory(each) for name, each in value.items()}
    if hasattr(value, "to_memory"):
        return value.to_memory()
    return value.compute() if hasattr(value, "compute") else value


def _record(adata: AnnData, key: str) -> Record:
    """A record in memory that says what has been deleted from it."""
    return Record(in_memory(adata.uns[key]), f"adata.uns[{key!r}]", str(written_by(adata, key)))


def _written(adata: AnnData, function: str) -> dict[str, Any]:
    return {key: _record(adata, key) for key in adata.uns if written_by(adata, key) == function}


def _column(adata: AnnData, name: str) -> np.ndarray | None:
    """The numbers of a column; cells without counts may have none."""
    if name not in adata.obs:
        return None
    values = as_series(adata.obs[name]).to_numpy(np.float64)
    return values[np.isfinite(values)]


def _n_zeros(adata: AnnData, layer: str | None) -> int | None:
    """Zeros of counts in memory; others would have to be read."""
    if adata.isbacked:
        return None
    try:
        matrix = raw_matrix(adata, layer)
    except (KeyError, ValueError):  # deleted since
        return None
    counts = Counts.of(matrix)
    if not isinstance(counts, CountsInMemory):
        return None
    return adata.n_obs * adata.n_vars - counts.totals.nnz
