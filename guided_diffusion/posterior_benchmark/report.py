"""What was found, as a table, JSON and plots."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from guided_diffusion.posterior_benchmark.scores import Scores
from util.files import content_of, write_atomically
from util.logger import aligned

COLUMNS = ("bias", "variance", "sliced W2", "MMD^2", "cover 50", "cover 90", "cover 95", "chi-square", "modes", "evals")
PANEL = 2.6                                         # inches
LINES, MARKERS = ("-", "--", ":", "-."), "os^D"     # after ten colours, the next style


@dataclass(frozen=True)
class Row:
    """One line: a method on a problem; without scores where its samples are not finite."""

    problem: str
    method: str
    steps: int | str
    evaluations: int
    seconds: float
    scores: Scores | None

    @classmethod
    def read(cls, tree: dict) -> "Row":
        """From `asdict`, as JSON gives it back."""
        scores = tree["scores"]
        if scores is not None:
            scores = Scores(**{**scores, "coverage": {float(k): v for k, v in scores["coverage"].items()}})
        return cls(**{**tree, "scores": scores})

    @property
    def title(self) -> str:
        """The method, and its steps."""
        return f"{self.method} ({self.steps})"


def cells(row: Row) -> list[str]:
    """The numbers of a line, in the order of COLUMNS."""
    s = row.scores
    if s is None:
        return ["diverged", *[""] * (len(COLUMNS) - 2), str(row.evaluations)]
    return [f"{s.bias:.2f}", f"{s.variance_ratio:.3g}", f"{s.sliced_w2:.2f} +- {s.sliced_w2_error:.2f}",
            f"{s.mmd:.3f} +- {s.mmd_error:.3f}", *(f"{100 * s.coverage[level]:.0f} %" for level in (0.5, 0.9, 0.95)),
            f"{s.chi_square:.3g}", "" if s.mode_error is None else f"{s.mode_error:.2f}", str(row.evaluations)]


def table(rows: Sequence[Row]) -> str:
    """A table for each problem, as text."""
    parts = []
    for problem in dict.fromkeys(row.problem for row in rows):
        lines = [["method (steps)", *COLUMNS], *([row.title, *cells(row)] for row in rows if row.problem == problem)]
        parts.append("\n".join([problem, *aligned(lines)]))
    return "\n\n".join(parts)


def write_json(settings: dict[str, object], rows: Sequence[Row], path: Path) -> None:
    """Settings and rows, from which a benchmark continues."""
    write_atomically(path, json.dumps({"settings": settings, "rows": [asdict(row) for row in rows]}, indent=1).encode())


def draw_calibration(rows: Sequence[Row], path: Path) -> None:
    """Coverage against level, a panel per problem; the diagonal is calibrated."""
    styles = _styles([row.title for row in rows])

    def panel(axis, own: Sequence[Row]) -> None:
        axis.plot([0, 1], [0, 1], color="#999999", lw=0.8)
        for row in own:
            axis.plot(list(row.scores.coverage), list(row.scores.coverage.values()), lw=1.2, label=row.title,
                      **styles[row.title])
        axis.set(xlabel="credible level", ylabel="probability under the posterior")

    _panels(rows, panel, path)


ACROSS = ("exact", "unconditional")                 # lines across the distances, whatever they cost


def draw_distances(rows: Sequence[Row], path: Path) -> None:
    """Sliced Wasserstein distance against network evaluations, a panel per problem; `exact` and `unconditional` are
    lines."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    styles = _styles([row.method for row in rows], MARKERS)

    def panel(axis, own: Sequence[Row]) -> None:
        for name in dict.fromkeys(row.method for row in own):
            line = sorted((row.evaluations, row.scores.sliced_w2) for row in own if row.method == name)
            if name in ACROSS:
                axis.axhline(line[-1][1], color="#999999", ls="-" if name == "exact" else ":", lw=1)
            else:
                axis.plot(*zip(*line, strict=True), ms=3, lw=1, label=name, **styles[name])
        axis.set(yscale="log", xlabel="network evaluations", ylabel="sliced W2")
        if any(row.evaluations for row in own if row.method not in ACROSS):      # classical restorers have none
            axis.set_xscale("log")
            axis.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(),
                           major_formatter=StrMethodFormatter("{x:g}"))

    _panels(rows, panel, path)


def draw_samples(exact: np.ndarray, samples: dict[str, np.ndarray], title: str, path: Path) -> None:
    """Samples (n, 2) in the plane, exact ones grey below those of each method."""
    from matplotlib.figure import Figure

    columns = min(4, len(samples))
    lines = -(-len(samples) // columns)
    figure = Figure(figsize=(PANEL * columns, PANEL * lines + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = list(figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axis, (name, points) in zip(axes, samples.items(), strict=False):
        axis.scatter(*exact.T, s=3, color="#bbbbbb", lw=0)
        axis.scatter(*points.T, s=3, color="C0", lw=0)
        axis.set_title(name, fontsize=8)
        axis.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6))
    for axis in axes[len(samples):]:
        axis.set_visible(False)
    _save(figure, path)


def _styles(names: Sequence[str], markers: Sequence[str] = ("",)) -> dict[str, dict[str, str]]:
    """Name -> colour, style and marker of its lines, the same in every panel."""
    return {name: {"color": f"C{i % 10}", "ls": LINES[i // 10 % len(LINES)], "marker": markers[i // 10 % len(markers)]}
            for i, name in enumerate(dict.fromkeys(names))}


def _panels(rows: Sequence[Row], panel, path: Path) -> None:
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.scores]
    names = list(dict.fromkeys(row.problem for row in rows))
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(1.5 * PANEL * columns, 1.3 * PANEL * lines), layout="constrained")
    for axis, name in zip(figure.subplots(lines, columns, squeeze=False).flat, names, strict=False):
        panel(axis, [row for row in rows if row.problem == name])
        axis.set_title(name, fontsize=8)
    handles = {label: handle for axis in figure.axes
               for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=7, frameon=False)
    for axis in figure.axes[len(names):]:
        axis.set_visible(False)
    _save(figure, path)


def _save(figure, path: Path) -> None:
    write_atomically(path, content_of(partial(figure.savefig, format="png", dpi=130)))
