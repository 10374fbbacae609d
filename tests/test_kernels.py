"""Every compiled loop with checks of bounds, and as plain Python, which has them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

EVERY_KERNEL = """
import sys
import numpy as np
import scanpy_cnnimpute as scnn
from scanpy_cnnimpute._threads import ParallelKernel
sys.path.insert(0, "tests")
from helpers import simulate

called = set()
call = ParallelKernel.__call__
def watched(self, *arguments):
    called.add(self.__qualname__)
    return call(self, *arguments)
ParallelKernel.__call__ = watched
adata = simulate(40, 30)
scnn.pp.dropout_prob(adata)
quick = {"n_steps": 1, "threshold": 0, "verbose": False}
scnn.pp.cnn_impute(adata, return_std=True, gate=False, **quick)
scnn.pp.cnn_impute(adata, key_added="all", entries="all", return_std=True, gate=False, n_steps=1, verbose=False)
scnn.pp.cnn_impute(adata, key_added="nonzero", estimate="conditional", return_std=True, **quick)
scnn.tl.rank_genes_groups(adata, "type", layer="nonzero")
scnn.pp.dropout_prob(adata, model="gamma_normal", cluster_key="type", key_added="mixture")
paper = {"preset": "paper", "dropout_key": "mixture", "n_targets": 8, "max_epochs": 1, "verbose": False}
scnn.pp.cnn_impute(adata, key_added="paper", **paper)
adata.layers["dropout_prob"][:, ::2] *= 0.5
scnn.pp.cnn_impute(adata, key_added="changed", gate=False, **quick)
scnn.CNNImputer(n_steps=1, verbose=False).fit(adata[:30]).transform(adata.X.toarray()[30:], return_std=True)
reads = simulate(60, 40)
reads.X = reads.X * 40
reads.X.data += np.arange(reads.X.nnz) % 7
scnn.pp.dropout_prob(reads, count_type="reads")
scnn.tl.cluster(adata, method="adp", use_rep="X_latent", key_added="peaks")
sparse = simulate(120, 60)
sparse.X.data[np.arange(sparse.X.nnz) % 4 > 0] = 0
scnn.pp.dropout_prob(sparse)
import gc
every = {each.__qualname__ for each in gc.get_objects() if isinstance(each, ParallelKernel)}
print("never called:", sorted(every - called), len(every))
"""


@pytest.mark.parametrize("variable", ["NUMBA_BOUNDSCHECK", "NUMBA_DISABLE_JIT"])
def test_every_kernel_stays_within_its_arrays(variable: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    # Compiled code keeps no check of bounds: it is compiled anew, or not at all.
    run = subprocess.run(
        [sys.executable, "-c", EVERY_KERNEL],
        cwd=request.config.rootpath,
        env=os.environ | {variable: "1", "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "never called: [] " in run.stdout
