"""One run per folder: a lock that ends with its process, in a file that says whose it is."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from util.errors import UserError
from util.run.team import Team

try:
    import fcntl
except ImportError:                                 # not a POSIX system: what the file says decides
    fcntl = None

LOCK_NAME = "run.lock"
NO_LINK = getattr(os, "O_NOFOLLOW", 0)             # a symbolic link in place of the lock is an error
BEAT_SECONDS = 30                                   # between two signs of life, the file's time of modification
VISIBLE_SECONDS = 90                                # until other machines see a file on a network disk, at most
SILENCE_SECONDS = 120                               # after which a run on another machine is taken for dead


class FolderLock:
    """Holds a folder for this process, as a context manager.

    The operating system's lock on the file ends with its process however that ends, so a file that a killed process
    left behind locks nothing, whoever has its number now. Some file systems do not show a lock to other machines, or
    have none; there the file tells, "<pid> <host>", and its time of modification, which the holder renews.

    Args:
        folder: made if it is not there.
        option: of the command line, which names another folder; for messages.

    Raises:
        UserError: on entering; another process holds the folder, or it cannot be written to.
    """

    def __init__(self, folder: Path, option: str = "--save_dir"):
        self.path, self.option = folder / LOCK_NAME, option
        self.released = threading.Event()
        self.owner = f"{os.getpid()} {socket.gethostname()}"

    def __enter__(self) -> "FolderLock":
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = self._open()
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror or error}; "
                            f"choose another folder with {self.option}") from None
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, f"{self.owner}\n".encode(), 0)
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.path.unlink(missing_ok=True)
        os.close(self.file)

    def _beat(self) -> None:
        while not self.released.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):      # the folder may be gone; whoever writes there will say so
                os.utime(self.path)

    def _open(self) -> int:
        """A descriptor of the locked file; its former holder may delete the file just before it is locked."""
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o644)
            try:
                self._acquire(file)
                if self.path.exists() and os.path.samestat(os.fstat(file), self.path.stat()):
                    return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)

    def _acquire(self, file: int) -> None:
        """Lock the open file; UserError if another process is at work, or may be."""
        folder, has_locks = self.path.parent, fcntl is not None
        try:
            if has_locks:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another run is at work in {folder}{_holder(*_read(file, patience=1))}; "
                            f"wait for it, or choose another folder with {self.option}") from None
        except OSError:                             # a file system without locks
            has_locks = False
        pid, host = _read(file)
        if host and host != socket.gethostname() and _silence(file) < SILENCE_SECONDS:
            raise UserError(f"another run is, or was just now, at work in {folder}{_holder(pid, host)}; if it has "
                            f"ended there, try again in {SILENCE_SECONDS} seconds, or delete {self.path}")
        if host == socket.gethostname() and not has_locks and _runs(int(pid)):
            raise UserError(f"another run seems to be at work in {folder}{_holder(pid, host)}; "
                            f"if that process is something else, delete {self.path}")


@contextlib.contextmanager
def hold(folder: Path, team: Team) -> Iterator[None]:
    """Hold a folder for all processes of a run: the leading one locks it, the others look whether they see that.

    Raises:
        UserError: as `FolderLock`; or the folder is not on a disk that all machines of the run share.
    """
    if team.leads:
        with FolderLock(folder) as lock:
            team.publish("owner", lock.owner)
            yield
    else:
        _check_shared(folder, team.receive("owner"))
        yield


def _check_shared(folder: Path, owner: str) -> None:
    deadline = time.monotonic() + VISIBLE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if (folder / LOCK_NAME).read_text().strip() == owner:
                return
        time.sleep(0.1)
    raise UserError(f"{folder} is not the same folder on all machines of the run ({socket.gethostname()} does not see "
                    "what the first process writes there); choose one on a shared disk with --save_dir")


def _read(file: int, patience: float = 0) -> tuple[str, str]:
    """Process and host in an open lock file, waiting for a holder that is about to write them; empty if unknown."""
    deadline = time.monotonic() + patience
    while True:
        pid, _, host = os.pread(file, 1000, 0).decode(errors="replace").partition(" ")
        if pid.isdecimal() and host.endswith("\n"):
            return pid, host.strip()
        if time.monotonic() >= deadline:
            return "", ""
        time.sleep(0.02)


def _holder(pid: str, host: str) -> str:
    return f" (process {pid} on {host})" if pid else ""


def _silence(file: int) -> float:
    """Seconds since an open file was modified, by the clock of its file system."""
    before = os.fstat(file)
    os.utime(file)
    now = os.fstat(file).st_mtime
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    return now - before.st_mtime


def _runs(pid: int) -> bool:
    """Whether a process of this number is running here, other than this one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()
