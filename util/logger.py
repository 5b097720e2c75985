"""What the program says: plain lines on standard output, warnings and errors on standard error, never across a
progress bar."""

import logging
import re
import sys

from tqdm import tqdm

UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")     # all but \n


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text = UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), record.getMessage())
        if record.levelno < logging.WARNING:
            tqdm.write(text, file=sys.stdout)
        else:
            tqdm.write(f"{record.levelname.lower()}: {text}", file=sys.stderr)


def get_logger() -> logging.Logger:
    """The project's logger; `info` goes to standard output as it is, `warning` and `error` to standard error."""
    logger = logging.getLogger("restoration")
    if not logger.handlers:
        logger.addHandler(_ConsoleHandler())
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger
