"""How fitted dropout models and imputers are stored in an AnnData, and read back."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from .._checks import check_choice
from .._counts import CountsInMemory, StoredCounts, is_dask, is_stored
from .._matrix import check_probabilities
from ..dropout import MODELS, GivenProbabilities, ModelledDropout
from ..imputation import IMPUTERS, find_imputer
from .counts import layer_names
from .fingerprint import check_fingerprint, fingerprint_keys
from .results import stored_record, written_by

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from anndata import AnnData

    from .._counts import Counts
    from .._records import ArrayRecord, ArraySpec
    from ..dropout import Dropout, DropoutModel
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


def _record_keys(key: str, record: type[ArrayRecord], written: Collection[str] | None = None) -> list[tuple[str, str]]:
    """Attributes and keys that a record takes; optional ones only if they were written, unless None."""
    placed = [(_place(spec), f"{key}_{name}", spec.is_optional) for name, spec in record.specs().items()]
    return [
        (place, name)
        for place, name, is_optional in placed
        if place is not None and (not is_optional or written is None or f"{place}:{name}" in written)
    ]


def dropout_keys(key: str, model: str | None = None, written: Collection[str] | None = None) -> list[tuple[str, str]]:
    """Attributes and keys that a dropout model takes besides its layer and record; default: may take, of any model."""
    models = MODELS.values() if model is None else [MODELS[model]]
    records = [record for each in models for record in (each, each.cells_type)]
    keys = [pair for record in records for pair in _record_keys(key, record, written)]
    return list(dict.fromkeys([*keys, *fingerprint_keys(key)]))


def _keys_of_stored(adata: AnnData, key: str) -> list[tuple[str, str]]:
    """Attributes and keys of the dropout model that was stored under this key."""
    record = stored_record(adata, key)
    return dropout_keys(key, record["params"]["model"], set(record["written"]))


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


def _read_record(
    adata: AnnData,
    key: str,
    kind: type[ArrayRecord],
    stored: dict[str, Any],
    sizes: Mapping[str, int] | None = None,
    **others: Any,
) -> Any:
    arrays, there = dict(stored), _record_keys(key, kind, set(adata.uns[key]["written"]))
    for name, spec in kind.specs().items():
        place = _place(spec)
        if place is not None and (place, f"{key}_{name}") in there:
            value = np.asarray(getattr(adata, place)[f"{key}_{name}"])
            arrays[name] = value[:, 0] if len(spec.axes) == 1 and value.shape[1:] == (1,) else value
    try:
        known = {"genes": adata.n_vars, "cells": adata.n_obs, **(sizes or {})}
        fitted = kind.from_arrays(arrays, known, **others)
        fitted.check_consistent()
    except ValueError as error:
        msg = f"The fit stored under {key!r} is damaged: {error}. Run {written_by(adata, key)} again."
        raise ValueError(msg) from error
    return fitted


def has_dropout_model(adata: AnnData, key: str) -> bool:
    """Whether a complete dropout model is stored under this key."""
    if written_by(adata, key) != DROPOUT_FUNCTION or "arrays" not in adata.uns[key]:
        return False
    known = adata.uns[key]["params"].get("model") in MODELS
    return known and all(name in getattr(adata, place) for place, name in _keys_of_stored(adata, key))


def stored_models(adata: AnnData) -> list[str]:
    """Keys of all stored dropout models."""
    return [key for key in adata.uns if has_dropout_model(adata, key)]


def require_dropout_model(adata: AnnData, key: str) -> None:
    """Raise a KeyError that names what is stored, unless a complete model of a known kind is stored under this key."""
    if not has_dropout_model(adata, key):
        lost = ""
        if written_by(adata, key) == DROPOUT_FUNCTION and "arrays" in adata.uns[key]:
            check_choice(f"adata.uns[{key!r}]['params']['model']", adata.uns[key]["params"].get("model"), MODELS)
            lost = _lost(adata, _keys_of_stored(adata, key))
        there = stored_models(adata)
        msg = f"No dropout model is stored under {key!r}. Stored: {there}.{lost} Run pp.dropout_prob first."
        raise KeyError(msg)


def _lost(adata: AnnData, keys: list[tuple[str, str]]) -> str:
    """Which parts of a stored fit are missing, in words."""
    missing = [f"adata.{place}[{name!r}]" for place, name in keys if name not in getattr(adata, place)]
    return f" Of the one that was, {', '.join(missing[:5])} is missing." if missing else ""


def load_dropout_model(adata: AnnData, key: str) -> tuple[DropoutModel, Any]:
    """The stored model, and its description of the cells, of a (possibly subset) AnnData."""
    record = stored_record(adata, key)
    kind = MODELS[record["params"]["model"]]
    model = _read_record(adata, key, kind, record["arrays"])
    cells = _read_record(adata, key, kind.cells_type, record["arrays"], sizes=model.axis_sizes)
    clusters = model.clusters(cells)
    if clusters.codes.min(initial=-1) < -1 or clusters.codes.max(initial=-1) >= len(clusters.names):
        msg = (
            f"The fit stored under {key!r} is damaged: adata.obs has clusters outside -1 to {len(clusters.names) - 1}. "
            f"Run {written_by(adata, key)} again."
        )
        raise ValueError(msg)
    return model, cells


def layer_checksum(layer: Any) -> int:
    """A number that tells a dense layer, also one in a file, or a Dask array from any other; 0 for other matrices."""
    if is_dask(layer):
        return zlib.crc32(str(layer.name).encode())
    if is_stored(layer) and not hasattr(layer, "format"):
        checksum, stored = 0, StoredCounts(layer, "The layer")
        for number in range(stored.n_blocks):
            checksum = zlib.crc32(np.ascontiguousarray(stored.block(stored.block_rows(number))).data, checksum)
        return checksum
    return zlib.crc32(np.ascontiguousarray(layer).data) if isinstance(layer, np.ndarray) else 0


def is_as_written(adata: AnnData, key: str) -> bool:
    """Whether the dropout layer is, bit for bit, what was written with the model: the model then says the same."""
    return adata.uns[key].get("layer_checksum", -1) == layer_checksum(adata.layers[key])


def written_genes(adata: AnnData, key: str) -> np.ndarray | None:
    """Genes that the stored dropout layer was written for; None for all."""
    mask = f"{key}_{MASK}"
    return np.asarray(adata.varm[mask], dtype=bool)[:, 0] if mask in adata.varm else None


def _imputer_places(adata: AnnData, key: str) -> list[tuple[str, str]] | None:
    """Where the parts of a stored imputer should be; None if none was stored."""
    if written_by(adata, key) != IMPUTE_FUNCTION or "arrays" not in adata.uns[key]:
        return None
    params = stored_record(adata, key)["params"]
    keys = _record_keys(key, find_imputer(params["preset"], params["estimate"], params.get("entries", "zeros")))
    return keys if "built_on" in stored_record(adata, key)["fingerprint"] else keys + fingerprint_keys(key)


def require_imputer(adata: AnnData, key: str) -> None:
    """Raise a KeyError that says what is stored or missing, unless a complete imputer is stored under this key."""
    places = _imputer_places(adata, key)
    lost = "" if places is None else _lost(adata, places)
    if places is not None and not lost:
        return
    if written_by(adata, key) == IMPUTE_FUNCTION and places is None:
        lost = " The networks of preset='paper' are too large to be stored; their values are in the layer."
    there = [other for other in adata.uns if other != key and _imputer_places(adata, other) is not None]
    msg = f"No imputer is stored under {key!r}. Stored: {there}.{lost} Run pp.cnn_impute first."
    raise KeyError(msg)


def load_imputer(adata: AnnData, key: str) -> Imputer:
    """The stored imputer of a (possibly subset) AnnData."""
    record = stored_record(adata, key)
    params = record["params"]
    kind = find_imputer(params["preset"], params["estimate"], params.get("entries", "zeros"))
    settings = kind.settings_type.from_overrides({name: params.get(name) for name in kind.settings_type.names()})
    return _read_record(adata, key, kind, record["arrays"], settings=settings, estimate=params["estimate"])


def load_dropout(adata: AnnData, key: str, counts: Counts, *, check: bool = True) -> Dropout | None:
    """Dropout probabilities under a key: of a stored model that belongs to the counts, or of a layer alone; else None.

    A layer that is as it was written with the model is not read: the model says the same. ``check=False`` is for
    callers who know that the model belongs to the counts.
    """
    has_layer, has_model = key in layer_names(adata), has_dropout_model(adata, key)
    layer = None
    if has_layer and not (has_model and is_as_written(adata, key)):
        layer = adata.layers[key]
        if isinstance(counts, CountsInMemory) or not (is_dask(layer) or is_stored(layer)):
            layer = check_probabilities(layer, where=f"adata.layers[{key!r}]")
    if not has_model:
        return None if layer is None else GivenProbabilities(layer)
    if check:
        check_fingerprint(adata, key, counts)
    model, cells = load_dropout_model(adata, key)
    return ModelledDropout(counts, model, cells, layer, written_genes(adata, key))
