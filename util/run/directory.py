"""Everything that a run leaves on disk, written so that it can be stopped at any time and continued.

What lies where: `util.run.layout`. A sample that diverged has a row, but no restoration.
"""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from torch import Tensor

from util.errors import StorageError, UserError
from util.files import content_of, write_atomically
from util.img_utils import is_whole_png, load_image, save_grid, save_image, save_map, to_unit
from util.metrics.pairs import MEAN
from util.metrics.scores import Metrics
from util.run.config_file import check_settings, write_settings
from util.run.layout import ALWAYS, CONFIG, GRID, SUMMARY, delete_results, file_of, make_folders, run_path, sample_names
from util.run.measurements import read_measurement
from util.run.rows import RowStore, begun_images
from util.run.table import Outcome, Row, make_rows, read_summary, standard_deviation, summarise, trajectories_to_csv

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
        self.settings, self.keeps_measurements = config, keeps_measurements
        if leads:
            self._open(overwrite)
        self.store = RowStore(self.path, images, leads)
        if leads:
            self.keep_batch_size(check_settings(self.path, config) if self.store.by_image else None)

    def keep_batch_size(self, batch_size: int | None) -> None:
        """Note what --batch_size auto chose, None if it did not, for whoever continues the run."""
        self.batch_size = batch_size
        write_settings(self.path, self.settings, batch_size)

    @property
    def rows(self) -> list[Row]:
        """A row per image and sample, in order."""
        return self.store.rows

    def _open(self, overwrite: bool) -> None:
        try:
            make_folders(self.path)
            if overwrite:
                images = set(begun_images(self.path))
                with suppress(UserError):           # the table is to be replaced, whatever it is
                    images |= set(RowStore(self.path).by_image)
                delete_results(self.path, images)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror or error}; "
                            "choose another folder with --save_dir") from None

    def _check_there(self) -> None:
        for name in (CONFIG, *ALWAYS):
            if not (self.path / name).exists():
                raise StorageError(f"{self.path / name} is gone; the same command begins anew what was in it")

    def path_of(self, folder: str, image: str, sample: str | None = None, suffix: str | None = None) -> Path:
        """Where a file of an image lies, see `util.run.layout`; recon/ has one per `sample` if there are several."""
        return file_of(self.path, folder, image, sample, suffix)

    def rows_of(self, image: str) -> list[Row]:
        """The rows of an image, none if it is not finished."""
        return self.store.by_image.get(image, [])

    def finished(self, image: str) -> bool:
        """Whether the image's rows are in and its files are there, and whole."""
        own = self.rows_of(image)
        several, ok = len(own) > 1, [row for row in own if row.ok]
        if [row.sample for row in own] != sample_names(self.settings.get("num_samples") or max(1, len(own) - 1)):
            return False
        pictures, arrays = [self.path_of("input", image)], []
        pictures += [self.path_of("recon", image, row.sample if several else None) for row in ok]
        if own[0].has_truth:
            pictures.append(self.path_of("label", image))
        if any(row.sample == MEAN for row in ok):
            arrays.append(self.path_of("recon", image, MEAN, ".npy"))
        if sum(row.sample != MEAN for row in ok) > 1:
            pictures.append(self.path_of("std", image))
            arrays.append(self.path_of("std", image, suffix=".npy"))
        try:
            if self.keeps_measurements:
                read_measurement(self.path_of("measurements", image))
            trajectories = self.path_of("trajectories", image).read_bytes()
        except (OSError, UserError):
            return False
        return (trajectories.endswith(b"\n") and all(map(is_whole_png, pictures))
                and all(map(_is_whole_array, arrays)))

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
            image, label, lifted, outcomes, metrics, source: as `make_rows` takes them.
            alpha: the opacity (h, w) in [0, 1] that restorations are saved with; opaque when None.
        """
        rows = make_rows(image, label, lifted, outcomes, metrics, source)
        self._check_there()
        for outcome, row in zip(outcomes, rows, strict=True):
            if row.ok:
                sample = outcome.sample if len(outcomes) > 1 else None
                save_image(self.path_of("recon", image, sample), outcome.restored, alpha)
                if outcome.sample == MEAN:
                    _save_array(self.path_of("recon", image, MEAN, ".npy"), to_unit(outcome.restored))
        save_image(self.path_of("input", image), lifted)
        if label is not None:
            save_image(self.path_of("label", image), label)
        if (std := standard_deviation(outcomes)) is not None:
            _save_array(self.path_of("std", image, suffix=".npy"), std)
            save_map(self.path_of("std", image), std.square().mean(dim=0).sqrt(),
                     f"Standard deviation of {sum(row.ok for row in rows) - 1} samples on [0, 1]")
        write_atomically(self.path_of("trajectories", image), trajectories_to_csv(outcomes).encode())
        self.store.add(rows)

    def save_progress(self, image: str, sample: str | None, index: int, x: Tensor, x0_hat: Tensor) -> None:
        """Save the state after step `index` and the prediction of the clean image, (3, H, W) each."""
        self._check_there()
        folder = self.path_of("progress", image, sample, "")
        save_image(folder / f"x_{index:04d}.png", x)
        save_image(folder / f"x0_hat_{index:04d}.png", x0_hat)

    def conclude(self, facts: dict[str, object]) -> None:
        """Write all that is made from the rows; `facts` go into summary.json, unless that is of these rows already."""
        self._check_there()
        self.store.write()
        known = read_summary(self.path) or {}
        if any(known.get(key) != value for key, value in json.loads(json.dumps(summarise(self.rows))).items()):
            self.write_summary(facts)
        self.write_grid()
        self.store.conclude()

    def write_summary(self, facts: dict[str, object]) -> None:
        """Write summary.json: `facts`, then mean, standard deviation and count of every column of metrics.csv."""
        summary = {**facts, **summarise(self.rows)}
        write_atomically(self.path / SUMMARY, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())

    def write_grid(self) -> None:
        """Write grid.png: truth (if known), measurement, restoration of up to 8 images; of several samples the one of
        lowest distance, and their mean. StorageError if one is gone since it was written."""
        images = list(dict.fromkeys(row.image for row in self.rows if row.ok))[:GRID_ROWS]
        truths = all(self.rows_of(image)[0].has_truth for image in images)
        rows, captions, restored = [], [], ["Restoration"]
        for image in images:
            own = self.rows_of(image)
            shown = ([row for row in own if row.best == 1] or [row for row in own if row.ok])[:1]
            if len(own) > 1:
                shown.append(own[-1])
                restored = [f"Best fit of {len(own) - 1}", f"Mean of {len(own) - 1}"]
            files = [self.path_of("label", image), self.path_of("input", image)][not truths:]
            files += [self.path_of("recon", image, row.sample if len(own) > 1 else None) for row in shown]
            try:
                rows.append([load_image(file) for file in files])
            except UserError as error:
                raise StorageError(f"{error}; the same command restores that image anew") from None
            names = [image, f"PSNR {own[0].psnr_input:.2f} dB"] if truths else [image]
            captions.append([*names, *map(_caption, shown)])
        if rows:
            save_grid(self.path / GRID, rows, captions, ["Ground truth", "Measurement", *restored][not truths:])


def _save_array(path: Path, x: Tensor) -> None:
    """(3, H, W) -> a .npy file of (H, W, 3) float32."""
    write_atomically(path, content_of(lambda file: np.save(file, x.permute(1, 2, 0).contiguous().cpu().numpy())))


def _is_whole_array(path: Path) -> bool:
    """Whether a .npy file has the length that its header says."""
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
        return True
    except (OSError, ValueError, EOFError):
        return False


def _caption(row: Row) -> str:
    if not row.has_truth:
        return f"distance {row.distance:.3g}" if math.isnan(row.chi_square) else f"chi-square {row.chi_square:.2f}"
    aligned = "" if math.isnan(row.psnr_aligned) else f", aligned {row.psnr_aligned:.2f}"
    return f"PSNR {row.psnr:.2f} dB{aligned}"
