"""The batch size at which most images are restored per second, found by trying."""

import time
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from guided_diffusion.measurements import Measurement
from guided_diffusion.restoring import Task
from util.logger import get_logger
from util.memory import free_memory, is_out_of_memory
from util.seeding import ImageRandomness

WARM_UP, MEASURED = 1, 2                            # steps of every attempt
WORTHWHILE = 1.03                                   # a doubling goes on while it gives this many times the images


class _Enough(Exception):
    """Ends a restoration whose first steps were measured."""


def best_batch_size(task: Task, prior: Callable, image_size: int, device: torch.device, most: int) -> int:
    """Entries per batch, a power of 2 or `most`: doubled until images per second stop growing or memory ends.

    Each is tried by the first steps of restoring grey images; restorations do not depend on the choice, but for the
    rounding of their last digits.

    Args:
        image_size: side of all images.
        most: entries that there are to restore.
    """
    rates: dict[int, float] = {}
    size = 1
    while size not in rates:
        rate = _rate(task, prior, (size, 3, image_size, image_size), device)
        if rate is None:
            break
        rates[size] = rate
        if rate < WORTHWHILE * rates.get(size // 2, 0.0):
            break
        size = min(2 * size, most)
    if device.type == "cuda":                       # the peak that is reported is the run's
        torch.cuda.reset_peak_memory_stats(device)
    best = max(rates, key=rates.get, default=1)
    tried = ", ".join(f"{size}: {rate:.3g}" for size, rate in rates.items())
    get_logger().info(f"--batch_size auto: {best} (steps of an image per second by batch size: {tried}"
                      f"{'; then memory ends' if rate is None else ''})")
    return best


def _rate(task: Task, prior: Callable, shape: tuple[int, int, int, int], device: torch.device) -> float | None:
    """Steps times images per second; None if memory does not suffice."""
    try:
        seconds = _seconds_per_step(task, prior, shape, device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        seconds = None
    free_memory()                                   # the exception is gone, which held on to the batch's tensors
    return None if seconds is None else shape[0] / seconds


def _seconds_per_step(task: Task, prior: Callable, shape: tuple[int, int, int, int], device: torch.device) -> float:
    randomness = ImageRandomness(0, [str(b) for b in range(shape[0])], device=device)
    images = torch.zeros(shape, device=device)
    measurement = Measurement.simulate(task.operator, task.noiser, images, randomness)
    times = [time.perf_counter()]

    def after_step(step, x: Tensor, distance: Tensor) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter())
        if len(times) > WARM_UP + MEASURED:
            raise _Enough

    with suppress(_Enough):
        task.method.restore(prior, task.sampler, measurement, randomness, after_step)
    warm = times[WARM_UP:] if len(times) > WARM_UP + 1 else times
    return (warm[-1] - warm[0]) / (len(warm) - 1)
