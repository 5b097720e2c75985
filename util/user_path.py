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


def output_folder(path: str | Path) -> Path:
    """The folder of `--out`, which need not be there; UserError if nothing can be written there."""
    folder = user_path(path)
    _require_writable(folder, path)
    return folder


def output_file(path: str | Path, example: str) -> Path:
    """The file of `--out`, which may be there; UserError if it is a folder or cannot be written.

    Args:
        example: a file name, for messages.
    """
    file = user_path(path)
    if file.is_dir():
        raise UserError(f"--out {path} is a folder, expected a file such as {example}")
    _require_writable(file.parent, path)
    return file


def _require_writable(folder: Path, path: str | Path) -> None:
    try:
        with TemporaryFile(dir=next(place for place in (folder, *folder.absolute().parents) if place.exists())):
            pass
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror or error}; choose another place") from None
