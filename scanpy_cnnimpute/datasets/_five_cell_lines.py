"""The bundled real data."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import TYPE_CHECKING

import anndata

if TYPE_CHECKING:
    from anndata import AnnData


def five_cell_lines() -> AnnData:
    """Five human lung cancer cell lines, CEL-seq2: 297 cells x 3,500 genes, 59 % zeros, labels from genotypes.

    Returns
    -------
    AnnData with

    - ``X``: raw counts (CSR, float32);
    - ``obs["cell_line"]``: A549, H1975, H2228, H838 or HCC827, and ``obs["demuxlet"]``: SNG (singlet) or DBL (doublet),
      both called by demuxlet from genetic variants, independent of expression levels;
    - ``var["ensembl_id"]``; ``uns["source"]``: reference and licence.

    Notes
    -----
    Source: Tian et al., Nat Methods 16, 479-487 (2019), GSE118767, MIT licence. The genes are a random draw of those
    detected in at least 5 % of the cells; see ``benchmarks/make_five_cell_lines.py``.

    Examples
    --------
    >>> import scanpy_cnnimpute as scnn
    >>> scnn.datasets.five_cell_lines().shape
    (297, 3500)
    """
    with as_file(files(__package__) / "five_cell_lines.h5ad") as path:
        return anndata.read_h5ad(path)
