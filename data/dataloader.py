"""Images to measure and restore, or measurements: folders of files, and scikit-image's own photographs."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor
from torch.utils.data import Dataset

from util.arrays import read_array
from util.command import user_path
from util.config.config import REPOSITORY
from util.config.registry import Bounds, Registry
from util.errors import UserError, did_you_mean
from util.files import files_below
from util.img_utils import IMAGE_SUFFIXES, load_alpha, load_image
from util.logger import count, logger

DATASETS = Registry("dataset")
register_dataset = DATASETS.register

ARRAY_SUFFIX = ".npy"
OTHER_PICTURES = (".arw", ".avif", ".cr2", ".dng", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".nef", ".psd", ".raw")
LARGEST_SIDE = 2 ** 13                              # pixels
Side = Annotated[int, Bounds(least=1, most=LARGEST_SIDE)]
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")
LISTS = REPOSITORY / "data" / "lists"               # of file names: the test sets of papers, and what was held back
NAMED = 3                                           # missing files in a message


class ImageDataset(Dataset):
    """Image files, cropped and resized to squares; or, observed, files that are measurements, as they are.

    Attributes:
        paths: one file per image.
        names: one name per image, unique, fit for a file name; results and random streams go by it.
        image_size: side of the images; None keeps each file's own size.
        observed: whether the files are measurements.
        missing: names of images that a list asks for, whose files are not there.
        origin: words for the list and the folder.
    """

    missing: frozenset[str] = frozenset()
    origin = ""

    def __init__(self, paths: Sequence[Path], names: Sequence[str], image_size: int | None = None,
                 observed: bool = False):
        if observed and image_size is not None:
            raise UserError(f"data: image_size is {image_size}, but observed measurements keep their own size; "
                            "leave image_size out")
        self.paths, self.names, self.image_size = tuple(paths), tuple(names), image_size
        self.observed = observed
        self._by_name = dict(zip(self.names, self.paths, strict=True))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Image `index`, (3, S, S) float32 in [-1, 1]; observed, (3, H, W), or a .npy file's values in its own shape.

        Raises:
            UserError: the file cannot be read.
        """
        path = self.paths[index]
        return load_array(path) if path.suffix.lower() == ARRAY_SUFFIX else load_image(path, self.image_size)

    def require(self, names: Sequence[str]) -> None:
        """UserError, which counts them, if files of these images are not there."""
        if gone := [self.path_of(name).name for name in names if name in self.missing]:
            more = ", ..." if len(gone) > NAMED else ""
            raise UserError(f"{self.origin}: {len(gone)} of {len(names)} images are not there "
                            f"({', '.join(gone[:NAMED])}{more}); docs/data.md says where they come from; or restore "
                            "the first ones with --limit N, or write a list of your own")

    def path_of(self, name: str) -> Path:
        """The file of an image."""
        return self._by_name[name]

    def alpha(self, name: str) -> Tensor | None:
        """The opacity of an observed photograph, (H, W) in [0, 1]; None where there is none."""
        path = self.path_of(name)
        return load_alpha(path) if self.observed and path.suffix.lower() != ARRAY_SUFFIX else None


def load_array(path: Path) -> Tensor:
    """The numbers of a .npy file, float32, in its shape but for colours: (H, W, 3) becomes (3, H, W).

    Raises:
        UserError: the file cannot be read, or holds numbers that are not real or not finite.
    """
    values = torch.from_numpy(read_array(str(path), "measurement").astype("float32"))
    if not values.numel() or not values.isfinite().all():
        raise UserError(f"measurement {path} holds numbers that are not finite, or none at all")
    return values.movedim(-1, 0) if values.dim() == 3 and values.shape[-1] == 3 != values.shape[0] else values


@register_dataset("folder")
@register_dataset("ffhq")
@register_dataset("imagenet")
class ImageFolder(ImageDataset):
    """Every image file below a folder, in sorted order, or one image file.

    Hidden files and files that do not end in an image suffix are passed over; pictures of formats that are not read are
    named. A link that leads nowhere counts as a file that cannot be read.

    Args:
        root: the folder, from the working directory or else from the repository's root.
        image_size: side of the images; the network's when omitted.
        observed: the files are measurements, .npy files among them; `measurement.observed` sets it.
        list: restore these images alone, in this order: the name of a file in data/lists, such as ffhq_val_1000, or a
            text file with a file name a line. They are found below the folder by name, whatever their ending.
    """

    def __init__(self, root: str, image_size: Side | None = None, observed: bool = False, list: str | None = None):
        wanted = user_path(root)
        folder = next((place for place in (wanted, REPOSITORY / wanted) if place.exists()), wanted)
        alone = folder.is_file()
        suffixes = (*IMAGE_SUFFIXES, ARRAY_SUFFIX) if observed else IMAGE_SUFFIXES
        advice = (f"expected a folder with images ({', '.join(suffix[1:] for suffix in suffixes)}); give one with "
                  "--data FOLDER, or take scikit-image's photographs with --data skimage")
        if root and alone:
            folder, files = folder.parent, [Path(folder.name)]
        elif root and folder.is_dir():
            try:
                files = files_below(folder)
            except OSError as error:
                raise UserError(f"image folder {root} cannot be read: {error.strerror or error}; {advice}") from None
        else:
            raise UserError(f"image folder '{root}' not found; {advice}")
        images = [file for file in files if file.suffix.lower() in suffixes]
        if not images:
            what = f"{root} is no image file" if alone else f"image folder {root} holds no images"
            raise UserError(f"{what}; {advice}")
        if others := [file for file in files if file.suffix.lower() in OTHER_PICTURES]:
            logger.warning(f"passed over in {root}: {count(len(others), 'picture')} in formats that are not "
                           f"read ({others[0]}{', ...' if others[1:] else ''}); save them as PNG")
        names = unique_names(images)
        if list is not None:
            wanted = read_list(list)
            found, names = _by_name(images, wanted), unique_names(wanted)
            images = [image or Path(entry.name) for image, entry in zip(found, wanted, strict=True)]
            self.missing = frozenset(name for name, image in zip(names, found, strict=True) if image is None)
            self.origin = f"data.list {list} below {root}"
        super().__init__([folder / image for image in images], names, image_size, observed)


def read_list(name: str) -> tuple[Path, ...]:
    """The file names in a list of images, each once, in order: of a list in data/lists, or of a text file.

    Raises:
        UserError: there is no such list, or it cannot be read, or names nothing.
    """
    known = {file.stem: file for file in LISTS.glob("*.txt")}
    file = known.get(name, user_path(name))
    if not file.is_file():
        raise UserError(f"data.list is {name}, which is neither a list in data/lists nor a file; "
                        f"{did_you_mean(name, known)}, or give a text file with a file name a line")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.list {name} cannot be read ({error}), expected a text file with a file name a line"
                        ) from None
    if not (entries := [Path(line) for line in lines if line and not line.startswith("#")]):
        raise UserError(f"data.list {name} names no images, expected a file name a line")
    return tuple(dict.fromkeys(entries))


def _by_name(images: Sequence[Path], wanted: Sequence[Path]) -> Sequence[Path | None]:
    """Of `images`, paths below a folder, the one that ends in each of the paths `wanted`, whatever the suffix."""
    known: Mapping[str, list[Path]] = defaultdict(list)
    for image in images:
        known[_stem(image)].append(image)
    return [_only(entry, known.get(_stem(entry), ())) for entry in wanted]


def _only(entry: Path, images: Sequence[Path]) -> Path | None:
    folders = entry.parts[:-1]
    fitting = [image for image in images if image.parts[:-1][len(image.parts) - 1 - len(folders):] == folders]
    fitting = [image for image in fitting if image.name == entry.name] or fitting
    if len(fitting) > 1:
        raise UserError(f"data.list asks for {entry}, and several files are called so ({fitting[0]}, {fitting[1]}"
                        f"{', ...' if len(fitting) > 2 else ''}); name the folder that holds one copy of each image")
    return fitting[0] if fitting else None


def _stem(path: Path) -> str:
    """The name of a file without the ending of a picture."""
    return path.stem if path.suffix.lower() in (*IMAGE_SUFFIXES, ARRAY_SUFFIX) else path.name


@register_dataset("skimage")
class SkimagePhotographs(ImageDataset):
    """Photographs that scikit-image carries in its package, so that nothing is downloaded.

    Args:
        images: names of scikit-image's pictures, such as astronaut, chelsea, coffee, rocket.
        image_size: side of the images; the network's when omitted.
        observed: the photographs are measurements; `measurement.observed` sets it.
    """

    def __init__(self, images: Sequence[str] = PHOTOGRAPHS, image_size: Side | None = None, observed: bool = False):
        import skimage

        folder = Path(skimage.__file__).parent / "data"
        files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in IMAGE_SUFFIXES}
        if not images:
            raise UserError(f"data: images is empty; choose from {', '.join(sorted(files))}")
        for name in images:
            if name not in files:
                raise UserError(f"scikit-image carries no picture '{name}'; {did_you_mean(name, files)}")
        chosen = list(dict.fromkeys(images))
        super().__init__([files[name] for name in chosen], chosen, image_size, observed)


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Name images after their paths: sub/cat.png -> sub__cat.

    Files that would share a name keep their suffix (cat.png, cat.jpg -> cat_png, cat_jpg), and whatever still collides,
    or is too long for a file name, gets a hash of its path.
    """
    short = [re.sub(r"[^\w.+ -]", "_", "__".join(path.with_suffix("").parts)) for path in paths]
    count = Counter(map(str.casefold, short))
    names = [name if count[name.casefold()] == 1 else f"{name}_{path.suffix[1:].lower()}"
             for name, path in zip(short, paths, strict=True)]
    count = Counter(map(str.casefold, names))
    digests = (hashlib.sha256(path.as_posix().encode(errors="surrogateescape")).hexdigest()[:12] for path in paths)
    return [name if count[name.casefold()] == 1 and len(name.encode()) <= 180 else f"{name[:40]}_{digest}"
            for name, digest in zip(names, digests, strict=True)]


def get_dataset(name: str, /, **params) -> ImageDataset:
    """Build a registered dataset; UserError on an unknown name or parameter, or without images."""
    return DATASETS.build(name, **params)


@dataclass(frozen=True)
class Batch:
    """Posterior samples to draw together: entry b is sample `samples[b]` of image `names[b]`."""

    names: list[str]
    samples: list[int]
    images: Tensor                                  # (B, 3, S, S) in [-1, 1], or measurements (B, ...)


def group_images(count: int, batch_size: int, num_samples: int = 1) -> list[range]:
    """Images 0 to count - 1 in groups of neighbours that are restored together.

    The last digits of a restoration depend on the batch that it is part of, so groups are made from all images alike,
    whichever are finished already: an image is always restored in the same company.

    Args:
        batch_size: entries per batch; an image has `num_samples`, and a group at least one image.
    """
    images = max(1, batch_size // num_samples)
    return [range(first, min(first + images, count)) for first in range(0, count, images)]


def read_images(dataset: Dataset, indices: Sequence[int],
                unreadable: Callable[[UserError], None] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Name and image, or measurement, of each index.

    Args:
        dataset: has `names` and, by index, tensors (...).
        unreadable: called with the error for a file that cannot be read, which is then passed over; without it the
            error is raised.
    """
    for index in indices:
        try:
            image = dataset[index]
        except UserError as error:
            if unreadable is None:
                raise
            unreadable(error)
            continue
        yield dataset.names[index], image


def make_batches(images: Iterable[tuple[str, Tensor]], batch_size: int, num_samples: int = 1) -> Iterator[Batch]:
    """Yield batches of images x samples, in order; the samples of an image follow each other.

    The samples of an image are in one batch if `batch_size` allows it. Images of another shape begin another batch.

    Args:
        images: their names and values.
        batch_size: entries per batch, at most.
        num_samples: posterior samples per image.
    """
    entries: list[tuple[str, int, Tensor]] = []
    for name, image in images:
        for sample in range(num_samples):
            room = batch_size - len(entries)
            needed = num_samples if sample == 0 and num_samples <= batch_size else 1
            if entries and (image.shape != entries[-1][2].shape or room < needed):
                yield _collate(entries)
                entries = []
            entries.append((name, sample, image))
    if entries:
        yield _collate(entries)


def _collate(entries: Sequence[tuple[str, int, Tensor]]) -> Batch:
    names, samples, images = zip(*entries, strict=True)
    return Batch(list(names), list(samples), torch.stack(images))
