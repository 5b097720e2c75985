"""For tests with hostile inputs: pictures of any name, limits of time and memory, a small run."""

import os
import time
from pathlib import Path

import torch

from util.memory import free_memory
from util.run.directory import RunDirectory
from util.run.table import Outcome

FORGET_PEAK = Path("/proc/self/clear_refs")         # Linux; a sandbox may lack it or refuse


class Within:
    """Fails if its block takes more than `seconds` of processor time, or at any moment `mebibytes` more memory.

    Where the system cannot forget the peak of memory before the block, only what exceeds that is seen.
    """

    def __init__(self, seconds: float, mebibytes: int):
        self.seconds, self.mebibytes = seconds, mebibytes

    def __enter__(self) -> None:
        if os.access(FORGET_PEAK, os.W_OK):
            free_memory()
            FORGET_PEAK.write_text("5")
        self.memory, self.started = peak_memory(), time.process_time()

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            assert time.process_time() - self.started < self.seconds
            assert peak_memory() - self.memory < self.mebibytes * 2 ** 20


def peak_memory() -> int:
    """The highest use of memory in bytes since it was forgotten; 0 where nobody knows."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def open_run(folder: Path, **options: bool) -> RunDirectory:
    return RunDirectory(folder, "inpainting", "dpps", {"seed": 0}, images=["a"], **options)


def save(directory: RunDirectory) -> None:
    x = torch.zeros(3, 16, 16)
    directory.begin("a")
    directory.save("a", None, x, [Outcome("0", x, 1.0, 1.0, 0.1, 1.0)], None)
