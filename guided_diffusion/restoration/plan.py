"""What a run has to do: which images are left, and which of them are restored together."""

import json
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path

import torch
from torch import Tensor

from data.dataloader import group_images
from guided_diffusion.measurements import Measurement
from guided_diffusion.measurements.sources import Source
from guided_diffusion.restoration.build import Task
from guided_diffusion.schedule import NEARLY_CLEAN
from util.errors import UserError
from util.logger import count, logger
from util.memory import free_memory, is_out_of_memory
from util.run.console import device_name
from util.run.directory import RunDirectory
from util.run.team import Team
from util.seeding import ImageRandomness

# Of a batch, by default: 4 images of 128 x 128, or 1 of 256 x 256; on a GPU 8 of 256 x 256.
DEFAULT_BATCH_PIXELS = {"cpu": 4 * 128 ** 2, "cuda": 8 * 256 ** 2}
WARM_UP, MEASURED = 1, 2                            # steps of every attempt
WORTHWHILE = 1.03                                   # a doubling goes on while it gives this many times the images


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        names: of all images that are asked for.
        finished: those that are, already.
        batch_size: entries per batch.
        groups: the numbers of images that are restored together, of groups that are not finished.
    """

    names: Sequence[str]
    finished: frozenset[str]
    batch_size: int
    groups: Sequence[Sequence[int]]

    @property
    def images_left(self) -> int:
        """How many images there are to restore."""
        return sum(map(len, self.groups))

    def largest_batch(self, num_samples: int) -> int:
        """Entries of the largest batch that there will be, with `num_samples` of each image."""
        return min(self.batch_size, num_samples * max(map(len, self.groups)))


def default_entries(image_size: int | None, device: torch.device) -> int:
    """Entries per batch: by the images' size, and 1 where it may differ."""
    return 1 if image_size is None else max(1, DEFAULT_BATCH_PIXELS[device.type] // image_size ** 2)


def make_plan(args: Namespace, task: Task, run: RunDirectory, team: Team, load: Callable[[], Callable],
              device: torch.device) -> Plan:
    """What is left to do, as the leading process sees it.

    Args:
        args: limit: how many images are asked for, the first ones; None for all. num_samples: posterior samples of
            each. batch_size: entries per batch; "auto" to have them searched; None for `default_entries`.
        load: gives the network, for the search.

    Raises:
        UserError: the file of a finished image has other contents now.
    """
    names, size = task.source.names[:args.limit], task.source.image_size
    default = default_entries(size, device)
    if team.leads:
        team.publish("finished", json.dumps([name for name in names if is_finished(run, task.source, name)]))
    finished = frozenset(json.loads(team.receive("finished")))
    entries = args.batch_size or default
    if entries == "auto":
        if team.leads:
            search = partial(best_batch_size, task, load, size, device, len(names) * args.num_samples)
            measurable = task.method.needs_prior and size is not None
            team.publish("batch_size", str(_fastest(run, search if measurable else lambda: default)))
        entries = int(team.receive("batch_size"))
    if not isinstance(args.batch_size, int):        # all samples of an image in one batch, if nobody says otherwise
        entries = args.num_samples * max(1, entries // args.num_samples)
    groups = [group for group in group_images(len(names), entries, args.num_samples)
              if not all(names[index] in finished for index in group)]
    return Plan(names, finished, entries, groups)


def announce(task: Task, run: RunDirectory, plan: Plan, team: Team, device: torch.device, progress: int | None) -> None:
    """Say what is going to be done, and on what, and what of it the user may not have meant.

    Args:
        progress: whether and how often the state is saved on the way.
    """
    images = f"{count(len(plan.names), 'image')} of {task.source.size}"
    before = f" ({len(plan.finished)} finished before)" if plan.finished else ""
    steps = f", {count(task.sampler.num_steps, 'step')}" if task.method.needs_prior else ""
    processes = f"{team.size} processes, each on " if team.size > 1 else ""
    logger.info(f"{task.operator.name} by {task.method.name}: {images}{before}{steps}, on "
                f"{processes}{device_name(device)}")
    schedule = task.sampler.schedule
    if task.method.needs_prior and (start := schedule.alphas_cumprod[-1]) > NEARLY_CLEAN:
        logger.warning(f"timestep_respacing keeps no step noisier than t = {schedule.timesteps[-1]}, where images are "
                       f"nearly clean (alpha_bar {start:.4g}), but sampling begins there from noise; keep noisier ones")
    gone = sorted({row.image for row in run.rows} - set(task.source.names))
    if gone:
        which = f"1 image ({gone[0]})" if len(gone) == 1 else f"{len(gone)} images ({gone[0]}, ...)"
        logger.warning(f"metrics.csv and summary.json hold {which} no longer in the data; --overwrite begins anew")
    if progress and (without := [name for name in plan.finished if not has_progress(run.path, name)]):
        logger.warning(f"--progress: nothing was saved on the way of {count(len(without), 'image')} finished before; "
                       "--overwrite restores all anew")


def has_progress(run: Path, image: str) -> bool:
    """Whether the folder of a run holds states on the way to an image, or to a sample of it."""
    return any(next(run.glob(f"progress/{escape(image)}{sample}/x_*.png"), None) for sample in ("", "_[0-9]*"))


def is_finished(run: RunDirectory, source: Source, name: str) -> bool:
    """Whether image `name` is, in the run; UserError if its file has other contents now."""
    if not run.finished(name):
        return False
    before, now = run.rows_of(name)[0].source, source.fingerprint(name)
    if before and now and before != now:
        raise UserError(f"{run.path}: image {name} was restored from a file that has other contents now ({before} "
                        f"there, {now} now); choose another folder with --save_dir, or replace the results with "
                        "--overwrite")
    return True


def _fastest(run: RunDirectory, search: Callable[[], int]) -> int:
    """The batch size that was chosen when the run began; results depend on it in their last digits."""
    if run.batch_size is None:
        run.keep_batch_size(search())
    else:
        logger.info(f"--batch_size auto: {run.batch_size}, as chosen when this run began")
    return run.batch_size


class _Enough(Exception):
    """Ends a restoration whose first steps were measured."""


def best_batch_size(task: Task, load: Callable[[], Callable], image_size: int, device: torch.device, most: int) -> int:
    """Entries per batch, a power of 2 or `most`: doubled until images per second stop growing or memory ends.

    Each is tried by the first steps of restoring grey images (where later ones need more memory and there is none,
    batches are halved then); restorations do not depend on the choice, but for the rounding of their last digits.

    Args:
        load: gives the network.
        image_size: side of all images.
        most: entries that there are to restore.
    """
    rates: dict[int, float] = {}
    size = 1
    while size not in rates:
        rate = _rate(task, load(), (size, 3, image_size, image_size), device)
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
    logger.info(f"--batch_size auto: {best} (steps of an image per second by batch size: {tried}"
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
