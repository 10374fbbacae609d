"""Read a count matrix out of an AnnData, or say exactly why it cannot be used."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from .._matrix import is_integer, to_csr, values_problem

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    problem = values_problem(counts)
    if problem is not None:
        msg = f"{where} has {problem}; {caller} needs raw counts.{_suggestion(adata, layer)}"
        raise ValueError(msg)
    if integers and not is_integer(counts.data):
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


def layer_matrices(
    adata: AnnData, layers: Sequence[str | None] | str | None, *, caller: str
) -> dict[str, sp.csr_array]:
    """Layers to compare, by the names of their rows in a table; ``"X"`` or ``None`` stands for `X`."""
    chosen = [layers] if isinstance(layers, str) else list(layers or [])
    chosen = [None if layer == "X" and "X" not in layer_names(adata) else layer for layer in chosen]
    return {
        "X" if layer is None else f"layer:{layer}": get_counts(adata, layer, caller=caller, integers=False)
        for layer in chosen
    }


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
    return bool(counts.nnz) and values_problem(counts) is None and is_integer(counts.data)
