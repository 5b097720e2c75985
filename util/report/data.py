"""What a report tells of: the runs below a results folder, read as they are, finished or not."""

import csv
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from util.command import user_path
from util.config.config import leaves, read_yaml
from util.errors import UserError
from util.logger import get_logger
from util.metrics.pairs import MEAN
from util.run.layout import is_file_name

OK = ("", "ok")                                     # states of a row that needs no remark
BAND = (10, 90)                                     # percentiles between which a trajectory's band lies

Cells = dict[str, str]


@dataclass(frozen=True)
class Curve:
    """The measurement distance on the way: its mean over images and samples and its band at every step, (n,) each."""

    steps: np.ndarray                               # falling, the last step is 0
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Run:
    """The folder of one run."""

    path: Path
    task: str                                       # the folders between the results folder and the method's
    method: str
    rows: list[Cells]                               # of metrics.csv, as text
    config: dict[str, object]
    facts: dict[str, object]                        # of summary.json; empty where the run has not come to its end

    @property
    def images(self) -> list[str]:
        """Names of the finished images, in order."""
        return list(dict.fromkeys(row["image"] for row in self.rows))

    def of(self, image: str) -> list[Cells]:
        """The rows of an image."""
        return [row for row in self.rows if row["image"] == image]

    def shown(self, image: str) -> Cells | None:
        """The row of the restoration to show: of several samples, the one that fits its measurement best."""
        own = self.of(image)
        return next((row for row in own if number(row, "best") == 1), own[0]) if own else None

    def file(self, folder: str, image: str, sample: str | None = None) -> Path:
        """Where a picture of an image lies; with `sample`, in recon/."""
        several = sample is not None and len(self.of(image)) > 1
        return self.path / folder / f"{image}_{sample}.png" if several else self.path / folder / f"{image}.png"

    def values(self, column: str, mean: bool) -> list[float]:
        """A column's values: of the means of samples, or of the samples."""
        return [number(row, column) for row in self.rows if (row["sample"] == MEAN) is mean]


def number(cells: Cells, column: str) -> float:
    """A cell's value; NaN where it is empty, absent or no number."""
    try:
        return float(cells.get(column) or "nan")
    except ValueError:
        return math.nan


def remark(cells: Cells) -> str:
    """What is to be said of a row that is not as it should be, such as "diverged at step 7"."""
    status = cells.get("status", "")
    return "" if status in OK else status


def find_runs(results: str | Path) -> list[Run]:
    """The runs at or below a folder, by path; a run is a folder that holds metrics.csv or config.yaml.

    Raises:
        UserError: there is no such folder, it holds no run, or a file of a run cannot be read.
    """
    folder = user_path(results)
    if not folder.is_dir():
        raise UserError(f"results folder '{results}' {'is a file' if folder.exists() else 'not found'}; expected the "
                        "folder that sample_condition.py wrote to (--save_dir)")
    paths = []
    for path, folders, files in os.walk(folder):
        folders.sort()
        if "metrics.csv" in files or "config.yaml" in files:
            paths.append(Path(path))
            folders.clear()
    if not paths:
        raise UserError(f"results folder '{results}' holds no run; expected <operator>/<method>/metrics.csv below it")
    return [_read_run(path, folder) for path in paths]


def _read_run(path: Path, results: Path) -> Run:
    whole = path.resolve()
    parts = path.relative_to(results).parts
    task = "/".join(parts[:-1]) if len(parts) > 1 else whole.parent.name if not parts else results.resolve().name
    config = path / "config.yaml"
    return Run(path, task, whole.name, _read_rows(path / "metrics.csv"),
               read_yaml(config.absolute()) if config.is_file() else {}, _read_facts(path / "summary.json"))


def _read_rows(path: Path) -> list[Cells]:
    if not path.is_file():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if any(None in row or None in row.values() or not is_file_name(row["image"]) or not is_file_name(row["sample"])
               for row in rows):
            raise ValueError
    except (OSError, KeyError, ValueError, csv.Error):
        raise UserError(f"{path} is not the table of a run; move it away, or run with --overwrite") from None
    return rows


def _read_facts(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        get_logger().warning(f"{path} is damaged and left out; the run's own command writes it anew")
        return {}
    return facts


def read_curve(run: Run, images: Sequence[str]) -> Curve | None:
    """The run's trajectories of the measurement distance, all samples of `images` together; None if there are none.

    Only positive, finite distances count.
    """
    found: dict[int, list[float]] = {}
    for image in images:
        file = run.path / "trajectories" / f"{image}.csv"
        if not file.is_file():
            continue
        try:
            for step, *values in list(csv.reader(file.read_text(encoding="utf-8").splitlines()))[1:]:
                found.setdefault(int(step), []).extend(float(value or "nan") for value in values)
        except (OSError, ValueError, csv.Error):
            get_logger().warning(f"{file} is no trajectory of a run; left out")
    positive = {step: [v for v in values if math.isfinite(v) and v > 0] for step, values in found.items()}
    steps = sorted((step for step, values in positive.items() if values), reverse=True)
    if len(steps) < 2:
        return None
    mean, low, high = zip(*((np.mean(positive[s]), *np.percentile(positive[s], BAND)) for s in steps), strict=True)
    return Curve(*map(np.array, (steps, mean, low, high)))


def flatten(tree: dict[str, object]) -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    return {".".join(key): value for key, value in leaves(tree).items()}


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Key -> the value in each run, for every setting in which the runs differ; the method's own are left out."""
    flat = [flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings if not key.startswith("conditioning."))
    values = {key: [str(settings.get(key, "unset")) for settings in flat] for key in keys}
    return {key: found for key, found in values.items() if len(set(found)) > 1}
