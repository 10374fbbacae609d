"""A fitted imputer as a folder of arrays and one JSON, all or nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from ._atomic import check_outside_stores, recover_killed, replacing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT = 4  # raised when earlier versions cannot be read any more
DESCRIPTION = "imputer.json"
ARRAYS = "arrays.npz"
CONTENT = {DESCRIPTION, ARRAYS}


def save(path: Path, description: dict[str, Any], arrays: Mapping[str, np.ndarray], *, overwrite: bool) -> None:
    """Write the folder as a whole."""
    text = json.dumps({"format": FORMAT, **description})
    place = path.resolve()
    check_outside_stores(place)
    recover_killed(place)
    if place.exists() and not (overwrite and _is_saved(place)):
        msg = (
            f"{path} exists. Pass overwrite=True to replace a folder that holds a saved imputer and nothing else, or "
            "choose another folder."
        )
        raise FileExistsError(msg)
    place.parent.mkdir(parents=True, exist_ok=True)
    with replacing(place) as new:
        new.mkdir()
        np.savez(new / ARRAYS, allow_pickle=False, **arrays)
        (new / DESCRIPTION).write_text(text, encoding="utf-8")


def _is_saved(path: Path) -> bool:
    """Whether a folder holds a saved imputer, which may be damaged, and nothing else."""
    return path.is_dir() and (path / DESCRIPTION).is_file() and {each.name for each in path.iterdir()} <= CONTENT


def load(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Description and arrays; nothing is unpickled, and nothing outside the folder is read."""
    recover_killed(path.resolve())
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
