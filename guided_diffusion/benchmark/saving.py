"""What keeping a restored image costs beside restoring it: its files, its scores, and what lets a run continue."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from data.dataloader import get_dataset
from util.metrics.scores import Metrics, Scores
from util.run.directory import RunDirectory
from util.run.table import Outcome

Clock = Callable[[], float]                         # the time now, in seconds
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


@dataclass(frozen=True)
class Keeping:
    """Seconds per image, over `images` photographs with one sample each.

    Attributes:
        files: its pictures and its trajectory.
        scores: PSNR, SSIM, and the scores of `networks`, of the restoration and of the measurement.
        bookkeeping: what is noted before and after it, and looked at when a run is continued.
        end: its share of what a run of so many images writes at its end: table, summary and grid.
    """

    images: int
    networks: tuple[str, ...]
    files: float
    scores: float
    bookkeeping: float
    end: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.files + self.scores + self.bookkeeping + self.end


class TimedMetrics:
    """`Metrics` whose calls note their `seconds`."""

    def __init__(self, metrics: Metrics, clock: Clock):
        self.metrics, self.clock, self.seconds = metrics, clock, []

    def __call__(self, restored: Tensor, label: Tensor) -> Scores:
        """As `Metrics.__call__`."""
        began = self.clock()
        scores = self.metrics(restored, label)
        self.seconds.append(self.clock() - began)
        return scores


def measure_keeping(size: int, steps: int, repeats: int, metrics: Metrics, clock: Clock) -> Keeping:
    """Keep scikit-image's photographs, noisy ones for restorations, in a folder that is deleted afterwards.

    Args:
        size: side of the images, in pixels.
        steps: of the sampling; a trajectory has a row for each.
        repeats: how often each photograph is kept, every time as another image.
        metrics: what scores them.
    """
    photographs = get_dataset("skimage", images=PHOTOGRAPHS, image_size=size)
    images = {f"{name} {number}": label for name, label in zip(photographs.names, photographs, strict=True)
              for number in range(repeats)}
    timed = TimedMetrics(metrics, clock)
    with TemporaryDirectory() as folder:
        run = RunDirectory(folder, "operator", "method", {"num_samples": 1}, images=list(images))
        costs = [keep(run, name, label, steps, timed, clock) for name, label in images.items()]
        began = clock()
        run.conclude({})
        end = (clock() - began) / len(images)
    files, scores, bookkeeping = map(median, zip(*costs, strict=True))
    return Keeping(len(images), tuple(metrics.networks), files, scores, bookkeeping, end)


def keep(run: RunDirectory, name: str, label: Tensor, steps: int, metrics: TimedMetrics,
         clock: Clock) -> tuple[float, float, float]:
    """Keep an image (3, H, W) in [-1, 1] in `run`: the seconds of its files, of its scores, and of the bookkeeping."""
    restored = label + 0.1 * torch.randn(label.shape, generator=torch.Generator().manual_seed(0))
    trajectory = [(index, 1.0) for index in reversed(range(steps))]
    outcome = Outcome("0", restored, distance=1.0, chi_square=1.0, seconds=1.0, network_evaluations=steps,
                      trajectory=trajectory)
    scored = sum(metrics.seconds)
    marks = [clock()]
    run.begin(name)
    marks.append(clock())
    run.save(name, label, restored, [outcome], metrics)
    marks.append(clock())
    run.store.add(run.rows_of(name))                # once more, as `save` did among other things
    marks.append(clock())
    assert run.finished(name), name
    marks.append(clock())
    begin, save, add, look = (later - earlier for earlier, later in pairwise(marks))
    scores = sum(metrics.seconds) - scored
    return save - add - scores, scores, begin + add + look
