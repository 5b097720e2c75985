"""What a run tells its user at its end: the closing table, and the facts for summary.json."""

import math
import platform
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version

import torch

from util.logger import aligned, logger
from util.metrics.statistics import describe
from util.run.directory import RunDirectory
from util.run.table import MEAN, Row

TABLE_ROWS, LONGEST_NAME = 20, 40                   # images in the closing table, and characters of their names
INTERVAL = "95 % interval"                          # of a mean, see `util.metrics.statistics`
LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "pillow", "scikit-image", "lpips")

VIEWED = {"samples": lambda row: row.sample != MEAN, "best": lambda row: row.best == 1,
          "means": lambda row: row.sample == MEAN}
View = tuple[str, str]                              # which rows of an image, see VIEWED, and which of their scores


def log_table(run: RunDirectory, images: Sequence[str]) -> None:
    """Log how the restored images are: PSNR and SSIM, and where there is no truth, how well they fit their measurement.
    """
    table = {image: own for image in images if (own := [row for row in run.rows_of(image) if row.ok])}
    for known, scores in ((True, {"PSNR (dB)": ("psnr", ".2f"), "SSIM": ("ssim", ".3f")}),
                          (False, {"chi-square": ("chi_square", ".4g"), "distance": ("distance", ".4g")})):
        part = {image: own for image, own in table.items() if own[0].has_truth is known}
        if part:
            _log(part, _views([row for own in part.values() for row in own], known), scores)


def _views(rows: Sequence[Row], known: bool) -> dict[str, View]:
    """Title -> which rows of an image to show, and the suffix of their scores.

    The lifted measurement and the restoration; with several samples, their average, the one that fits the measurement
    best, and their mean image, which posterior samples lie below. Where a measurement is ambiguous (a spectrum, say),
    neither it nor a mean is comparable, and the last column is that of the aligned restoration.
    """
    views = {"restored": ("samples", "")}
    if any(map(VIEWED["means"], rows)):
        views = {"samples": ("samples", ""), "best fit": ("best", ""), "their mean": ("means", "")}
    if known and any(not math.isnan(row.psnr_aligned) for row in rows):
        views.pop("their mean", None)
        return {**views, "aligned": ("best", "_aligned")}
    return {"measured": ("samples", "_input"), **views} if known else views


def _log(part: dict[str, list[Row]], views: dict[str, View], scores: dict[str, tuple[str, str]]) -> None:
    """Log a line per image: every view of the first score, then of the second, in the scores' formats."""
    images, log = list(part), logger.info
    columns = [([_mean([getattr(row, name + suffix) for row in filter(VIEWED[kind], own)]) for own in part.values()],
                form) for name, form in scores.values() for kind, suffix in views.values()]
    lines = [["", *(word for score in scores for word in (score, *[""] * (len(views) - 1)))],
             ["image", *[*views] * len(scores)]]
    lines += [[image[:LONGEST_NAME], *(f"{values[i]:{form}}" for values, form in columns)]
              for i, image in enumerate(images[:TABLE_ROWS])]
    if len(images) > 1:
        lines.append([f"mean of {len(images)}", *(f"{_mean(values):{form}}" for values, form in columns)])
        bounds = [(describe(values, images)["ci95"] or (), form) for values, form in columns]
        lines.append([INTERVAL, *("-".join(f"{bound:{form}}" for bound in own) or "-" for own, form in bounds)])
    log("\n" + "\n".join(map(str.rstrip, aligned(lines))))
    if len(images) > TABLE_ROWS:
        log(f"({len(images) - TABLE_ROWS} more images are in metrics.csv)")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def environment(device: torch.device) -> dict[str, object]:
    """Device, peak memory in bytes (on the GPU, or of this process) and library versions."""
    on_gpu = device.type == "cuda"
    return {"device": device_name(device),
            "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else _peak_resident_bytes(),
            "versions": versions()}


@cache
def versions() -> dict[str, str]:
    """Those of Python and the libraries that results depend on."""
    return {"python": platform.python_version(), **{library: version(library) for library in LIBRARIES}}


def device_name(device: torch.device) -> str:
    """Words for a device: the GPU's name, or the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU ({threads} thread{'s' if threads > 1 else ''})"


def _peak_resident_bytes() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
