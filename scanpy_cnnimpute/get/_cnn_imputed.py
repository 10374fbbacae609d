"""``get.cnn_imputed``: any part of the imputed counts from the stored imputer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._anndata.counts import check_adata, open_counts
from .._anndata.fingerprint import check_fingerprint
from .._anndata.models import load_dropout, load_imputer, require_dropout_model, require_imputer
from .._anndata.results import stored_record
from .._anndata.selection import positions, selected_cells
from .._checks import check_key
from ..dropout import ModelledDropout
from ..imputation.assemble import imputed_columns

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData

    from .._counts import Counts
    from ..dropout import Dropout


def cnn_imputed(
    adata: AnnData, *, genes: Any = slice(None), cells: Any = slice(None), key: str = "cnn_imputed"
) -> np.ndarray:
    """Imputed counts of some cells and genes, from the stored imputer, the dropout model and the counts.

    Parameters
    ----------
    adata
        Annotated data after :func:`~scanpy_cnnimpute.pp.cnn_impute` with the default preset; genes and cells may have
        been dropped since. Genes that have lost one of their correlated genes are given without the network's
        correction, which a warning says.
    genes, cells
        What an AnnData can be indexed with: names, positions, masks, slices. Default: all.
    key
        The `key_added` of :func:`~scanpy_cnnimpute.pp.cnn_impute`.

    Returns
    -------
    ``(n_cells, n_genes)`` counts, float32 where that holds the observed counts, else float64: equal to the layer's up
    to rounding of the network (relative 1e-5).

    Raises
    ------
    KeyError
        If no imputer or dropout model is stored, or a name is unknown.
    ValueError
        If they do not belong to the counts or names any more.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()[:, :300].copy()
    >>> scnn.pp.cnn_impute(adata, store="params", n_steps=2)
    >>> scnn.get.cnn_imputed(adata, genes=adata.var_names[:3], cells=slice(0, 2)).shape
    (2, 3)
    """
    check_adata(adata, caller="get.cnn_imputed", in_memory=False)
    require_imputer(adata, check_key("key", key))
    params = stored_record(adata, key)["params"]
    part = selected_cells(adata, cells, params.get("layer"))
    wanted = positions(adata.var_names, genes, "genes")
    counts = open_counts(part, params.get("layer"), caller="get.cnn_imputed", integers=False)
    check_fingerprint(part, key, counts)
    imputer = load_imputer(part, key)
    return imputed_columns(imputer, counts, _dropout(part, counts, key), wanted)


def _dropout(part: AnnData, counts: Counts, imputed_key: str) -> Dropout:
    """Dropout probabilities as pp.cnn_impute had them."""
    record = stored_record(part, imputed_key)
    key = record["params"]["dropout_key"]
    dropout = load_dropout(part, key, counts)
    if dropout is None:
        require_dropout_model(part, key)
    same_kind = isinstance(dropout, ModelledDropout) == ("built_on" in record["fingerprint"])
    if not same_kind or (record["fingerprint"]["has_own_layer"] and not dropout.has_layer):  # type: ignore[union-attr]
        msg = (
            f"{imputed_key!r} was fitted with other dropout probabilities than those now under {key!r}. "
            "Run pp.cnn_impute again."
        )
        raise ValueError(msg)
    return dropout  # type: ignore[return-value]
