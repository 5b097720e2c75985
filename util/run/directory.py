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
    rows/ run.lock          while the run is not at its end, see `util.run.rows` and `util.run.lock`

A sample that diverged has a row, but no restoration.
"""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from util.errors import StorageError, UserError
from util.img_utils import is_whole_png, load_image, save_grid, save_image, save_map, write_atomically
from util.metrics.scores import Metrics
from util.run.config_file import CONFIG, RunConfig
from util.run.layout import (
    GRID,
    SUMMARY,
    delete_results,
    make_folders,
    measurement_path,
    picture_path,
    progress_path,
    run_path,
    sample_names,
    trajectory_path,
)
from util.run.measurements import StoredMeasurement, read_measurement, write_measurement
from util.run.rows import RowStore
from util.run.table import MEAN, Outcome, Row, make_rows, standard_deviation, summarise, trajectories_to_csv

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
        images: the names in the data set, in the order that rows shall have.
        leads: whether this process opens and concludes the folder; others only add images.

    Raises:
        UserError: the folder cannot be written to, or holds the results of another configuration.
    """

    def __init__(self, save_dir: str | Path, operator: str, method: str, config: dict[str, object],
                 overwrite: bool = False, keeps_measurements: bool = False, images: Sequence[str] = (),
                 leads: bool = True):
        self.path = run_path(save_dir, operator, method)
        self.config, self.num_samples = RunConfig(self.path, config), config.get("num_samples")
        self.keeps_measurements = keeps_measurements
        if leads:
            self._open(overwrite)
        self.store = RowStore(self.path, images, leads)
        if leads:
            self.config.bind(continues=bool(self.store.by_image))

    @property
    def rows(self) -> list[Row]:
        """A row per image and sample, in order."""
        return self.store.rows

    @property
    def concluded(self) -> bool:
        """Whether nothing is left to be written, and what is made from all images is whole."""
        grid = is_whole_png(self.path / GRID) or not any(row.ok for row in self.rows)
        return self.store.concluded and _read_json(self.path / SUMMARY) is not None and grid

    def _open(self, overwrite: bool) -> None:
        try:
            make_folders(self.path)
            if overwrite:
                delete_results(self.path, self.config)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror or error}; "
                            "choose another folder with --save_dir") from None

    def _check_there(self) -> None:
        if not (self.path / CONFIG).is_file():
            raise StorageError(f"{self.path} is gone, or what was in it; the same command begins anew there")

    def path_of(self, folder: str, image: str, sample: str | None = None) -> Path:
        """Where an image lies in input/, recon/ or label/; recon/ has a file per `sample` if there are several."""
        return picture_path(self.path, folder, image, sample)

    def rows_of(self, image: str) -> list[Row]:
        """The rows of an image, none if it is not finished."""
        return self.store.by_image.get(image, [])

    def finished(self, image: str) -> bool:
        """Whether the image's rows are in and its files are there, and whole."""
        own = self.rows_of(image)
        several, ok = len(own) > 1, [row for row in own if row.ok]
        if [row.sample for row in own] != sample_names(self.num_samples or max(1, len(own) - 1)):
            return False
        pictures = [self.path_of("input", image)]
        pictures += [self.path_of("recon", image, row.sample if several else None) for row in ok]
        pictures += [self.path_of("label", image)] * own[0].has_truth
        pictures += [self.path_of("std", image)] * (sum(row.sample != MEAN for row in ok) > 1)
        return (all(map(is_whole_png, pictures)) and _ends_with_a_line(trajectory_path(self.path, image))
                and (not self.keeps_measurements or _is_measurement(measurement_path(self.path, image))))

    def collect(self) -> set[str]:
        """The images whose rows are in, those of other processes included; metrics.csv is brought up to date."""
        self.store = RowStore(self.path, self.store.images, self.store.leads)
        if self.store.leads and self.store.by_image and (self.path / CONFIG).is_file():
            with suppress(StorageError):
                self.store.write()
        return set(self.store.by_image)

    def begin(self, image: str) -> None:
        """Note that files of the image may be there from now on; StorageError if the folder is gone."""
        self._check_there()
        self.store.begin(image)

    def save(self, image: str, label: Tensor | None, lifted: Tensor, outcomes: Sequence[Outcome],
             metrics: Metrics | None, alpha: Tensor | None = None, source: str = "") -> None:
        """Score and save one image with all its samples; it is finished when this returns.

        Args:
            image: its name.
            label: the truth, (3, H, W) in [-1, 1]; None where nobody knows it.
            lifted: the measurement in image space, same shape.
            outcomes: its samples and, if there are several, their mean.
            metrics: what scores them; needed with a truth.
            alpha: the opacity (h, w) in [0, 1] that restorations are saved with; opaque when None.
            source: fingerprint of the files that it was read from.
        """
        rows = make_rows(image, label, lifted, outcomes, metrics, source)
        self._check_there()
        for outcome, row in zip(outcomes, rows, strict=True):
            if row.ok:
                sample = outcome.sample if len(outcomes) > 1 else None
                save_image(self.path_of("recon", image, sample), outcome.restored, alpha)
        save_image(self.path_of("input", image), lifted)
        if label is not None:
            save_image(self.path_of("label", image), label)
        if (std := standard_deviation(outcomes)) is not None:
            save_map(self.path_of("std", image), std.square().mean(dim=0).sqrt(),
                     f"Standard deviation of {sum(row.ok for row in rows) - 1} samples on [0, 1]")
        write_atomically(trajectory_path(self.path, image), trajectories_to_csv(outcomes).encode())
        self.store.add(rows)

    def save_measurement(self, image: str, stored: StoredMeasurement) -> None:
        """Save a measurement for other programs and for --load_measurements."""
        write_measurement(measurement_path(self.path, image), stored)

    def save_progress(self, image: str, sample: str | None, index: int, x: Tensor, x0_hat: Tensor) -> None:
        """Save the state after step `index` and the prediction of the clean image, (3, H, W) each."""
        self._check_there()
        folder = progress_path(self.path, image, sample)
        save_image(folder / f"x_{index:04d}.png", x)
        save_image(folder / f"x0_hat_{index:04d}.png", x0_hat)

    def conclude(self, facts: dict[str, object]) -> None:
        """Write all that is made from the rows; what `facts` says goes to summary.json, if that is of other rows."""
        self._check_there()
        self.store.write()
        known = _read_json(self.path / SUMMARY) or {}
        if any(known.get(key) != value for key, value in json.loads(json.dumps(summarise(self.rows))).items()):
            self.write_summary(facts)
        self.write_grid()
        self.store.conclude()

    def write_summary(self, facts: dict[str, object]) -> None:
        """Write summary.json: `facts`, then mean, standard deviation and count of every column of metrics.csv."""
        summary = {**facts, **summarise(self.rows)}
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        write_atomically(self.path / SUMMARY, text.encode())

    def add_to_summary(self, more: dict[str, object]) -> None:
        """Change summary.json by what was found out after the run had come to its end (`concluded`)."""
        path = self.path / SUMMARY
        text = json.dumps({**(_read_json(path) or {}), **more}, indent=2, allow_nan=False) + "\n"
        write_atomically(path, text.encode())

    def write_grid(self) -> None:
        """Write grid.png: truth (if known), measurement, restoration of up to 8 images; of several samples the one of
        lowest distance, and their mean."""
        images = list(dict.fromkeys(row.image for row in self.rows if row.ok))[:GRID_ROWS]
        table = {image: self.rows_of(image) for image in images}
        truths = all(own[0].has_truth for own in table.values())
        rows, captions, restored = [], [], ["Restoration"]
        for image, own in table.items():
            shown = ([row for row in own if row.best == 1] or [row for row in own if row.ok])[:1]
            if len(own) > 1:
                shown.append(own[-1])
                restored = [f"Best fit of {len(own) - 1}", f"Mean of {len(own) - 1}"]
            files = [self.path_of("label", image)] * truths + [self.path_of("input", image)]
            files += [self.path_of("recon", image, row.sample if len(own) > 1 else None) for row in shown]
            rows.append([load_image(file) for file in files])
            scored = f"PSNR {own[0].psnr_input:.2f} dB"
            captions.append([*([image, scored] if truths else [image]), *map(_caption, shown)])
        if rows:
            header = ["Ground truth"] * truths + ["Measurement", *restored]
            save_grid(self.path / GRID, rows, captions, header)


def _ends_with_a_line(path: Path) -> bool:
    return path.is_file() and path.read_bytes().endswith(b"\n")


def _read_json(path: Path) -> dict[str, object] | None:
    """What a file of ours holds; None where it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda nan: None)
        return content if isinstance(content, dict) else None
    except (OSError, ValueError, RecursionError):
        return None


def _is_measurement(path: Path) -> bool:
    try:
        return bool(read_measurement(path))
    except UserError:
        return False


def _caption(row: Row) -> str:
    if not row.has_truth:
        return f"distance {row.distance:.3g}" if math.isnan(row.chi_square) else f"chi-square {row.chi_square:.2f}"
    if math.isnan(row.psnr_aligned):
        return f"PSNR {row.psnr:.2f} dB"
    return f"PSNR {row.psnr:.2f} dB, aligned {row.psnr_aligned:.2f}"
