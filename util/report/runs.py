"""What a report tells of: runs, finished or not, what each is called, and which of them had the same measurements."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from util.command import user_path
from util.config.config import Key, leaves
from util.errors import UserError
from util.logger import logger
from util.run.config_file import read_settings
from util.run.layout import CONFIG, SUMMARY, TABLE, file_of
from util.run.table import Row, read_summary, read_table, read_trajectories

ACRONYMS = ("dpps", "mcg", "ddrm", "ddnm", "ilvr", "daps", "dcps", "sitcom", "tmpd", "dsg", "dmps", "hio", "oss", "er")
TITLES = {**{name: name.upper() for name in ACRONYMS}, "ps": "DPS", "ps+": "DPS+", "projection": "Score-SDE",
          "vanilla": "Prior alone", "lift": "Lifted", "pinv": "Pseudo-inverse", "diffpir": "DiffPIR", "pigdm": "PiGDM",
          "red_diff": "RED-diff", "fast_dips": "FAST-DIPS", "mcgdiff": "MCGdiff", "fps_smc": "FPS-SMC",
          "pnp_dm": "PnP-DM", "pnp_admm": "PnP-ADMM", "admm_tv": "ADMM-TV"}     # of methods; others by their names
MEASURED = ("data", "measurement", "seed")          # the settings that make a task
NETWORK = ("model", "diffusion", "precision", "tile", "checkpoint")     # those that only methods with a network have
BAND = (10, 90)                                     # percentiles between which a trajectory's band lies
FEW = 3                                             # settings in a label


@dataclass(frozen=True)
class Run:
    """The folder of one run; `facts` is its summary.json, empty while it has not come to its end."""

    path: Path
    label: str
    rows: Sequence[Row]
    config: Mapping[str, object]
    facts: Mapping[str, object]

    @property
    def images(self) -> list[str]:
        """Names of the finished images, in order."""
        return list(dict.fromkeys(row.image for row in self.rows))

    def of(self, image: str) -> list[Row]:
        """The rows of an image."""
        return [row for row in self.rows if row.image == image]

    def shown(self, image: str) -> Row | None:
        """The row of the restoration to show: of several samples, the one that fits its measurement best."""
        own = self.of(image)
        return next((row for row in own if row.best == 1), own[0] if own else None)

    def picture(self, row: Row) -> Path:
        """Where a restoration lies."""
        return file_of(self.path, "recon", row.image, row.sample if len(self.of(row.image)) > 1 else None)

    @property
    def settings(self) -> dict[Key, object]:
        """The leaves of its configuration; without those that a method without a network has no use for."""
        found = leaves(self.config)
        return found if "checkpoint" in self.config else {
            key: value for key, value in found.items() if key[0] not in NETWORK}


@dataclass(frozen=True)
class Task:
    """What was measured, and the runs that restored it."""

    title: str
    runs: Sequence[Run]


def find_runs(folders: Sequence[str], labels: Sequence[str] = ()) -> tuple[list[Run], list[UserError]]:
    """The runs at or below folders, in the order given, below each by path; and what is wrong with those left out.

    Args:
        labels: "folder=name" texts: what runs at or below a folder are called, in place of the method.

    Raises:
        UserError: there is no such folder, it holds no run, or all that it holds are damaged.
    """
    found: dict[Path, Run] = {}
    damaged: dict[Path, UserError] = {}
    names = dict(map(_split_label, labels))
    for folder in folders:
        top = user_path(folder)
        if not top.is_dir():
            raise UserError(f"results folder '{folder}' {'is a file' if top.exists() else 'not found'}; expected the "
                            "folder that sample_condition.py wrote to (--save_dir)")
        paths = sorted({file.parent for name in (TABLE, CONFIG) for file in top.rglob(name)})
        if not paths:
            raise UserError(f"results folder '{folder}' holds no run; expected <operator>/<method>/metrics.csv below "
                            "it")
        for path in paths:
            try:
                found.setdefault(path.resolve(), _read_run(path, names))
            except UserError as error:
                damaged.setdefault(path.resolve(), error)
    if not found:
        raise next(iter(damaged.values()))
    for path, name in names.items():
        if not any(whole.is_relative_to(path) for whole in (*found, *damaged)):
            raise UserError(f"--label {path}={name}: none of the runs is there")
    return list(found.values()), list(damaged.values())


def _split_label(text: str) -> tuple[Path, str]:
    """"results/a=b/ps=DPS" -> the longest folder that there is, and the rest."""
    parts = text.split("=")
    for n in range(len(parts) - 1, 0, -1):
        path, name = user_path("=".join(parts[:n])), "=".join(parts[n:])
        if path.is_dir() and name.strip():
            return path.resolve(), name
    raise UserError(f"--label {text}: expected FOLDER=NAME with the folder of a run, or one above it")


def _read_run(path: Path, labels: Mapping[Path, str]) -> Run:
    config, facts, method = read_settings(path), read_summary(path), path.resolve().name
    if facts is None and (path / SUMMARY).exists():
        logger.warning(f"{path / SUMMARY} is damaged and left out; the run's own command writes it anew")
    given = [folder for folder in labels if path.resolve().is_relative_to(folder)]
    label = labels[max(given, key=lambda folder: len(folder.parts))] if given else TITLES.get(method, in_words(method))
    return Run(path, label, read_table(path), config, facts or {})


def in_words(name: str) -> str:
    """"gaussian_blur" -> "Gaussian blur"."""
    return name[:1].upper() + name[1:].replace("_", " ")


def group(runs: Sequence[Run]) -> list[Task]:
    """Runs by what they measured, in order, each group and each run in it with a name of its own."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        measured = {key: value for key, value in leaves(run.config).items() if key[0] in MEASURED}
        groups.setdefault(str(sorted(measured.items())), []).append(run)
    firsts = [own[0] for own in groups.values()]
    operators = [in_words(run.path.resolve().parent.name) for run in firsts]
    titles = _distinct(operators, firsts, lambda key: key[0] in MEASURED)
    tasks = []
    for title, own in zip(titles, groups.values(), strict=True):
        labels = _distinct([run.label for run in own], own, lambda key: key[0] not in MEASURED)
        tasks.append(Task(title, [replace(run, label=label) for run, label in zip(own, labels, strict=True)]))
    return tasks


def _distinct(names: Sequence[str], runs: Sequence[Run], counts) -> list[str]:
    """Names that tell runs apart: where some are the same, with the settings that differ, or else with the folder.

    Args:
        counts: counts(key): whether a setting may be told.
    """
    told = list(names)
    for name in {name for name in names if names.count(name) > 1}:
        own = [i for i, other in enumerate(names) if other == name]
        values = [(key, found) for key, found in differences([runs[i] for i in own]).items() if counts(key)]
        values.sort(key=lambda item: item[0][0] != "conditioning")          # what the method itself is told comes first
        for position, i in enumerate(own):
            words = [f"{key[-2 if key[-1] == 'name' else -1]} {found[position]}" for key, found in values[:FEW]]
            words = [word for word in words if not word.endswith(" unset")] or words or [str(runs[i].path)]
            told[i] = f"{name} ({', '.join(words)})"
    return [name if told.count(name) == 1 else f"{name} ({run.path})" for name, run in zip(told, runs, strict=True)]


def differences(runs: Sequence[Run]) -> dict[Key, list[str]]:
    """Key -> the value in each run, for every setting in which the runs differ."""
    settings = [run.settings for run in runs]
    keys = dict.fromkeys(key for own in settings for key in own)
    values = {key: [str(own.get(key, "unset")) for own in settings] for key in keys}
    return {key: found for key, found in values.items() if len(set(found)) > 1}


def read_curve(run: Run) -> np.ndarray | None:
    """The measurement distance on the way, over all images and samples: steps, falling, mean and band, (4, n).

    Only positive, finite distances count; None for fewer than two steps.
    """
    found: dict[int, list[float]] = {}
    for image in run.images:
        try:
            for step, distances in read_trajectories(run.path, image).items():
                found.setdefault(step, []).extend(v for v in distances if math.isfinite(v) and v > 0)
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            logger.warning(f"{file_of(run.path, 'trajectories', image)} is no trajectory of a run; left out")
    steps = sorted((step for step, distances in found.items() if distances), reverse=True)
    curve = np.array([(step, np.mean(found[step]), *np.percentile(found[step], BAND)) for step in steps]).T
    return curve if len(steps) > 1 else None
