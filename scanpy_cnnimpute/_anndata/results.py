"""Write the results of one call into an AnnData: all or none, and never over keys of other origin."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import ImplicitModificationWarning

from .._atomic import MAX_NAME_BYTES, ZARR_FILES
from .._checks import MAX_INT64, check_key
from .._labels import distinct_names
from .._logging import logger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData

MAX_COLUMN_BYTES = 80  # of a cluster in a column name; h5ad keeps all column names of a table in one attribute of 64 kB
# Names with a meaning of their own: folders, anndata's index of a table, zarr's metadata.
RESERVED_NAMES = {"", ".", "..", "_index", ".zarray", *ZARR_FILES}


WRITTEN = ("obs", "obsm", "varm", "layers", "uns")
"""Attributes of an AnnData that results are written to."""


@contextmanager
def all_or_nothing(adata: AnnData) -> Iterator[None]:
    """Give the data back what they had if what is done in the block fails or is interrupted.

    Of a view, which the first key that is written turns into a copy, new keys are taken away.
    """

    def names(attribute: str) -> list[str]:
        if attribute == "obs":
            return list(adata.obs.columns)
        return [name for name in getattr(adata, attribute) if name is not None]  # anndata >= 0.13 lists X as None

    known = {attribute: names(attribute) for attribute in WRITTEN}
    held = [] if adata.is_view else [(each, name, getattr(adata, each)[name]) for each in known for name in known[each]]
    try:
        yield
    except BaseException:
        for attribute in WRITTEN:
            for name in names(attribute):
                if name not in known[attribute]:
                    del getattr(adata, attribute)[name]
        for attribute, name, value in held:
            there = getattr(adata, attribute)
            # A column of a table is another object each time.
            if name not in there or not (there[name].equals(value) if attribute == "obs" else there[name] is value):
                there[name] = value
        raise


class Results:
    """Collects what one call writes, refuses foreign keys before the work, and writes everything at the end.

    Parameters
    ----------
    adata
        Where to write.
    function
        Public name of the caller, recorded in ``uns[key]["params"]["function"]``.
    key
        Key of the record in `uns`. Keys that an earlier record of the same function names as its own are replaced, or
        deleted if this call does not write them.
    keys
        ``(attribute, key)`` of everything else that may be written.

    Raises
    ------
    ValueError
        If a key cannot be stored in h5ad and zarr, or exists and was not written by `function`.
    """

    def __init__(self, adata: AnnData, *, function: str, key: str, keys: Sequence[tuple[str, str]]) -> None:
        self._adata, self._function, self._key = adata, function, key
        self._values: dict[tuple[str, str], Any] = {}
        self._started = perf_counter()
        for attribute, name in [("uns", key), *keys]:
            problem = _name_problem(name)
            if attribute in {"obs", "var"} and name == getattr(adata, attribute).index.name:
                problem = "it is the name of the index"
            if problem is not None:
                msg = f"adata.{attribute}[{name!r}] cannot be written: {problem}. Choose another key_added."
                raise ValueError(msg)
        record = adata.uns.get(key)
        self._replaces = written_by(adata, key) == function
        earlier = [str(name).partition(":") for name in record["written"]] if self._replaces else []
        self._earlier = [(attribute, name) for attribute, _, name in earlier if name in getattr(adata, attribute)]
        taken = [
            f"adata.{attribute}[{name!r}]"
            for attribute, name in keys
            if name in getattr(adata, attribute) and (attribute, name) not in self._earlier
        ]
        if record is not None and not self._replaces:
            taken.append(f"adata.uns[{key!r}]")
        if taken:
            msg = (
                f"{', '.join(taken)} would be overwritten, but no record says that {function} wrote it. "
                f"Choose another key_added, or delete: {'; '.join(f'del {name}' for name in taken)}"
            )
            raise ValueError(msg)

    def add(self, attribute: str, name: str, value: Any) -> None:
        """Keep one value for :meth:`write`.

        A table in `obsm` or `varm` becomes an array if the names of the cells or genes are no text: anndata could not
        read the table back.
        """
        if attribute in {"obsm", "varm"} and isinstance(value, pd.DataFrame):
            names = self._adata.obs_names if attribute == "obsm" else self._adata.var_names
            value = value if names.inferred_type == "string" else _as_array(value)
        self._values[attribute, name] = value

    def write(self, record: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        """Write the values, the record and its parameters, and delete what an earlier call alone wrote."""
        from .. import __version__

        with all_or_nothing(self._adata), warnings.catch_warnings():
            # Writing to a view copies it, as the caller asked for.
            warnings.simplefilter("ignore", ImplicitModificationWarning)
            for (attribute, name), value in self._values.items():
                getattr(self._adata, attribute)[name] = value
            self._adata.uns[self._key] = {
                **{name: _with_text_names(value) for name, value in record.items()},
                "written": np.array([f"{attribute}:{name}" for attribute, name in self._values], dtype=str),
                "params": storable({"function": self._function, "version": __version__, **params}),
            }
            for attribute, name in self._earlier:
                if (attribute, name) not in self._values:
                    del getattr(self._adata, attribute)[name]
        written = [f"{attribute}[{name!r}]" for attribute, name in self._values] + [f"uns[{self._key!r}]"]
        logger.info(
            "%s: %s %s (%.1f s)",
            self._function,
            "replaced" if self._replaces else "added",
            ", ".join(written),
            perf_counter() - self._started,
        )


def check_keys(*keys: str, **named: str) -> None:
    """Check the keys of one call: those it reads are text, those it writes (by argument) can be stored and differ."""
    for key in keys:
        check_key("A key", key)
    for name, key in named.items():
        check_key(name, key)
    for name, key in named.items():
        problem = _name_problem(key)
        if problem is not None:
            msg = f"{name}={key!r} is not allowed: {problem}."
            raise ValueError(msg)
        others = [*keys, *(other for label, other in named.items() if label != name)]
        if key in others:
            msg = f"{name}={key!r} is taken: it has to differ from the other keys of this call."
            raise ValueError(msg)


def _name_problem(name: str) -> str | None:
    """Why h5ad or zarr cannot hold a key, in words; None if both can."""
    if name in RESERVED_NAMES:
        return f"h5ad and zarr reserve {sorted(RESERVED_NAMES)}"
    if {"/", "\\", "\0"} & set(name):
        return "slashes, backslashes and NUL cannot be part of a name in h5ad and zarr"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    # A key is the name of a folder in zarr.
    return f"it has {size} bytes, allowed are {MAX_NAME_BYTES}" if size > MAX_NAME_BYTES else None


def _as_array(table: pd.DataFrame) -> np.ndarray:
    """The values of a table of numbers or of categories, the latter as text."""
    numeric = all(pd.api.types.is_numeric_dtype(dtype) for dtype in table.dtypes)
    return table.to_numpy() if numeric else table.astype(str).to_numpy(dtype=object)


def _with_text_names(value: Any) -> Any:
    """A table with names that h5ad and zarr can hold; anything else as it is."""
    if not isinstance(value, pd.DataFrame):
        return value
    named = value.set_axis(value.index.astype(str), axis=0).set_axis(value.columns.astype(str), axis=1)
    # An index that is called like a column is refused.
    return named.rename_axis(index=None) if named.index.name in named.columns else named


def written_by(adata: AnnData, key: str) -> str | None:
    """The function of this package whose record stands under a key of `uns`."""
    record = adata.uns.get(key)
    if not hasattr(record, "get") or "written" not in record or not hasattr(record.get("params"), "get"):
        return None
    return record["params"].get("function")


class Record(dict[str, Any]):
    """A record of `.uns`, or a part of it, that says what has been deleted from it."""

    def __init__(self, values: Mapping[str, Any], where: str, function: str) -> None:
        self._where, self._function = where, function
        super().__init__(
            {
                name: Record(value, f"{where}[{name!r}]", function) if is_mapping(value) else value
                for name, value in values.items()
            }
        )

    def __missing__(self, name: str) -> Any:
        """Say what is missing, and how to get it back."""
        msg = f"{self._where} has lost {name!r}. Run {self._function} again."
        raise KeyError(msg)

    def table(self, name: str) -> pd.DataFrame:
        """A table of the record."""
        value = self[name]
        if not isinstance(value, pd.DataFrame):
            msg = f"{self._where}[{name!r}] has type {type(value).__name__}, not a table. Run {self._function} again."
            raise ValueError(msg)  # noqa: TRY004 - not the type of an argument
        return value


def is_mapping(value: Any) -> bool:
    """Whether a value of `.uns` holds others by name, and is no table; also one that was read lazily."""
    return hasattr(value, "items") and not hasattr(value, "columns")


def stored_record(adata: AnnData, key: str) -> Record:
    """The record of a function of this package under a key of `uns`; see :func:`written_by`."""
    return Record(adata.uns[key], f"adata.uns[{key!r}]", str(written_by(adata, key)))


def storable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as h5ad and zarr can hold them: without None, integers of more than 64 bits as text."""
    return {
        key: str(value) if isinstance(value, int) and abs(value) > MAX_INT64 else value
        for key, value in values.items()
        if value is not None
    }


def column_names(clusters: Sequence[str]) -> list[str]:
    """Distinct column names for clusters that h5ad and zarr can hold."""
    names: list[str] = []
    for cluster in clusters:
        printable = "".join(
            letter if letter.isprintable() else "?" for letter in str(cluster).replace("/", "|").replace("\\", "|")
        )
        name = printable.strip().encode()[:MAX_COLUMN_BYTES].decode(errors="ignore") or "unnamed"
        while name in names or name == "index" or name in RESERVED_NAMES:
            name += "_"
        names.append(name)
    return names


def as_series(column: Any) -> pd.Series:
    """A column of `.obs` in memory, also of an AnnData that was read lazily."""
    return column if isinstance(column, pd.Series) else column.to_pandas()


def cluster_codes(adata: AnnData, cluster_key: str, *, caller: str) -> tuple[np.ndarray, list[str]]:
    """Cluster of every cell as int codes (-1 for missing) and the names of the clusters that have cells."""
    if check_key("cluster_key", cluster_key) not in adata.obs:
        msg = f"cluster_key={cluster_key!r} is not in adata.obs. Available: {list(adata.obs.columns)}."
        raise KeyError(msg)
    column = adata.obs[cluster_key]
    if isinstance(column, pd.DataFrame):
        msg = f"adata.obs has {column.shape[1]} columns named {cluster_key!r}; rename or drop all but one."
        raise ValueError(msg)  # noqa: TRY004 - not the type of an argument
    column = as_series(column)
    if pd.api.types.is_float_dtype(column) and not (column.dropna() % 1 == 0).all():
        msg = f"adata.obs[{cluster_key!r}] holds fractions, which are no clusters."
        raise ValueError(msg)
    categories = pd.Categorical(column).remove_unused_categories()
    if len(categories.categories) == 0:
        msg = f"adata.obs[{cluster_key!r}] has no cluster: {caller} needs at least one cell with a label."
        raise ValueError(msg)
    return categories.codes.astype("int64"), distinct_names(categories)
