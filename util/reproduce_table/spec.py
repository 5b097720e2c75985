"""A paper's table as a YAML file: the printed figures, where they stand, and which run reproduces each of them.

    title, note, metrics, plot          what is shown
    model_config, diffusion_config      the prior of all tasks; by default what each task's file names, or the demo's
    data, set, limit, num_samples       defaults of every run
    tasks: name -> TaskSpec             columns, or points of a line; each names the task file that it runs
    methods: name -> MethodSpec         rows; one without `method` is not implemented here and shows the paper's figures
    paper: [PaperSpec, ...]             the printed figures in their printed order
    reference: the method that all others are compared with, image by image
    scatter: [[x, y], ...]              metrics: a picture y_against_x.png each, relative to `reference`
"""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from util.config.config import Config, load_config, read_yaml
from util.config.registry import Count, NonNegative, check_arguments
from util.errors import UserError, did_you_mean
from util.metrics.names import METRICS, SHORT, metric_of

SETTINGS = "{settings}"                             # in the config of a task: those of the method
FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


@dataclass(frozen=True)
class TaskSpec:
    """A measurement: `config` is its task file, `set` changes it, `x` is its place on the axis of a line plot.

    "{settings}" in `config` stands for the `settings` of the method, so that one method can run with several.
    """

    title: str
    config: str
    x: float | None = None
    set: Sequence[str] = ()


@dataclass(frozen=True)
class MethodSpec:
    """A row. `method` and `params` are those of `conditioning`; without `params` the task file's own hold.

    `params_of` changes some of `params`, or adds some, for the tasks that it names, `tasks` restricts the row to some,
    `compare_with` names the row of the paper that it is held against.
    """

    title: str
    method: str | None = None
    params: dict | None = None
    params_of: dict | None = None
    settings: str | None = None
    set: Sequence[str] = ()
    tasks: Sequence[str] | None = None
    compare_with: str | None = None


@dataclass(frozen=True)
class PaperSpec:
    """A printed table: `rows` maps our name of a method to a RowSpec, whose values run over `tasks`, then `metrics`."""

    source: str
    tasks: Sequence[str]
    metrics: Sequence[str]
    rows: dict


@dataclass(frozen=True)
class RowSpec:
    """A printed row: its name in the paper, its figures (null where none is printed), their printed +- if any."""

    row: str
    values: Sequence[float | None]
    std: Sequence[NonNegative | None] | None = None


@dataclass(frozen=True)
class TableSpec:
    """The top level of the file."""

    title: str
    metrics: Sequence[str]
    tasks: dict
    methods: dict
    model_config: str | None = None
    diffusion_config: str | None = None
    paper: Sequence[dict] = ()
    note: str = ""
    plot: Literal["bar", "line"] = "bar"
    x_label: str = ""
    log_x: bool = False
    data: str | None = None
    limit: Count | None = None
    num_samples: Count = 1
    set: Sequence[str] = ()
    reference: str | None = None
    scatter: Sequence[list] = ()


@dataclass(frozen=True)
class Figure:
    """A printed figure, its printed +- (None if there is none), and where it stands."""

    value: float
    std: float | None
    source: str


@dataclass(frozen=True)
class Run:
    """A task by a method, as options of the command line; None for the default."""

    task: str
    method: str
    model_config: str | None
    diffusion_config: str | None
    task_config: str
    overrides: tuple[str, ...]

    def options(self) -> list[str]:
        """The options that say what is run."""
        files = {"model_config": self.model_config, "diffusion_config": self.diffusion_config,
                 "task_config": self.task_config}
        return [part for name, file in files.items() if file is not None for part in (f"--{name}", file)] + [
            part for override in self.overrides for part in ("--set", override)]

    def load(self, data: str | None = None) -> Config:
        """The resolved configuration; UserError if a file or an override is wrong."""
        return load_config(**self.arguments(data))

    def arguments(self, data: str | None = None) -> dict[str, object]:
        """Those of `load_config`."""
        return {"model_config": self.model_config, "diffusion_config": self.diffusion_config,
                "task_config": self.task_config, "overrides": self.overrides, "data": data}


@dataclass(frozen=True)
class Cell:
    """A place in the table: what the paper prints there and which run of ours belongs there, where there is one."""

    metric: str
    task: str
    method: str
    paper: Figure | None
    run: Run | None


@dataclass(frozen=True)
class PaperTable:
    """A table ready to be reproduced; `runs` in the order in which they are run."""

    name: str
    spec: TableSpec
    tasks: dict[str, TaskSpec]
    methods: dict[str, MethodSpec]
    runs: tuple[Run, ...]
    cells: tuple[Cell, ...]

    def title(self, place: Run | Cell) -> str:
        """Words for a run or a cell: its task and its method."""
        return f"{self.tasks[place.task].title}, {self.methods[place.method].title}"


def load_table(path: str | Path, only: Sequence[str] | None = None, overrides: Sequence[str] = (),
               only_tasks: Sequence[str] | None = None) -> PaperTable:
    """Read and check a table.

    Args:
        only: the methods to run; None for all that can be.
        overrides: changes of the configuration of every run.
        only_tasks: the tasks to run; None for all.

    Raises:
        UserError: the file is missing or no YAML; a key, name or value in it is unknown, missing or of the wrong type;
            one of `only` cannot be run, or one of `only_tasks` is unknown.
    """
    spec = _build(TableSpec, read_yaml(path, "table"), str(path))
    tasks = {name: _build(TaskSpec, entry, f"{path}: tasks.{name}") for name, entry in spec.tasks.items()}
    methods = {name: _build(MethodSpec, entry, f"{path}: methods.{name}") for name, entry in spec.methods.items()}
    _check(spec, tasks, methods, str(path))
    figures: dict[tuple[str, str, str], Figure] = {}
    for i, entry in enumerate(spec.paper):
        printed = _figures(entry, tasks, methods, f"{path}: paper[{i}]")
        if twice := sorted(printed.keys() & figures.keys()):
            raise UserError(f"{path}: paper[{i}] prints {', '.join(twice[0])} once more, after "
                            f"{figures[twice[0]].source}; keep one, or give this one a method of its own")
        figures |= printed
    runnable = _runnable(methods)
    for name in only or ():
        if name not in runnable:
            what = "is not implemented here, the table has the paper's figures only" if name in methods else (
                "is no method of this table")
            raise UserError(f"--methods: '{name}' {what}; {did_you_mean(name, runnable)}")
    _check_names(only_tasks or (), tasks, "--tasks")
    runs = {(task, method): _run(spec, task, tasks[task], method, methods[method], overrides, str(path))
            for task in tasks if task in (only_tasks or tasks) for method in runnable
            if method in (only or runnable) and task in (methods[method].tasks or tasks)}
    cells = [Cell(metric, task, method,
                  figures.get((SHORT.get(metric, metric), task, methods[method].compare_with or method)),
                  runs.get((task, method)))
             for metric in spec.metrics for task in tasks for method in methods]
    cells = [cell for cell in cells if cell.run or cell.paper and not methods[cell.method].compare_with]
    if not cells:
        raise UserError(f"{path}: nothing to show: no method of these has a `method` to run in these tasks, and paper "
                        "has no figures of these metrics")
    return PaperTable(Path(path).stem, spec, tasks, methods, tuple(runs.values()), tuple(cells))


def _build(cls: type, entry: object, where: str):
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {entry!r:.60}, expected a mapping with {', '.join(f.name for f in fields(cls))}")
    check_arguments(cls, entry, where)
    return cls(**entry)


def _runnable(methods: dict[str, MethodSpec]) -> list[str]:
    return [name for name, method in methods.items() if method.method is not None]


def _check(spec: TableSpec, tasks: dict[str, TaskSpec], methods: dict[str, MethodSpec], path: str) -> None:
    if not spec.metrics:
        raise UserError(f"{path}: metrics is empty; name some, such as [psnr, ssim]")
    _check_names(spec.metrics, (*METRICS, *SHORT), f"{path}: metrics")
    _check_distinct({name: metric_of(name).title for name in spec.metrics}, f"{path}: metrics")
    _check_names([spec.reference] if spec.reference is not None else (), _runnable(methods), f"{path}: reference")
    if "relative_seconds" in spec.metrics and not spec.reference:
        raise UserError(f"{path}: relative_seconds are those of a run over the reference's; name a reference")
    for axes in spec.scatter:
        _check_names(axes, spec.metrics, f"{path}: scatter")
        if len(axes) != 2 or not spec.reference:
            raise UserError(f"{path}: scatter takes pairs of metrics, [x, y], and a reference, found {axes}")
        if neither := [name for name in axes if not metric_of(name).better]:
            raise UserError(f"{path}: scatter: of {neither[0]} neither more nor less is better; choose other metrics")
    for name in (*tasks, *methods):
        if not FOLDER_NAME.fullmatch(str(name)):
            raise UserError(f"{path}: '{name}' names a folder; expected letters, digits, and inside also . _ + -")
    for kind, entries in (("tasks", tasks), ("methods", methods)):
        _check_distinct({name: entry.title for name, entry in entries.items()}, f"{path}: {kind}")
    for name, method in methods.items():
        _check_method(method, tasks, methods, f"{path}: methods.{name}")
    for name, task in tasks.items():
        if spec.plot == "line" and (task.x is None or spec.log_x and task.x <= 0):
            raise UserError(f"{path}: tasks.{name}.x is {task.x}, a line plot needs a number, positive with log_x")
    if spec.plot != "line" and (spec.log_x or spec.x_label):
        raise UserError(f"{path}: x_label and log_x are for plot: line, found plot: {spec.plot}")


def _check_method(method: MethodSpec, tasks: dict[str, TaskSpec], methods: dict[str, MethodSpec], where: str) -> None:
    if method.tasks is not None and not method.tasks:
        raise UserError(f"{where}.tasks is empty; leave it out for all tasks")
    _check_names(method.tasks or (), tasks, f"{where}.tasks")
    _check_names(method.params_of or (), method.tasks or tasks, f"{where}.params_of")
    for task, params in (method.params_of or {}).items():
        if not isinstance(params, dict):
            raise UserError(f"{where}.params_of.{task} is {params!r:.60}, expected a mapping (key: value)")
    _check_names([method.compare_with] if method.compare_with is not None else (), methods, f"{where}.compare_with")
    if method.settings is not None and not any(SETTINGS in tasks[name].config for name in method.tasks or tasks):
        raise UserError(f"{where}.settings is '{method.settings}', and no config of its tasks has {SETTINGS} in its "
                        "place")


def _check_distinct(titles: dict[str, str], where: str) -> None:
    """UserError where two have the same title, or one is none: rows, columns and legends are known by them."""
    for name, title in titles.items():
        if not title.strip() or not title.isprintable():
            raise UserError(f"{where}.{name}: title is {title!r:.60}, expected a line of text")
    known = list(titles.values())
    for number, (name, title) in enumerate(titles.items()):
        if title in known[:number]:
            raise UserError(f"{where}: {list(titles)[known.index(title)]} and {name} are both called '{title}'; give "
                            "each a name of its own")


def _check_names(names: Sequence[str], known: Collection[str], where: str) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"{where}: unknown name '{name}'; {did_you_mean(name, known)}")


def _figures(entry: dict, tasks: dict, methods: dict, where: str) -> dict[tuple[str, str, str], Figure]:
    """(metric, task, method) -> figure of one printed table."""
    printed = _build(PaperSpec, entry, where)
    for key, known in (("tasks", tasks), ("metrics", (*METRICS, *SHORT)), ("rows", methods)):
        _check_names(getattr(printed, key), known, f"{where}.{key}")
    for key in ("tasks", "metrics"):
        if twice := [name for name, times in Counter(getattr(printed, key)).items() if times > 1]:
            raise UserError(f"{where}.{key}: '{twice[0]}' stands twice")
    places = [(SHORT.get(metric, metric), task) for task in printed.tasks for metric in printed.metrics]
    figures = {}
    for method, content in printed.rows.items():
        row = _build(RowSpec, content, f"{where}.rows.{method}")
        std = row.std or [None] * len(row.values)
        if {len(row.values), len(std)} != {len(places)}:
            raise UserError(f"{where}.rows.{method}: {len(row.values)} values and {len(std)} std, expected "
                            f"{len(places)}: {len(printed.tasks)} tasks with {len(printed.metrics)} metrics each")
        figures |= {(metric, task, method): Figure(value, deviation, f"{printed.source}, row {row.row}")
                    for (metric, task), value, deviation in zip(places, row.values, std, strict=True)
                    if value is not None and math.isfinite(value)}
    return figures


def _run(spec: TableSpec, name: str, task: TaskSpec, method_name: str, method: MethodSpec, changes: Sequence[str],
         path: str) -> Run:
    if SETTINGS in task.config and method.settings is None:
        raise UserError(f"{path}: methods.{method_name} needs settings, which tasks.{name}.config names")
    params = method.params
    if method.params_of and name in method.params_of:
        params = {**(params or {}), **method.params_of[name]}
    overrides = [*spec.set, *task.set, f"conditioning.method={method.method}"]
    overrides += [f"conditioning.params={json.dumps(params)}"] if params is not None else []
    return Run(name, method_name, spec.model_config, spec.diffusion_config,
               task.config.replace(SETTINGS, method.settings or ""), (*overrides, *method.set, *changes))
