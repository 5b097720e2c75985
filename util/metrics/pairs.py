"""Which restored file belongs to which true one: in two folders of images, or in the folder of a run."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from util.command import user_path
from util.errors import UserError
from util.img_utils import IMAGE_SUFFIXES

MEAN = "mean"                                       # the sample that is the mean of an image's posterior samples
SHOWN = 5                                           # names in a message


@dataclass(frozen=True)
class Pair:
    """A restoration and its truth; `sample` is "0", "1", ..., or MEAN."""

    image: str
    sample: str
    restored: Path
    label: Path


def is_file_name(text: str) -> bool:
    """Whether a text may name a file in a folder, and none elsewhere."""
    return text not in ("", ".", "..") and not any(mark in text for mark in "/\\\0")


def pair_folders(restored: str | Path, labels: str | Path) -> tuple[list[Pair], list[str]]:
    """Pair the images of two folders by file name, the suffix aside (and subfolders included).

    Returns:
        The pairs by name, and a line per folder that lacks some, with their names.

    Raises:
        UserError: a folder is missing, cannot be read or holds no images, or no name is in both.
    """
    folders = [user_path(restored), user_path(labels)]
    files = [_images_below(folder) for folder in folders]
    stems = [Counter(_stem(file) for file in names) for names in files]
    shared = {stem for count in stems for stem in count if count[stem] > 1}     # these keep their suffix
    left, right = ({(file if _stem(file) in shared else _stem(file)): folder / file for file in names}
                   for folder, names in zip(folders, files, strict=True))
    common = sorted(left.keys() & right.keys())
    if not common:
        raise UserError(f"no image in {folders[0]} ({_shorten(left)}) has the name of one in {folders[1]} "
                        f"({_shorten(right)}); pairs go by file name, the suffix aside")
    missing = [f"{folder} has no {_shorten(other - own)}" for folder, own, other in (
        (folders[0], left.keys(), right.keys()), (folders[1], right.keys(), left.keys())) if other - own]
    return [Pair(name, "0", left[name], right[name]) for name in common], missing


def _images_below(folder: Path) -> list[str]:
    try:
        if not folder.is_dir():
            raise UserError(f"image folder '{folder}' {'is a file' if folder.exists() else 'not found'}; expected a "
                            "folder of images")
        files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
        names = sorted(file.as_posix() for file in files if file.suffix.lower() in IMAGE_SUFFIXES
                       and not any(part.startswith(".") for part in file.parts))
    except OSError as error:
        raise UserError(f"image folder {folder} cannot be read: {error.strerror or error}") from None
    if not names:
        raise UserError(f"image folder {folder} holds no images; expected files that end in "
                        f"{', '.join(suffix[1:] for suffix in IMAGE_SUFFIXES)}")
    return names


def _stem(file: str) -> str:
    return file.rpartition(".")[0]


def _shorten(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


def pair_results(folder: str | Path, rows: Sequence[dict[str, str]]) -> tuple[list[Pair], list[str]]:
    """Pair recon/ and label/ in the folder of a run, ours or one of DPS.

    Args:
        folder: the folder that holds them.
        rows: its table (`read_table`), which says which samples an image has; where it is empty, names tell.

    Raises:
        UserError: as `pair_folders`.
    """
    recon, label = user_path(folder) / "recon", user_path(folder) / "label"
    if not recon.is_dir() or not label.is_dir():
        raise UserError(f"'{folder}' has no folders recon/ and label/, so it holds no results; name such a folder "
                        "(results/<operator>/<method>), or two folders of images")
    if not any(label.iterdir()):
        raise UserError(f"{label} is empty: the run had no true images, so there is nothing to compare with")
    if not rows:
        return _pair_samples_by_name(recon, label)
    count = Counter(row["image"] for row in rows)
    pairs = [Pair(row["image"], row["sample"], recon / f"{name}.png", label / f"{row['image']}.png") for row in rows
             for name in [row["image"] if count[row["image"]] == 1 else f"{row['image']}_{row['sample']}"]]
    there = [pair for pair in pairs if pair.restored.is_file() and pair.label.is_file()]
    missing = {str(file.relative_to(recon.parent)) for pair in pairs for file in (pair.restored, pair.label)
               if not file.is_file()}
    return there, [f"{folder} has no {_shorten(missing)}, which metrics.csv tells of"] if missing else []


def _pair_samples_by_name(recon: Path, label: Path) -> tuple[list[Pair], list[str]]:
    """Pairs x.png and x.png, or x_<sample>.png and x.png."""
    labels = {_stem(file): label / file for file in _images_below(label)}
    pairs, unknown = [], []
    for file in _images_below(recon):
        sample = re.fullmatch(rf"(.+)_(\d+|{MEAN})", _stem(file))
        if _stem(file) in labels:
            pairs.append(Pair(_stem(file), "0", recon / file, labels[_stem(file)]))
        elif sample and sample[1] in labels:
            pairs.append(Pair(sample[1], sample[2], recon / file, labels[sample[1]]))
        else:
            unknown.append(_stem(file))
    if not pairs:
        raise UserError(f"no image in {recon} ({_shorten(unknown)}) has the name of one in {label} "
                        f"({_shorten(labels)})")
    lost = labels.keys() - {pair.image for pair in pairs}
    missing = [f"{folder} has no {_shorten(names)}" for folder, names in ((label, unknown), (recon, lost)) if names]
    return pairs, missing


def read_table(folder: str | Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv, as text, of images that are restored and whose truth is known; empty where there
    is no such file.

    Raises:
        UserError: it cannot be read, or is no table of images and samples.
    """
    path = user_path(folder) / "metrics.csv"
    if not path.is_file():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if any(None in row or None in row.values() or not is_file_name(row["image"])
               or not re.fullmatch(rf"\d+|{MEAN}", row["sample"]) for row in rows):
            raise ValueError
    except (OSError, KeyError, ValueError, csv.Error):
        raise UserError(f"{path} is not the table of a run; move it away, or name recon/ and label/ as two folders"
                        ) from None
    return [row for row in rows if row.get("psnr_input") != "" and row.get("status", "ok") == "ok"]
