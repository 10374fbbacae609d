"""``tl.eval_gini``: Gini coefficients against those of another technique."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .. import metrics
from .._anndata.counts import check_adata, layer_matrices
from .._anndata.results import Results, check_keys
from .._checks import check_key
from ._inputs import common_genes, layer_list

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        Gini coefficient of each gene. Genes without one and genes that `adata` lacks are left out.
    housekeeping
        Gene whose expression in the judged layer normalises the cells; see
        :func:`~scanpy_cnnimpute.metrics.housekeeping_normalize`. Default: no normalisation.
    layers
        Layers with counts, raw or imputed, to judge, each in a row. ``"X"`` or ``None`` in the sequence stands for `X`.
        Default: `X`.
    key_added
        Key in `.uns`.

    Returns
    -------
    DataFrame with one row per layer, ``X`` and ``layer:<key>``. Columns: ``mse`` (0 is best) and ``pcc`` (1 is best) of
    the Gini coefficients, ``n_genes`` that are compared, ``n_cells`` that the coefficients are computed from.
    ``.uns[key_added]`` holds ``table``, ``params`` and ``gini``, a DataFrame of the coefficients: genes x layers and
    ``reference``, NaN for genes that no cell expresses.

    Raises
    ------
    KeyError
        If a layer or the housekeeping gene is not there.
    TypeError, ValueError
        For layers that are no counts, and references that are no Gini coefficients or share no gene with `adata`.

    Notes
    -----
    The paper, "RNA FISH validation". Sampling noise and unequal library sizes raise the Gini coefficient of counts.
    A lower coefficient is not by itself a better one: constant values have 0.

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
    if not isinstance(reference, (Mapping, pd.Series)):
        msg = f"reference is a {type(reference).__name__}, expected a dict or a Series: the Gini coefficient by gene."
        raise TypeError(msg)
    try:
        expected = pd.Series(reference, dtype="float64").dropna()
    except (TypeError, ValueError) as error:
        msg = f"reference has values that are no numbers, expected the Gini coefficient by gene: {error}."
        raise TypeError(msg) from error
    if not expected.between(0, 1).all():
        msg = f"reference has values from {expected.min()} to {expected.max()}; Gini coefficients are in [0, 1]."
        raise ValueError(msg)
    if housekeeping is not None and list(adata.var_names).count(check_key("housekeeping", housekeeping)) != 1:
        msg = f"housekeeping={housekeeping!r} has to be exactly one of adata.var_names."
        raise KeyError(msg)
    columns = common_genes(adata, expected.index, caller="tl.eval_gini")
    genes = adata.var_names[columns].rename(None)

    coefficients = pd.DataFrame(index=genes)
    n_cells = {}
    for name, matrix in layer_matrices(adata, layer_list(layers) or [None], caller="tl.eval_gini").items():
        values = matrix[:, columns]
        if housekeeping is not None:
            expression = matrix[:, [adata.var_names.get_loc(housekeeping)]].toarray().ravel()
            values, _ = metrics.housekeeping_normalize(values, expression)
        coefficients[name] = metrics.gini(values)
        n_cells[name] = values.shape[0]
    coefficients["reference"] = expected.loc[genes]
    rows = {name: _judge(coefficients[["reference", name]]) | {"n_cells": n} for name, n in n_cells.items()}
    table = pd.DataFrame.from_dict(rows, orient="index")
    results.write({"table": table, "gini": coefficients}, {"housekeeping": housekeeping})
    return table.copy()


def _judge(pair: pd.DataFrame) -> dict[str, float | int]:
    """Agreement of two columns of coefficients, in the genes that both have."""
    known = pair.dropna().to_numpy()
    scores = {"mse": metrics.mse, "pcc": metrics.pcc}
    return {name: score(*known.T) if len(known) else np.nan for name, score in scores.items()} | {"n_genes": len(known)}
