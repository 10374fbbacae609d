"""The process of the command line: streams that can be written to, and signals that end it after it has cleaned up."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
RETRY = 0.1  # seconds until a signal is sent again whose exception was lost


class Stop:
    """The signal that came, if one did.

    Its exception may have been lost, or become another one, in a library.
    """

    signal: int | None = None

    @property
    def message(self) -> str:
        """What ended the process, in words."""
        if self.signal in {None, signal.SIGINT}:
            return "interrupted"
        return f"stopped by {signal.Signals(self.signal).name}"

    @property
    def code(self) -> int:
        """The exit status by the shell's convention."""
        return 128 + (signal.SIGINT if self.signal is None else self.signal)


@contextmanager
def stopped_by_signals() -> Iterator[Stop]:
    """Raise a KeyboardInterrupt when a signal asks the process to end; signals that it was told to ignore stay so."""
    stop = Stop()
    timers: list[threading.Timer] = []

    def handle(number: int, _: Any) -> None:
        stop.signal = number
        raise KeyboardInterrupt

    def try_again(lost: Any) -> None:
        # Others say nothing to users: h5py has one for each open object when a disk is full.
        if not issubclass(lost.exc_type, KeyboardInterrupt) or stop.signal is None:
            return
        timers.append(threading.Timer(RETRY, os.kill, (os.getpid(), stop.signal)))
        timers[-1].daemon = True
        timers[-1].start()

    if threading.current_thread() is not threading.main_thread():  # has no signals
        yield stop
        return
    unraisable, sys.unraisablehook = sys.unraisablehook, try_again
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, handle)
        yield stop
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        sys.unraisablehook = unraisable


def open_standard_streams() -> None:
    """Put something in the place of closed streams: files that are opened would take it, and get what is printed.

    What is printed to a closed stdout is an error, since it is lost; messages on a closed stderr are not.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_RDWR)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # the lowest number that is free
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


def say(text: str) -> None:
    """Print a line on stderr, if that can be written to."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def flush(stream: Any) -> OSError | None:
    """Write what is buffered; an error is returned, and what could not be written is forgotten."""
    try:
        stream.flush()
    except OSError as error:
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        return error
    return None


def start_keras(n_jobs: int | None = None) -> None:
    """Import Keras and list devices while stderr is closed to TensorFlow's C++ messages, which no setting silences."""
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            import keras

            from ._threads import limit_keras

            limit_keras(n_jobs)
            if keras.backend.backend() == "tensorflow":
                keras.distribution.list_devices()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
    # TensorFlow warns of new input shapes, which clusters of different sizes have.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
