"""What a run tells its user: a progress bar, the closing table, and the facts for summary.json."""

import math
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.dataloader import Batch
from util.logger import get_logger
from util.metrics_table import MEAN, Row
from util.run_dir import RunDirectory
from util.statistics import describe

TABLE_ROWS = 20                                     # images shown in the closing table
INTERVAL = "95 % interval"                          # of a mean, see `util.statistics`
LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "pillow", "scikit-image", "lpips")


@dataclass(frozen=True)
class Course:
    """What the entries of a batch went through.

    Attributes:
        indices: of the steps, in order, counting down to 0.
        distances: of each entry, the measurement distance of every step.
    """

    indices: list[int]
    distances: list[list[float]]

    def trajectory(self, b: int) -> tuple[tuple[int, float], ...]:
        """(step index, measurement distance) of entry b."""
        return tuple(zip(self.indices, self.distances[b], strict=True))


class Monitor:
    """The callback of the sampling loop: progress bar, cost and course of each batch, pictures of the way.

    It leaves distances on their device until the batch is done, but for the one that the bar shows at every redrawing.

    Args:
        model: the network whose evaluations are counted, an image that goes through it being one; None for none.
        run: where pictures go.
        images: how many there are to restore.
        num_samples: posterior samples of each.
        num_steps: steps of each sample.
        every: save the state after every N-th step; None for never.
    """

    def __init__(self, model: nn.Module | None, run: RunDirectory, images: int, num_samples: int, num_steps: int,
                 every: int | None = None):
        self.run, self.num_samples, self.every = run, num_samples, every
        self.steps_per_image = num_samples * num_steps
        self.evaluations = 0                        # in this batch
        self.interval = 1.0 if sys.stderr.isatty() else 10.0        # seconds between two redrawings
        self.drawn, self.pending = -math.inf, 0     # when the bar was drawn; steps since
        self.bar = tqdm(total=images * self.steps_per_image, unit=" steps", desc="Restoring", dynamic_ncols=True,
                        mininterval=0, miniters=1)
        if model is not None:
            model.register_forward_pre_hook(self._count)

    def _count(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.evaluations += len(inputs[0])

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_: object) -> None:
        self._draw()
        self.bar.close()

    def watch(self, batch: Batch) -> "Monitor":
        """Start the clock for a batch and return the callback."""
        self.batch, self.evaluations, self.started = batch, 0, time.perf_counter()
        self.indices: list[int] = []
        self.distances: list[Tensor] = []           # (B,) each
        return self

    def course(self) -> Course:
        """What became of the batch; waits for the device."""
        distances = torch.stack(self.distances, dim=1).tolist() if self.distances else [[] for _ in self.batch.names]
        return Course(self.indices, distances)

    @property
    def seconds(self) -> float:
        """Time since the batch began."""
        return time.perf_counter() - self.started

    def skip_image(self) -> None:
        """One image fewer to restore."""
        self.bar.total -= self.steps_per_image
        self.bar.refresh()

    def __call__(self, step, x_prev: Tensor, distance: Tensor) -> None:
        """After a step: x_{t-1} (B, 3, H, W) and the measurement distances (B,)."""
        self.indices.append(step.index)
        self.distances.append(distance)
        self.pending += len(x_prev)
        if time.perf_counter() - self.drawn > self.interval:
            self.bar.set_postfix_str(f"distance {distance.nanmean().item():.3g}", refresh=False)
            self._draw()
        if self.every and step.index % self.every == 0:
            for name, k, x, x0_hat in zip(self.batch.names, self.batch.samples, x_prev, step.x0_hat, strict=True):
                self.run.save_progress(name, str(k) if self.num_samples > 1 else None, step.index, x, x0_hat)

    def _draw(self) -> None:
        self.bar.update(self.pending)
        self.drawn, self.pending = time.perf_counter(), 0


def log_table(run: RunDirectory, images: Sequence[str]) -> None:
    """Log how the restored images are: PSNR and SSIM, and where there is no truth, how well they fit their measurement.
    """
    table = [(image, own) for image in images if (own := [row for row in run.rows if row.image == image])]
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
