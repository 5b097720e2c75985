"""What the program says: plain lines on standard output, warnings and errors on standard error, never across a
progress bar."""

import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from tqdm import tqdm

UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")     # all but \n


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text = UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), record.getMessage())
        if record.levelno < logging.WARNING:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
        else:
            beside_bar = os.environ.get("RANK", "0") != "0"         # of the process that leads, under torchrun
            tqdm.write(f"{chr(10) if beside_bar else ''}{record.levelname.lower()}: {text}", file=sys.stderr)


# `info` goes to standard output as it is, `warning` and `error` to standard error
logger = logging.getLogger("restoration")
logger.handlers, logger.propagate = [_ConsoleHandler()], False
logger.setLevel(logging.INFO)


class Lasting:
    """A stream of the console that outlives its reader: what nobody can receive any more is dropped.

    A reader that has gone (`| head`) has what it wants; if a disk is full, a warning says so.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """As the stream's."""
        self._attempt(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        """As the stream's."""
        self._attempt(self.stream.flush)

    def _attempt(self, work: Callable, *given: str) -> None:
        """Do it; where that fails, the stream leads nowhere from now on."""
        try:
            work(*given)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            if error.errno != errno.EPIPE:
                logger.warning(f"{str(self.stream.name).strip('<>')} cannot be written: {error.strerror}")


def outlive_readers() -> None:
    """Go on where whoever reads standard output or standard error stops doing so."""
    if not isinstance(sys.stdout, Lasting):
        sys.stdout, sys.stderr = Lasting(sys.stdout), Lasting(sys.stderr)


def count(number: int, noun: str) -> str:
    """"1 run", "2 runs"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def aligned(table: Sequence[Sequence[str]], left: int = 1, gap: str = "  ") -> list[str]:
    """The lines of a table with columns of equal width, the first `left` of them flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [gap.join(cell.ljust(width) if i < left else cell.rjust(width)
                     for i, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in table]


def duration(seconds: float) -> str:
    """Words for a time: "40 s", "12 min", "3 h 05 min", "4 d 7 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 99:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
