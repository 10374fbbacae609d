"""Work on blocks of cells in threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from .._threads import single_threaded_pool

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Result = TypeVar("Result")

BLOCK_CELLS = 2_560  # ten of the chunks in which scikit-learn searches for neighbours


def map_blocks(function: Callable[[np.ndarray], Result], cells: np.ndarray) -> list[Result]:
    """Results for blocks of the cells, each by one thread: the blocks do not depend on the number of threads."""
    blocks = [cells[start : start + BLOCK_CELLS] for start in range(0, cells.size, BLOCK_CELLS)]
    with single_threaded_pool() as pool:
        return list(pool.map(function, blocks))
