"""Groups of images from reading to saving, whatever happens to some of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from data.dataloader import Batch, make_batches, read_images
from guided_diffusion.gaussian_diffusion import Sampler
from guided_diffusion.measurements import Noise, Operator
from guided_diffusion.measurements.sources import Source
from guided_diffusion.method import Method
from guided_diffusion.restoration.gather import Gatherer
from guided_diffusion.restoration.monitor import Monitor
from util.errors import UserError
from util.logger import get_logger
from util.memory import BatchSize
from util.seeding import ImageRandomness


@dataclass(frozen=True)
class Task:
    """Everything that a restoration needs besides the network."""

    source: Source
    operator: Operator
    noiser: Noise
    sampler: Sampler
    method: Method


@dataclass(frozen=True)
class Report:
    """What all processes of a run did: their tables, how many images could not be read, and facts for summary.json."""

    tables: Sequence[str] = ()
    unreadable: int = 0
    facts: dict[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, reports: Sequence[dict]) -> "Report":
        """The sum of the processes' own reports."""
        peaks = [report["peak_memory_bytes"] or 0 for report in reports]
        return cls([report["table"] for report in reports], sum(report["unreadable"] for report in reports),
                   {"peak_memory_bytes": max(peaks) or None})


class Restorer:
    """Restores groups of images, in batches as large as memory holds.

    Images that cannot be read are passed over; those that diverge have rows that say so.

    Args:
        task: what is restored, and how.
        prior: the network; None for methods that need none.
        gatherer: takes what is restored.
        monitor: watches.
        batch_size: entries per batch, at most.
        num_samples: posterior samples per image.
        seed: of all random numbers.
        device: where the images are restored.

    Attributes:
        unreadable: how many images could not be read.
    """

    def __init__(self, task: Task, prior: Callable | None, gatherer: Gatherer, monitor: Monitor, batch_size: BatchSize,
                 num_samples: int, seed: int, device: torch.device):
        self.task, self.prior, self.gatherer, self.monitor = task, prior, gatherer, monitor
        self.batch_size, self.num_samples, self.seed, self.device = batch_size, num_samples, seed, device
        self.unreadable = 0

    def __call__(self, group: Sequence[int]) -> None:
        """Restore the images of these numbers."""
        images = list(read_images(self.task.source, group, self._pass_over))
        if not all(name in self.gatherer.finished for name, _ in images):
            self.batch_size.attempt(lambda size: self._restore(list(make_batches(images, size, self.num_samples))))

    def _pass_over(self, error: UserError) -> None:
        self.unreadable += 1
        self.monitor.skip_image()
        get_logger().warning(f"{error}; passed over")

    def _restore(self, batches: Sequence[Batch]) -> None:
        task = self.task
        self.gatherer.begin(dict.fromkeys(name for batch in batches for name in batch.names))
        for batch in batches:
            randomness = ImageRandomness(self.seed, batch.names, batch.samples, device=self.device)
            measurement = task.source.measure(task.operator, task.noiser, batch, self.device, randomness)
            restore = partial(task.method.restore, self.prior, task.sampler, measurement, randomness)
            restored = self.monitor.follow(batch, measurement.image_shape, restore)
            self.gatherer.add(batch, measurement, restored, self.monitor)
