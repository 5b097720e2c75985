"""One run per folder: a lock that ends with its process, and a file that says whose it is."""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from util.errors import UserError
from util.files import write_atomically
from util.logger import logger
from util.run.layout import LOCK
from util.run.team import POLL_SECONDS, Team

NO_LOCKS = errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS           # of file systems without them
VISIBLE_SECONDS = 90                                # until other machines see a file on a network disk, at most


@contextlib.contextmanager
def locked(folder: Path, option: str = "--save_dir") -> Iterator[str]:
    """Hold a folder for this process; yields what `run.lock` says of it, "<pid> <host>".

    The operating system's lock (on a hidden file) ends with its process however that ends, so files that a killed one
    left behind lock nothing.

    Args:
        folder: made if it is not there.
        option: the option that names it, for messages.

    Raises:
        UserError: another process holds the folder, or it cannot be written to.
    """
    lock, note, owner = FileLock(folder / f".{LOCK}", timeout=0), folder / LOCK, f"{os.getpid()} {socket.gethostname()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        pid, _, host = _read(note).partition(" ")
        holder = f" (process {pid} on {host})" if host else ""
        raise UserError(f"another run is at work in {folder}{holder}; wait for it, or choose another folder with "
                        f"{option}") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise UserError(f"cannot write to {folder}: {error.strerror or error}; choose another folder with "
                            f"{option}") from None
        logger.warning(f"the disk of {folder} has no locks; see to it that no other run works there")
    write_atomically(note, f"{owner}\n".encode())
    try:
        yield owner
    finally:
        with contextlib.suppress(OSError):          # the folder may be gone
            note.unlink()
            Path(lock.lock_file).unlink()
        lock.release()


@contextlib.contextmanager
def hold(folder: Path, team: Team) -> Iterator[None]:
    """Hold a folder for all processes of a run: the leading one locks it, and the others look whether they see that.

    Raises:
        UserError: as `locked`; or the folder is not on a disk that all machines of the run share.
    """
    with locked(folder) if team.leads else contextlib.nullcontext() as owner:
        if owner:
            team.publish("owner", owner)
        else:
            _check_shared(folder, team.receive("owner"))
        team.meet("at the folder")                  # the lock stays until all have seen it
        yield


def _check_shared(folder: Path, owner: str) -> None:
    deadline = time.monotonic() + VISIBLE_SECONDS
    while _read(folder / LOCK) != owner:
        if time.monotonic() > deadline:
            raise UserError(f"{folder} is not the same folder on all machines of the run ({socket.gethostname()} does "
                            "not see what the first process writes there); choose one on a shared disk with --save_dir")
        time.sleep(POLL_SECONDS)


def _read(file: Path) -> str:
    """The line in a file of ours, empty if there is none."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
