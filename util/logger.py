"""What the program says: plain lines on standard output, warnings and errors on standard error, never across a
progress bar."""

import logging
import sys

from tqdm import tqdm


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            tqdm.write(record.getMessage(), file=sys.stdout)
        else:
            tqdm.write(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


def get_logger() -> logging.Logger:
    """The project's logger; `info` goes to standard output as it is, `warning` and `error` to standard error."""
    logger = logging.getLogger("restoration")
    if not logger.handlers:
        logger.addHandler(_ConsoleHandler())
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger
