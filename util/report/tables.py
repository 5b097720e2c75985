"""The tables of a report, which a click on a column's title sorts; `report.html` says how a cell is shown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from util.metrics.pairs import MEAN
from util.metrics.statistics import Summary, describe
from util.report.runs import Run

COSTS = ("network_evaluations", "seconds")          # without intervals
DASH = "\N{EN DASH}"

Cell = tuple[str, object, str, str]                 # text, what it is sorted by, small text below, class
Table = dict[str, object]                           # note, heads: (title, class, first order), rows: lists of cells


@dataclass(frozen=True)
class Column:
    """A column of metrics.csv as it is shown."""

    name: str
    title: str
    form: str
    better: int = 0                                 # 1 where higher is better, -1 where lower is, else 0
    baseline: str = ""                              # the same score of the lifted measurement

    @property
    def head(self) -> tuple[str, str, str]:
        """Its title, which says what is better, class and first order."""
        return (self.title + {1: "\N{NO-BREAK SPACE}↑", -1: "\N{NO-BREAK SPACE}↓", 0: ""}[self.better], "",
                "ascending" if self.better < 0 else "")

    def digits(self, value: float) -> str:
        """A value as it is shown."""
        return DASH if math.isnan(value) else f"{value:{self.form}}".rstrip(".")    # "#.3g" leaves the point of 210.


COLUMNS = (
    Column("psnr", "PSNR (dB)", ".2f", 1, "psnr_input"), Column("ssim", "SSIM", ".3f", 1, "ssim_input"),
    Column("lpips_vgg", "LPIPS (vgg)", ".3f", -1), Column("lpips_alex", "LPIPS (alex)", ".3f", -1),
    Column("st_lpips", "ST-LPIPS (vgg)", ".3f", -1),
    Column("psnr_aligned", "aligned PSNR (dB)", ".2f", 1), Column("ssim_aligned", "aligned SSIM", ".3f", 1),
    Column("lpips_vgg_aligned", "aligned LPIPS (vgg)", ".3f", -1),
    Column("st_lpips_aligned", "aligned ST-LPIPS (vgg)", ".3f", -1),
    Column("distance", "distance", "#.4g"), Column("chi_square", "chi-square", "#.3g"),
    Column("std", "deviation", ".3f"), Column("error_to_std", "error / deviation", ".2f"),
    Column("network_evaluations", "evaluations", ".0f"), Column("seconds", "seconds", ".1f"))


def score_table(runs: Sequence[Run]) -> Table:
    """Means with their 95 % intervals: the measurement's, then a line per method, the best of these in bold."""
    lines = [line for run in runs for mean in (False, True) if (line := _means(run, mean))]
    lines = [*[line for run in runs if (line := _baseline(run))][:1], *lines]
    columns = [c for c in COLUMNS if any(c.name in means for _, means, _ in lines)]
    best = {}
    for c in columns:
        known = [means[c.name]["mean"] for label, means, _ in lines if label != "measurement" and c.name in means]
        best[c.name] = c.better * max(c.better * mean for mean in known) if c.better and len(known) > 1 else None
    rows = [[_word(label), _word(images), *(_mean(c, means.get(c.name), best[c.name]) for c in columns)]
            for label, means, images in lines]
    return {"note": "Means over images, below them 95 % intervals (bootstrap over images); in bold the best mean.",
            "heads": [("method", "text", ""), ("images", "", ""), *(c.head for c in columns)], "rows": rows}


def _means(run: Run, mean: bool) -> tuple[str, dict[str, Summary], int] | None:
    """Label, statistics of the columns that are known, and number of images: of the samples, or of their means."""
    rows = [row for row in run.rows if (row.sample == MEAN) is mean]
    label = f"{run.label}, mean of {len(run.of(rows[0].image)) - 1}" if rows and mean else run.label
    values = {c.name: [getattr(row, c.name) if row.ok else math.nan for row in rows] for c in COLUMNS}
    return _line(label, values, [row.image for row in rows])


def _baseline(run: Run) -> tuple[str, dict[str, Summary], int] | None:
    first = [run.of(image)[0] for image in run.images]
    values = {c.name: [getattr(row, c.baseline) for row in first] for c in COLUMNS if c.baseline}
    return _line("measurement", values, run.images)


def _line(label: str, values: dict[str, list[float]], images: Sequence[str]
          ) -> tuple[str, dict[str, Summary], int] | None:
    described = {name: describe(column, images) for name, column in values.items()}
    known = {name: summary for name, summary in described.items() if summary["mean"] is not None}
    return (label, known, len(set(images))) if known else None


def _mean(column: Column, summary: Summary | None, best: float | None) -> Cell:
    if summary is None:
        return DASH, "", "", ""
    interval = () if column.name in COSTS else summary["ci95"] or ()
    return (column.digits(summary["mean"]), repr(summary["mean"]), DASH.join(map(column.digits, interval)),
            "best" if summary["mean"] == best else "")


def image_table(runs: Sequence[Run]) -> Table:
    """A line per image, method and sample, as metrics.csv has them."""
    lines = [(run, row) for run in runs for row in run.rows]
    columns = [c for c in COLUMNS if any(not math.isnan(getattr(row, c.name)) for _, row in lines)]
    heads = [(word, "text", "") for word in ("image", "method", "sample", "status")]
    rows = [[*map(_word, (row.image, run.label, row.sample, row.status)),
             *(_number(c, getattr(row, c.name)) for c in columns)] for run, row in lines]
    return {"note": "As in metrics.csv.", "heads": [*heads, *(c.head for c in columns)], "rows": rows}


def _word(text: object) -> Cell:
    return str(text), text, "", "" if isinstance(text, int) else "text"


def _number(column: Column, value: float) -> Cell:
    order = "" if math.isnan(value) else f"{value:.6g}".replace("inf", "Infinity")
    return column.digits(value), order, "", ""
