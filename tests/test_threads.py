"""``n_jobs``: how many threads work, and that they do not decide the results."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numba
import numpy as np
import pytest
from helpers import simulate
from threadpoolctl import threadpool_info, threadpool_limits

import scanpy_cnnimpute as scnn
from scanpy_cnnimpute._anndata.counts import layer_names
from scanpy_cnnimpute._threads import single_threaded_blas
from scanpy_cnnimpute.dropout.calibrated import CalibratedModel

FRESH_PROCESS = """
import logging, sys
import scanpy_cnnimpute as scnn
from tensorflow.config import threading
sys.path.insert(0, "tests")
from helpers import simulate

logging.basicConfig(format="%(message)s", stream=sys.stdout)
for n_jobs in (1, 2, None):
    adata = simulate()
    scnn.pp.cnn_impute(adata, cluster_key="type", n_steps=2, n_jobs=n_jobs)
    print("threads", threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads())
"""


def test_libraries_are_limited_and_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    before = numba.get_num_threads()
    seen = []

    fit = CalibratedModel.fit

    def watched(*arguments: Any, **keywords: Any) -> Any:
        seen.append((numba.get_num_threads(), {pool["num_threads"] for pool in threadpool_info()}))
        return fit(*arguments, **keywords)

    monkeypatch.setattr(CalibratedModel, "fit", watched)
    one, all_cores, many = (
        scnn.pp.dropout_prob(simulate(), cluster_key="type", n_jobs=n_jobs, copy=True) for n_jobs in (1, None, 1000)
    )
    assert seen[0] == (1, {1})
    assert [threads for threads, _ in seen[1:]] == [before, before]
    assert numba.get_num_threads() == before
    for other in (all_cores, many):
        np.testing.assert_array_equal(one.layers["dropout_prob"], other.layers["dropout_prob"])


def test_one_thread_of_blas_within_and_as_before_after() -> None:
    with threadpool_limits(limits=2):
        for _ in range(2):  # found anew, and remembered
            with single_threaded_blas():
                assert {pool["num_threads"] for pool in threadpool_info()} == {1}
            assert {pool["num_threads"] for pool in threadpool_info()} == {2}


def test_tensorflow_keeps_the_first_number(request: pytest.FixtureRequest) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS],
        cwd=request.config.rootpath,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in run.stdout.splitlines() if line.startswith(("threads", "n_jobs"))]
    assert [line for line in lines if line.startswith("threads")] == ["threads 1 1"] * 3
    warned = [line for line in lines if line.startswith("n_jobs")]
    assert len(warned) == 1
    assert "n_jobs=2: TensorFlow has already computed in this process and keeps its threads (1)" in warned[0]


@pytest.mark.parametrize("function", [scnn.pp.dropout_prob, scnn.pp.cnn_impute])
def test_refusals(function: Any) -> None:
    adata = simulate()
    with pytest.raises(ValueError, match="n_jobs=0 is not allowed: at least 1"):
        function(adata, n_jobs=0)
    with pytest.raises(TypeError, match=r"n_jobs=1\.5 has type float, expected int"):
        function(adata, n_jobs=1.5)
    assert layer_names(adata) == ["twin"]


def test_overlapping_limits_are_lifted_by_the_last() -> None:
    with threadpool_limits(limits=2):
        first, second = single_threaded_blas(), single_threaded_blas()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}
        second.__exit__(None, None, None)
        assert {pool["num_threads"] for pool in threadpool_info()} == {2}
