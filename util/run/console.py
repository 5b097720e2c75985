"""What a run tells its user at its end: the closing table, and the facts for summary.json."""

import math
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version

import torch

from util.logger import get_logger
from util.metrics.statistics import describe
from util.run.directory import RunDirectory
from util.run.table import MEAN, Row

TABLE_ROWS = 20                                     # images shown in the closing table
INTERVAL = "95 % interval"                          # of a mean, see `util.metrics.statistics`
LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "pillow", "scikit-image", "lpips")


def log_table(run: RunDirectory, images: Sequence[str]) -> None:
    """Log how the restored images are: PSNR and SSIM, and where there is no truth, how well they fit their measurement.
    """
    table = [(image, own) for image in images if (own := [row for row in run.rows_of(image) if row.ok])]
    for known in (True, False):
        part = [(image, own) for image, own in table if own[0].has_truth is known]
        several = any(row.sample == MEAN for _, own in part for row in own)
        ambiguous = any(not math.isnan(row.psnr_aligned) for _, own in part for row in own)
        figures = [(image, _figures(own, several, ambiguous) if known else _agreement(own, several))
                   for image, own in part]
        if part:
            _log(figures, {"PSNR (dB)": ".2f", "SSIM": ".3f"} if known else {"chi-square": ".4g", "distance": ".4g"})


def _log(figures: Sequence[tuple[str, dict[str, tuple[float, float]]]], groups: dict[str, str]) -> None:
    """Log a line per image: the first number under every title, then the second ones, in the groups' formats."""
    titles = list(figures[0][1])
    lines = [(image, [*(first for first, _ in own.values()), *(second for _, second in own.values())])
             for image, own in figures]
    columns = list(zip(*(values for _, values in lines), strict=True))
    intervals = [describe(column, [image for image, _ in lines])["ci95"] for column in columns]
    hidden = len(lines[TABLE_ROWS:])
    lines = lines[:TABLE_ROWS]
    if len(figures) > 1:
        lines.append((f"mean of {len(figures)}", [_mean(column) for column in columns]))
    width = min(40, max(len(INTERVAL), *(len(name) for name, _ in lines)))
    half = len(titles)
    formats = [form for form in groups.values() for _ in titles]
    log = get_logger().info
    log(f"\n{'':{width}}  {'  '.join(f'{group:^{12 * half}}' for group in groups)}".rstrip())
    log(f"{'image':{width}}  {''.join(f'{t:>12}' for t in titles)}  {''.join(f'{t:>12}' for t in titles)}")
    for name, values in lines:
        cells = [f"{value:12{form}}" for value, form in zip(values, formats, strict=True)]
        log(f"{name[:width]:{width}}  {''.join(cells[:half])}  {''.join(cells[half:])}")
    if len(figures) > 1:
        cells = [f" {_range(bounds, form):>11}" for bounds, form in zip(intervals, formats, strict=True)]
        log(f"{INTERVAL:{width}}  {''.join(cells[:half])}  {''.join(cells[half:])}")
    if hidden:
        log(f"({hidden} more images are in metrics.csv)")


def _range(bounds: Sequence[float] | None, form: str) -> str:
    return "-" if bounds is None else "-".join(f"{bound:{form}}" for bound in bounds)


def _agreement(own: Sequence[Row], several: bool) -> dict[str, tuple[float, float]]:
    """Title -> chi-square and distance of one image, about which nothing else is known."""
    samples = [row for row in own if row.sample != MEAN]
    groups = {"samples": samples, "best fit": [row for row in samples if row.best == 1],
              "their mean": [row for row in own if row.sample == MEAN]} if several else {"restored": samples}
    return {title: (_mean([r.chi_square for r in rows]), _mean([r.distance for r in rows]))
            for title, rows in groups.items()}


def _figures(own: Sequence[Row], several: bool, ambiguous: bool) -> dict[str, tuple[float, float]]:
    """Title -> PSNR and SSIM of one image.

    The lifted measurement and the restoration; with several samples, their average, the one that fits the measurement
    best, and their mean image, which posterior samples lie below. Where a measurement is ambiguous (a spectrum, say),
    neither it nor a mean is comparable, and the last column is that of the aligned restoration.
    """
    samples = [row for row in own if row.sample != MEAN]
    best = [row for row in samples if row.best == 1]
    groups = {"samples": samples, "best fit": best} if several else {"restored": samples}
    if several and not ambiguous:
        groups["their mean"] = [row for row in own if row.sample == MEAN]
    figures = {title: (_mean([r.psnr for r in rows]), _mean([r.ssim for r in rows])) for title, rows in groups.items()}
    if ambiguous:
        return {**figures, "aligned": (_mean([r.psnr_aligned for r in best]), _mean([r.ssim_aligned for r in best]))}
    return {"measured": (own[0].psnr_input, own[0].ssim_input), **figures}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def environment(device: torch.device) -> dict[str, object]:
    """Device, peak memory in bytes (on the GPU, or of this process) and library versions."""
    on_gpu = device.type == "cuda"
    return {"device": device_name(device),
            "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else _peak_resident_bytes(),
            "versions": {"python": platform.python_version(), **{library: version(library) for library in LIBRARIES}}}


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
