"""What a run has to do: which images are left, and which of them are restored together."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from data.dataloader import group_images
from guided_diffusion.measurements.sources import Source
from util.distributed import Team
from util.errors import UserError
from util.logger import get_logger
from util.run_dir import RunDirectory

# Of a batch, by default: 4 images of 128 x 128, or 1 of 256 x 256; on a GPU 8 of 256 x 256.
DEFAULT_BATCH_PIXELS = {"cpu": 4 * 128 ** 2, "cuda": 8 * 256 ** 2}

logger = get_logger()


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

    def largest_batch(self, num_samples: int) -> int:
        """Entries of the largest batch that there will be, with `num_samples` of each image."""
        return min(self.batch_size, num_samples * max(map(len, self.groups)))


def default_entries(image_size: int | None, device: torch.device) -> int:
    """Entries per batch: by the images' size, and 1 where it may differ."""
    return 1 if image_size is None else max(1, DEFAULT_BATCH_PIXELS[device.type] // image_size ** 2)


def make_plan(source: Source, limit: int | None, num_samples: int, batch_size: int | str | None, default: int,
              run: RunDirectory, team: Team, search: Callable[[int], int]) -> Plan:
    """What is left to do, as the leading process sees it.

    Args:
        source: of the images.
        limit: how many of them are asked for, the first ones; None for all.
        num_samples: posterior samples of each.
        batch_size: entries per batch; "auto" to have them searched; None for `default`.
        default: entries per batch where nobody says otherwise.
        search: search(entries) -> the fastest batch size for so many.

    Raises:
        UserError: the file of a finished image has other contents now.
    """
    names = source.names[:limit]
    if team.leads:
        team.publish("finished", json.dumps([name for name in names if is_finished(run, source, name)]))
    finished = frozenset(json.loads(team.receive("finished")))
    if batch_size == "auto" and team.leads:
        team.publish("batch_size", str(_fastest(run, partial(search, len(names) * num_samples))))
    entries = int(team.receive("batch_size")) if batch_size == "auto" else batch_size or default
    if not isinstance(batch_size, int):             # all samples of an image in one batch, if nobody says otherwise
        entries = num_samples * max(1, entries // num_samples)
    groups = [group for group in group_images(len(names), entries, num_samples)
              if not all(names[index] in finished for index in group)]
    return Plan(names, finished, entries, groups)


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
    if run.config.batch_size is None:
        run.config.keep_batch_size(search())
    else:
        logger.info(f"--batch_size auto: {run.config.batch_size}, as chosen when this run began")
    return run.config.batch_size
