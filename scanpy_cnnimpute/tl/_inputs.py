"""Read what the tools are told to use, or say which keyword is wrong and what is allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from .._checks import check_key, check_names
from .._logging import logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData


def obs_column(adata: AnnData, name: str, key: Any) -> pd.Series:
    """The column of `.obs` that the keyword `name` asks for."""
    check_key(name, key)
    columns = list(adata.obs.columns)
    if key not in columns:
        msg = f"{name}={key!r} is not in adata.obs. Available: {columns}."
        raise KeyError(msg)
    if columns.count(key) > 1:
        msg = f"{name}={key!r} names {columns.count(key)} columns of adata.obs. Rename or drop all but one."
        raise ValueError(msg)
    return adata.obs[key]


def obsm_points(adata: AnnData, use_rep: Any) -> np.ndarray:
    """Coordinates of all cells, ``(n_obs, n_dimensions)``, from `.obsm`."""
    check_key("use_rep", use_rep)
    if use_rep not in adata.obsm:
        msg = f"use_rep={use_rep!r} is not in adata.obsm. Available: {list(adata.obsm.keys())}."
        raise KeyError(msg)
    matrix = adata.obsm[use_rep]
    points = matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)
    if points.ndim != 2 or not np.issubdtype(points.dtype, np.number):  # noqa: PLR2004
        msg = f"adata.obsm[{use_rep!r}] has shape {points.shape} and dtype {points.dtype}, expected numbers."
        raise TypeError(msg)
    if not np.isfinite(points).all():
        msg = f"adata.obsm[{use_rep!r}] has NaN or infinite values."
        raise ValueError(msg)
    return points


def layer_list(layers: Sequence[str | None] | str | None) -> list[str | None]:
    """The names of layers that the keyword `layers` asks for."""
    return check_names("layers", layers, (str, type(None)), "the name of a layer, 'X' or None")


def use_rep_list(use_rep: Sequence[str] | str | None) -> list[str]:
    """The keys of `.obsm` that the keyword `use_rep` asks for."""
    return check_names("use_rep", use_rep, (str,), "a key of adata.obsm")


def common_genes(adata: AnnData, reference: pd.Index, *, caller: str) -> np.ndarray:
    """Columns of `adata` whose genes are in the reference."""
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
            duplicated = list(names[names.duplicated()].unique()[:3])
            msg = f"{where} has genes more than once, such as {duplicated}; keep one value for each."
            raise ValueError(msg)
    logger.info(
        "%s: compared in %d genes; left out are %d that only adata has and %d that only the reference has",
        caller,
        columns.size,
        adata.n_vars - columns.size,
        len(reference) - columns.size,
    )
    return columns
