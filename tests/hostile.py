"""For tests with hostile inputs: pictures of any name, limits of time and memory, a small run."""

import io
import os
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
    """Fails if its block takes longer than `seconds` or, at any moment, `mebibytes` more memory than there was before.

    The kernel keeps the peak (VmHWM) and forgets it on request. Where it cannot be asked (no Linux, a locked
    /proc) time alone is checked.
    """

    FORGET = Path("/proc/self/clear_refs")

    def __init__(self, seconds: float, mebibytes: int):
        self.seconds, self.mebibytes = seconds, mebibytes

    def __enter__(self) -> None:
        if self.forgets():
            self.FORGET.write_text("5")             # from here on the peak is that of the block
        self.memory, self.started = self.peak(), time.perf_counter()

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            assert time.perf_counter() - self.started < self.seconds
            assert self.peak() - self.memory < self.mebibytes * 1024

    def forgets(self) -> bool:
        """Whether this system can be asked."""
        return os.access(self.FORGET, os.W_OK)

    def peak(self) -> int:
        """The highest resident memory since it was last forgotten, in KiB."""
        if not self.forgets():
            return 0
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def open_run(folder: Path, **options: bool) -> RunDirectory:
    return RunDirectory(folder, "inpainting", "dpps", {"seed": 0}, images=["a"], **options)


def save(directory: RunDirectory) -> None:
    x = torch.zeros(3, 16, 16)
    directory.begin("a")
    directory.save("a", None, x, [Outcome("0", x, 1.0, 1.0, 0.1, 1.0)], None)
