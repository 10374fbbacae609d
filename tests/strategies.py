"""Hypothesis strategies: annotated data of every kind, sound and broken, arguments, and damage to files."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

CONTAINERS: dict[str, Callable[[np.ndarray], Any]] = {
    "dense": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "csr_matrix": sp.csr_matrix,
    "csc_matrix": sp.csc_matrix,
    "csr_array": sp.csr_array,
    "csc_array": sp.csc_array,
}
DTYPES = ("float32", "float64", "float16", "int32", "int64", "uint8", "uint16", "bool", ">f4", ">i4")
NAMES = ("plain", "integers", "duplicates", "unicode", "long", "empty", "spaces")


def named(kind: str, n: int) -> pd.Index:
    """Names of cells or genes."""
    make: dict[str, Callable[[int], Any]] = {
        "plain": lambda i: f"g{i}",
        "integers": str,
        "duplicates": lambda i: f"g{i // 2}",
        "unicode": lambda i: f"Ünï-{i}-基因",
        "long": lambda i: "x" * 300 + str(i),
        "empty": lambda i: "" if i == 0 else str(i),
        "spaces": lambda i: f" a b\t{i}",
    }
    return pd.Index([make[kind](i) for i in range(n)], dtype=object)


@st.composite
def counts(draw: st.DrawFn, *, sound: bool) -> np.ndarray:
    """A matrix of counts, dense; if it need not be sound, sometimes of values that are no counts."""
    n_cells, n_genes = draw(st.integers(0 if not sound else 1, 45)), draw(st.integers(0 if not sound else 1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    level = draw(st.sampled_from([0.02, 0.3, 2.0, 50.0, 5e3]))
    cells, genes = rng.gamma(2, 0.5, (n_cells, 1)), rng.gamma(0.7, 1.4, (1, n_genes))
    matrix = rng.poisson(level * cells * genes).astype(np.float64)
    for change in draw(st.lists(st.sampled_from(["empty cell", "empty gene", "constant", "equal cells"]), max_size=2)):
        if not matrix.size:
            break
        if change == "empty cell":
            matrix[rng.integers(n_cells)] = 0
        elif change == "empty gene":
            matrix[:, rng.integers(n_genes)] = 0
        elif change == "constant":
            matrix[:, rng.integers(n_genes)] = 3
        else:
            matrix[:] = matrix[0]
    if not sound and matrix.size and draw(st.booleans()):
        place = rng.integers(n_cells), rng.integers(n_genes)
        wrong = draw(st.sampled_from([np.nan, np.inf, -1.0, 0.5, 2.0**53, 1e30, 2.0**40, "log", "normalised", "all"]))
        if wrong == "log":
            matrix = np.log1p(matrix)
        elif wrong == "normalised":
            matrix = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1) * 1e4
        elif wrong == "all":
            matrix[:] = 2.0**52
        else:
            matrix[place] = wrong
    return matrix


@st.composite
def annotated(draw: st.DrawFn, *, sound: bool = False) -> ad.AnnData:
    """Annotated data around counts of any kind."""
    matrix = draw(counts(sound=sound))
    dtype = np.dtype(draw(st.sampled_from(DTYPES if not sound else ("float32", "float64", "int32", "int64"))))
    container = draw(st.sampled_from(sorted(CONTAINERS)))
    if dtype == np.float16 or dtype.byteorder == ">" or dtype.kind == "b":
        container = draw(st.sampled_from(["dense", "fortran"]))
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype.kind in "iu":
            largest = min(np.iinfo(dtype).max, 2**62)
            matrix = np.clip(np.nan_to_num(matrix, posinf=largest, neginf=0), 0, largest)
        held = CONTAINERS[container](matrix.astype(dtype))
    n_cells, n_genes = matrix.shape
    obs = pd.DataFrame(index=named(draw(st.sampled_from(NAMES)) if not sound else "plain", n_cells))
    var = pd.DataFrame(index=named(draw(st.sampled_from(NAMES)), n_genes))
    labels = draw(st.sampled_from(["two", "one", "missing", "each", "numbers"]))
    codes = np.arange(n_cells) % 2
    obs["type"] = {
        "two": pd.Categorical.from_codes(codes, ["a", "b/c"]),
        "one": pd.Categorical(["a"] * n_cells),
        "missing": pd.Categorical.from_codes(codes - 1, ["a"]),
        "each": pd.Categorical([str(i) for i in range(n_cells)]),
        "numbers": codes,
    }[labels]
    var["chosen"] = np.arange(n_genes) % 3 > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # names that are not unique
        adata = ad.AnnData(held, obs=obs, var=var)
    adata.layers["twin"] = held.copy()
    adata.uns["mine"] = {"a": 1}
    if draw(st.booleans()) and n_cells and n_genes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            adata.raw = adata.copy()
    if draw(st.integers(0, 4)) == 0 and n_cells:
        adata = adata[:: draw(st.sampled_from([1, -1, 2]))]
    return adata


BAD_VALUES = st.sampled_from(
    [None, "nonsense", -1, 0, 1.5, float("nan"), float("inf"), True, [], {}, 2**70, np.int64(3), b"x"]
)


@st.composite
def arguments(draw: st.DrawFn, known: dict[str, list[Any]], *, sound: bool = False) -> dict[str, Any]:
    """Some keyword arguments out of known good values, and if they need not be sound, sometimes a bad one."""
    names = draw(st.lists(st.sampled_from(sorted(known)), unique=True, max_size=4))
    chosen = {name: draw(st.sampled_from(known[name])) for name in names}
    if not sound and names and draw(st.integers(0, 3)) == 0:
        chosen[draw(st.sampled_from(names))] = draw(BAD_VALUES)
    return chosen


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """What happens to the bytes of a file."""
    where, bit = draw(st.floats(0, 1)), draw(st.integers(0, 7))
    kind = draw(st.sampled_from(["truncated", "flipped", "zeroed", "doubled"]))

    def change(content: bytes) -> bytes:
        place = min(int(where * len(content)), max(len(content) - 1, 0))
        if kind == "truncated":
            return content[:place]
        if kind == "doubled":
            return content + content
        changed = bytearray(content)
        if kind == "flipped" and content:
            changed[place] ^= 1 << bit
        elif kind == "zeroed":
            changed[place : place + 64] = bytes(len(changed[place : place + 64]))
        return bytes(changed)

    return change
