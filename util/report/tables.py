"""The tables of a report, which a click on a column's title sorts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from util.metrics.statistics import Summary, describe
from util.report.data import MEAN, Run, number, remark
from util.report.markup import Markup, element, join


@dataclass(frozen=True)
class Column:
    """A column of metrics.csv as it is shown."""

    name: str
    title: str
    form: str
    better: int = 0                                 # 1 where higher is better, -1 where lower is, else 0
    baseline: str = ""                              # the same score of the lifted measurement


COLUMNS = (
    Column("psnr", "PSNR (dB)", ".2f", 1, "psnr_input"), Column("ssim", "SSIM", ".3f", 1, "ssim_input"),
    Column("lpips_vgg", "LPIPS (vgg)", ".3f", -1), Column("lpips_alex", "LPIPS (alex)", ".3f", -1),
    Column("psnr_aligned", "aligned PSNR (dB)", ".2f", 1), Column("ssim_aligned", "aligned SSIM", ".3f", 1),
    Column("lpips_vgg_aligned", "aligned LPIPS (vgg)", ".3f", -1),
    Column("distance", "distance", "#.4g"), Column("chi_square", "chi-square", "#.3g"),
    Column("std", "deviation", ".3f"), Column("error_to_std", "error / deviation", ".2f"),
    Column("network_evaluations", "evaluations", ".0f"), Column("seconds", "seconds", ".1f"))
ARROWS = {1: "\N{NO-BREAK SPACE}↑", -1: "\N{NO-BREAK SPACE}↓", 0: ""}
DASH = "\N{EN DASH}"
COSTS = ("network_evaluations", "seconds")

Line = tuple[str, dict[str, Summary], int]          # label, column -> statistics, number of images


def score_table(runs: Sequence[Run]) -> Markup:
    """Means with their 95 % intervals, a line per method, the best mean of each column in bold."""
    lines = _lines(runs)
    columns = [c for c in COLUMNS if any(line[1].get(c.name, {}).get("mean") is not None for line in lines)]
    best = {c.name: _best(c, [line for line in lines if line[0] != "measurement"]) for c in columns}
    rows = []
    for label, statistics, images in lines:
        cells = [element("td", {"data-value": label}, label), element("td", {"data-value": images}, images)]
        cells += [_mean_cell(c, statistics.get(c.name), best[c.name]) for c in columns]
        rows.append(element("tr", {}, *cells))
    text = "Means over images, below them 95 % intervals (bootstrap over images); in bold the best mean."
    return _table(text, ["method", "images"], ["text", ""], columns, rows)


def _lines(runs: Sequence[Run]) -> list[Line]:
    lines = []
    for run in runs:
        for mean in (False, True):
            rows = [row for row in run.rows if (row["sample"] == MEAN) is mean]
            if rows:
                several = max(len(run.of(image)) for image in run.images[:1]) - 1
                label = f"{run.method}, mean of {several}" if mean else run.method
                images = [row["image"] for row in rows]
                values = {c.name: [math.nan if remark(row) else number(row, c.name) for row in rows] for c in COLUMNS}
                lines.append((label, {name: describe(column, images) for name, column in values.items()},
                              len(set(images))))
    for run in runs:
        first = [run.of(image)[0] for image in run.images]
        baseline = {c.name: describe([number(row, c.baseline) for row in first], run.images)
                    for c in COLUMNS if c.baseline}
        if any(summary["mean"] is not None for summary in baseline.values()):
            return [("measurement", baseline, len(first)), *lines]
    return lines


def _best(column: Column, lines: Sequence[Line]) -> float | None:
    means = [line[1][column.name]["mean"] for line in lines if line[1][column.name]["mean"] is not None]
    return column.better * max(column.better * mean for mean in means) if column.better and len(means) > 1 else None


def _mean_cell(column: Column, summary: Summary | None, best: float | None) -> Markup:
    if summary is None or summary["mean"] is None:
        return element("td", {"data-value": ""}, DASH)
    low_high = summary["ci95"] if column.name not in COSTS else None
    interval = [element("small", {}, DASH.join(digits(bound, column) for bound in low_high))] if low_high else []
    return element("td", {"data-value": repr(summary["mean"]), "class": "best" if summary["mean"] == best else None},
                   digits(summary["mean"], column), *interval)


def digits(value: float, column: Column) -> str:
    """A value as its column shows it."""
    return f"{value:{column.form}}".rstrip(".")     # "#.3g" keeps the zeros of 2.10, and the point of 210.


def image_table(runs: Sequence[Run]) -> Markup:
    """A line per image, method and sample, as metrics.csv has them, folded away."""
    table = [(run, row) for run in runs for row in run.rows]
    columns = [c for c in COLUMNS if any(not math.isnan(number(row, c.name)) for _, row in table)]
    told = any(remark(row) for _, row in table)
    rows = []
    for run, row in table:
        words = [row["image"], run.method, row["sample"], *[row.get("status", "")] * told]
        cells = [element("td", {"class": "text", "data-value": word}, word) for word in words]
        for column in columns:
            value, text = number(row, column.name), row.get(column.name, "")
            cells.append(element("td", {"data-value": "" if math.isnan(value) else text.replace("inf", "Infinity")},
                                 DASH if math.isnan(value) else digits(value, column)))
        rows.append(element("tr", {}, *cells))
    titles = ["image", "method", "sample", *["status"] * told]
    return element("details", {}, element("summary", {}, f"Scores of every image ({len(rows)} rows)"),
                   _table("As in metrics.csv.", titles, ["text"] * len(titles), columns, rows))


def _table(text: str, titles: Sequence[str], kinds: Sequence[str], columns: Sequence[Column], rows: Sequence[Markup]
           ) -> Markup:
    heads = [_head(title, kind) for title, kind in zip(titles, kinds, strict=True)]
    heads += [_head(c.title + ARROWS[c.better], "", c.better < 0) for c in columns]
    table = element("table", {"aria-label": text}, element("thead", {}, element("tr", {}, *heads)),
                    element("tbody", {}, *rows))
    return join(element("p", {"class": "note"}, text),
                element("div", {"class": "scroll", "tabindex": 0, "role": "region", "aria-label": text}, table))


def _head(title: str, kind: str, low_first: bool = False) -> Markup:
    return element("th", {"scope": "col", "class": kind or None, "aria-sort": "none",
                          "data-first": "ascending" if low_first else None},
                   element("button", {"type": "button"}, title))
