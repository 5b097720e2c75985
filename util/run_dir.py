"""Everything that a run leaves on disk, written so that it can be stopped at any time and continued.

<save_dir>/<operator>/<method>/
    input/ recon/ label/    a PNG per image, named after its source: lifted measurement, restoration, truth
    progress/<image>/       x_t and x0_hat on the way, where asked for
    metrics.csv             a row per image and posterior sample; an image is finished when its rows are in
    summary.json            means over the rows, cost, versions
    config.yaml             the resolved configuration
    grid.png                truth | measurement | restoration
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, stdev

import yaml
from torch import Tensor

from util.compute_metric import Metrics, Scores
from util.config import ConfigLoader
from util.errors import UserError
from util.img_utils import load_image, save_grid, save_image, write_atomically

FOLDERS = ("input", "recon", "label", "progress")
FILES = ("metrics.csv", "summary.json", "config.yaml", "grid.png")
GRID_ROWS = 8
MEAN = "mean"


@dataclass(frozen=True)
class Row:
    """A line of metrics.csv; NaN is written as an empty cell."""

    image: str
    sample: str                                     # "0", "1", ..., or "mean" for the mean of the samples
    psnr: float                                     # dB
    ssim: float
    lpips_vgg: float
    psnr_input: float                               # of the lifted measurement
    ssim_input: float
    distance: float                                 # the noise model's data misfit
    seconds: float                                  # share of its batch's time
    chi_square: float                               # ||y - A(x)||^2 / (m sigma^2)
    network_evaluations: float
    psnr_aligned: float                             # these three after the image's trivial ambiguities are resolved,
    ssim_aligned: float                             # by the truth; empty where the operator has none
    lpips_vgg_aligned: float
    best: float                                     # 1 for the sample of lowest distance, 0 for others, empty for means

    @classmethod
    def parse(cls, cells: dict[str, str]) -> "Row":
        """Read a line; ValueError or KeyError if it is not one of ours."""
        if Path(cells["image"]).name != cells["image"]:
            raise ValueError(f"{cells['image']} is no image name")
        return cls(cells["image"], cells["sample"],
                   *(float(cells[column] or "nan") for column in COLUMNS[2:]))


COLUMNS = [field.name for field in fields(Row)]


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


class RunDirectory:
    """The folder of one run.

    Args:
        save_dir: the folder that holds all results.
        operator: name of the measurement operator, the first subfolder.
        method: name of the conditioning method, the second one.
        config: everything that decides the results, as plain YAML values.
        overwrite: delete what an earlier run wrote here.

    Raises:
        UserError: the folder cannot be written to, or holds the results of another configuration.
    """

    def __init__(self, save_dir: str | Path, operator: str, method: str, config: dict[str, object],
                 overwrite: bool = False):
        self.path = Path(save_dir).expanduser() / operator / method
        self.config = config
        self.rows: list[Row] = []
        try:
            for folder in FOLDERS:
                (self.path / folder).mkdir(parents=True, exist_ok=True)
            if overwrite:
                self._delete_results()
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror or error}; "
                            "choose another folder with --save_dir") from None
        self.rows = self._read_rows()
        if self.rows and (self.path / "config.yaml").exists():
            self._check_same_config()
        self._write("config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120))

    @property
    def has_summary(self) -> bool:
        """Whether summary.json and grid.png are there."""
        return (self.path / "summary.json").is_file() and (self.path / "grid.png").is_file()

    def _check_same_config(self) -> None:
        path = self.path / "config.yaml"
        try:
            found = _flatten(yaml.load(path.read_text(encoding="utf-8"), Loader=ConfigLoader))
        except (yaml.YAMLError, ValueError, AttributeError):
            raise UserError(f"{path} is no configuration of ours; choose another folder with --save_dir") from None
        wanted = _flatten(self.config)
        keys = [key for key in wanted | found if wanted.get(key, "unset") != found.get(key, "unset")]
        if keys:
            changes = [f"{key} ({found.get(key, 'unset')} there, {wanted.get(key, 'unset')} now)" for key in keys]
            more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
            raise UserError(f"{self.path} holds results of another configuration: {', '.join(changes[:4])}{more}; "
                            "choose another folder with --save_dir, or replace them with --overwrite")

    def _read_rows(self) -> list[Row]:
        path = self.path / "metrics.csv"
        if not path.exists():
            return []
        try:
            with open(path, newline="", encoding="utf-8") as file:
                table = csv.DictReader(file)
                if table.fieldnames != COLUMNS:
                    raise ValueError(table.fieldnames)
                return [Row.parse(cells) for cells in table]
        except (OSError, KeyError, ValueError, TypeError, csv.Error):
            raise UserError(f"{path} is not a table of ours; choose another folder with --save_dir, "
                            "or replace the results with --overwrite") from None

    def _delete_results(self) -> None:
        """Delete what a run wrote here, and nothing else."""
        try:
            rows = self._read_rows()
        except UserError:
            rows = []
        for row in rows:
            self.path_of("input", row.image).unlink(missing_ok=True)
            self.path_of("label", row.image).unlink(missing_ok=True)
            for sample in (None, row.sample):
                self.path_of("recon", row.image, sample).unlink(missing_ok=True)
                folder = self.path / "progress" / _name(row.image, sample)
                if folder.is_dir():
                    for file in (*folder.glob("x_*.png"), *folder.glob("x0_hat_*.png")):
                        file.unlink()
                    if not any(folder.iterdir()):
                        folder.rmdir()
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)

    def _write(self, name: str, text: str) -> None:
        write_atomically(self.path / name, text.encode())

    def path_of(self, folder: str, image: str, sample: str | None = None) -> Path:
        """Where an image lies in input/, recon/ or label/; recon/ has a file per `sample` if there are several."""
        return self.path / folder / f"{_name(image, sample)}.png"

    def _recon_samples(self, image: str) -> list[str | None]:
        samples = [row.sample for row in self.rows if row.image == image]
        return [None] if len(samples) == 1 else samples

    def finished(self, image: str) -> bool:
        """Whether the image's rows are in and its files are there."""
        samples = self._recon_samples(image)
        return bool(samples) and all(path.is_file() for path in (
            self.path_of("input", image), self.path_of("label", image),
            *(self.path_of("recon", image, sample) for sample in samples)))

    def save(self, image: str, label: Tensor, lifted: Tensor, outcomes: Sequence[Outcome], metrics: Metrics) -> None:
        """Score and save one image with all its samples; it is finished when this returns.

        Args:
            image: its name.
            label: the truth, (3, H, W) in [-1, 1].
            lifted: the measurement in image space, same shape.
            outcomes: its samples and, if there are several, their mean.
            metrics: what scores them.
        """
        degraded, best = metrics(lifted, label), _best_sample(outcomes)
        rows = []
        for outcome in outcomes:
            scores, aligned = _score(outcome, label, metrics)
            rows.append(Row(image, outcome.sample, scores.psnr, scores.ssim, scores.lpips, degraded.psnr, degraded.ssim,
                            outcome.distance, outcome.seconds, outcome.chi_square, outcome.network_evaluations,
                            aligned.psnr, aligned.ssim, aligned.lpips,
                            math.nan if outcome.sample == MEAN else float(outcome.sample == best)))
            save_image(self.path_of("recon", image, outcome.sample if len(outcomes) > 1 else None), outcome.restored)
        save_image(self.path_of("input", image), lifted)
        save_image(self.path_of("label", image), label)
        self.rows = [row for row in self.rows if row.image != image] + rows
        self._write_rows()

    def _write_rows(self) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.rows:
            writer.writerow("" if isinstance(v, float) and math.isnan(v) else f"{v:.6g}" if isinstance(v, float) else v
                            for v in asdict(row).values())
        self._write("metrics.csv", text.getvalue())

    def save_progress(self, image: str, sample: str | None, index: int, x: Tensor, x0_hat: Tensor) -> None:
        """Save the state after step `index` and the prediction of the clean image, (3, H, W) each."""
        folder = self.path / "progress" / _name(image, sample)
        save_image(folder / f"x_{index:04d}.png", x)
        save_image(folder / f"x0_hat_{index:04d}.png", x0_hat)

    def write_summary(self, facts: dict[str, object]) -> None:
        """Write summary.json: `facts`, then mean, standard deviation and count of every column of metrics.csv."""
        single, mean = ([row for row in self.rows if (row.sample == MEAN) is is_mean] for is_mean in (False, True))
        summary = {**facts, "images": len({row.image for row in self.rows}), "samples": len(single),
                   "seconds": sum(row.seconds for row in single),
                   "network_evaluations": int(sum(row.network_evaluations for row in single)),
                   "metrics": _statistics(single)}
        if mean:
            summary["metrics_of_best_samples"] = _statistics([row for row in single if row.best == 1])
            summary["metrics_of_sample_means"] = _statistics(mean)
        self._write("summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")

    def write_grid(self) -> None:
        """Write grid.png: truth, measurement, restoration of up to 8 images; of several samples the one of lowest
        distance, and their mean."""
        images = list(dict.fromkeys(row.image for row in self.rows))[:GRID_ROWS]
        rows, captions, columns = [], [], ["Ground truth", "Measurement", "Restoration"]
        for image in images:
            own = [row for row in self.rows if row.image == image]
            best = [row for row in own if row.best == 1] or own[:1]
            shown = best + [row for row in own if row.sample == MEAN]
            if len(shown) > 1:
                columns = [*columns[:2], f"Best fit of {len(own) - 1}", f"Mean of {len(own) - 1}"]
            files = [self.path_of("label", image), self.path_of("input", image)]
            files += [self.path_of("recon", image, row.sample if len(own) > 1 else None) for row in shown]
            rows.append([load_image(file) for file in files])
            captions.append([image, f"PSNR {own[0].psnr_input:.2f} dB", *map(_caption, shown)])
        if rows:
            save_grid(self.path / "grid.png", rows, captions, columns)


def _name(image: str, sample: str | None) -> str:
    return image if sample is None else f"{image}_{sample}"


def _best_sample(outcomes: Sequence[Outcome]) -> str | None:
    """The sample that agrees best with the measurement; the truth plays no part. None if all diverged."""
    finite = [outcome for outcome in outcomes if outcome.sample != MEAN and math.isfinite(outcome.distance)]
    return min(finite, key=lambda outcome: outcome.distance).sample if finite else None


def _score(outcome: Outcome, label: Tensor, metrics: Metrics) -> tuple[Scores, Scores]:
    """Scores as restored, and of the equivalent image closest to the truth (NaN where there is no other)."""
    scores = metrics(outcome.restored, label)
    if not outcome.equivalents:
        return scores, Scores(math.nan, math.nan, math.nan)
    return scores, max([scores, *(metrics(image, label) for image in outcome.equivalents)], key=lambda s: s.psnr)


def _caption(row: Row) -> str:
    if math.isnan(row.psnr_aligned):
        return f"PSNR {row.psnr:.2f} dB"
    return f"PSNR {row.psnr:.2f} dB, aligned {row.psnr_aligned:.2f}"


def _statistics(rows: Sequence[Row]) -> dict[str, dict[str, float | int | None]]:
    columns = [column for column in COLUMNS[2:] if column not in ("seconds", "network_evaluations", "best")]
    table = {}
    for column in columns:
        values = [value for row in rows if math.isfinite(value := getattr(row, column))]
        table[column] = {"mean": fmean(values) if values else None,
                         "std": stdev(values) if len(values) > 1 else None, "count": len(values)}
    return table


def _flatten(tree: dict, prefix: str = "") -> dict[str, object]:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return flat
