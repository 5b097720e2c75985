"""The folder of a run: what its files are called, and how those of an earlier run are cleared away.

<save_dir>/<operator>/<method>/
    input/ recon/ label/    a PNG per image, named after its source: lifted measurement, restoration, truth if known
    std/                    the standard deviation of an image's posterior samples, if there are several: a map of its
                            root mean square over the channels, and itself (H, W, 3) on [0, 1] as .npy;
                            recon/<image>_mean.npy is their mean, alike
    progress/<image>/       x_t and x0_hat on the way, where asked for
    measurements/           the measurements, .npz, where asked for
    trajectories/           <image>.csv: the measurement distance of every step, a column per sample
    metrics.csv             a row per image and posterior sample; an image is finished when its rows are in
    summary.json            means over the rows, cost, versions
    config.yaml             the resolved configuration
    grid.png                truth (if known) | measurement | restoration
    rows/ run.lock          while the run is not at its end, see `util.run.rows` and `util.run.lock`
"""

import re
from collections.abc import Collection
from pathlib import Path

from util.command import user_path
from util.errors import UserError
from util.metrics.pairs import MEAN

TABLE, SUMMARY, CONFIG, GRID = "metrics.csv", "summary.json", "config.yaml", "grid.png"
ROWS, LOCK = "rows", "run.lock"
SCORES = ("scores.json", "scores.csv")              # by `util.compute_metric`
ALWAYS = ("input", "recon", "label", "progress")    # folders that DPS makes, too
SUFFIXES = {"input": (".png",), "recon": (".png", ".npy"), "label": (".png",), "std": (".png", ".npy"),
            "measurements": (".npz",), "trajectories": (".csv",), ROWS: (".csv",)}     # of the files of an image
SAMPLE = re.compile(rf"_(\d+|{MEAN})$")             # what follows an image's name in recon/ and progress/
PROGRESS_FILE = re.compile(r"(x|x0_hat)_\d{4,}\.png")
TEMPORARY_FILE = re.compile(r"\..+\.(png|csv|json|yaml|npz|npy)\.\d+\.tmp")     # as `write_atomically` names them


def run_path(save_dir: str | Path, operator: str, method: str) -> Path:
    """The folder of a run."""
    return user_path(save_dir) / operator / method


def is_file_name(text: str) -> bool:
    """Whether a text may name a file in a folder, and none elsewhere."""
    return text not in ("", ".", "..") and not any(mark in text for mark in "/\\\0")


def sample_names(count: int) -> list[str]:
    """What the rows of an image of `count` posterior samples are called, in order."""
    return [*map(str, range(count)), MEAN] if count > 1 else ["0"]


def file_of(run: Path, folder: str, image: str, sample: str | None = None, suffix: str | None = None) -> Path:
    """Where a file of an image lies; in recon/ and progress/ there is one per `sample` if there are several."""
    name = image if sample is None else f"{image}_{sample}"
    return run / folder / f"{name}{SUFFIXES[folder][0] if suffix is None else suffix}"


def make_folders(run: Path) -> None:
    """Make the folders of a run, and delete what a killed one left half-written.

    Raises:
        OSError: they cannot be written to.
        UserError: a folder in there is a symbolic link: nothing is written or deleted elsewhere.
    """
    for path in (*run.glob("*"), *run.glob("progress/*")):
        if path.is_symlink() and path.is_dir():
            raise UserError(f"{path} is a symbolic link to another folder, which a run does not write to; "
                            "remove it, or choose another folder with --save_dir")
    for folder in ALWAYS:
        (run / folder).mkdir(parents=True, exist_ok=True)
    for file in (*run.glob(".*.tmp"), *run.glob("*/.*.tmp"), *run.glob("progress/*/.*.tmp")):
        if TEMPORARY_FILE.fullmatch(file.name):
            file.unlink(missing_ok=True)


def delete_results(run: Path, images: Collection[str]) -> None:
    """Delete what a run wrote of these images and of all, and `util.compute_metric`; nothing else; config.yaml last."""
    def owned(name: str, sampled: bool) -> bool:
        return name in images or sampled and SAMPLE.sub("", name) in images

    for folder, suffixes in SUFFIXES.items():
        for file in (run / folder).glob("*"):
            if file.suffix in suffixes and owned(file.stem, folder == "recon"):
                file.unlink()
    for folder in (run / "progress").glob("*"):
        if owned(folder.name, True):
            for file in folder.glob("*.png"):
                if PROGRESS_FILE.fullmatch(file.name):
                    file.unlink()
            remove_if_empty(folder)
    remove_if_empty(run / ROWS)
    for name in (TABLE, SUMMARY, GRID, *SCORES, CONFIG):
        (run / name).unlink(missing_ok=True)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder unless something is in it; it need not be there."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
