"""A fitted imputer as a folder: one ``.keras`` file per network and one JSON, all or nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._tasks import Task

if TYPE_CHECKING:
    from ..presets import NetworkSettings

FORMAT = 1
DESCRIPTION = "imputer.json"


def save(
    path: Path, description: dict[str, Any], tasks: list[Task], settings: NetworkSettings, *, overwrite: bool
) -> None:
    """Write beside the destination, then rename."""
    from ._model import build_network

    if path.exists() and not (overwrite and (path / DESCRIPTION).is_file()):
        msg = f"{path} exists. Pass overwrite=True to replace a saved imputer, or choose another folder."
        raise FileExistsError(msg)
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkdtemp is private to its user; the folder inside it is an ordinary one.
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        new = temporary / "new"
        new.mkdir()
        networks = []
        model = build_network(settings)
        for task in tasks:
            file = f"cluster{task.cluster:03d}_subset{task.subset:04d}.keras"
            model.set_weights(task.weights)
            model.save(new / file, include_optimizer=False)
            genes = {"targets": task.targets.tolist(), "inputs": task.inputs.tolist()}
            networks.append({"file": file, "cluster": task.cluster, "subset": task.subset, **genes})
        content = {"format": FORMAT, **description, "networks": networks}
        (new / DESCRIPTION).write_text(json.dumps(content), encoding="utf-8")
        if path.exists():
            path.rename(temporary / "old")
        new.rename(path)
    finally:
        shutil.rmtree(temporary)


def load(path: Path) -> tuple[dict[str, Any], list[Task]]:
    """The description and the networks."""
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
    from keras.saving import load_model

    tasks = [
        Task(
            cluster=entry["cluster"],
            subset=entry["subset"],
            targets=np.array(entry["targets"], dtype=np.int64),
            inputs=np.array(entry["inputs"], dtype=np.int64),
            weights=load_model(path / entry["file"], compile=False).get_weights(),
        )
        for entry in description["networks"]
    ]
    return description, tasks
