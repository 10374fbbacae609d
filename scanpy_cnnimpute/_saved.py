"""A fitted imputer as a folder: its networks, what they need, and one JSON, all or nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

FORMAT = 3
DESCRIPTION = "imputer.json"


def save(path: Path, description: dict[str, Any], save_networks: Callable[[Path], Any], *, overwrite: bool) -> None:
    """Write beside the destination, then rename; `save_networks` writes into a folder and says what is in it."""
    if path.exists() and not (overwrite and (path / DESCRIPTION).is_file()):
        msg = f"{path} exists. Pass overwrite=True to replace a saved imputer, or choose another folder."
        raise FileExistsError(msg)
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkdtemp is private to its user; the folder inside it is an ordinary one.
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        new = temporary / "new"
        new.mkdir()
        content = {"format": FORMAT, **description, "networks": save_networks(new)}
        (new / DESCRIPTION).write_text(json.dumps(content), encoding="utf-8")
        if path.exists():
            path.rename(temporary / "old")
        new.rename(path)
    finally:
        shutil.rmtree(temporary)


def load(path: Path) -> dict[str, Any]:
    """The description."""
    file = path / DESCRIPTION
    if not file.is_file():
        msg = f"{path} holds no saved CNNImputer: {DESCRIPTION} is missing."
        raise FileNotFoundError(msg)
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{path} holds no readable CNNImputer: {DESCRIPTION} is damaged ({error})."
        raise ValueError(msg) from error
    if description.get("format") != FORMAT:
        msg = f"{path} has format {description.get('format')!r}; this version reads format {FORMAT}."
        raise ValueError(msg)
    return description
