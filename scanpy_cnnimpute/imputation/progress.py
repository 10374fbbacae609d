"""The progress bar of long work."""

from __future__ import annotations

from typing import Any


def progress_bar(description: str, total: int, *, verbose: bool, unit: str = "stage") -> Any:
    """A tqdm bar, which `verbose=False` and anything but a terminal or notebook silence."""
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=description, unit=unit, disable=None if verbose else True)
