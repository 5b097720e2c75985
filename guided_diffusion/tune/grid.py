"""A grid of settings: what `guided_diffusion.tune` runs, what each point scored, and which point is the best."""

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from guided_diffusion.tune.arguments import CONSISTENCY, JUDGES
from util.config.yaml_text import parse_yaml
from util.errors import UserError, did_you_mean
from util.metrics.names import SHORT, Metric, metric_of
from util.metrics.pairs import MEAN
from util.metrics.statistics import Summary, describe
from util.reproduce_table.job import Job

TUNABLE = ("conditioning", "measurement")           # sections of the task file
CONSISTENT = 2                                      # the factor by which a chi-square may be off 1
EXAMPLE = "expected key=values, such as conditioning.params.scale=0.1,0.3,1"
LONGEST_NAME = 120


@dataclass(frozen=True)
class Point:
    """Settings of one run: key path -> value."""

    settings: tuple[tuple[str, object], ...]

    @property
    def overrides(self) -> tuple[str, ...]:
        """As `--set` takes them."""
        return tuple(f"{key}={json.dumps(value)}" for key, value in self.settings)

    @property
    def name(self) -> str:
        """A name for a folder, such as "scale=0.3,power=2"."""
        text = ",".join(f"{key.removeprefix('conditioning.').removeprefix('params.')}={json.dumps(value)}"
                        for key, value in self.settings)
        name = re.sub(r"[^\w.=,+-]+", "_", text.replace('"', ""))
        if len(name) <= LONGEST_NAME and name == text.replace('"', ""):
            return name
        return f"{name[:LONGEST_NAME - 9]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Result:
    """What became of a point: figure of merit -> its mean with interval; `error` in one line where it went wrong."""

    point: Point
    figures: dict[str, Summary]
    images: int
    error: str = ""


def read_grid(options: Sequence[str]) -> dict[str, list[object]]:
    """"conditioning.params.scale=0.1,0.3" -> {"conditioning.params.scale": [0.1, 0.3]}, in order.

    Raises:
        UserError: one is no key=value,value; a key stands twice, lies in another one, or is none of the task file.
    """
    grid: dict[str, list[object]] = {}
    for option in options:
        key, equals, text = option.partition("=")
        key = key.strip()
        try:
            values = parse_yaml(f"[{text}]")
        except ValueError as error:
            raise UserError(f"--grid {option}: {error}; {EXAMPLE}") from None
        if not equals or not key or not values:
            raise UserError(f"--grid {option}: {EXAMPLE}")
        section, _, rest = key.partition(".")
        if section not in TUNABLE or not rest:
            raise UserError(f"--grid {option}: '{key}' cannot be tuned; expected a path such as "
                            f"conditioning.params.scale; {did_you_mean(section, TUNABLE)}")
        if key in grid:
            raise UserError(f"--grid {option}: {key} stands in two of the options; give all its values in one")
        for other in grid:
            if f"{other}.".startswith(f"{key}.") or f"{key}.".startswith(f"{other}."):
                raise UserError(f"--grid {option}: one of {key} and {other} is a part of the other; vary one of them")
        grid[key] = [value for i, value in enumerate(values) if value not in values[:i]]
    return grid


def points(grid: dict[str, list[object]]) -> list[Point]:
    """The Cartesian product, the last key changing fastest."""
    return [Point(tuple(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())]


def result_of(point: Point, job: Job, of_mean: bool) -> Result:
    """Read what a run scored.

    Args:
        of_mean: the figures are those of the samples' mean images; otherwise of the samples, all alike.
    """
    rows = [row for row in job.all_rows() if (row.sample == MEAN) is of_mean]
    images = [row.image for row in rows]
    figures = {name: describe([getattr(row, SHORT.get(name, name)) for row in rows], images) for name in JUDGES}
    return Result(point, figures, len(set(images)), job.error)


def merit(name: str, mean: float) -> float:
    """The higher, the better: a mean score, or how near to 1 chi-square is."""
    return -abs(mean - 1) if name == "chi_square" else metric_of(name).better * mean


def choose(results: Sequence[Result], by: str | None) -> tuple[Result, str]:
    """The best result and the figure that decides: the highest PSNR or SSIM, the lowest LPIPS, the chi-square nearest
    to 1.

    Only results for which as many values are known as for any other take part: a restoration that diverged has none.

    Args:
        by: one of `JUDGES`; None for PSNR where the truth is known, else chi-square; "consistency" for PSNR among
            those whose chi-square is within a factor of `CONSISTENT` of 1, for chi-square where none is.

    Raises:
        UserError: no result has that figure.
    """
    known = {name: max((r.figures[name]["count"] for r in results), default=0) for name in JUDGES}
    if by == CONSISTENCY:
        fitting = [r for r in results if 1 / CONSISTENT <= (r.figures["chi_square"]["mean"] or 0) <= CONSISTENT]
        return choose(fitting or results, "psnr" if fitting else "chi_square")
    by = by or ("psnr" if known["psnr"] else "chi_square")
    if not known[by]:
        others = [name for name in JUDGES if known[name]]
        reason = next((r.error for r in results if r.error), f"the runs have no {metric_of(by).title}")
        remedy = f"; choose by {' or '.join(others)}" if others else ""
        raise UserError(f"nothing can be chosen by {by}: {reason}{remedy}")
    complete = [r for r in results if r.figures[by]["count"] == known[by]]
    return max(complete, key=lambda r: merit(by, r.figures[by]["mean"])), by


def at_the_edge(grid: dict[str, list[object]], best: Point) -> list[str]:
    """A sentence for every key whose best value is the smallest or the largest number of several in the grid."""
    sentences = []
    for key, value in best.settings:
        numbers = [v for v in grid[key] if isinstance(v, (int, float)) and not isinstance(v, bool)]
        if len(numbers) < 2 or value not in (min(numbers), max(numbers)):
            continue
        end, more = ("smallest", "smaller") if value == min(numbers) else ("largest", "larger")
        sentences.append(f"the best {key} is {json.dumps(value)}, the {end} of the grid; add {more} values")
    return sentences


def markdown(results: Sequence[Result], best: Result, by: str) -> str:
    """A table of all points: settings, then every figure that is known with its 95 % interval; `**` marks the best."""
    keys = [key for key, _ in results[0].point.settings]
    shown = [name for name in JUDGES if any(r.figures[name]["count"] for r in results)]
    titles = [*keys, *(metric_of(name).title + (" *" if name == by else "") for name in shown), "images"]
    lines = [titles, ["---"] * len(titles)]
    for result in results:
        cells = [json.dumps(value) for _, value in result.point.settings]
        cells += [_cell(result.figures[name], metric_of(name)) for name in shown]
        cells.append(f"FAILED: {result.error}" if result.error and not result.images else str(result.images))
        lines.append([f"**{cell}**" for cell in cells] if result is best else cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cell(figure: Summary, metric: Metric) -> str:
    if figure["mean"] is None:
        return "-"
    interval = f" [{', '.join(map(metric.words, figure['ci95']))}]" if figure["ci95"] else ""
    return f"{metric.words(figure['mean'])}{interval}"
