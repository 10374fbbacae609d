"""``tl.eval_gini``: compare Gini coefficients with those of another technique."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .. import metrics
from .._anndata.counts import check_adata, layer_matrices
from .._anndata.results import Results, check_keys
from .._logging import logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData


def eval_gini(
    adata: AnnData,
    *,
    reference: Mapping[str, float] | pd.Series,
    housekeeping: str | None = None,
    layers: Sequence[str | None] | str | None = None,
    key_added: str = "eval_gini",
) -> pd.DataFrame:
    """Compare the Gini coefficients of genes with those of another technique, such as RNA FISH.

    Parameters
    ----------
    adata
        Annotated data with counts, raw or imputed.
    reference
        Gini coefficient by gene. Genes without one, or not in `adata`, are left out.
    housekeeping
        Gene to normalise the cells by, with its values in the layer that is judged; see
        :func:`~scanpy_cnnimpute.metrics.housekeeping_normalize`. Default: the counts as they are.
    layers
        Layers to judge, each in a row; ``"X"`` or ``None`` in the sequence stands for `X`. Default: `X`.
    key_added
        Key in `.uns`.

    Returns
    -------
    DataFrame with one row per layer, ``X`` and ``layer:<key>``: ``mse`` (0 is best) and ``pcc`` (1 is best) of the Gini
    coefficients, ``n_genes`` they are compared in, ``n_cells`` they are taken over. Also in ``.uns[key_added]``:
    ``table``, ``gini`` (genes x layers, and the ``reference``; NaN for a gene that no cell expresses), ``params``.

    Raises
    ------
    KeyError, TypeError, ValueError
        For keys that are not there, layers that are no counts, and references that share no gene with `adata`.

    Notes
    -----
    The paper, "RNA FISH validation". A Gini coefficient of counts contains the sampling noise and the cells' library
    sizes, so a lower one is not by itself a better one; constant values have 0.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> adata = scnn.datasets.five_cell_lines()
    >>> scnn.tl.eval_gini(adata, reference={"ACTB": 0.2, "KRT8": 0.5}).loc["X", "n_genes"].item()
    2
    """
    check_adata(adata, caller="tl.eval_gini")
    check_keys(key_added=key_added)
    results = Results(adata, function="tl.eval_gini", key=key_added, keys=[])
    expected = pd.Series(reference, dtype="float64").dropna()
    if not expected.between(0, 1).all():
        msg = f"reference has values from {expected.min()} to {expected.max()}; Gini coefficients are in [0, 1]."
        raise ValueError(msg)
    if housekeeping is not None and list(adata.var_names).count(housekeeping) != 1:
        msg = f"housekeeping={housekeeping!r} has to be exactly one of adata.var_names."
        raise KeyError(msg)
    columns = common_genes(adata, expected.index, caller="tl.eval_gini")
    genes = adata.var_names[columns].rename(None)

    coefficients = pd.DataFrame(index=genes)
    n_cells = {}
    for name, matrix in layer_matrices(adata, layers or [None], caller="tl.eval_gini").items():
        values = matrix[:, columns]
        if housekeeping is not None:
            own = matrix[:, [adata.var_names.get_loc(housekeeping)]].toarray().ravel()
            values, _ = metrics.housekeeping_normalize(values, own)
        coefficients[name] = metrics.gini(values)
        n_cells[name] = values.shape[0]
    coefficients["reference"] = expected.loc[genes]

    rows = {}
    for name, n in n_cells.items():
        pair = coefficients[["reference", name]].dropna().to_numpy()
        scores = {"mse": metrics.mse, "pcc": metrics.pcc}
        rows[name] = {label: score(*pair.T) if len(pair) else np.nan for label, score in scores.items()}
        rows[name] |= {"n_genes": len(pair), "n_cells": n}
    table = pd.DataFrame.from_dict(rows, orient="index")
    results.write({"table": table, "gini": coefficients}, {"housekeeping": housekeeping})
    return table.copy()


def common_genes(adata: AnnData, reference: pd.Index, *, caller: str) -> np.ndarray:
    """Columns of `adata` whose genes the reference has too."""
    columns = np.flatnonzero(adata.var_names.isin(reference))
    if columns.size == 0:
        msg = (
            f"reference and adata.var_names have no gene in common: reference has {list(reference[:3])}, "
            f"adata {list(adata.var_names[:3])}. Both need the same kind of gene name."
        )
        raise ValueError(msg)
    genes = adata.var_names[columns]
    for where, names in (("reference", reference[reference.isin(genes)]), ("adata.var_names", genes)):
        if not names.is_unique:
            twice = list(names[names.duplicated()].unique()[:3])
            msg = f"{where} has genes more than once, such as {twice}; keep one value for each."
            raise ValueError(msg)
    logger.info(
        "%s: compared in %d genes; left out are %d that only adata has and %d that only the reference has",
        caller,
        columns.size,
        adata.n_vars - columns.size,
        len(reference) - columns.size,
    )
    return columns
