"""Which restored file belongs to which true one, in two folders of images."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from util.command import user_path
from util.errors import UserError, first
from util.files import files_below
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
        raise UserError(f"no image in {folders[0]} ({shorten(left)}) has the name of one in {folders[1]} "
                        f"({shorten(right)}); pairs go by file name, the suffix aside")
    missing = [f"{folder} has no {shorten(other - own)}" for folder, own, other in (
        (folders[0], left.keys(), right.keys()), (folders[1], right.keys(), left.keys())) if other - own]
    return [Pair(name, "0", left[name], right[name]) for name in common], missing


def _images_below(folder: Path) -> list[str]:
    try:
        if not folder.is_dir():
            raise UserError(f"image folder '{folder}' {'is a file' if folder.exists() else 'not found'}; expected a "
                            "folder of images")
        names = [file.as_posix() for file in files_below(folder) if file.suffix.lower() in IMAGE_SUFFIXES]
    except OSError as error:
        raise UserError(f"image folder {folder} cannot be read: {error.strerror or error}") from None
    if not names:
        raise UserError(f"image folder {folder} holds no images; expected files that end in "
                        f"{', '.join(suffix[1:] for suffix in IMAGE_SUFFIXES)}")
    return names


def _stem(file: str) -> str:
    return file.rpartition(".")[0]


def shorten(names: Iterable[str]) -> str:
    """"'a', 'b' and 4 more"."""
    return first([repr(name) for name in sorted(names)], SHOWN)
