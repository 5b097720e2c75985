"""Signals that ask a run to stop."""

import signal


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler wants the machine back, or torchrun ends the run because a process of it has died."""


def catch_signals() -> None:
    """From now on SIGINT raises KeyboardInterrupt and SIGTERM `Terminated`, the first that comes and no other.

    Shells start background jobs with SIGINT ignored; it counts nevertheless.
    """
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, _frame: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # torchrun sends SIGTERM after an interrupt
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
