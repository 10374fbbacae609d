"""Read a count matrix out of an AnnData, or say exactly why it cannot be used."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

# Natural or binary logarithms of counts per million stay below this; raw counts hardly ever do.
LARGEST_LOGGED = 25.0


def check_adata(adata: AnnData, *, caller: str) -> None:
    """Refuse what is not an AnnData in memory."""
    if not isinstance(adata, AnnData):
        msg = f"{caller} takes an AnnData, got {type(adata).__name__}."
        raise TypeError(msg)
    if adata.isbacked:
        msg = f"backed AnnData is not supported by {caller}; call adata.to_memory() first."
        raise NotImplementedError(msg)


def layer_names(adata: AnnData) -> list[str]:
    """Names of the layers; anndata >= 0.13 lists X among them as None."""
    return [name for name in adata.layers if name is not None]


def raw_matrix(adata: AnnData, layer: str | None) -> Any:
    """`X` or a layer, as stored; the error lists what there is."""
    if layer is None:
        if adata.X is None:
            msg = f"adata.X is empty. Pass layer=, one of {layer_names(adata)}."
            raise ValueError(msg)
        return adata.X
    if layer not in layer_names(adata):
        msg = f"layer={layer!r} is not in adata.layers. Available: {layer_names(adata)}."
        raise KeyError(msg)
    return adata.layers[layer]


def get_counts(adata: AnnData, layer: str | None, *, caller: str, integers: bool = True) -> sp.csr_array:
    """The counts as a canonical CSR array without stored zeros, in their own dtype; the AnnData is not touched.

    `integers=False` accepts any non-negative values without a word, for layers that were imputed.
    """
    check_adata(adata, caller=caller)
    where = _name(layer)
    counts = to_csr(raw_matrix(adata, layer), where=where)
    problem = _values_problem(counts)
    if problem is not None:
        msg = f"{where} has {problem}; {caller} needs raw counts.{_suggestion(adata, layer)}"
        raise ValueError(msg)
    if integers and not _is_integer(counts.data):
        share = float(np.mean(counts.data != np.round(counts.data)))
        largest = float(counts.data.max())
        if share > 0.5 and largest < LARGEST_LOGGED:  # noqa: PLR2004
            msg = (
                f"{where} looks log-transformed ({share:.0%} of its non-zeros are fractions, the largest is "
                f"{largest:.3g}); {caller} needs raw counts.{_suggestion(adata, layer)}"
            )
            raise ValueError(msg)
        warnings.warn(
            f"{where}: {share:.0%} of the non-zeros are not whole numbers; {caller} is meant for raw counts.",
            UserWarning,
            stacklevel=3,
        )
    return counts


def to_csr(matrix: Any, *, where: str = "X") -> sp.csr_array:
    """A canonical CSR array without stored zeros; the data is shared with the input where that is possible."""
    if isinstance(matrix, np.ndarray):
        if matrix.ndim != 2:  # noqa: PLR2004
            msg = f"{where} has {matrix.ndim} dimensions, expected 2: cells x genes."
            raise ValueError(msg)
    elif not sp.issparse(matrix):
        module = type(matrix).__module__.split(".")[0]
        hint = " Call .compute() on it first." if module == "dask" else ""
        msg = (
            f"{where} is a {module} {type(matrix).__name__}, which is not supported: "
            f"a numpy array or a scipy sparse matrix or array is.{hint}"
        )
        raise TypeError(msg)
    kind = matrix.dtype.kind
    if kind not in "iufb":
        msg = f"{where} has dtype {matrix.dtype}, expected numbers."
        raise TypeError(msg)
    csr = sp.csr_array(matrix)
    if kind == "b":
        csr = csr.astype(np.float32)
    if not csr.has_canonical_format or (csr.data == 0).any():
        csr = csr.copy()
        csr.sum_duplicates()
        csr.eliminate_zeros()
    return csr


def _values_problem(counts: sp.csr_array) -> str | None:
    data = counts.data
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        missing, infinite = int(np.isnan(data).sum()), int(np.isinf(data).sum())
        return f"{missing} NaN and {infinite} infinite values"
    if data.size and data.min() < 0:
        return f"negative values (smallest {data.min():.3g})"
    return None


def _is_integer(data: np.ndarray) -> bool:
    return data.dtype.kind in "iu" or bool((data == np.round(data)).all())


def _name(layer: str | None) -> str:
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def _suggestion(adata: AnnData, layer: str | None) -> str:
    """Name the layers that look like counts."""
    others = [name for name in [None, *layer_names(adata)] if name != layer]
    candidates = [name for name in others if _looks_like_counts(adata.X if name is None else adata.layers[name])]
    if candidates:
        return f" {' and '.join(map(_name, candidates))} looks like counts: pass layer={candidates[0]!r}."
    if adata.raw is not None:
        return " No layer looks like counts; adata.raw might: try adata.raw.to_adata()."
    return " No layer looks like counts."


def _looks_like_counts(matrix: Any) -> bool:
    if not (sp.issparse(matrix) or isinstance(matrix, np.ndarray)) or matrix.dtype.kind not in "iuf":
        return False
    counts = to_csr(matrix)
    return bool(counts.nnz) and _values_problem(counts) is None and _is_integer(counts.data)
