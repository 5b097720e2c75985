"""Signals that ask a run to stop."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler wants the machine back, or torchrun ends the run because a process of it has died."""


def end_at_once() -> None:
    """From now on SIGINT ends the process with status 130 and a line, whatever it does."""
    signal.signal(signal.SIGINT, _end)


def catch_signals() -> None:
    """From now on SIGINT raises KeyboardInterrupt and SIGTERM `Terminated`, the first that comes and no other.

    Shells start background jobs with SIGINT ignored; it counts nevertheless.
    """
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)


@contextmanager
def undivided() -> Iterator[None]:
    """SIGINT and SIGTERM that come within the block are acted on at its end. For the main thread alone."""
    come: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: come.append(number))
                for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in come[:1]:
        signal.raise_signal(number)


def _end(_number: int, _frame: object) -> None:
    os.write(2, b"error: interrupted before the first image\n")
    os._exit(130)


def _stop(number: int, _frame: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # torchrun sends SIGTERM after an interrupt
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
