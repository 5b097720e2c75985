"""A reproduced table as a picture: a panel per task and metric, or lines over the tasks' x, a panel per metric."""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from util.files import content_of
from util.metrics.names import metric_of
from util.reproduce_table.scores import Entry
from util.reproduce_table.spec import PaperTable

STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9,
         "axes.titlelocation": "left", "grid.alpha": 0.3}
ARROWS = {1: " (higher is better →)", -1: " (← lower is better)", 0: ""}
RATIO = 4                                           # of the largest figure to the smallest, from which axes are log
RATIOS = ("network_evaluations", "seconds")         # metrics that are compared by division
OURS = {"marker": "o", "markersize": 4, "capsize": 2, "lw": 1.2}
PAPER = {"marker": "D", "markersize": 5, "markerfacecolor": "none", "ls": "none"}


def draw(table: PaperTable, entries: Sequence[Entry]) -> bytes:
    """The picture as PNG: our figures as points with their 95 % intervals, the paper's as hollow diamonds."""
    import matplotlib
    from matplotlib.figure import Figure

    known = [entry for entry in entries if entry.cell.paper or not math.isnan(entry.score.value)]
    metrics = [metric for metric in table.spec.metrics if any(e.cell.metric == metric for e in known)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        if metrics:
            (_points if table.spec.plot == "bar" else _lines)(figure, table, known, metrics)
        figure.suptitle(table.spec.title, x=0.01, ha="left", fontsize=11)
        labelled = {label: handle for axes in figure.axes
                    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        if labelled:
            figure.legend(labelled.values(), labelled.keys(), loc="outside lower left", ncols=4, frameon=False)
        return content_of(partial(figure.savefig, format="png", dpi=200))


def scatter(table: PaperTable, entries: Sequence[Entry], x: str, y: str) -> bytes:
    """A point per method as PNG, with the Pareto front: two metrics relative to the reference, over the method's tasks.

    On an axis are the ratio to the reference, where metrics count time or evaluations, its geometric mean over tasks;
    else the mean difference.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    points = {name: (_relative(table, entries, x, name), _relative(table, entries, y, name)) for name in table.methods}
    points = {name: point for name, point in points.items() if all(map(math.isfinite, point))}
    signs = metric_of(x).better, metric_of(y).better
    front = _front(points.values(), signs)
    with rc_context(STYLE):
        figure = Figure(layout="constrained", figsize=(7.2, 4.6))
        axes = figure.subplots()
        axes.margins(0.2)                           # names and the arrow have room
        if front:
            axes.plot(*zip(*front, strict=True), color="#0072b2", lw=1, alpha=0.5, label="Pareto front")
            axes.legend(loc="lower left", frameon=False, fontsize=7)
        for point in points.values():
            axes.plot(*point, "o", ms=5, color="#0072b2" if point in front else "#888888")
        for axis, metric in ((axes.xaxis, x), (axes.yaxis, y)):
            what = "relative to" if metric in RATIOS else "minus that of"
            axis.set_label_text(f"{metric_of(metric).title} {what} {table.methods[table.spec.reference].title}")
        if x in RATIOS:
            _scale(axes.xaxis, [point[0] for point in points.values()])
        better = axes.annotate(
            "better", ((1 + signs[0]) / 2, (1 + signs[1]) / 2), (-40 * signs[0], -30 * signs[1]), ha="center",
            xycoords="axes fraction", textcoords="offset points", arrowprops={"arrowstyle": "->"}, fontsize=9)
        axes.grid()
        _label(axes, {table.methods[name].title: point for name, point in points.items()}, better)
        return content_of(partial(figure.savefig, format="png", dpi=110))


def _label(axes, points: Mapping[str, tuple[float, float]], *taken) -> None:
    """Names beside points, each where it covers no point, none of the texts `taken` and no other name, if it can, and
    within the axes, if it can do that, too."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()
    sides = {-1: ("right", "top"), 0: ("center", "center"), 1: ("left", "bottom")}
    places = [(reach * x, reach * y, sides[x][0], sides[y][1]) for reach in (3, 9)
              for x, y in ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))]
    boxes = [Text.get_window_extent(text) for text in taken]
    boxes += [Bbox([spot - 4, spot + 4]) for spot in axes.transData.transform(list(points.values()))]
    for name, point in points.items():
        tries = [axes.annotate(name, point, (x, y), ha=ha, va=va, textcoords="offset points", fontsize=7)
                 for x, y, ha, va in places]
        extents = [text.get_window_extent() for text in tries]
        hits = [(box.count_overlaps(boxes), not all(map(axes.bbox.contains, *box.get_points().T)))
                for box in extents]
        best = tries.pop(hits.index(min(hits)))
        boxes.append(best.get_window_extent())
        for text in tries:
            text.remove()


def _relative(table: PaperTable, entries: Sequence[Entry], metric: str, method: str) -> float:
    """A method's figure relative to the reference's over the tasks that both have; NaN where nothing compares."""
    values = {(e.cell.task, e.cell.method): e.score.value for e in entries if e.cell.metric == metric}
    pairs = [(values.get((task, method), math.nan), values.get((task, table.spec.reference), math.nan))
             for task in table.tasks]
    pairs = [pair for pair in pairs if not math.isnan(sum(pair)) and (metric not in RATIOS or min(pair) > 0)]
    if not pairs:
        return math.nan
    if metric in RATIOS:
        return math.exp(sum(math.log(own / reference) for own, reference in pairs) / len(pairs))
    return sum(own - reference for own, reference in pairs) / len(pairs)


def _front(points: Collection[tuple[float, float]], signs: tuple[int, int]) -> list[tuple[float, float]]:
    """Points than which no other is as good or better on both axes; `signs` are 1 where more is better, else -1."""
    def beats(other: tuple[float, float], own: tuple[float, float]) -> bool:
        return other != own and all(s * a >= s * b for s, a, b in zip(signs, other, own, strict=True))

    return sorted(point for point in points if not any(beats(other, point) for other in points))


def _points(figure, table: PaperTable, entries: Sequence[Entry], metrics: Sequence[str]) -> None:
    """A row of panels per task, a column per metric, a line in each per method; every panel has its own axis."""
    methods = [name for name in table.methods if any(e.cell.method == name for e in entries)]
    tasks = [name for name in table.tasks if any(e.cell.task == name for e in entries)]
    figure.set_size_inches(1.6 + 2.6 * len(metrics), 0.9 + (0.55 + 0.19 * len(methods)) * len(tasks))
    panels = figure.subplots(len(tasks), len(metrics), squeeze=False, sharey=True)
    for row, task in zip(panels, tasks, strict=True):
        for axes, metric in zip(row, metrics, strict=True):
            own = [e for e in entries if (e.cell.task, e.cell.metric) == (task, metric)]
            for entry in own:
                y = methods.index(entry.cell.method)
                if entry.cell.paper:
                    axes.plot(entry.cell.paper.value, y, color="#666666", label="paper", **PAPER)
                if not math.isnan(entry.score.value):
                    axes.errorbar(entry.score.value, y, xerr=_error(entry), color="#0072b2",
                                  label="ours, 95 % interval", **OURS)
            _scale(axes.xaxis, [v for e in own for v in (e.score.value, e.cell.paper and e.cell.paper.value)])
            axes.set_ylim(len(methods) - 0.5, -0.5)
            axes.set_yticks(range(len(methods)), [table.methods[name].title for name in methods])
            axes.grid(axis="x")
            axes.set_title(table.tasks[task].title if metric == metrics[0] else "")
            if task == tasks[-1]:
                axes.set_xlabel(metric_of(metric).title + ARROWS[metric_of(metric).better])


def _scale(axis, values: Sequence[float | None]) -> None:
    """A few round numbers; a logarithmic axis where figures differ by much."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    found = [v for v in values if v is not None and math.isfinite(v)]
    wide = found and min(found) > 0 and max(found) / min(found) > RATIO
    if wide:
        axis.axes.set_xscale("log")
        axis.set(minor_locator=NullLocator(), major_formatter=FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(4))


def _lines(figure, table: PaperTable, entries: Sequence[Entry], metrics: Sequence[str]) -> None:
    """A panel per metric, a line per method over the tasks' x."""
    rows, columns = math.ceil(len(metrics) / 2), min(2, len(metrics))
    figure.set_size_inches(4.6 * columns, 0.7 + 2.8 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, metric in zip(panels, metrics, strict=False):
        for number, name in enumerate(table.methods):
            own = sorted((e for e in entries if (e.cell.method, e.cell.metric) == (name, metric)),
                         key=lambda e: table.tasks[e.cell.task].x)
            ours, paper = [e for e in own if not math.isnan(e.score.value)], [e for e in own if e.cell.paper]
            if ours:
                errors = [[_error(e)[side][0] for e in ours] for side in (0, 1)]
                axes.errorbar([table.tasks[e.cell.task].x for e in ours], [e.score.value for e in ours], yerr=errors,
                              color=f"C{number}", label=table.methods[name].title, **OURS)
            if paper:
                axes.plot([table.tasks[e.cell.task].x for e in paper], [e.cell.paper.value for e in paper],
                          color=f"C{number}", label=f"{table.methods[name].title} (paper)", **PAPER)
        if table.spec.log_x:
            axes.set_xscale("log")
        ticks = [task.x for task in table.tasks.values()]
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
        axes.set(xlabel=table.spec.x_label, title=metric_of(metric).heading)
        axes.grid()
    for axes in list(panels)[len(metrics):]:
        axes.set_visible(False)


def _error(entry: Entry) -> list[list[float]]:
    """Lengths of the whiskers below and above, as matplotlib takes them; none without an interval."""
    value, low, high = entry.score.value, entry.score.low, entry.score.high
    return [[0.0], [0.0]] if math.isnan(low) else [[max(0.0, value - low)], [max(0.0, high - value)]]
