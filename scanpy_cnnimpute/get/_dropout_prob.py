"""``get.dropout_prob``: any part of the dropout probabilities from the stored model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._anndata.counts import check_adata, open_counts
from .._anndata.fingerprint import check_fingerprint
from .._anndata.models import load_dropout_model, require_dropout_model
from .._anndata.results import stored_record
from .._anndata.selection import positions, selected_cells
from .._checks import check_key

if TYPE_CHECKING:
    from anndata import AnnData


def dropout_prob(
    adata: AnnData, *, genes: Any = slice(None), cells: Any = slice(None), key: str = "dropout_prob"
) -> np.ndarray:
    """Dropout probabilities of some cells and genes, from the stored model and the counts.

    Parameters
    ----------
    adata
        Annotated data after :func:`~scanpy_cnnimpute.pp.dropout_prob`; genes and cells may have been dropped since.
    genes, cells
        What an AnnData can be indexed with: names, positions, masks, slices. Default: all.
    key
        The `key_added` of :func:`~scanpy_cnnimpute.pp.dropout_prob`.

    Returns
    -------
    ``(n_cells, n_genes)`` float32 probabilities, equal to the stored layer where there is one.

    Raises
    ------
    KeyError
        If no model is stored under `key`, or a name is unknown.
    ValueError
        If the model does not belong to the counts or names any more.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()
    >>> scnn.pp.dropout_prob(adata, store="params")
    >>> scnn.get.dropout_prob(adata, genes=adata.var_names[:3], cells=slice(0, 2)).shape
    (2, 3)
    """
    check_adata(adata, caller="get.dropout_prob", in_memory=False)
    require_dropout_model(adata, check_key("key", key))
    layer = stored_record(adata, key)["params"].get("layer")
    part = selected_cells(adata, cells, layer)
    wanted = positions(adata.var_names, genes, "genes")
    counts = open_counts(part, layer, caller="get.dropout_prob", integers=False)
    check_fingerprint(part, key, counts)
    model, described = load_dropout_model(part, key)
    out = np.empty((part.n_obs, wanted.size), dtype=np.float32)
    for rows, block in counts.blocks():
        out[rows] = model.take(genes=wanted).probabilities(block[:, wanted], described.take(cells=rows))
    return out
