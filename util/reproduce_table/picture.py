"""One image of a reproduced table: a line per task, from the measurement over every method to the truth."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from util.errors import UserError
from util.img_utils import load_image, save_grid
from util.metrics.names import metric_of
from util.reproduce_table.job import Job
from util.reproduce_table.spec import PaperTable
from util.run.layout import file_of


def save_picture(path: Path, table: PaperTable, jobs: Sequence[Job], image: str) -> None:
    """Save the restorations of `image` by all methods, with their PSNR; of several samples the one that fits y best.

    Raises:
        UserError: no run has restored it, or a file of it is damaged or gone.
    """
    found = {(job.run.task, job.run.method): (job, row) for job in jobs for row in job.rows()
             if row.image == image and row.ok}
    if not found:
        raise UserError(f"--picture {image}: no run of the table has restored it")
    tasks, methods = ([name for name in names if any(name == place[axis] for place in found)]
                      for axis, names in enumerate((table.tasks, table.methods)))
    rows, captions = [], []
    for task in tasks:
        first = next(job for (name, _), (job, _) in found.items() if name == task)
        measured, truth = (_load(first, folder, image) for folder in ("input", "label"))
        restored, texts = [torch.ones_like(truth)] * len(methods), [""] * len(methods)          # white: refused
        for i, (job, row) in ((i, found[task, name]) for i, name in enumerate(methods) if (task, name) in found):
            restored[i] = _load(job, "recon", image, row.sample if job.options.num_samples > 1 else None)
            texts[i] = f"{metric_of('psnr').words(row.psnr)} dB"
        rows.append([measured, *restored, truth])
        captions.append([table.tasks[task].title, *texts, ""])
    save_grid(path, rows, captions, ["Measurement", *(table.methods[name].title for name in methods), "Ground truth"])


def _load(job: Job, folder: str, image: str, sample: str | None = None) -> Tensor:
    try:
        return load_image(file_of(job.path, folder, image, sample))
    except UserError as error:
        raise UserError(f"--picture {image}: {error}; delete {job.save_dir}, and the same command makes this run anew"
                        ) from None
