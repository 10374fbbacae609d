"""How much memory data take, and whether that is too much."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ._anndata import stores

if TYPE_CHECKING:
    from pathlib import Path

LIBRARY_BYTES = 10**9
"""Of a process that has trained a network with TensorFlow on few cells."""


def format_size(n_bytes: float) -> str:
    """Bytes as people read them."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.3g} MB"  # noqa: PLR2004


def limit_or_default(memory_limit: int | None) -> int:
    """Bytes that a process may take: as told, or half of this machine's memory, or of a modest one's."""
    if memory_limit is not None:
        return memory_limit
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError):  # the system does not say
        return 4 * 10**9


def bytes_in_memory(source: Path, layer: str | None) -> int:
    """Most bytes that a run takes which holds everything: counts, result and libraries."""
    with stores.opened(source) as group:
        layers = group.get("layers", {})
        if layer is None and "X" not in group:
            msg = f"{source} has no X. Pass --layer, one of {list(layers)}."
            raise KeyError(msg)
        if layer is not None and layer not in layers:
            msg = f"layer={layer!r} is not in adata.layers. Available: {list(layers)}."
            raise KeyError(msg)
        n_cells, n_genes = stores.matrix_of(group["X"] if layer is None else layers[layer]).shape
        held = [layers[name] for name in layers] + ([group["X"]] if "X" in group else [])
        return LIBRARY_BYTES + 8 * n_cells * n_genes + 2 * sum(stores.stored_bytes(each) for each in held)
