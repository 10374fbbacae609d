"""The authors' program on three whole data sets.

The counts may not be distributed here. ``SCNN_REFERENCE`` names a folder with ``data/<name>.h5ad`` and, computed from
them with R 4.2.2 and the authors' code, ``reference/<name>/{cells,adp_tested,mixture,posterior}.csv.gz``.
"""

from __future__ import annotations

import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute.clustering.density_peaks import adaptive_density_peaks
from scanpy_cnnimpute.dropout.gamma_normal import gamma_normal_posterior
from scanpy_cnnimpute.dropout.gamma_normal.model import PARAMETERS

ROOT = os.environ.get("SCNN_REFERENCE")
pytestmark = pytest.mark.skipif(ROOT is None, reason="SCNN_REFERENCE is not set")

# Genes seen in at least this many cells were used.
FEWEST_CELLS = {"jurkat_293t_10x": 3, "mix_sc_celseq2_5cl_p1": 10, "mca_spleen": 60}


@pytest.fixture(params=FEWEST_CELLS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def table(name: str, which: str) -> pd.DataFrame:
    return pd.read_csv(Path(ROOT or "") / "reference" / name / f"{which}.csv.gz", skipinitialspace=True)


def test_density_peaks_and_kmeans(name: str) -> None:
    cells, tested = table(name, "cells"), table(name, "adp_tested")
    coordinates = cells[["tsne1", "tsne2", "tsne3"]].to_numpy()
    peaks = adaptive_density_peaks(coordinates)
    np.testing.assert_allclose(peaks.tested["silhouette"], tested["silhouette"], atol=1e-12)
    np.testing.assert_allclose(peaks.tested["bandwidth"], tested["h"], rtol=1e-12)
    assert sorted(peaks.centers) == np.flatnonzero(cells["adp_center"]).tolist()
    adata = ad.AnnData(np.ones((len(cells), 1), np.float32), obsm={"X_r": coordinates})
    scnn.tl.cluster(adata, use_rep="X_r", method="adp")
    agreement = pd.crosstab(adata.obs["cnn_cluster"].to_numpy(), cells["kmeans_cluster"].to_numpy())
    assert (agreement > 0).to_numpy().sum() == len(peaks.centers)


def test_mixture(name: str) -> None:
    adata = ad.read_h5ad(Path(ROOT or "") / "data" / f"{name}.h5ad")
    seen = np.asarray((adata.X > 0).sum(axis=0)).ravel()
    adata = adata[:, seen >= FEWEST_CELLS[name]].copy()
    cells = table(name, "cells").set_index("cell").loc[adata.obs_names]
    adata.obs["reference"] = pd.Categorical(cells["kmeans_cluster"].astype(str))
    scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="reference", store="params")
    reference = table(name, "mixture").set_index(["gene", "cluster"])
    for position, cluster in enumerate(adata.uns["dropout_prob"]["clusters"]):
        theirs = reference.xs(int(cluster), level="cluster").reindex(adata.var_names)
        valid = theirs["valid"].eq(True).to_numpy()
        n_seen = np.diff(sp.csc_array(adata.X[(adata.obs["reference"] == cluster).to_numpy()]).indptr)
        np.testing.assert_array_equal(adata.varm["dropout_prob_status"][:, position] == 0, valid)
        ours = np.stack([adata.varm[f"dropout_prob_{key}"][:, position] for key in PARAMETERS], axis=1)
        chosen = valid & (n_seen >= 5)
        error = np.abs(ours[chosen] / theirs.loc[chosen, list(PARAMETERS)].to_numpy(float) - 1).max(axis=1)
        print(name, cluster, error.size, error.max(), np.mean(error < 1e-6))
        assert error.max() < 1e-3


def test_equation_2(name: str) -> None:
    rows = table(name, "posterior").merge(table(name, "mixture"), on=["gene", "cluster"])
    ours = gamma_normal_posterior(rows["x"].to_numpy(float), rows[list(PARAMETERS)].to_numpy(float))
    assert np.abs(ours - rows["posterior"].astype(float)).max() < 1e-9
