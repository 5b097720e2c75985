"""A reproduced table as text: paper | ours +- interval | difference, in Markdown and CSV, with its circumstances."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

import torch
from torch import Tensor

from util.command import choose_device
from util.errors import UserError
from util.img_utils import load_image
from util.metrics.perceptual import frechet_distance
from util.metrics.scores import Metrics
from util.metrics.statistics import bootstrap_interval
from util.metrics.weights import INCEPTION, MissingWeightsError, WeightStore
from util.reproduce_table.job import Job, count
from util.reproduce_table.spec import METRICS, Cell, PaperTable

EXCLUDED = " *"                                     # behind a difference whose interval excludes the paper's figure
COLUMNS = ("metric", "task", "method", "paper", "paper_std", "source", "ours", "ci95_low", "ci95_high", "difference",
           "excludes_paper", "images", "seed", "prior", "task_config", "conditioning", "noise", "steps", "folder",
           "remark")


@dataclass(frozen=True)
class Score:
    """Our figure with its 95 % interval (NaN where there is none), over `images` images; `remark` if it is missing."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    images: int = 0
    remark: str = ""


@dataclass(frozen=True)
class Entry:
    """A cell with what was found for it; `job` and `score` are None where nothing of ours belongs there."""

    cell: Cell
    job: Job | None
    score: Score | None

    @property
    def difference(self) -> float:
        """Ours minus the paper's; NaN unless there are both."""
        return self.score.value - self.cell.paper.value if self.score and self.cell.paper else math.nan

    @property
    def excludes_paper(self) -> bool:
        """Whether the interval leaves the paper's figure out."""
        return bool(self.score and self.cell.paper and not math.isnan(self.score.low)
                    and not self.score.low <= self.cell.paper.value <= self.score.high)


def evaluate(table: PaperTable, jobs: Sequence[Job]) -> list[Entry]:
    """Score every cell of the table from the results on disk."""
    by_run = {job.run: job for job in jobs}
    return [Entry(cell, by_run.get(cell.run), score(by_run[cell.run], cell.metric) if cell.run else None)
            for cell in table.cells]


def score(job: Job, metric: str) -> Score:
    """The mean over the job's images of one metric, with the interval of the mean."""
    column, rows = METRICS[metric].column, [] if job.failed else job.rows()
    if not rows:
        return Score(remark=job.error or "no image is finished")
    if column is None:
        try:
            return Score(_fid(job), images=len(rows))
        except (UserError, MissingWeightsError) as error:
            return Score(remark=f"FID is left out: {error}")
    scores = {row["image"]: float(row.get(column) or "nan") for row in rows}
    scores = {image: value for image, value in scores.items() if math.isfinite(value)}
    if not scores:
        causes = [warning for warning in job.warnings if metric.partition("_")[0].upper() in warning]
        return Score(remark=(causes or [f"column {column} of metrics.csv is empty"])[0])
    values, lost = list(scores.values()), len(rows) - len(scores)
    interval = bootstrap_interval(values, list(scores)) or (math.nan, math.nan)
    return Score(fmean(values), *interval, images=len(values),
                 remark=f"{lost} of {len(rows)} images have no figure" if lost else "")


def _fid(job: Job) -> float:
    """FID between the saved restorations and the true images.

    Raises:
        MissingWeightsError: the network's weights cannot be had.
        UserError: they are damaged, or an image cannot be read.
    """
    several, options = job.options.num_samples > 1, job.options
    _weights(options.weights_dir).find(INCEPTION)
    network = _features(options.gpu, options.weights_dir)

    def features(folder: str, sample: bool) -> Tensor:
        names = [f"{row['image']}_{row['sample']}.png" if sample else f"{row['image']}.png" for row in job.rows()]
        found = [network.features(load_image(job.path / folder / name)) for name in names]
        if any(values is None for values in found):
            raise UserError(f"{INCEPTION.name} is damaged")
        return torch.stack(found)                                                       # (N, 2048)

    return frechet_distance(features("label", False), features("recon", several))


@cache
def _weights(folder: str | None) -> WeightStore:
    return WeightStore(folder)


@cache
def _features(gpu: int | None, weights_dir: str | None) -> Metrics:
    return Metrics(choose_device(gpu), weights_dir, ("inception",))


def markdown(table: PaperTable, entries: Sequence[Entry]) -> str:
    """The whole table as Markdown, with aligned columns so that it reads well as plain text, too."""
    parts = [f"# {table.spec.title}\n"]
    for metric in table.spec.metrics:
        own = [entry for entry in entries if entry.cell.metric == metric]
        if own:
            parts.append(f"## {METRICS[metric].title}\n\n{_section(table, metric, own)}")
    parts.append(_circumstances(table, entries))
    return "\n".join(parts)


def _section(table: PaperTable, metric: str, entries: Sequence[Entry]) -> str:
    digits, compared = METRICS[metric].digits, any(entry.cell.paper for entry in entries)
    header = ["task", "method", *["paper"] * compared, "ours ± 95 %", *["difference"] * compared, "images"]
    lines, previous = [], None
    for entry in entries:
        cell = entry.cell
        difference = "" if math.isnan(entry.difference) else (
            f"{entry.difference:+.{digits}f}{EXCLUDED * entry.excludes_paper}")
        lines.append([table.tasks[cell.task].title if cell.task != previous else "",
                      table.methods[cell.method].title,
                      *[_paper(cell)] * compared, _ours(table, entry), *[difference] * compared,
                      str(entry.score.images) if entry.score and entry.score.images else ""])
        previous = cell.task
    remarks = _remarks(table, entries)
    empty = not compared and all(math.isnan(entry.score.value) for entry in entries)
    return "\n".join([_align(header, lines)] * (not empty) + ["".join(f"- {r}\n" for r in remarks)] * bool(remarks))


def _remarks(table: PaperTable, entries: Sequence[Entry]) -> list[str]:
    """Why figures are missing, with the run's name unless it is so for all of them."""
    where: dict[str, list[str]] = {}
    for entry in entries:
        if entry.score and entry.score.remark:
            where.setdefault(entry.score.remark, []).append(_title(table, entry.cell.task, entry.cell.method))
    runs = sum(entry.score is not None for entry in entries)
    return [remark if len(titles) == runs else f"{'; '.join(titles)}: {remark}" for remark, titles in where.items()]


def _title(table: PaperTable, task: str, method: str) -> str:
    return f"{table.tasks[task].title}, {table.methods[method].title}"


def _paper(cell: Cell) -> str:
    if cell.paper is None:
        return ""
    return f"{cell.paper.value:g}" + (f" ± {cell.paper.std:g} (std)" if cell.paper.std is not None else "")


def _ours(table: PaperTable, entry: Entry) -> str:
    digits = METRICS[entry.cell.metric].digits
    if entry.score is None:
        return "not run" if table.methods[entry.cell.method].method else "paper only"
    if math.isnan(entry.score.value):
        return "none"
    if math.isnan(entry.score.low):
        return f"{entry.score.value:.{digits}f}"
    return f"{entry.score.value:.{digits}f} ± {(entry.score.high - entry.score.low) / 2:.{digits}f}"


def _align(header: list[str], lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    left = 2                                        # task and method; numbers stand at the right
    rows = [[cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
            for line in (header, *lines)]
    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (rows[0], rule, *rows[1:]))


def _circumstances(table: PaperTable, entries: Sequence[Entry]) -> str:
    """What stands underneath: how to read it, sources, images, seed, prior, and the settings of every run."""
    jobs = list({id(entry.job): entry.job for entry in entries if entry.job}.values())
    compared = any(entry.cell.paper for entry in entries)
    lines = ["± is half the width of the 95 % bootstrap interval over images."]
    if compared:
        lines.append(f"`{EXCLUDED.strip()}`: the interval excludes the paper's figure. \"paper only\": the method is "
                     "not implemented here; \"not run\": it was not asked for.")
        lines += [f"Figures of the paper: {source}." for source in dict.fromkeys(
            entry.cell.paper.source.rpartition(", row ")[0] for entry in entries if entry.cell.paper)]
    if table.spec.note:
        lines.append(table.spec.note.strip())
    text = "".join(f"\n{line}\n" for line in lines)
    if jobs:
        options, model = jobs[0].options, jobs[0].config.model
        device = dict.fromkeys(_summary(job).get("device", "unknown") for job in jobs if not job.failed)
        text += (f"\nSeed {options.seed}; images: {options.data or 'as each task file says'}, "
                 f"{max(len(job.names) for job in jobs)} asked for; samples per image: {options.num_samples}"
                 f"{' (the one of lowest measurement error counts)' * (options.num_samples > 1)}; "
                 f"prior: {jobs[0].run.model_config} ({model.get('model_path')}), network in {options.precision}; "
                 f"device: {', '.join(device)}.\n\nRuns:\n\n" + "".join(f"- {_settings(table, job)}\n" for job in jobs))
    return text


def _settings(table: PaperTable, job: Job) -> str:
    config = job.config
    status = f"; FAILED: {job.error}" if job.failed else f"; {job.error}" if job.error else ""
    return (f"{_title(table, job.run.task, job.run.method)}: {job.run.task_config}, "
            f"{config.conditioning.name} {_plain(config.conditioning.params)}, "
            f"noise {config.noise.name} {_plain(config.noise.params)}, {count(job.steps, 'step')}, "
            f"{count(len([] if job.failed else job.rows()), 'image')}{status}")


def _plain(params: dict) -> str:
    return json.dumps(params, default=list)


def _summary(job: Job) -> dict[str, object]:
    try:
        return json.loads((job.path / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def to_csv(entries: Sequence[Entry]) -> str:
    """A line per cell: the paper's figure and its source, ours, and what was run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in entries:
        cell, paper, job, found = entry.cell, entry.cell.paper, entry.job, entry.score or Score()
        run = [""] * 7 if job is None else [
            job.options.seed, job.run.model_config, job.run.task_config,
            f"{job.config.conditioning.name} {_plain(job.config.conditioning.params)}",
            f"{job.config.noise.name} {_plain(job.config.noise.params)}", job.steps, job.path]
        writer.writerow([cell.metric, cell.task, cell.method, *([paper.value, _number(paper.std), paper.source]
                                                                if paper else [""] * 3),
                         _number(found.value), _number(found.low), _number(found.high), _number(entry.difference),
                         int(entry.excludes_paper) if paper and not math.isnan(found.low) else "",
                         found.images if job else "", *run, found.remark if job else "not run"])
    return text.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"
