"""Everything that a run leaves on disk, written so that it can be stopped at any time and continued.

<save_dir>/<operator>/<method>/
    input/ recon/ label/    a PNG per image, named after its source: lifted measurement, restoration, truth if known
    std/                    the standard deviation of an image's posterior samples, if there are several
    progress/<image>/       x_t and x0_hat on the way, where asked for
    measurements/           the measurements, .npz, where asked for
    trajectories/           <image>.csv: the measurement distance of every step, a column per sample
    metrics.csv             a row per image and posterior sample; an image is finished when its rows are in
    summary.json            means over the rows, cost, versions
    config.yaml             the resolved configuration
    grid.png                truth (if known) | measurement | restoration
"""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import yaml
from torch import Tensor

from util.compute_metric import Metrics
from util.config import ConfigLoader
from util.errors import UserError
from util.img_utils import load_image, save_grid, save_image, save_map, write_atomically
from util.measurement_files import SUFFIX, StoredMeasurement, write_measurement
from util.metrics_table import (
    MEAN,
    Outcome,
    Row,
    make_rows,
    read_rows,
    standard_deviation,
    summarise,
    to_csv,
    trajectories_to_csv,
)

FOLDERS = ("input", "recon", "label", "progress")
FILES = ("metrics.csv", "summary.json", "config.yaml", "grid.png")
GRID_ROWS = 8


class RunDirectory:
    """The folder of one run.

    Args:
        save_dir: the folder that holds all results.
        operator: name of the measurement operator, the first subfolder.
        method: name of the conditioning method, the second one.
        config: everything that decides the results, as plain YAML values.
        overwrite: delete what an earlier run wrote here.
        keeps_measurements: an image is finished only if its measurement is saved, too.

    Raises:
        UserError: the folder cannot be written to, or holds the results of another configuration.
    """

    def __init__(self, save_dir: str | Path, operator: str, method: str, config: dict[str, object],
                 overwrite: bool = False, keeps_measurements: bool = False):
        self.path = Path(save_dir).expanduser() / operator / method
        self.config, self.keeps_measurements = config, keeps_measurements
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
            return read_rows(path)
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
            self.path_of("std", row.image).unlink(missing_ok=True)
            self._measurement_path(row.image).unlink(missing_ok=True)
            self._trajectory_path(row.image).unlink(missing_ok=True)
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
        own, samples = [row for row in self.rows if row.image == image], self._recon_samples(image)
        files = [self.path_of("input", image), *(self.path_of("recon", image, sample) for sample in samples)]
        files += [self.path_of("label", image)] * any(row.has_truth for row in own)
        files += [self.path_of("std", image)] * (len(samples) > 1)
        files += [self._trajectory_path(image)]
        files += [self._measurement_path(image)] * self.keeps_measurements
        return bool(own) and all(file.is_file() for file in files)

    def save(self, image: str, label: Tensor | None, lifted: Tensor, outcomes: Sequence[Outcome],
             metrics: Metrics | None, alpha: Tensor | None = None) -> None:
        """Score and save one image with all its samples; it is finished when this returns.

        Args:
            image: its name.
            label: the truth, (3, H, W) in [-1, 1]; None where nobody knows it.
            lifted: the measurement in image space, same shape.
            outcomes: its samples and, if there are several, their mean.
            metrics: what scores them; needed with a truth.
            alpha: the opacity (h, w) in [0, 1] that restorations are saved with; opaque when None.
        """
        rows = make_rows(image, label, lifted, outcomes, metrics)
        for outcome in outcomes:
            sample = outcome.sample if len(outcomes) > 1 else None
            save_image(self.path_of("recon", image, sample), outcome.restored, alpha)
        save_image(self.path_of("input", image), lifted)
        if label is not None:
            save_image(self.path_of("label", image), label)
        if (std := standard_deviation(outcomes)) is not None:
            save_map(self.path_of("std", image), std.square().mean(dim=0).sqrt(),
                     f"Standard deviation of {len(outcomes) - 1} samples on [0, 1]")
        write_atomically(self._trajectory_path(image), trajectories_to_csv(outcomes).encode())
        self.rows = [row for row in self.rows if row.image != image] + rows
        self._write("metrics.csv", to_csv(self.rows))

    def save_measurement(self, image: str, stored: StoredMeasurement) -> None:
        """Save a measurement for other programs and for --load_measurements."""
        write_measurement(self._measurement_path(image), stored)

    def _measurement_path(self, image: str) -> Path:
        return self.path / "measurements" / f"{image}{SUFFIX}"

    def _trajectory_path(self, image: str) -> Path:
        return self.path / "trajectories" / f"{image}.csv"

    def save_progress(self, image: str, sample: str | None, index: int, x: Tensor, x0_hat: Tensor) -> None:
        """Save the state after step `index` and the prediction of the clean image, (3, H, W) each."""
        folder = self.path / "progress" / _name(image, sample)
        save_image(folder / f"x_{index:04d}.png", x)
        save_image(folder / f"x0_hat_{index:04d}.png", x0_hat)

    def write_summary(self, facts: dict[str, object]) -> None:
        """Write summary.json: `facts`, then mean, standard deviation and count of every column of metrics.csv."""
        summary = {**facts, **summarise(self.rows)}
        self._write("summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")

    def write_grid(self) -> None:
        """Write grid.png: truth (if known), measurement, restoration of up to 8 images; of several samples the one of
        lowest distance, and their mean."""
        images = list(dict.fromkeys(row.image for row in self.rows))[:GRID_ROWS]
        table = {image: [row for row in self.rows if row.image == image] for image in images}
        truths = all(own[0].has_truth for own in table.values())
        rows, captions, restored = [], [], ["Restoration"]
        for image, own in table.items():
            best = [row for row in own if row.best == 1] or own[:1]
            shown = best + [row for row in own if row.sample == MEAN]
            if len(shown) > 1:
                restored = [f"Best fit of {len(own) - 1}", f"Mean of {len(own) - 1}"]
            files = [self.path_of("label", image)] * truths + [self.path_of("input", image)]
            files += [self.path_of("recon", image, row.sample if len(own) > 1 else None) for row in shown]
            rows.append([load_image(file) for file in files])
            scored = f"PSNR {own[0].psnr_input:.2f} dB"
            captions.append([*([image, scored] if truths else [image]), *map(_caption, shown)])
        if rows:
            header = ["Ground truth"] * truths + ["Measurement", *restored]
            save_grid(self.path / "grid.png", rows, captions, header)


def _name(image: str, sample: str | None) -> str:
    return image if sample is None else f"{image}_{sample}"


def _caption(row: Row) -> str:
    if not row.has_truth:
        return f"distance {row.distance:.3g}" if math.isnan(row.chi_square) else f"chi-square {row.chi_square:.2f}"
    if math.isnan(row.psnr_aligned):
        return f"PSNR {row.psnr:.2f} dB"
    return f"PSNR {row.psnr:.2f} dB, aligned {row.psnr_aligned:.2f}"


def _flatten(tree: dict, prefix: str = "") -> dict[str, object]:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return flat
