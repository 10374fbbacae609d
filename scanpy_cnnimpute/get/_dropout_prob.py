"""``get.dropout_prob``: any part of the dropout probabilities from the stored parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import scipy.sparse as sp

from .._anndata.counts import check_adata, get_counts
from .._anndata.models import block_slices, check_unchanged, load_model, probability_blocks, require_model

if TYPE_CHECKING:
    from anndata import AnnData

    from .._anndata.models import StoredModel

Kind = Literal["dense", "sparse", "dask"]


def dropout_prob(
    adata: AnnData,
    *,
    genes: Any = slice(None),
    cells: Any = slice(None),
    key: str = "dropout_prob",
    kind: Kind = "dense",
) -> Any:
    """Dropout probabilities of some cells and genes, from the stored parameters and the counts.

    Parameters
    ----------
    adata
        Annotated data after :func:`~scanpy_cnnimpute.pp.dropout_prob`; genes and cells may have been dropped since.
    genes, cells
        What an AnnData can be indexed with: names, positions, masks, slices.
    key
        The `key_added` of :func:`~scanpy_cnnimpute.pp.dropout_prob`.
    kind
        ``"dense"`` array, ``"sparse"`` CSR array, or ``"dask"`` array in blocks of cells, computed when asked for.

    Returns
    -------
    ``(n_cells, n_genes)`` float32 probabilities, equal to the stored layer where there is one.

    Raises
    ------
    KeyError
        If no parameters are stored under `key`, or a name is unknown.
    ValueError
        If the counts, or the cells of a cluster, are not those that the model was fitted to.
    ImportError
        If ``kind="dask"`` and dask is not installed.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()
    >>> scnn.pp.dropout_prob(adata, cluster_key="cell_line", store="params")
    >>> scnn.get.dropout_prob(adata, genes=adata.var_names[:3], cells=slice(0, 2)).shape
    (2, 3)
    """
    check_adata(adata, caller="get.dropout_prob")
    if kind not in get_args(Kind):
        msg = f"kind={kind!r} is not known. Available: {list(get_args(Kind))}."
        raise ValueError(msg)
    require_model(adata, key)
    genes, cells = ([axis] if isinstance(axis, str) else axis for axis in (genes, cells))
    layer = adata.uns[key]["params"].get("layer")
    rows = adata[cells]
    check_unchanged(rows, key, get_counts(rows, layer, caller="get.dropout_prob", integers=False))
    part = rows[:, genes]
    stored = load_model(part, key)
    counts = get_counts(part, layer, caller="get.dropout_prob", integers=False)
    if kind == "dask":
        return _dask(stored, counts)
    blocks = [block for _, block in probability_blocks(stored, counts)]
    if kind == "sparse":
        return (
            sp.vstack([sp.csr_array(block) for block in blocks], format="csr") if blocks else sp.csr_array(part.shape)
        )
    return np.concatenate(blocks) if blocks else np.empty(part.shape, dtype=np.float32)


def _dask(stored: StoredModel, counts: sp.csr_array) -> Any:
    try:
        import dask.array as da
        from dask import delayed
    except ImportError as error:
        msg = "kind='dask' needs dask: pip install 'scanpy-cnnimpute[dask]'."
        raise ImportError(msg) from error

    blocks = [
        da.from_delayed(
            delayed(stored.probability)(counts[rows], rows, slice(None)),
            shape=(rows.stop - rows.start, counts.shape[1]),
            dtype=np.float32,
        )
        for rows in block_slices(*counts.shape)
    ]
    return da.concatenate(blocks) if blocks else da.empty(counts.shape, dtype=np.float32)
