"""Write results into an AnnData: all of them or none, and never over somebody else's."""

from __future__ import annotations

import warnings
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pandas as pd
from anndata import ImplicitModificationWarning

from ._logging import logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData


class Results:
    """Collects what one call will write, refuses foreign keys before the work starts, writes everything at its end.

    Parameters
    ----------
    adata
        Where to write.
    function
        Public name of the caller, kept in ``uns[key]["params"]["function"]``.
    key
        The `uns` key of the record. What an earlier call of the same function recorded there may be replaced.
    keys
        ``(attribute, key)`` of everything that may be written besides.
    """

    def __init__(self, adata: AnnData, *, function: str, key: str, keys: Sequence[tuple[str, str]]) -> None:
        if not isinstance(key, str) or not key or "/" in key:
            msg = f"key_added={key!r} is not allowed: a non-empty string without '/'."
            raise ValueError(msg)
        self._adata, self._function, self._key = adata, function, key
        self._values: dict[tuple[str, str], Any] = {}
        self._started = perf_counter()
        record = adata.uns.get(key)
        params = record.get("params", {}) if hasattr(record, "get") else {}
        self._own = hasattr(params, "get") and params.get("function") == function
        self._earlier = [(attribute, name) for attribute, name in keys if name in getattr(adata, attribute)]
        taken = [f"adata.{attribute}[{name!r}]" for attribute, name in self._earlier]
        if record is not None:
            taken.append(f"adata.uns[{key!r}]")
        if taken and not self._own:
            msg = (
                f"{', '.join(taken)} exists and was not written by {function}. Choose another key_added, or delete it."
            )
            raise ValueError(msg)

    def add(self, attribute: str, name: str, value: Any) -> None:
        """Remember one value for :meth:`write`."""
        self._values[attribute, name] = value

    def write(self, record: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        """Put everything into the AnnData; what an earlier call left and this one does not write goes."""
        from . import __version__

        with warnings.catch_warnings():
            # Writing to a view makes it an actual AnnData, which is what the caller asked for.
            warnings.simplefilter("ignore", ImplicitModificationWarning)
            for (attribute, name), value in self._values.items():
                getattr(self._adata, attribute)[name] = value
            self._adata.uns[self._key] = {
                **record,
                "params": storable({"function": self._function, "version": __version__, **params}),
            }
            for attribute, name in self._earlier:
                if (attribute, name) not in self._values:
                    del getattr(self._adata, attribute)[name]
        written = [f"{attribute}[{name!r}]" for attribute, name in self._values] + [f"uns[{self._key!r}]"]
        logger.info(
            "%s: %s %s (%.1f s)",
            self._function,
            "replaced" if self._own else "added",
            ", ".join(written),
            perf_counter() - self._started,
        )


def storable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that h5ad and zarr can hold: no None, no tuples."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in values.items() if value is not None
    }


def column_names(clusters: Sequence[str]) -> list[str]:
    """Cluster names usable as DataFrame columns in h5ad and zarr, where '/' separates groups."""
    names: list[str] = []
    for cluster in clusters:
        name = str(cluster).replace("/", "|").strip() or "unnamed"
        while name in names or name in {"_index", "index", ".", ".."}:
            name += "_"
        names.append(name)
    return names


def cluster_codes(adata: AnnData, cluster_key: str, *, caller: str) -> tuple[Any, list[str]]:
    """Cluster of every cell as int codes (-1 for missing) and the names of the clusters that have cells."""
    if cluster_key not in adata.obs:
        msg = f"cluster_key={cluster_key!r} is not in adata.obs. Available: {list(adata.obs.columns)}."
        raise KeyError(msg)
    categories = pd.Categorical(adata.obs[cluster_key]).remove_unused_categories()
    if len(categories.categories) == 0:
        msg = f"adata.obs[{cluster_key!r}] has no cluster: {caller} needs at least one cell with a label."
        raise ValueError(msg)
    return categories.codes.astype("int64"), [str(name) for name in categories.categories]
