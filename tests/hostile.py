"""For tests with hostile inputs: pictures of any name, limits of time and memory, a small run."""

import time
from pathlib import Path

import torch

from guided_diffusion.benchmark.runs import peak_memory, reset_peak_memory
from util.run.directory import RunDirectory
from util.run.table import Outcome


class Within:
    """Fails if its block takes more than `seconds` of processor time, or at any moment `mebibytes` more memory.

    Where the system cannot forget the peak of memory before the block, only what exceeds that is seen.
    """

    CPU = torch.device("cpu")

    def __init__(self, seconds: float, mebibytes: int):
        self.seconds, self.mebibytes = seconds, mebibytes

    def __enter__(self) -> None:
        reset_peak_memory(self.CPU)
        self.memory, self.started = peak_memory(self.CPU) or 0, time.process_time()

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            assert time.process_time() - self.started < self.seconds
            assert (peak_memory(self.CPU) or 0) - self.memory < self.mebibytes * 2 ** 20


def open_run(folder: Path, **options: bool) -> RunDirectory:
    return RunDirectory(folder, "inpainting", "dpps", {"seed": 0}, images=["a"], **options)


def save(directory: RunDirectory) -> None:
    x = torch.zeros(3, 16, 16)
    directory.begin("a")
    directory.save("a", None, x, [Outcome("0", x, 1.0, 1.0, 0.1, 1.0)], None)
