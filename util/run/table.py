"""metrics.csv: a row per image and posterior sample, and what is said about them in summary.json."""

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from util.command import user_path
from util.errors import UserError
from util.files import csv_text
from util.img_utils import to_unit
from util.metrics.pairs import MEAN
from util.metrics.scores import Metrics, Scores, psnr, ssim
from util.metrics.statistics import Summary, describe
from util.run.layout import SUMMARY, TABLE, file_of, is_file_name

OK = "ok"
Trajectory = Sequence[tuple[int, float]]            # (step index, measurement distance)
NO_SCORES = Scores(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Row:
    """A line of metrics.csv; NaN is written as an empty cell. Without ground truth there are no scores.

    Numbers have six significant digits, in memory as on disk, so that a run that was continued has the same means.
    """

    image: str
    sample: str                                     # "0", "1", ..., or "mean" for the mean of the samples
    psnr: float                                     # dB
    ssim: float
    lpips_vgg: float
    psnr_input: float                               # of the lifted measurement
    ssim_input: float
    distance: float                                 # the noise model's data misfit
    seconds: float                                  # share of its batch's time
    chi_square: float                               # see `Measurement.chi_square`
    network_evaluations: float
    psnr_aligned: float                             # these three after the image's trivial ambiguities are resolved,
    ssim_aligned: float                             # by the truth; empty where the operator has none
    lpips_vgg_aligned: float
    best: float                                     # 1 for the sample of lowest distance, 0 for others, empty for means
    std: float                                      # of the samples around their mean, root mean square on [0, 1]
    error_to_std: float                             # see `spread`; these two for means only
    lpips_alex: float
    st_lpips: float = math.nan                      # these three are missing in tables of earlier versions
    st_lpips_aligned: float = math.nan
    backward_passes: float = math.nan
    source: str = ""                                # fingerprint of the files that the image was read from
    status: str = OK                                # or "diverged at step 37", counting down to 0; no scores then

    def __post_init__(self):
        for column in NUMBERS:
            object.__setattr__(self, column, float(f"{getattr(self, column):.6g}"))

    @classmethod
    def parse(cls, cells: dict[str, str]) -> "Row":
        """Read a line; ValueError if it is not one of ours."""
        if None in cells or None in cells.values():
            raise ValueError(f"it has not {len(COLUMNS)} cells")
        for column, form in FORMS.items():
            if not form(cells[column]):
                raise ValueError(f"{column} is {cells[column]!r:.60}")
        return cls(**{column: float(cell or "nan") if column in NUMBERS else cell for column, cell in cells.items()})

    @property
    def ok(self) -> bool:
        """Whether there is a restored image."""
        return self.status == OK

    @property
    def has_truth(self) -> bool:
        """Whether there was a clean image to compare with."""
        return not math.isnan(self.psnr_input)


COLUMNS = [field.name for field in fields(Row)]
NUMBERS = COLUMNS[2:-2]
LATER = ("st_lpips", "st_lpips_aligned", "backward_passes")
FORMS = {"image": is_file_name,
         "sample": re.compile(rf"\d{{1,9}}|{MEAN}").fullmatch,
         "source": re.compile(r"([0-9a-f]{16})*").fullmatch,
         "status": re.compile(rf"{OK}|diverged at step \d+").fullmatch}


@dataclass(frozen=True)
class Outcome:
    """What became of one posterior sample of one image; images are (3, H, W) in [-1, 1]."""

    sample: str
    restored: Tensor
    distance: float
    chi_square: float
    seconds: float
    network_evaluations: float
    equivalents: Sequence[Tensor] = ()              # what the measurement cannot tell from `restored`: flips, negatives
    trajectory: Trajectory = ()                     # of every step, in order; none for means
    backward_passes: float = 0.0
    diverged: int | None = None                     # the first step whose state was not finite, if any

    @property
    def status(self) -> str:
        """As in `Row`."""
        return OK if self.diverged is None else f"diverged at step {self.diverged}"


def make_rows(image: str, label: Tensor | None, lifted: Tensor, outcomes: Sequence[Outcome],
              metrics: Metrics | None, source: str = "") -> list[Row]:
    """Score one image with all its samples.

    Args:
        image: its name.
        label: the truth, (3, H, W) in [-1, 1]; None where nobody knows it.
        lifted: the measurement in image space, same shape.
        outcomes: its samples and, if there are several, their mean.
        metrics: what scores them; needed with a truth.
        source: see `Row`.
    """
    of_input = (math.nan, math.nan) if label is None else (psnr(lifted, label), ssim(lifted, label))
    finite = [outcome for outcome in finite_samples(outcomes) if math.isfinite(outcome.distance)]
    best = min(finite, key=lambda outcome: outcome.distance, default=None)      # the truth plays no part
    rows = []
    for outcome in outcomes:
        scores, aligned = _score(outcome, label, metrics)
        is_mean, nothing = outcome.sample == MEAN, outcome.status != OK
        std, error_to_std = spread(outcomes, label) if is_mean else (math.nan, math.nan)
        rows.append(Row(
            image, outcome.sample, scores.psnr, scores.ssim, scores.lpips_vgg, *of_input,
            math.nan if nothing else outcome.distance, outcome.seconds, math.nan if nothing else outcome.chi_square,
            outcome.network_evaluations, aligned.psnr, aligned.ssim, aligned.lpips_vgg,
            math.nan if is_mean else float(outcome is best), std, error_to_std, scores.lpips_alex, scores.st_lpips,
            aligned.st_lpips, outcome.backward_passes, source, outcome.status))
    return rows


def finite_samples(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The samples that did not diverge, without their mean."""
    return [outcome for outcome in outcomes if outcome.sample != MEAN and outcome.status == OK]


def standard_deviation(outcomes: Sequence[Outcome]) -> Tensor | None:
    """The samples' standard deviation in every pixel and channel, (3, H, W) on [0, 1]; None for fewer than two."""
    samples = [to_unit(outcome.restored) for outcome in finite_samples(outcomes)]
    return torch.stack(samples).std(dim=0) if len(samples) > 1 else None


def spread(outcomes: Sequence[Outcome], label: Tensor | None) -> tuple[float, float]:
    """The root mean square s of the standard deviation of K samples, and RMSE / (s sqrt(1 + 1/K)) of their mean image.

    The second is about 1 where the truth is as far from the samples' mean as one more sample would be, larger where the
    samples are too sure of themselves. NaN for fewer than two samples, or without a truth.
    """
    std = standard_deviation(outcomes)
    if std is None:
        return math.nan, math.nan
    s = float(std.square().mean().sqrt())
    if label is None or s == 0:
        return s, math.nan
    samples = torch.stack([to_unit(outcome.restored) for outcome in finite_samples(outcomes)])
    error = float((samples.mean(dim=0) - to_unit(label)).square().mean().sqrt())
    return s, error / (s * math.sqrt(1 + 1 / len(samples)))


def _score(outcome: Outcome, label: Tensor | None, metrics: Metrics | None) -> tuple[Scores, Scores]:
    """Scores as restored, and of the equivalent image closest to the truth (NaN where there is no other)."""
    if label is None or outcome.status != OK:
        return NO_SCORES, NO_SCORES
    scores = [metrics(image, label) for image in (outcome.restored, *outcome.equivalents)]
    return scores[0], max(scores, key=lambda s: s.psnr) if outcome.equivalents else NO_SCORES


def to_csv(rows: Sequence[Row]) -> str:
    """The content of metrics.csv."""
    lines = [["" if isinstance(v, float) and math.isnan(v) else f"{v:.6g}" if isinstance(v, float) else v
              for v in asdict(row).values()] for row in rows]
    return csv_text([COLUMNS, *lines])


def parse_rows(text: str) -> list[Row]:
    """The rows of a metrics.csv; a ValueError names the line that is not one of ours."""
    table = csv.DictReader(io.StringIO(text, newline=""))
    try:
        found = table.fieldnames or []
        if found != [column for column in COLUMNS if column in found or column not in LATER]:
            raise ValueError(f"its columns are {', '.join(found or ['none'])[:200]}")
        return list(map(Row.parse, table))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"line {table.line_num}: {error}") from None


def read_table(run: str | Path) -> list[Row]:
    """The rows of the metrics.csv in the folder of a run, in its order; none where there is no such file.

    A last line that another program has cut is left out.

    Raises:
        UserError: it cannot be read, or is no table of ours.
    """
    path = user_path(run) / TABLE
    try:
        text = path.read_text(encoding="utf-8")
        whole = text[:text.rfind("\n") + 1]
        return parse_rows(whole) if whole or not to_csv([]).startswith(text) else []
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a table of ours ({getattr(error, 'strerror', None) or error}); move it away, "
                        "choose another folder with --save_dir, or replace its run with --overwrite") from None


def trajectories_to_csv(outcomes: Sequence[Outcome]) -> str:
    """A line per reverse step, in order: its index, and the measurement distance of every sample."""
    distances = {outcome.sample: dict(outcome.trajectory) for outcome in outcomes if outcome.sample != MEAN}
    lines = [["step", *distances]]
    for index in sorted(set().union(*distances.values()), reverse=True):
        lines.append([str(index), *(f"{own.get(index, math.nan):.6g}" for own in distances.values())])
    return "".join(f"{','.join(line)}\n" for line in lines)


def read_trajectories(run: Path, image: str) -> dict[int, list[float]]:
    """Step index -> the measurement distance of every sample of an image; ValueError or OSError for another file."""
    lines = file_of(run, "trajectories", image).read_text(encoding="utf-8").splitlines()[1:]
    return {int(step): list(map(float, distances)) for step, *distances in (line.split(",") for line in lines)}


def summarise(rows: Sequence[Row]) -> dict[str, object]:
    """Counts, cost, and mean, spread and interval of every column: of all samples, of the best, of means.

    "diverged" counts images of which a sample diverged; statistics are over the other samples.
    """
    single, mean = ([row for row in rows if (row.sample == MEAN) is is_mean] for is_mean in (False, True))
    summary = {"images": len({row.image for row in rows}), "samples": len(single),
               "diverged": len({row.image for row in single if not row.ok}),
               "seconds": sum(row.seconds for row in single),
               "network_evaluations": int(sum(row.network_evaluations for row in single)),
               "metrics": _statistics(single)}
    if mean:
        summary["metrics_of_best_samples"] = _statistics([row for row in single if row.best == 1])
        summary["metrics_of_sample_means"] = _statistics(mean)
    return summary


def _statistics(rows: Sequence[Row]) -> dict[str, Summary]:
    rows = [row for row in rows if row.ok]
    return {column: describe([getattr(row, column) for row in rows], [row.image for row in rows])
            for column in NUMBERS if column not in ("seconds", "network_evaluations", "backward_passes", "best")}


def read_summary(run: Path) -> dict[str, object] | None:
    """What summary.json says; None where it is missing or damaged."""
    try:
        content = json.loads((run / SUMMARY).read_text(encoding="utf-8"), parse_constant=lambda nan: None)
        return content if isinstance(content, dict) else None
    except (OSError, ValueError, RecursionError):
        return None
