"""Counts of any size from real ones."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import scipy.sparse as sp

import scanpy_cnnimpute as scnn

if TYPE_CHECKING:
    from pathlib import Path

KEPT = 0.7  # share of the molecules that a copy keeps, so that no two are equal


def source(path: Path | None = None) -> sp.csr_matrix:
    """Counts of an h5ad file, of the one that the environment variable SCNN_COUNTS names, or the bundled ones."""
    path = path or os.environ.get("SCNN_COUNTS")
    adata = ad.read_h5ad(path) if path else scnn.datasets.five_cell_lines()
    return sp.csr_matrix(adata.X)


def resample(counts: sp.csr_matrix, n_cells: int, n_genes: int, seed: int = 0) -> sp.csr_matrix:
    """Cells drawn with replacement, genes without as long as there are enough, each molecule kept by chance.

    Real correlations and zeros survive, which random noise has not. More genes than there are repeat the first.
    """
    rng = np.random.default_rng(seed)
    detected = np.flatnonzero(counts.getnnz(axis=0) > 0)
    genes = np.resize(rng.permutation(detected), n_genes)
    drawn = sp.csr_matrix(counts[:, genes][rng.integers(counts.shape[0], size=n_cells)])
    drawn.data = rng.binomial(np.rint(drawn.data).astype(np.int64), KEPT).astype(np.float32)
    drawn.eliminate_zeros()
    return drawn


def resampled(n_cells: int, n_genes: int, path: Path | None = None) -> ad.AnnData:
    """The same, as annotated data."""
    return ad.AnnData(resample(source(path), n_cells, n_genes))
