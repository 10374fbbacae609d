"""Cluster labels without AnnData."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def distinct_names(labels: pd.Categorical) -> list[str]:
    """The categories as text. A ValueError names categories that are equal as text, such as 1 and "1"."""
    names = [str(name) for name in labels.categories]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        msg = f"Different clusters have the same name as text: {twice}. Rename them."
        raise ValueError(msg)
    return names
