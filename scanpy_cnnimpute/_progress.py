"""Progress of long work: a bar with the time left in terminals and notebooks, plain lines in a log."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

from ._logging import logger

if TYPE_CHECKING:
    from collections.abc import Iterator

BAR_DELAY = 1.0  # seconds before a bar is shown: most work is over by then
FIRST_LINE, NEXT_LINE = 10.0, 30.0  # seconds until the first line in a log, and between lines

_is_shown: ContextVar[bool] = ContextVar("progress_is_shown", default=False)


@contextmanager
def show_progress(verbose: bool) -> Iterator[None]:
    """Show, or do not show, the progress of what is done inside."""
    token = _is_shown.set(verbose)
    try:
        yield
    finally:
        _is_shown.reset(token)


def progress_bar(description: str, total: int, *, unit: str) -> Any:
    """A tqdm bar, or lines in the log where there is neither a terminal nor a notebook."""
    from tqdm.auto import tqdm

    if not _is_shown.get():
        return tqdm(total=total, disable=True)
    bar = tqdm(
        total=total, desc=description, unit=f" {unit}", unit_scale=True, delay=BAR_DELAY, leave=False, disable=None
    )
    return _Lines(description, total, unit) if bar.disable else bar


class _Lines:
    """The part of tqdm's interface that is used, for a log."""

    def __init__(self, description: str, total: int, unit: str) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._n, self._started = 0, perf_counter()
        self._next = self._started + FIRST_LINE

    def update(self, n: int = 1) -> None:
        self._n += n
        now = perf_counter()
        if now < self._next or self._n >= self._total:
            return
        self._next = now + NEXT_LINE
        left = (now - self._started) * (self._total - self._n) / max(self._n, 1)
        logger.info(
            "%s: %d of %d %s, about %d:%02d left",
            self._description,
            self._n,
            self._total,
            self._unit,
            *divmod(round(left), 60),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        pass
