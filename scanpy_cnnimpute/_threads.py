"""Keep numerical libraries from letting the number of threads into the results."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Limit BLAS and OpenMP to one thread: both split sums by thread, and t-SNE amplifies the last bit."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        yield
