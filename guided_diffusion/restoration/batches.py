"""The images that are left, in batches as large as memory holds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from data.dataloader import Batch, make_batches, read_images
from guided_diffusion.measurements.sources import Source
from guided_diffusion.restoration.monitor import Monitor
from guided_diffusion.restoration.plan import Plan
from util.errors import UserError
from util.logger import logger
from util.memory import free_memory, is_out_of_memory
from util.run.team import Team


class Batches:
    """Iterates over the batches that fall to this process; what is done with one is done within `fitting()`.

    Where memory runs out in there, batches have half the size from then on, and the group of images comes again.
    Images that cannot be read are passed over.

    Args:
        source: of the images.
        plan: what is left of them, and the size to begin with.
        num_samples: posterior samples per image.
        team: the processes that share the work.
        monitor: is told which steps there is nothing to wait for, and which are done again.
        device: words for what may run out of memory.

    Attributes:
        size: entries per batch, at most.
        unreadable: how many images could not be read.
    """

    def __init__(self, source: Source, plan: Plan, num_samples: int, team: Team, monitor: Monitor, device: str):
        self.source, self.plan, self.num_samples, self.team = source, plan, num_samples, team
        self.monitor, self.device = monitor, device
        self.size, self.unreadable, self.fits = plan.batch_size, 0, True

    def __iter__(self) -> Iterator[Batch]:
        for number in self.team.share(len(self.plan.groups)):
            images = list(read_images(self.source, self.plan.groups[number], self._pass_over))
            if not all(name in self.plan.finished for name, _ in images):
                yield from self._group(images)

    def _pass_over(self, error: UserError) -> None:
        self.unreadable += 1
        self.monitor.steps_done += self.num_samples * self.monitor.num_steps
        logger.warning(f"{error}; passed over")

    def _group(self, images: Sequence[tuple[str, Tensor]]) -> Iterator[Batch]:
        """The batches of a group, with half the size as often as memory runs out.

        Raises:
            UserError: memory does not suffice for batches of 1.
        """
        before, begun = self.size, self.monitor.steps_done
        while True:
            self.fits = True
            for batch in make_batches(images, self.size, self.num_samples):
                yield batch
                if not self.fits:
                    break
            if self.fits:
                break
            free_memory()
            self.monitor.steps_done = begun
            if self.size == 1:
                raise UserError(f"{self.device} is out of memory even with batches of 1 (--batch_size 1); set "
                                "model.use_checkpoint=true, or restore large images with --tile 256")
            self.size //= 2
        if self.size < before:
            logger.warning(f"{self.device} is out of memory with batches of {before}; going on with batches of "
                           f"{self.size} (--batch_size {self.size} begins with that)")

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """Note it where memory runs out within the block, which ends there."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.fits = False
