"""Paths as a user types them."""

import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

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


def output_folder(path: str | Path, option: str = "--out") -> Path:
    """The folder that a user named for results, which need not be there.

    Raises:
        UserError: nothing can be written there; the message names `option`.
    """
    folder = user_path(path)
    try:
        with TemporaryFile(dir=next(place for place in (folder, *folder.absolute().parents) if place.exists())):
            return folder
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written to: {error.strerror or error}") from None


def output_file(path: str | Path, example: str, option: str = "--out") -> Path:
    """The file that a user named for a result, which may be there.

    Args:
        example: a file name, for messages.

    Raises:
        UserError: it is a folder, or cannot be written; the message names `option`.
    """
    file = user_path(path)
    if file.is_dir():
        raise UserError(f"{option} {path} is a folder, expected a file such as {example}")
    output_folder(file.parent, option)
    return file
