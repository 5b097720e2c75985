"""The tables of a report, which a click on a column's title sorts; `report.html` says how a cell is shown."""

import math
from collections.abc import Sequence

from util.metrics.names import METRICS, OF_RUNS, OF_SETS
from util.metrics.pairs import MEAN
from util.metrics.statistics import Summary, describe
from util.report.runs import Run

COSTS = ("network_evaluations", "backward_passes", "seconds")       # without intervals
DASH = "\N{EN DASH}"

Cell = tuple[str, object, str, str]                 # text, what it is sorted by, small text below, class
Table = dict[str, object]                           # note, heads: (title, class, first order), rows: lists of cells


COLUMNS = [name for name in METRICS if name not in (*OF_SETS, *OF_RUNS) and not name.endswith("_input")]


def head(name: str) -> tuple[str, str, str]:
    """A column's title, which says what is better, class and first order."""
    metric = METRICS[name]
    return (metric.title + {1: "\N{NO-BREAK SPACE}↑", -1: "\N{NO-BREAK SPACE}↓", 0: ""}[metric.better], "",
            "ascending" if metric.better < 0 else "")


def digits(name: str, value: float) -> str:
    """A value as it is shown."""
    return DASH if math.isnan(value) else METRICS[name].words(value)


def score_table(runs: Sequence[Run]) -> Table:
    """Means with their 95 % intervals: the measurement's, then a line per method, the best of these in bold."""
    lines = [line for run in runs for mean in (False, True) if (line := _means(run, mean))]
    lines = [*[line for run in runs if (line := _baseline(run))][:1], *lines]
    columns = [c for c in COLUMNS if any(c in means for _, means, _ in lines)]
    best = {}
    for c in columns:
        better = METRICS[c].better
        known = [means[c]["mean"] for label, means, _ in lines if label != "measurement" and c in means]
        best[c] = better * max(better * mean for mean in known) if better and len(known) > 1 else None
    rows = [[_word(label), _word(images), *(_mean(c, means.get(c), best[c]) for c in columns)]
            for label, means, images in lines]
    return {"note": "Means over images, below them 95 % intervals (bootstrap over images); in bold the best mean.",
            "heads": [("method", "text", ""), ("images", "", ""), *map(head, columns)], "rows": rows}


def _means(run: Run, mean: bool) -> tuple[str, dict[str, Summary], int] | None:
    """Label, statistics of the columns that are known, and number of images: of the samples, or of their means."""
    rows = [row for row in run.rows if (row.sample == MEAN) is mean]
    label = f"{run.label}, mean of {len(run.of(rows[0].image)) - 1}" if rows and mean else run.label
    values = {c: [getattr(row, c) if row.ok else math.nan for row in rows] for c in COLUMNS}
    return _line(label, values, [row.image for row in rows])


def _baseline(run: Run) -> tuple[str, dict[str, Summary], int] | None:
    first = [run.of(image)[0] for image in run.images]
    values = {c: [getattr(row, f"{c}_input") for row in first] for c in ("psnr", "ssim")}
    return _line("measurement", values, run.images)


def _line(label: str, values: dict[str, list[float]], images: Sequence[str]
          ) -> tuple[str, dict[str, Summary], int] | None:
    described = {name: describe(column, images) for name, column in values.items()}
    known = {name: summary for name, summary in described.items() if summary["mean"] is not None}
    return (label, known, len(set(images))) if known else None


def _mean(name: str, summary: Summary | None, best: float | None) -> Cell:
    if summary is None:
        return DASH, "", "", ""
    interval = () if name in COSTS else summary["ci95"] or ()
    return (digits(name, summary["mean"]), repr(summary["mean"]), DASH.join(digits(name, end) for end in interval),
            "best" if summary["mean"] == best else "")


def image_table(runs: Sequence[Run]) -> Table:
    """A line per image, method and sample, as metrics.csv has them."""
    lines = [(run, row) for run in runs for row in run.rows]
    columns = [c for c in COLUMNS if any(not math.isnan(getattr(row, c)) for _, row in lines)]
    heads = [(word, "text", "") for word in ("image", "method", "sample", "status")]
    rows = [[*map(_word, (row.image, run.label, row.sample, row.status)),
             *(_number(c, getattr(row, c)) for c in columns)] for run, row in lines]
    return {"note": "As in metrics.csv.", "heads": [*heads, *map(head, columns)], "rows": rows}


def _word(text: object) -> Cell:
    return str(text), text, "", "" if isinstance(text, int) else "text"


def _number(name: str, value: float) -> Cell:
    order = "" if math.isnan(value) else f"{value:.6g}".replace("inf", "Infinity")
    return digits(name, value), order, "", ""
