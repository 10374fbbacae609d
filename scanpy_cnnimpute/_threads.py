"""How many threads the numerical libraries use, how they are kept out of the results, and what a fork leaves."""

from __future__ import annotations

import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache, update_wrapper
from threading import Lock, local
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numba

from ._checks import check_number
from ._logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from threadpoolctl import ThreadpoolController


MAX_THREADS = 2**15  # what the thread libraries accept; fewer are used where there are fewer cores


@lru_cache(maxsize=1)
def _libraries(n_modules: int) -> ThreadpoolController:
    """The loaded libraries that have threads, searched for anew, which takes milliseconds, after an import."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class _Limit:
    """Limit of the threads of one kind of library, shared by all blocks that are executed at the time.

    The smallest limit applies. The last block to end restores the numbers that the libraries had before the first.
    """

    def __init__(self, user_api: str) -> None:
        self._user_api = user_api
        self._limiters: list[Any] = []
        self.reset()

    def reset(self) -> None:
        """Forget the blocks, as of threads that a forked process does not have, and give back what there was."""
        self._lock = Lock()
        self._limits: list[int] = []
        self._restore()

    @contextmanager
    def __call__(self, n_threads: int) -> Iterator[None]:
        """Limit the libraries in a block."""
        try:
            with self._lock:
                self._limits.append(n_threads)
                self._apply()
            yield
        finally:
            with self._lock:
                if n_threads in self._limits:  # unless the process was forked within the block
                    self._limits.remove(n_threads)
                if self._limits:
                    self._apply()
                else:
                    self._restore()

    def _apply(self) -> None:
        # A limiter knows the libraries that were loaded when it was made, and what they had then.
        libraries = _libraries(len(sys.modules)).select(user_api=self._user_api)
        self._limiters.append(libraries.limit(limits=min(self._limits)))

    def _restore(self) -> None:
        while self._limiters:
            self._limiters.pop().restore_original_limits()


class _LimitOfThread(local):
    """OpenMP has a number of threads for each thread that calls it, BLAS one for the process."""

    def __init__(self) -> None:
        self.openmp = _Limit("openmp")


_blas, _of_thread = _Limit("blas"), _LimitOfThread()


@contextmanager
def _limited_libraries(n_threads: int) -> Iterator[None]:
    with _blas(n_threads), _of_thread.openmp(n_threads):
        yield


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Limit BLAS and OpenMP to one thread: both split sums by thread, and t-SNE amplifies the last bit."""
    with _limited_libraries(1):
        yield


@contextmanager
def single_threaded_pool() -> Iterator[ThreadPoolExecutor]:
    """As many threads as numba may use; BLAS and OpenMP have one in each of them."""

    def limit() -> None:
        # OpenMP's limit is that of the thread which sets it; BLAS gets its own back from the context around.
        _libraries(len(sys.modules)).select(user_api="openmp").limit(limits=1)

    with single_threaded_blas(), ThreadPoolExecutor(numba.get_num_threads(), initializer=limit) as pool:
        yield pool


@contextmanager
def limited_threads(n_jobs: int | None) -> Iterator[None]:
    """At most `n_jobs` threads in numba, BLAS and OpenMP; as they are if None."""
    if n_jobs is None:
        yield
        return
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(min(n_jobs, numba.config.NUMBA_NUM_THREADS))
        with _limited_libraries(n_jobs):
            yield
    finally:
        numba.set_num_threads(before)


class _Process:
    """Locks of this process, and what it inherited when it was forked.

    Attributes
    ----------
    one_block
        Held while a block of a Dask array is computed.
    one_kernel
        Held by a parallel kernel where numba's threads serve one at a time.
    has_networks
        Whether networks were built, so that the backend has threads.
    lost_openmp
        Whether numba had OpenMP threads before the fork, which a forked process lacks and cannot start again.
    lost_backend
        Whether the backend of the networks had.
    """

    def __init__(self) -> None:
        self.one_block, self.one_kernel = Lock(), Lock()
        self.has_networks = self.lost_openmp = self.lost_backend = False

    def after_fork(self) -> None:
        """Replace locks that other threads may have held, and note which threads are lost."""
        self.one_block, self.one_kernel = Lock(), Lock()
        _blas.reset()
        with suppress(ValueError):  # not started
            self.lost_openmp |= numba.threading_layer() == "omp"
        self.lost_backend |= self.has_networks or _tensorflow_has_threads()


_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.after_fork)


def _tensorflow_has_threads() -> bool:
    """Whether TensorFlow has computed: it then refuses another number of threads."""
    tensorflow = sys.modules.get("tensorflow")
    threading = getattr(getattr(tensorflow, "config", None), "threading", None)
    if threading is None:
        return False
    number = threading.get_inter_op_parallelism_threads()
    try:
        threading.set_inter_op_parallelism_threads(number + 1)
    except RuntimeError:
        return True
    threading.set_inter_op_parallelism_threads(number)
    return False


def check_fork() -> None:
    """Refuse networks in a forked process whose parent has run some: they would wait for ever for its threads.

    Raises
    ------
    RuntimeError
        With what to do instead.
    """
    if _process.lost_backend:
        msg = (
            "This process was forked from one whose Keras backend already had threads, without which networks wait for "
            "ever. Start processes by multiprocessing.get_context('spawn') or 'forkserver' (concurrent.futures: "
            "mp_context=), or fork before networks are used."
        )
        raise RuntimeError(msg)


def note_network() -> None:
    """Remember that this process builds networks, so that its backend has threads."""
    _process.has_networks = True


class ParallelKernel:
    """A loop that numba compiles with ``parallel=True``, to be called from any thread and any process.

    Parameters
    ----------
    function
        The loop. Its iterations over ``prange`` do not depend on one another, so that it gives the same in serial.
    options
        Of ``numba.njit``.

    Notes
    -----
    Numba's ``"workqueue"`` threads, which it takes where there is neither OpenMP nor TBB, end the process if two
    threads use them at once. OpenMP of GNU ends a forked process whose parent has used it: there the loop runs in
    serial.
    """

    def __init__(self, function: Callable[..., None], **options: Any) -> None:
        update_wrapper(self, function)
        self.py_func = function
        self._options = options
        self._parallel = numba.njit(parallel=True, cache=True, **options)(function)

    def __call__(self, *arguments: Any) -> Any:
        """Run the loop."""
        if _process.lost_openmp:
            return self._serial(*arguments)
        if _threading_layer() != "workqueue":
            return self._parallel(*arguments)
        with _process.one_kernel:
            return self._parallel(*arguments)

    @cached_property
    def _serial(self) -> Callable[..., Any]:
        """The same without threads; by another name, since that is what numba keeps compiled code under."""
        own = self.py_func
        copy = FunctionType(own.__code__, own.__globals__, f"{own.__name__}_serial", own.__defaults__, own.__closure__)
        copy.__qualname__ = f"{own.__qualname__}_serial"
        return numba.njit(cache=True, **self._options)(copy)


def parallel_kernel(**options: Any) -> Callable[[Callable[..., Any]], ParallelKernel]:
    """Declare a :class:`ParallelKernel`, with options of ``numba.njit``."""
    return lambda function: ParallelKernel(function, **options)


@lru_cache(maxsize=1)
def _threading_layer() -> str:
    """The kind of threads that numba uses in this process, which are started if they are not."""
    numba.get_num_threads()
    return numba.threading_layer()


@contextmanager
def one_block_at_a_time() -> Iterator[None]:
    """Compute one block of a Dask array at a time in this process, with all of its threads.

    A worker of Dask's distributed scheduler uses as many threads as it was given, so that workers do not fight.
    """
    n_threads = worker_threads()
    with _process.one_block:
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


def load_keras() -> Any:
    """Keras, whose first import draws from Python's global generator: with the generator as it was."""
    state = None if "keras" in sys.modules else random.getstate()
    try:
        import keras  # waits for another thread that is importing it
    finally:
        if state is not None:
            random.setstate(state)
    return keras


def limit_keras(n_jobs: int | None) -> None:
    """The same for TensorFlow, which takes a number only before it computes; other backends follow OpenMP or do not."""
    if n_jobs is None:
        return
    if load_keras().backend.backend() != "tensorflow":
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
