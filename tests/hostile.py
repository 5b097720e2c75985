"""For tests with hostile inputs: pictures of any name, limits of time and memory, a small run."""

import io
import resource
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from util.metrics_table import Outcome
from util.run_dir import RunDirectory


def picture(path: Path, seed: int = 0, side: int = 32) -> None:
    """A picture in a file of whatever name."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


class Within:
    """Fails if its block takes longer than `seconds` or raises this process's peak memory by more than `mebibytes`."""

    def __init__(self, seconds: float, mebibytes: int):
        self.seconds, self.mebibytes = seconds, mebibytes

    def __enter__(self) -> None:
        self.memory, self.started = self.peak(), time.perf_counter()

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            assert time.perf_counter() - self.started < self.seconds
            assert self.peak() - self.memory < self.mebibytes * 1024

    @staticmethod
    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def open_run(folder: Path, **options: bool) -> RunDirectory:
    return RunDirectory(folder, "inpainting", "dpps", {"seed": 0}, images=["a"], **options)


def save(directory: RunDirectory) -> None:
    x = torch.zeros(3, 16, 16)
    directory.begin("a")
    directory.save("a", None, x, [Outcome("0", x, 1.0, 1.0, 0.1, 1.0)], None)
