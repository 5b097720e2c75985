"""Files that are there whole or not at all, and what is put into them."""

import csv
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from util.errors import StorageError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all: temporary name in the same folder, fsync, rename.

    Raises:
        StorageError: the folder cannot be written to, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"cannot write {path}: {reason}; choose another place") from None


def files_below(folder: Path) -> list[Path]:
    """The files below a folder, relative to it, in order, without hidden ones; links that lead nowhere count.

    Raises:
        OSError: it cannot be read.
    """
    found = [path.relative_to(folder) for path in folder.rglob("*")
             if path.is_file() or (path.is_symlink() and not path.exists())]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.parts))


def content_of(write: Callable[[io.BytesIO], object]) -> bytes:
    """What `write` puts into a file."""
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """The lines of a CSV file."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()
