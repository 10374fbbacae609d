"""How fitted dropout models and imputers are stored in an AnnData, and read back."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dropout import MODELS
from ..imputation import IMPUTERS, find_imputer
from .fingerprint import fingerprint_keys
from .results import written_by

if TYPE_CHECKING:
    from anndata import AnnData

    from .._records import ArrayRecord, ArraySpec
    from ..dropout import DropoutModel
    from ..imputation import Imputer
    from .results import Results

DROPOUT_FUNCTION = "pp.dropout_prob"
IMPUTE_FUNCTION = "pp.cnn_impute"
MASK = "selected"
"""Suffix of the `.varm` key that tells which genes a dropout layer was written for."""


def _place(spec: ArraySpec) -> str | None:
    """The attribute of an AnnData that holds an array; None for `.uns`."""
    if spec.axis == "cells":
        return "obs" if spec.is_column else "obsm"
    return "varm" if spec.axis == "genes" else None


def _record_keys(key: str, record: type[ArrayRecord]) -> list[tuple[str, str]]:
    placed = [(_place(spec), f"{key}_{name}") for name, spec in record.specs().items()]
    return [(place, name) for place, name in placed if place is not None]


def dropout_keys(key: str, model: str | None = None) -> list[tuple[str, str]]:
    """Attributes and keys that a dropout model takes besides its layer and record; default: any model."""
    models = MODELS.values() if model is None else [MODELS[model]]
    keys = [pair for each in models for record in (each, each.cells_type) for pair in _record_keys(key, record)]
    return list(dict.fromkeys([*keys, *fingerprint_keys(key)]))


def imputer_keys(key: str) -> list[tuple[str, str]]:
    """Attributes and keys that any imputer takes besides its layers and record."""
    keys = [pair for imputer in IMPUTERS if imputer.is_stored for pair in _record_keys(key, imputer)]
    return list(dict.fromkeys([*keys, *fingerprint_keys(key)]))


def add_record(results: Results, key: str, record: ArrayRecord) -> dict[str, Any]:
    """Add the arrays per cell and per gene to the results; returns the others, for `.uns`."""
    specs, others = record.specs(), {}
    for name, value in record.to_arrays().items():
        place = _place(specs[name]) if name in specs else None
        if place is None:
            others[name] = value.item() if value.ndim == 0 else value
        else:
            results.add(place, f"{key}_{name}", value[:, None] if value.ndim == 1 and place != "obs" else value)
    return others


def _read_record(adata: AnnData, key: str, kind: type[ArrayRecord], stored: dict[str, Any], **others: Any) -> Any:
    arrays = dict(stored)
    for name, spec in kind.specs().items():
        place = _place(spec)
        if place is not None:
            value = np.asarray(getattr(adata, place)[f"{key}_{name}"])
            arrays[name] = value[:, 0] if len(spec.axes) == 1 and value.ndim > 1 else value
    try:
        return kind.from_arrays(arrays, {"genes": adata.n_vars, "cells": adata.n_obs}, **others)
    except ValueError as error:
        msg = f"The fit stored under {key!r} is damaged: {error}. Run {written_by(adata, key)} again."
        raise ValueError(msg) from error


def has_dropout_model(adata: AnnData, key: str) -> bool:
    """Whether a complete dropout model is stored under this key."""
    if written_by(adata, key) != DROPOUT_FUNCTION or "arrays" not in adata.uns[key]:
        return False
    model = adata.uns[key]["params"]["model"]
    return model in MODELS and all(name in getattr(adata, place) for place, name in dropout_keys(key, model))


def stored_models(adata: AnnData) -> list[str]:
    """Keys of all stored dropout models."""
    return [key for key in adata.uns if has_dropout_model(adata, key)]


def require_dropout_model(adata: AnnData, key: str) -> None:
    """Raise a KeyError that names what is stored, unless a complete model is stored under this key."""
    if not has_dropout_model(adata, key):
        msg = f"No dropout model is stored under {key!r}. Stored: {stored_models(adata)}. Run pp.dropout_prob first."
        raise KeyError(msg)


def load_dropout_model(adata: AnnData, key: str) -> tuple[DropoutModel, Any]:
    """The stored model, and its description of the cells, of a (possibly subset) AnnData."""
    record = adata.uns[key]
    kind = MODELS[record["params"]["model"]]
    model = _read_record(adata, key, kind, record["arrays"])
    cells = _read_record(adata, key, kind.cells_type, record["arrays"])
    clusters = model.clusters(cells)
    if clusters.codes.min(initial=-1) < -1 or clusters.codes.max(initial=-1) >= len(clusters.names):
        msg = (
            f"The fit stored under {key!r} is damaged: adata.obs has clusters outside -1 to {len(clusters.names) - 1}. "
            f"Run {written_by(adata, key)} again."
        )
        raise ValueError(msg)
    return model, cells


def layer_checksum(layer: Any) -> int:
    """A number that tells a dense layer from any other, or 0 for other kinds of matrices."""
    return zlib.crc32(np.ascontiguousarray(layer).data) if isinstance(layer, np.ndarray) else 0


def is_as_written(adata: AnnData, key: str) -> bool:
    """Whether the dropout layer is, bit for bit, what was written with the model: the model then says the same."""
    return adata.uns[key].get("layer_checksum", -1) == layer_checksum(adata.layers[key])


def written_genes(adata: AnnData, key: str) -> np.ndarray | None:
    """Genes that the stored dropout layer was written for; None for all."""
    mask = f"{key}_{MASK}"
    return np.asarray(adata.varm[mask], dtype=bool)[:, 0] if mask in adata.varm else None


def require_imputer(adata: AnnData, key: str) -> None:
    """Raise a KeyError unless a complete imputer is stored under this key."""
    if written_by(adata, key) == IMPUTE_FUNCTION and "arrays" in adata.uns[key]:
        params = adata.uns[key]["params"]
        kind = find_imputer(params["preset"], params["estimate"])
        keys = _record_keys(key, kind)
        if "built_on" not in adata.uns[key]["fingerprint"]:
            keys += fingerprint_keys(key)
        if all(name in getattr(adata, place) for place, name in keys):
            return
    there = [
        other for other in adata.uns if written_by(adata, other) == IMPUTE_FUNCTION and "arrays" in adata.uns[other]
    ]
    reason = ""
    if written_by(adata, key) == IMPUTE_FUNCTION:
        reason = " The networks of preset='paper' are too large to be stored; their values are in the layer."
    msg = f"No imputer is stored under {key!r}. Stored: {there}.{reason} Run pp.cnn_impute first."
    raise KeyError(msg)


def load_imputer(adata: AnnData, key: str) -> Imputer:
    """The stored imputer of a (possibly subset) AnnData."""
    record = adata.uns[key]
    params = record["params"]
    kind = find_imputer(params["preset"], params["estimate"])
    settings = kind.settings_type.from_overrides({name: params[name] for name in kind.settings_type.names()})
    return _read_record(adata, key, kind, record["arrays"], settings=settings, estimate=params["estimate"])
