"""Paths as a user types them."""

import os
from contextlib import suppress
from pathlib import Path

from util.errors import UserError

SHOWN = 60                                          # characters of a path in a message


def user_path(path: str | Path) -> Path:
    """The path that a user typed, with ~ for a home folder; nothing need be there.

    Raises:
        UserError: no system call takes it: it is too long, holds a NUL, or ~ names nobody.
    """
    try:
        expanded = Path(path).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            os.lstat(expanded)
    except (OSError, RuntimeError, ValueError) as error:
        shown = str(path) if len(str(path)) <= SHOWN else f"{str(path)[:SHOWN]}..."
        raise UserError(f"'{shown}' is no path: {getattr(error, 'strerror', None) or error}") from None
    return expanded
