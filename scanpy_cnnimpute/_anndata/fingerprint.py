"""Whether a stored fit still belongs to the data: one fingerprint, written and checked here."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .results import stored_record, written_by

if TYPE_CHECKING:
    from anndata import AnnData

    from .._counts import Counts
    from .results import Results

FORMAT = 1
"""Version of the layout of stored fits."""

TOLERANCE = 1e-6  # relative: totals of floating-point counts depend on the order of summation


def fingerprint_keys(key: str) -> list[tuple[str, str]]:
    """Attributes and keys that the fingerprint of a fit takes."""
    return [("obs", f"{key}_library_size"), ("obsm", f"{key}_fit"), ("varm", f"{key}_fit"), ("varm", f"{key}_total")]


def add_fingerprint(
    results: Results, key: str, adata: AnnData, counts: Counts, identity: Any, *, built_on: str | None = None
) -> dict[str, int]:
    """Add the fingerprint of a fit to the results; returns what belongs into the record in `.uns`.

    Parameters
    ----------
    results, key
        Where to write.
    adata, counts
        The data of the fit.
    identity
        What tells the fit from others of the same data.
    built_on
        Key of the fit that this one goes on from, whose fingerprint then serves both.

    Notes
    -----
    Totals of the cells and genes tell whether counts were replaced or moved, hashes of the gene names whether names
    were, and the id of the fit, kept for each cell and gene, whether parts of several fits were put together.
    """
    if built_on is not None:
        return {"format": FORMAT, "built_on": int(stored_record(adata, built_on)["fingerprint"]["fit"])}
    library_size, total = counts.totals.library_size, counts.totals.gene_total
    names = _hash_names(adata.var_names)
    fit = zlib.crc32(repr(identity).encode())
    for part in (library_size, total, names):
        fit = zlib.crc32(np.ascontiguousarray(part).tobytes(), fit)
    results.add("obs", f"{key}_library_size", library_size)
    results.add("obsm", f"{key}_fit", np.full((adata.n_obs, 1), fit, dtype=np.uint32))
    results.add("varm", f"{key}_fit", np.column_stack([np.full(adata.n_vars, fit, dtype=np.uint64), names]))
    results.add("varm", f"{key}_total", total[:, None])
    shape = {"n_obs": adata.n_obs, "n_vars": adata.n_vars}
    return {"format": FORMAT, "fit": fit, "is_whole": counts.totals.is_whole, **shape}


def check_fingerprint(adata: AnnData, key: str, counts: Counts) -> None:
    """Refuse a stored fit that does not belong to the data any more.

    Parameters
    ----------
    adata
        The data, or a part of it.
    key
        Key of the fit.
    counts
        Counts of all its cells and genes.

    Raises
    ------
    ValueError
        If names, genes or cells were moved, counts were replaced, or parts of several fits were put together.
    """
    record = stored_record(adata, key)["fingerprint"]
    if "built_on" in record:
        base = stored_record(adata, key)["params"]["dropout_key"]
        _check_built_on(adata, key, base)
        check_fingerprint(adata, base, counts)
        return
    again = f"Run {written_by(adata, key)} again."
    if int(record["format"]) != FORMAT:
        msg = f"{key!r} was stored in layout {record['format']}, this version reads layout {FORMAT}. {again}"
        raise ValueError(msg)
    for place, name, n_columns in (("obsm", "fit", 1), ("varm", "fit", 2), ("varm", "total", 1)):
        found = np.shape(getattr(adata, place)[f"{key}_{name}"])[1:]
        if found != (n_columns,):
            where = f"adata.{place}['{key}_{name}']"
            msg = (
                f"The fit stored under {key!r} is damaged: {where} has another shape than it was written with. {again}"
            )
            raise ValueError(msg)
    for what, ids in (("cells", adata.obsm[f"{key}_fit"]), ("genes", adata.varm[f"{key}_fit"])):
        n_other = int((np.asarray(ids)[:, 0] != int(record["fit"])).sum())
        if n_other:
            msg = (
                f"{n_other} of the {what} do not come from the fit stored under {key!r}, as after anndata.concat of "
                f"data with several fits. {again}"
            )
            raise ValueError(msg)
    _check_names(adata, key, again)
    all_cells, all_genes = adata.n_obs == int(record["n_obs"]), adata.n_vars == int(record["n_vars"])
    library_size = np.asarray(adata.obs[f"{key}_library_size"], dtype=np.float64)
    total = np.asarray(adata.varm[f"{key}_total"], dtype=np.float64)[:, 0]
    _check_totals("cells", counts.totals.library_size, library_size, key, again, exact=all_genes)
    _check_totals("genes", counts.totals.gene_total, total, key, again, exact=all_cells)
    if record["is_whole"] and not counts.totals.is_whole:
        msg = (
            f"The counts are not those that {key!r} was fitted to: those were whole numbers, these are not, as after "
            "normalisation. Put the counts back, or keep them in a layer."
        )
        raise ValueError(msg)


def _check_built_on(adata: AnnData, key: str, base: str) -> None:
    """A fit is invalid once the fit that it goes on from is replaced."""
    there = written_by(adata, base) is not None and "fingerprint" in adata.uns[base]
    now = stored_record(adata, base)["fingerprint"]["fit"] if there else None
    if stored_record(adata, key)["fingerprint"]["built_on"] != now:
        again = f"Run {written_by(adata, key)} again."
        msg = f"{key!r} goes on from another fit than the one now stored under {base!r}. {again}"
        raise ValueError(msg)


def _check_names(adata: AnnData, key: str, again: str) -> None:
    """Genes may be renamed, but a name must not stand at another gene's counts."""
    then, now = np.asarray(adata.varm[f"{key}_fit"])[:, 1], _hash_names(adata.var_names)
    changed = then != now
    moved = changed & np.isin(now, then[changed])
    if moved.any():
        first = adata.var_names[np.flatnonzero(moved)[0]]
        msg = (
            f"{int(moved.sum())} genes of adata.var, such as {first!r}, stand at the counts of other genes than when "
            f"{key!r} was fitted, as after adata.var = adata.var.sort_values(...), which leaves X as it is. Reorder "
            f"with adata[:, names] instead, or, if X was wrong before: {again}"
        )
        raise ValueError(msg)


def _check_totals(what: str, now: np.ndarray, then: np.ndarray, key: str, again: str, *, exact: bool) -> None:
    """Totals are those of the fit; without some of the genes or cells they may be smaller."""
    difference = np.abs(now - then) if exact else now - then
    n_wrong = int((~(difference <= TOLERANCE * np.maximum(then, 1.0))).sum())
    if n_wrong:
        hint = " (if adata.obs was sorted: reorder with adata[names] instead)" if what == "cells" else ""
        msg = (
            f"The counts are not those that {key!r} was fitted to{hint}: the totals of {n_wrong} {what} differ from "
            f"those at the time of the fit. {again}"
        )
        raise ValueError(msg)


def _hash_names(names: pd.Index) -> np.ndarray:
    return pd.util.hash_array(np.asarray(names.astype(str), dtype=object), categorize=False)
