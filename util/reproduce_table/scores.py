"""Our figures for a paper's table, from the results on disk: means over images with intervals, and FID."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from util.command import choose_device
from util.errors import UserError
from util.metrics.comparison import Comparison, compare
from util.metrics.names import OF_RUNS, OF_SETS, SHORT, metric_of
from util.metrics.pairs import Pair
from util.metrics.scores import Metrics
from util.metrics.statistics import describe
from util.reproduce_table.job import Job
from util.reproduce_table.spec import Cell, PaperTable
from util.run.layout import file_of
from util.run.table import Row, read_summary

OF_MEANS = ("std", "error_to_std")                  # columns that the rows of the samples' means have


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
    """A cell with what was found for it; `job` is None and `score` empty where nothing of ours belongs there.

    `against` is the mean of the differences from the table's reference, image by image.
    """

    cell: Cell
    job: Job | None
    score: Score = Score()
    against: Score = Score()

    @property
    def difference(self) -> float:
        """Ours minus the paper's; NaN unless there are both."""
        return self.score.value - self.cell.paper.value if self.cell.paper else math.nan

    @property
    def excludes_paper(self) -> bool:
        """Whether the interval leaves the paper's figure out."""
        return bool(self.cell.paper and not math.isnan(self.score.low)
                    and not self.score.low <= self.cell.paper.value <= self.score.high)


def evaluate(table: PaperTable, jobs: Sequence[Job]) -> list[Entry]:
    """Score every cell of the table from the results on disk."""
    by_run = {job.run: job for job in jobs}
    references = {job.run.task: job for job in jobs if job.run.method == table.spec.reference}

    def entry(cell: Cell) -> Entry:
        if not cell.run:
            return Entry(cell, None)
        job, reference = by_run[cell.run], references.get(cell.task)
        against = Score() if reference in (None, job) else difference(job, reference, cell.metric)
        return Entry(cell, job, score(job, cell.metric, reference), against)

    return [entry(cell) for cell in table.cells]


def difference(job: Job, reference: Job, metric: str) -> Score:
    """The mean of job - reference over the images that both have, with its interval; none for scores of sets and runs.
    """
    column = SHORT.get(metric, metric)
    if column in (*OF_SETS, *OF_RUNS):
        return Score()
    own, theirs = _values(job, column), _values(reference, column)
    images = [image for image in own if image in theirs]
    found = describe([own[image] - theirs[image] for image in images], images)
    return Score(*([found["mean"], *(found["ci95"] or (math.nan, math.nan)), found["count"]] if found["count"] else ()))


def score(job: Job, metric: str, reference: Job | None = None) -> Score:
    """The mean over the job's images of one metric, with the interval of the mean; costs of a run have none.

    Args:
        reference: of the same task, for `relative_seconds`.
    """
    column, rows = SHORT.get(metric, metric), job.rows()
    if not rows:
        return Score(remark=job.error or "no image is finished")
    if column == "peak_memory":
        peak = (read_summary(job.path) or {}).get("peak_memory_bytes")
        return Score(peak / 2 ** 20, images=len(rows)) if peak else Score(remark="summary.json has no peak memory")
    if column == "relative_seconds":
        return _relative_seconds(job, reference)
    if column in OF_SETS:
        try:
            return Score(_distance(job, column), images=len(rows))
        except UserError as error:
            return Score(remark=f"{column.upper()} is left out: {error}")
    if column in OF_MEANS and job.options.num_samples == 1:
        return Score(remark=f"{metric_of(metric).title} takes several samples, see --num_samples")
    values = _values(job, column)
    found = describe(list(values.values()), list(values))
    if not found["count"]:
        causes = [warning for warning in job.warnings if metric_of(metric).title.removeprefix("aligned ") in warning]
        return Score(remark=(causes or [f"column {column} of metrics.csv is empty"])[0])
    lost = len(rows) - found["count"]
    return Score(found["mean"], *(found["ci95"] or (math.nan, math.nan)), images=found["count"],
                 remark=f"{lost} of {len(rows)} images have no figure" if lost else "")


def _relative_seconds(job: Job, reference: Job | None) -> Score:
    """The seconds of a run over those of the reference, for the images that both have."""
    own, theirs = _values(job, "seconds"), {} if reference is None else _values(reference, "seconds")
    images = [image for image in own if image in theirs]
    if not images:
        return Score(remark="the reference has no image of this task")
    return Score(sum(own[image] for image in images) / sum(theirs[image] for image in images), images=len(images))


def _values(job: Job, column: str) -> dict[str, float]:
    """Image -> its figure in a column of metrics.csv, NaN where there is none."""
    rows = job.rows(means=column in OF_MEANS)
    values = {row.image: getattr(row, column) for row in rows}
    if column == "st_lpips" and all(map(math.isnan, values.values())):  # a run of before there was this column
        known = [row for row in rows if row.ok and row.has_truth]
        scored = {image: scores.st_lpips for image, _, scores in _compare(job, known, column).rows}
        values = {image: scored.get(image, math.nan) for image in values}
    return values


def _distance(job: Job, name: str) -> float:
    """FID or KID between the saved restorations and the true images; UserError if it cannot be had."""
    found = _compare(job, job.rows(), "inception")
    if not _metrics("inception", job.options.gpu, job.options.weights_dir).networks:
        raise UserError("the weights of its network cannot be had")
    value = found.distances([name])[name]["value"]
    if found.skipped or value is None:
        raise UserError("images cannot be read" if found.skipped else "there are fewer than two images")
    return value


def _compare(job: Job, rows: Sequence[Row], network: str) -> Comparison:
    """The saved restorations and the true images, scored with a network."""
    several = job.options.num_samples > 1
    pairs = [Pair(row.image, row.sample, file_of(job.path, "recon", row.image, row.sample if several else None),
                  file_of(job.path, "label", row.image)) for row in rows]
    metrics = _metrics(network, job.options.gpu, job.options.weights_dir)
    return compare(pairs, metrics)


@cache
def _metrics(network: str, gpu: int | None, weights_dir: str | None) -> Metrics:
    return Metrics(choose_device(gpu), weights_dir, [network])
