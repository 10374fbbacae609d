"""How many threads the numerical libraries use, and how they are kept out of the results."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

from ._checks import check_number
from ._logging import logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from threadpoolctl import ThreadpoolController


MAX_THREADS = 2**15  # what the thread libraries accept; fewer are used where there are fewer cores


@lru_cache(maxsize=1)
def _libraries(n_modules: int) -> ThreadpoolController:
    """The loaded libraries that have threads, searched for anew, which takes milliseconds, after an import."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class _OneThread:
    """The limit to one thread, set by the first of several overlapping blocks and lifted by the last."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._n_blocks = 0
        self._limiter: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._n_blocks == 0:
                self._limiter = _libraries(len(sys.modules)).limit(limits=1)
            self._n_blocks += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_blocks -= 1
            if self._n_blocks == 0:
                self._limiter.restore_original_limits()


_one_thread = _OneThread()


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Limit BLAS and OpenMP to one thread: both split sums by thread, and t-SNE amplifies the last bit."""
    with _one_thread:
        yield


@contextmanager
def single_threaded_pool() -> Iterator[ThreadPoolExecutor]:
    """As many threads as numba may use; BLAS and OpenMP have one in each of them."""
    import numba

    def limit() -> None:
        # OpenMP's limit is that of the thread which sets it; BLAS gets its own back from the context around.
        _libraries(len(sys.modules)).limit(limits=1)

    with single_threaded_blas(), ThreadPoolExecutor(numba.get_num_threads(), initializer=limit) as pool:
        yield pool


@contextmanager
def limited_threads(n_jobs: int | None) -> Iterator[None]:
    """At most `n_jobs` threads in numba, BLAS and OpenMP; as they are if None."""
    if n_jobs is None:
        yield
        return
    import numba
    from threadpoolctl import threadpool_limits

    before = numba.get_num_threads()
    numba.set_num_threads(min(n_jobs, numba.config.NUMBA_NUM_THREADS))
    try:
        with threadpool_limits(limits=n_jobs):
            yield
    finally:
        numba.set_num_threads(before)


_one_block = Lock()


@contextmanager
def one_block_at_a_time() -> Iterator[None]:
    """Compute one block of a Dask array at a time in this process, with all of its threads.

    A worker of Dask's distributed scheduler uses as many threads as it was given, so that workers do not fight.
    """
    n_threads = worker_threads()
    with _one_block:
        if n_threads is not None:
            _limit_keras_once(n_threads)
        with limited_threads(n_threads):
            yield


def worker_threads() -> int | None:
    """Threads of the Dask worker that this process is; None outside."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return int(distributed.get_worker().state.nthreads)
    except ValueError:
        return None


@lru_cache(maxsize=1)
def _limit_keras_once(n_threads: int) -> None:
    limit_keras(n_threads)


def limit_keras(n_jobs: int | None) -> None:
    """The same for TensorFlow, which takes a number only before it computes; other backends follow OpenMP or do not."""
    if n_jobs is None:
        return
    import keras

    if keras.backend.backend() != "tensorflow":
        return
    from tensorflow.config import threading

    try:
        threading.set_intra_op_parallelism_threads(n_jobs)
        threading.set_inter_op_parallelism_threads(n_jobs)
    except RuntimeError:
        logger.warning(
            "n_jobs=%d: TensorFlow has already computed in this process and keeps its threads (%s). Set n_jobs in the "
            "first call, or the environment variable TF_NUM_INTRAOP_THREADS before Python starts.",
            n_jobs,
            threading.get_intra_op_parallelism_threads() or "one per core",
        )


def check_n_jobs(n_jobs: int | None) -> int | None:
    """Return the number of threads as a plain int, or None."""
    return None if n_jobs is None else check_number("n_jobs", n_jobs, int, 1, MAX_THREADS)
