"""Programs that tests start without the seconds that imports take: forked from a process that has done them.

That process is forked before the first test: after a backward pass of its parent torch lets no child make one.
"""

import importlib
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path

from torch.distributed import TCPStore

from tests.fake_weights import use_fast_scores


class Forked:
    """A process that does `work(*given)`, a function of a module, in this process's directory and environment, with
    fast scores; its exit status is what `work` returns. What it says goes to files."""

    def __init__(self, nursery: ProcessPoolExecutor, told: Path, work: Callable[..., int], *given: object):
        self.nursery, self.files = nursery, [told / "out", told / "err"]
        for file in self.files:
            file.touch()
        self.pid = nursery.submit(_fork, work, given, dict(os.environ), Path.cwd(), self.files).result()
        self.returncode: int | None = None

    def communicate(self) -> tuple[str, str]:
        """Wait for its end; what it said on standard output and standard error."""
        self.poll(wait=True)
        out, err = (file.read_text() for file in self.files)
        return out, err

    def poll(self, wait: bool = False) -> int | None:
        """Its exit status, None while it runs."""
        if self.returncode is None:
            self.returncode = self.nursery.submit(_wait, self.pid, 0 if wait else os.WNOHANG).result()
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self) -> None:
        """Kill it if it is there."""
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)
            self.poll(wait=True)


@contextmanager
def nursery() -> Iterator[ProcessPoolExecutor]:
    """The process that others are forked from."""
    importlib.import_module("matplotlib.backends.backend_agg")         # which draws maps
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        pool.submit(os.getpid).result()
        yield pool


def _fork(work: Callable[..., int], given: Sequence, environment: dict[str, str], folder: Path,
          files: Sequence[Path]) -> int:
    """The number of a new process; it never returns."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        for number, file in enumerate(files, 1):
            os.dup2(os.open(file, os.O_WRONLY), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        use_fast_scores()
        status = work(*given)
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(status)


def _wait(pid: int, options: int = 0) -> int | None:
    ended, status = os.waitpid(pid, options)
    return os.waitstatus_to_exitcode(status) if ended else None


def program(file: str | Path, *options: str) -> int:
    """`python FILE OPTIONS`."""
    sys.argv = [str(file), *options]
    runpy.run_path(str(file), run_name="__main__")
    return 0


def ranks(processes: int, module: str, options: Sequence[str]) -> int:
    """main(options) of the module in so many processes, as torchrun would start them; the highest exit status."""
    work = importlib.import_module(module).main
    os.environ.update(MASTER_ADDR="127.0.0.1", WORLD_SIZE=str(processes), TORCHELASTIC_USE_AGENT_STORE="True")
    port, told = os.pipe()
    started = []
    for rank in range(processes):
        if pid := os.fork():
            started.append(pid)
            continue
        status = 99
        try:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), MASTER_PORT=os.read(port, 5).decode())
            status = work(options)
            sys.stdout.flush()
        finally:
            os._exit(status)
    # whose thread may hold a lock of the C library: after the last fork
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(told, f"{store.port:05}".encode() * processes)
    return max(map(_wait, started))
