"""A reproduced table as a picture: bars (a group per task) or lines (over the tasks' x), a panel per metric."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

from util.img_utils import write_atomically
from util.reproduce_table.spec import METRICS, PaperTable
from util.reproduce_table.text import Entry

PANEL = (6.4, 3.9)                                  # inches
PAPER_GREY = "#bdbdbd"


def draw(table: PaperTable, entries: Sequence[Entry], path: Path) -> None:
    """Write the picture as PNG; the paper's figures are grey (bars) or hollow (lines), ours coloured with intervals."""
    import matplotlib
    from matplotlib.figure import Figure

    shown = [metric for metric in table.spec.metrics if any(
        e.cell.metric == metric and (e.cell.paper or e.score and not math.isnan(e.score.value)) for e in entries)]
    bars = table.spec.plot == "bar"
    columns = min(1 if bars else 2, max(1, len(shown)))
    rows = math.ceil(len(shown) / columns) or 1
    width = _bar_width(table, entries) if bars else PANEL[0] * columns
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(width, PANEL[1] * rows + 0.9), layout="constrained")
        figure.suptitle(table.spec.title, fontsize=11)
        methods = [name for name in table.methods if any(e.cell.method == name for e in entries)]
        colours = {name: f"C{i}" for i, name in enumerate(
            [m for m in methods if any(e.cell.method == m and e.job for e in entries)])}
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for axis, metric in zip(axes, shown, strict=False):
            own = [entry for entry in entries if entry.cell.metric == metric]
            (_bars if bars else _lines)(axis, table, own, methods, colours)
            axis.set_title(METRICS[metric].title, fontsize=10)
        for axis in figure.axes[len(shown):]:
            axis.set_visible(False)
        if not bars and shown:
            labelled = {label: handle for axis in figure.axes[:len(shown)]
                        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
            figure.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=4, frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
    write_atomically(path, buffer.getvalue())


def _bar_width(table: PaperTable, entries: Sequence[Entry]) -> float:
    slots = len({(e.cell.task, e.cell.method) for e in entries}) + len(table.tasks)
    return min(16.0, max(PANEL[0], 0.28 * slots + 2))


def _bars(axis, table: PaperTable, entries: Sequence[Entry], methods: Sequence[str], colours: dict[str, str]) -> None:
    """A group per task, in it a slot per method: the paper's bar wide and grey, ours narrow in front of it."""
    position, ticks = 0, {}
    from matplotlib.patches import Patch

    for task in table.tasks:
        group = {entry.cell.method: entry for entry in entries if entry.cell.task == task}
        places = range(position, position + len(group))
        for x, method in zip(places, [m for m in methods if m in group], strict=True):
            entry = group[method]
            if entry.cell.paper:
                axis.bar(x, entry.cell.paper.value, 0.86, color=PAPER_GREY, zorder=1)
            if entry.score and not math.isnan(entry.score.value):
                axis.bar(x, entry.score.value, 0.5, color=colours[method], zorder=2, yerr=_error(entry),
                         error_kw={"capsize": 2, "lw": 1})
            if not entry.job:
                axis.annotate(table.methods[method].title, (x, 0), (0, 2), textcoords="offset points", rotation=90,
                              ha="center", va="bottom", fontsize=6.5, color="#444444")
        if group:
            ticks[(places[0] + places[-1]) / 2] = table.tasks[task].title
        position += len(group) + 1
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.tick_params(axis="x", length=0)
    handles = [Patch(color=colour, label=table.methods[method].title) for method, colour in colours.items()]
    if any(entry.cell.paper for entry in entries):
        handles.append(Patch(color=PAPER_GREY, label="paper"))
    axis.legend(handles=handles, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _lines(axis, table: PaperTable, entries: Sequence[Entry], methods: Sequence[str], colours: dict[str, str]) -> None:
    """A line per method over the tasks' x, the 95 % interval as whiskers; hollow squares are the paper's."""
    for method in methods:
        own = sorted((e for e in entries if e.cell.method == method), key=lambda e: table.tasks[e.cell.task].x)
        ours = [entry for entry in own if entry.score and not math.isnan(entry.score.value)]
        colour, name = colours.get(method, "#888888"), table.methods[method].title
        if ours:
            errors = [[pair[side][0] if (pair := _error(e)) else 0.0 for e in ours] for side in (0, 1)]
            axis.errorbar([table.tasks[e.cell.task].x for e in ours], [e.score.value for e in ours], yerr=errors,
                          marker="o", markersize=4, capsize=2, lw=1.2, color=colour, label=name)
        paper = [entry for entry in own if entry.cell.paper]
        if paper:
            axis.plot([table.tasks[e.cell.task].x for e in paper], [e.cell.paper.value for e in paper], "s",
                      markersize=7, markerfacecolor="none", color=colour, label=f"{name} (paper)")
    if table.spec.log_x:
        axis.set_xscale("log")
    ticks = {task.x: task.title for task in table.tasks.values()}
    axis.set_xticks(list(ticks), [f"{x:g}" for x in ticks])
    axis.minorticks_off()
    axis.set_xlabel(table.spec.x_label)
    axis.grid(alpha=0.25)


def _error(entry: Entry) -> list[list[float]] | None:
    """Lengths of the whiskers below and above, as matplotlib takes them; None without an interval."""
    value, low, high = entry.score.value, entry.score.low, entry.score.high
    return None if math.isnan(low) else [[max(0.0, value - low)], [max(0.0, high - value)]]
