"""Genes and cells that a user selects."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .._matrix import check_matrix
from .counts import matrix_name, raw_matrix


def selected_genes(adata: AnnData, mask_var: Any) -> np.ndarray:
    """Genes that a boolean column of `.var` or a boolean array selects, ``(n_vars,)`` bool; None selects all."""
    if mask_var is None:
        return np.ones(adata.n_vars, dtype=bool)
    if isinstance(mask_var, str):
        if mask_var not in adata.var:
            msg = f"mask_var={mask_var!r} is not in adata.var. Available: {list(adata.var.columns)}."
            raise KeyError(msg)
        where, values = f"adata.var[{mask_var!r}]", adata.var[mask_var]
    else:
        where, values = "mask_var", mask_var
    check_index(where, values, adata.var_names, "adata.var_names")
    if isinstance(values, list | tuple):
        values = np.asarray(values)
    if not pd.api.types.is_bool_dtype(values) or np.any(pd.isna(values)):
        kind = getattr(values, "dtype", type(values).__name__)
        msg = f"{where} has type {kind}, expected True or False for each gene, and no missing values."
        raise TypeError(msg)
    mask = np.asarray(values, dtype=bool)
    if mask.shape != (adata.n_vars,):
        msg = f"{where} has shape {mask.shape}, expected ({adata.n_vars},): one value for each gene."
        raise ValueError(msg)
    if not mask.any():
        msg = f"{where} selects no gene."
        raise ValueError(msg)
    return mask


def check_index(where: str, values: Any, names: pd.Index, of: str) -> None:
    """Refuse a Series of other cells or genes, or in another order; a numbered one is taken by position."""
    if not isinstance(values, pd.Series) or values.index.equals(pd.RangeIndex(names.size)):
        return
    if not values.index.equals(names):
        msg = f"{where} is a Series whose index is not {of}: reindex it, or pass an array."
        raise ValueError(msg)


def positions(names: pd.Index, chosen: Any, argument: str) -> np.ndarray:
    """Positions of what an AnnData with these names gives for names, positions, a mask or a slice."""
    if isinstance(chosen, np.ndarray) and chosen.ndim == 0:
        chosen = chosen.item()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # names need not be unique
        table = AnnData(obs=pd.DataFrame({"position": np.arange(names.size)}, index=names.astype(str)))
        try:
            part = table[[chosen] if isinstance(chosen, str) else chosen]
        except pd.errors.InvalidIndexError as error:
            msg = "Names occur more than once: ask by position, or run adata.var_names_make_unique() first."
            raise ValueError(msg) from error
        except (IndexError, KeyError, TypeError, ValueError) as error:
            reason = str(error.args[0] if error.args else error).rstrip(".")
            msg = f"{argument}={chosen!r} cannot be chosen: {reason}. Pass names, positions, a mask or a slice."
            raise (KeyError if isinstance(error, KeyError) else ValueError)(msg) from error
    return part.obs["position"].to_numpy()


def selected_cells(adata: AnnData, cells: Any, layer: str | None) -> AnnData:
    """The data of some cells, whose counts are in `layer`; of all without a copy."""
    everything = isinstance(cells, slice) and cells == slice(None)
    counts = None if everything else raw_matrix(adata, layer)
    if sp.issparse(counts):
        check_matrix(counts, matrix_name(layer))  # SciPy reads what the indices say when it picks rows
    return adata if everything else adata[positions(adata.obs_names, cells, "cells")]
