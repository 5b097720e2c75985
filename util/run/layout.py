"""The files of a run's folder: what they are called, and how those of an earlier run are cleared away."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from util.command import user_path
from util.errors import UserError
from util.run.config_file import CONFIG, RunConfig
from util.run.measurements import SUFFIX
from util.run.rows import ROWS, TABLE, RowStore, begun_images
from util.run.table import MEAN

FOLDERS = ("input", "recon", "label", "progress")
SUMMARY, GRID = "summary.json", "grid.png"
FILES = (TABLE, SUMMARY, GRID, "scores.json", "scores.csv")     # the last two by `util.compute_metric`
PROGRESS_FILE = re.compile(r"(x|x0_hat)_\d{4,}\.png")
TEMPORARY_FILE = re.compile(r"\..+\.(png|csv|json|yaml|npz)\.\d+\.tmp")    # as `write_atomically` names them


def run_path(save_dir: str | Path, operator: str, method: str) -> Path:
    """The folder of a run."""
    return user_path(save_dir) / operator / method


def sample_names(count: int) -> list[str]:
    """What the rows of an image of `count` posterior samples are called, in order."""
    return [*map(str, range(count)), *[MEAN] * (count > 1)]


def picture_path(run: Path, folder: str, image: str, sample: str | None = None) -> Path:
    """Where a picture of an image lies in input/, recon/, label/ or std/."""
    return run / folder / f"{_name(image, sample)}.png"


def measurement_path(run: Path, image: str) -> Path:
    """Where the measurement of an image lies."""
    return run / "measurements" / f"{image}{SUFFIX}"


def trajectory_path(run: Path, image: str) -> Path:
    """Where the distances of an image's steps lie."""
    return run / "trajectories" / f"{image}.csv"


def progress_path(run: Path, image: str, sample: str | None) -> Path:
    """The folder of the states on the way to a sample."""
    return run / "progress" / _name(image, sample)


def _name(image: str, sample: str | None) -> str:
    return image if sample is None else f"{image}_{sample}"


def make_folders(run: Path) -> None:
    """Make the folders of a run, and delete what a killed one left half-written.

    Raises:
        OSError: they cannot be written to.
        UserError: a folder in there is a symbolic link: nothing is written or deleted elsewhere.
    """
    for pattern in ("*", "progress/*"):
        for path in run.glob(pattern):
            if path.is_symlink() and path.is_dir():
                raise UserError(f"{path} is a symbolic link to another folder, which a run does not write to; "
                                "remove it, or choose another folder with --save_dir")
    for folder in FOLDERS:
        (run / folder).mkdir(parents=True, exist_ok=True)
    for file in (*run.glob(".*.tmp"), *run.glob("*/.*.tmp"), *run.glob("progress/*/.*.tmp")):
        if TEMPORARY_FILE.fullmatch(file.name):
            file.unlink(missing_ok=True)


def delete_results(run: Path, config: RunConfig) -> None:
    """Delete what a run and `util.compute_metric` wrote there, and nothing else; config.yaml last."""
    begun, samples = set(begun_images(run)), {MEAN}
    with suppress(UserError):
        rows = RowStore(run).rows
        begun, samples = begun | {row.image for row in rows}, samples | {row.sample for row in rows}
        samples |= set(sample_names(config.read_num_samples()))
    for image in begun:
        for file in _files_of(run, image, [None, *samples]):
            file.unlink(missing_ok=True)
        for sample in (None, *samples):
            _delete_progress(progress_path(run, image, sample))
    for name in (*(f"{ROWS}/{image}.csv" for image in begun), *FILES, CONFIG):
        (run / name).unlink(missing_ok=True)
    if (run / ROWS).is_dir() and not any((run / ROWS).iterdir()):
        (run / ROWS).rmdir()


def _files_of(run: Path, image: str, samples: Sequence[str | None]) -> Iterator[Path]:
    """All that may be there of an image, pictures on the way aside."""
    yield from (picture_path(run, folder, image) for folder in ("input", "label", "std"))
    yield from (picture_path(run, "recon", image, sample) for sample in samples)
    yield from (measurement_path(run, image), trajectory_path(run, image))


def _delete_progress(folder: Path) -> None:
    if folder.is_dir():
        for file in folder.iterdir():
            if PROGRESS_FILE.fullmatch(file.name):
                file.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
