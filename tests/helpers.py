"""Simulated data, and the one helper that says what a call may change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(__file__).parent / "data"
# Networks of this size train in a second.
QUICK: dict[str, Any] = {"preset": "paper", "n_targets": 16, "max_epochs": 3, "verbose": False}


def simulate(n_cells: int = 60, n_genes: int = 50, seed: int = 0, activity_shape: float = 4.0) -> ad.AnnData:
    """Counts of two cell types with co-regulated genes; types in ``obs["type"]``."""
    rng = np.random.default_rng(seed)
    types = np.arange(n_cells) % 2
    activity = rng.gamma(activity_shape, 1 / activity_shape, size=(n_cells, 4))
    module = np.arange(n_genes) % 4
    base = rng.gamma(2.0, 1.5, size=n_genes)
    # A third of the genes is specific for each type.
    factor = np.where(np.arange(n_genes) % 3 == types[:, None], 3.0, 0.7)
    depth = rng.gamma(8.0, 1 / 8, size=n_cells)
    counts = rng.poisson(base * factor * activity[:, module] * depth[:, None])
    adata = ad.AnnData(
        sp.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(
            {"type": pd.Categorical(np.array(["a", "b"])[types])}, index=[f"c{i}" for i in range(n_cells)]
        ),
        var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]),
    )
    adata.layers["twin"] = adata.X.copy()
    adata.obsm["X_latent"] = np.c_[types + 0.1 * rng.normal(size=n_cells), activity].astype(np.float32)
    adata.uns["mine"] = {"a": 1}
    return adata


KINDS: dict[str, Callable[[sp.csr_matrix], Any]] = {
    "dense": lambda x: x.toarray(),
    "fortran": lambda x: np.asfortranarray(x.toarray()),
    "csr_matrix": lambda x: x,
    "csc_matrix": lambda x: x.tocsc(),
    "csr_array": sp.csr_array,
    "csc_array": sp.csc_array,
    "int": lambda x: x.astype(np.int64),
    "float64": lambda x: x.astype(np.float64),
    "float16": lambda x: x.toarray().astype(np.float16),
    "big_endian": lambda x: x.toarray().astype(">f4"),
    "dense_int": lambda x: x.toarray().astype(np.int32),
}


def unsorted(adata: ad.AnnData) -> ad.AnnData:
    """Indices out of order and stored zeros: valid CSR, but not canonical."""
    x = adata.X
    for row in range(x.shape[0]):
        part = slice(x.indptr[row], x.indptr[row + 1])
        x.indices[part] = x.indices[part][::-1]
        x.data[part] = x.data[part][::-1]
    x.has_sorted_indices = False
    absent = sp.csr_matrix((np.zeros(1, np.float32), ([0], [int(np.flatnonzero(x[0].toarray()[0] == 0)[0])])), x.shape)
    x.data = np.concatenate([x.data[: x.indptr[1]], absent.data, x.data[x.indptr[1] :]])
    x.indices = np.concatenate([x.indices[: x.indptr[1]], absent.indices, x.indices[x.indptr[1] :]])
    x.indptr[1:] += 1
    return adata


def dense(x: Any) -> np.ndarray:
    return x.toarray() if sp.issparse(x) else np.asarray(x)


ATTRIBUTES = ("obs", "var", "obsm", "varm", "layers", "obsp", "varp", "uns")


def keys(adata: ad.AnnData) -> set[tuple[str, str]]:
    return {(attribute, key) for attribute in ATTRIBUTES for key in getattr(adata, attribute) if key is not None}


def assert_only_added(before: ad.AnnData, after: ad.AnnData, added: set[tuple[str, str]]) -> None:
    """Everything in `before` is in `after`, bit for bit and of the same type; nothing but `added` is new."""
    assert keys(after) - keys(before) == added
    assert keys(before) <= keys(after)
    assert after.obs_names.equals(before.obs_names)
    assert after.var_names.equals(before.var_names)
    pd.testing.assert_frame_equal(after.obs[before.obs.columns], before.obs)
    pd.testing.assert_frame_equal(after.var, before.var)
    pairs = [(before.X, after.X)]
    pairs += [(before.layers[key], after.layers[key]) for key in before.layers if key is not None]
    pairs += [(before.obsm[key], after.obsm[key]) for key in before.obsm]
    for old, new in pairs:
        assert type(old) is type(new)
        assert old.dtype == new.dtype
        if sp.issparse(old):
            for part in ("data", "indices", "indptr"):
                np.testing.assert_array_equal(getattr(old, part), getattr(new, part))
        else:
            np.testing.assert_array_equal(old, new)
    assert after.uns["mine"] == before.uns["mine"]
    assert (after.raw is None) == (before.raw is None)


def untrained(sizes: Any, loss: Any, draw: Any, validation: Any, settings: Any, seed: int) -> Any:
    """In place of the training of a default network: weights that change every prediction, whatever the data."""
    from scanpy_cnnimpute.imputation.default.architecture import build_network

    rng = np.random.default_rng(0)
    shapes = [weight.shape for weight in build_network(sizes, settings.n_top, loss).weights]
    return [rng.normal(0, 0.2, shape).astype(np.float32) for shape in shapes], {"loss": [np.nan], "val_loss": [1.0]}
