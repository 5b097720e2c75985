"""The benchmark's results as tables and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

from guided_diffusion.benchmark.clock import CANDIDATES, OPERATOR, PHASES
from guided_diffusion.benchmark.runs import Case, Result
from guided_diffusion.benchmark.saving import Keeping
from util.img_utils import write_atomically
from util.logger import get_logger

log = get_logger().info


@dataclass(frozen=True)
class Report:
    """How results are shown.

    Attributes:
        facts: what was run, where, and how.
        flops: operations of the network per image and step, by the images' side.
        peaks: operations per second of a matrix product, by precision.
    """

    facts: dict[str, object]
    flops: dict[int, int]
    peaks: dict[str, float]

    def floor_share(self, result: Result) -> float:
        """The time that the network's operations would take at the speed of a matrix product, over that of the step."""
        case = result.case
        return case.batch * self.flops[case.size] / self.peaks[case.setting.precision] / result.step

    def images_per_second(self, result: Result) -> float:
        """Restored images per second at this cost per step."""
        return result.case.batch / (result.step * self.facts["sampling_steps"])

    def introduce(self) -> None:
        """Say what is measured and what the columns mean."""
        facts, size = self.facts, self.facts["image_size"]
        weights = "" if facts["trained_weights"] else "; its checkpoint is not there: random weights, the same cost"
        speeds = ", ".join(f"{peak / 1e9:,.0f} GFLOP/s in {name}" for name, peak in self.peaks.items())
        fast = facts["fast"]
        settings = [fast["precision"], *(key for key in ("tf32", "channels_last", "compile") if fast[key]),
                    f"likelihood {fast['likelihood']}"]
        log(f"{facts['model_config']}: {facts['parameters'] / 1e6:.1f} M parameters{weights}\n"
            f"on {facts['device']}, {facts['threads']} threads, torch {facts['versions']['torch']}, "
            f"{facts['clock']}{' time' if facts['clock'] == 'wall' else ''}\n"
            f"{self.flops[size] / 1e9:.1f} GFLOP per image and step (forward, and gradient of the image, counted at "
            f"{size} x {size})\nmatrix products reach {speeds}: the floor of the network in that precision\n"
            f"fast: {', '.join(settings)}; parameters frozen, candidates by linearity in chunks\n"
            f"official-like: fp32, parameters' graph kept, attention written out, direct blur, a wait per step, "
            f"candidates one by one\n"
            f"a step is the mean of {facts['noise_levels']} noise levels, median of {facts['repeats']}; "
            f"images/s are extrapolated from it to {facts['sampling_steps']} steps")

    def show(self, results: Sequence[Result], growth: Sequence[Result], candidates: Sequence[Result]) -> None:
        """The tables: where the time goes; how it grows with images, steps and pixels; what candidates cost."""
        self._show_steps(results)
        if growth:
            self._show_growth(results, growth)
        if candidates:
            self._show_candidates(candidates)

    def _show_steps(self, results: Sequence[Result]) -> None:
        official = {r.case.method: r.step for r in results if r.case.setting.as_official}
        rows = []
        for r in results:
            per_image = r.step / r.case.batch
            ratio = official[r.case.method] / per_image if r.case.method in official else None
            rows.append([r.case.setting.name, r.case.method, str(r.case.batch),
                         *(f"{1e3 * r.phase(name):.1f}" for name in PHASES), f"{1e3 * r.step:.1f}",
                         f"{1e3 * per_image:.1f}", f"{self.images_per_second(r):.3g}", f"{self.floor_share(r):.0%}",
                         "-" if r.peak_bytes is None else f"{r.peak_bytes / 2 ** 30:.2f}",
                         "-" if ratio is None else f"{ratio:.2f}"])
        task = results[0].case.task if results else ""
        log(f"\nA step in ms: {task}, {self.facts['image_size']} x {self.facts['image_size']}")
        log_table(["setting", "method", "images", *PHASES, "step", "per image", "images/s", "of floor", "peak GiB",
                   "x official"], rows)

    def _show_growth(self, results: Sequence[Result], sides: Sequence[Result]) -> None:
        """How the cost of `fast` with ps grows with images and steps, from the first table, and with pixels."""
        batches = [r for r in results if r.case.setting.name == "fast" and r.case.method == "ps"]
        log("\nGrowth (fast, ps, in ms): a last column of 1 is linear growth")
        rows = [growth_row("images", r.case.batch, r.step, batches[0].case.batch, batches[0].step) for r in batches]
        if batches:
            times = list(accumulate(batches[0].level_steps()))
            rows += [growth_row("steps", n, seconds, 1, times[0]) for n, seconds in enumerate(times, 1)]
        rows += [growth_row("pixels", r.case.size ** 2, r.step, sides[0].case.size ** 2, sides[0].step) for r in sides]
        log_table(["of", "number", "time", "number", "time", "to linear"], rows)

    def _show_candidates(self, results: Sequence[Result]) -> None:
        log("\nWhat up to 50 candidates of dpps cost in a step (fast, one image), over the rest of the same step")
        log_table(["task", "step in ms", OPERATOR, CANDIDATES, "over the rest"],
                  [[r.case.task, f"{1e3 * r.step:.1f}", f"{1e3 * r.phase(OPERATOR):.1f}",
                    f"{1e3 * r.phase(CANDIDATES):.1f}", f"+ {r.selection_share:.1%}"] for r in results])

    def show_keeping(self, keeping: Keeping, results: Sequence[Result]) -> None:
        """What keeping an image costs, and its share of restoring it with `fast`."""
        fast = [r for r in results if r.case.setting.name == "fast"]
        shares = [(r.case, keeping.total / (r.step / r.case.batch * self.facts["sampling_steps"])) for r in fast]
        log(f"\nKeeping an image, in ms: {self.facts['image_size']} x {self.facts['image_size']}, "
            f"{' and '.join(['PSNR, SSIM', *keeping.networks])}, {keeping.images} images")
        log_table(["files", "scores", "bookkeeping", "end of the run", "together"],
                  [[f"{1e3 * value:.1f}" for value in (keeping.files, keeping.scores, keeping.bookkeeping, keeping.end,
                                                       keeping.total)]])
        for case, share in shares:
            log(f"{share:.4%} of {self.facts['sampling_steps']} steps of fast, {case.method}, batches of {case.batch}")


def growth_row(what: str, number: int, seconds: float, first_number: int, first_seconds: float) -> list[str]:
    """A line of the table of growth: so much of something, its time, and both over those of the first line."""
    more, longer = number / first_number, seconds / first_seconds
    return [what, str(number), f"{1e3 * seconds:.1f}", f"x {more:g}", f"x {longer:.2f}", f"{longer / more:.2f}"]


def log_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Log rows under their titles, the first column to the left."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        first, *others = (f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}"
                          for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        log("  ".join([first, *others]).rstrip())


def describe(case: Case) -> dict[str, object]:
    """A case as plain values."""
    return {**asdict(case), "setting": case.setting.name}


def write_json(path: Path, report: Report, results: Sequence[Result], keeping: Keeping | None) -> None:
    """All figures, in seconds and bytes; UserError if the file cannot be written."""
    entries = [{**describe(r.case), "seconds_per_step": {name: r.phase(name) for name in PHASES} | {"step": r.step},
                "seconds_per_image_step": r.step / r.case.batch, "images_per_second": report.images_per_second(r),
                "share_of_floor": report.floor_share(r), "peak_memory_bytes": r.peak_bytes,
                "selection_over_rest": r.selection_share, "measured_levels": r.levels} for r in results]
    kept = None if keeping is None else {**asdict(keeping), "total": keeping.total}
    content = {**report.facts, "results": entries, "seconds_to_keep_an_image": kept}
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
