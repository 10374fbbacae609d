"""A fitted imputer as a folder of arrays and one JSON, all or nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from ._atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT = 4  # raised when earlier versions cannot be read any more
DESCRIPTION = "imputer.json"
ARRAYS = "arrays.npz"


def save(path: Path, description: dict[str, Any], arrays: Mapping[str, np.ndarray], *, overwrite: bool) -> None:
    """Write the folder as a whole."""
    if path.exists() and not (overwrite and (path / DESCRIPTION).is_file()):
        msg = f"{path} exists. Pass overwrite=True to replace a saved imputer, or choose another folder."
        raise FileExistsError(msg)
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new:
        new.mkdir()
        np.savez(new / ARRAYS, allow_pickle=False, **arrays)
        (new / DESCRIPTION).write_text(json.dumps({"format": FORMAT, **description}), encoding="utf-8")


def load(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Description and arrays; nothing is unpickled, and nothing outside the folder is read."""
    for name in (DESCRIPTION, ARRAYS):
        if (path / name).is_symlink():
            msg = f"{path} holds no readable CNNImputer: {name} is a link to another place."
            raise ValueError(msg)
        if not (path / name).is_file():
            msg = f"{path} holds no saved CNNImputer: {name} is missing."
            raise FileNotFoundError(msg)
    try:
        description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{path} holds no readable CNNImputer: {DESCRIPTION} is damaged ({error})."
        raise ValueError(msg) from error
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT:
        msg = f"{path} has format {found!r}; this version reads format {FORMAT}."
        raise ValueError(msg)
    try:
        # Opened here: numpy leaves files open that it cannot read.
        with (path / ARRAYS).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return description, {name: arrays[name] for name in arrays.files}
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for damaged files
        msg = f"{path} holds no readable CNNImputer: {ARRAYS} is damaged ({error})."
        raise ValueError(msg) from error
