"""Batches as large as memory holds."""

import gc
from collections.abc import Callable

import torch

from util.errors import UserError
from util.logger import get_logger

SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")   # in messages of torch


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that the GPU, or the machine, has no memory left."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def free_memory() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class BatchSize:
    """A batch size that halves when memory runs out, for good, and says so.

    Args:
        size: to begin with.
        device: words for it.
    """

    def __init__(self, size: int, device: str):
        self.size, self.device = size, device

    def attempt(self, work: Callable[[int], None]) -> None:
        """Call work(size), with half the size as often as memory runs out.

        Raises:
            UserError: memory does not suffice for batches of 1.
        """
        before = self.size
        while not self._fits(work):
            if self.size == 1:
                raise UserError(f"{self.device} is out of memory even with batches of 1 (--batch_size 1); set "
                                "model.use_checkpoint=true, or restore large images with --tile 256")
            self.size = self.size // 2
        if self.size < before:
            get_logger().warning(f"{self.device} is out of memory with batches of {before}; going on with batches of "
                                 f"{self.size} (--batch_size {self.size} begins with that)")

    def _fits(self, work: Callable[[int], None]) -> bool:
        try:
            work(self.size)
            return True
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        free_memory()                               # the exception is gone, which held on to the batch's tensors
        return False
