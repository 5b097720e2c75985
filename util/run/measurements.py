"""Measurements on disk, one .npz file per image, for other programs and for restoring exactly the same ones again.

    y                       the measurement, float32, without a batch axis, on the scale of images in [-1, 1]
    mask, kernel, ...       whatever the operator drew for the image, under the operator's own names
    operator, noise         name and parameters of either, JSON text
    image_shape             (C, H, W) of the image
    seed                    of the random numbers
    observed                whether y is a photograph that was already degraded, so that nobody knows the image
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zipfile import BadZipFile, ZipFile
from zlib import error as ZlibError

import numpy as np

from util.command import user_path
from util.errors import UserError, printable
from util.files import content_of, write_atomically

SUFFIX = ".npz"
LARGEST_CONTENT = 2 ** 31                           # bytes of a file, unpacked
CHANNELS, LARGEST_SIDE = 3, 2 ** 13                 # of images
LONGEST_NAME = 180                                  # bytes, as results have names that are longer
FIELDS = ("y", "operator", "noise", "image_shape", "seed", "observed")


@dataclass(frozen=True)
class StoredMeasurement:
    """The content of a file."""

    y: np.ndarray
    image_shape: tuple[int, int, int]               # (C, H, W)
    operator: dict[str, object]
    noise: dict[str, object]
    seed: int
    observed: bool
    drawn: dict[str, np.ndarray]                    # without a batch axis

    @property
    def settings(self) -> dict[str, object]:
        """The `measurement` section of a task file that makes such measurements."""
        return {"operator": self.operator, "noise": self.noise, "observed": self.observed}


def write_measurement(path: Path, stored: StoredMeasurement) -> None:
    """Write a file, atomically; numpy.load reads it without pickle."""
    write_atomically(path, content_of(partial(
        np.savez_compressed, y=stored.y, operator=json.dumps(stored.operator), noise=json.dumps(stored.noise),
        image_shape=np.array(stored.image_shape), seed=np.array(stored.seed), observed=np.array(stored.observed),
        **stored.drawn)))


def read_measurement(path: Path) -> StoredMeasurement:
    """Read a file, executing nothing.

    Raises:
        UserError: the file is missing, damaged, or lacks one of the fields or has it in another form.
    """
    try:
        with ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > LARGEST_CONTENT:
                raise ValueError(f"it unpacks to more than {LARGEST_CONTENT} bytes")
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        y, shape = arrays["y"], arrays["image_shape"]
        if y.dtype.kind not in "fiu" or not np.isfinite(y).all() or not y.size:
            raise ValueError("y holds no finite real numbers")
        if (shape.shape != (3,) or shape.dtype.kind not in "iu" or shape[0] != CHANNELS
                or not 1 <= shape.min() <= shape.max() <= LARGEST_SIDE):
            raise ValueError(f"image_shape is {shape.tolist()}, expected [{CHANNELS}, height, width] of 1 to "
                             f"{LARGEST_SIDE} pixels")
        drawn = {name: values for name, values in arrays.items() if name not in FIELDS}
        if any(values.dtype.kind not in "biuf" for values in drawn.values()):
            raise ValueError("it holds arrays of something else than real numbers")
        return StoredMeasurement(y.astype(np.float32), tuple(shape.tolist()), _mapping(arrays, "operator"),
                                 _mapping(arrays, "noise"), int(arrays["seed"]), bool(arrays["observed"]), drawn)
    except KeyError as error:
        raise UserError(f"measurement {path} has no {error}; it needs {', '.join(FIELDS)}") from None
    except (OSError, ValueError, TypeError, EOFError, BadZipFile, AttributeError, MemoryError, RuntimeError,
            ZlibError) as error:
        reason = getattr(error, "strerror", None) or (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"measurement {path} cannot be read: {reason[:160]}; --save_measurements writes such "
                        "files") from None


def _mapping(arrays: dict[str, np.ndarray], field: str) -> dict[str, object]:
    value = json.loads(str(arrays[field]))
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError(f"{field} is no JSON mapping with a name")
    return value


class MeasurementFolder:
    """The measurements in a folder, by name, all of one operator and noise.

    Attributes:
        names: the files' names without suffix, sorted; the images' names.
        settings: the `measurement` section of a task file that makes such measurements.

    Raises:
        UserError: there is no such folder, it holds no .npz files, one cannot be read, or their settings differ.
    """

    def __init__(self, folder: str):
        self.folder = user_path(folder)
        self.names: Sequence[str] = sorted(path.stem for path in self.folder.glob(f"*{SUFFIX}"))
        if not self.names:
            raise UserError(f"--load_measurements {folder}: there are no {SUFFIX} files; name the folder measurements/ "
                            "of a run with --save_measurements")
        for name in self.names:
            if len(name.encode(errors="replace")) > LONGEST_NAME or not name.isprintable() or name.startswith("."):
                raise UserError(f"--load_measurements {folder}: '{printable(name)[:60]}' is no name for results; "
                                f"rename the file, with at most {LONGEST_NAME} bytes and no control characters")
        self.settings = self.read(self.names[0]).settings
        for name in self.names[1:]:
            if self.read(name).settings != self.settings:
                raise UserError(f"--load_measurements {folder}: {name}{SUFFIX} was made with another operator or noise "
                                f"than {self.names[0]}{SUFFIX}; load them from a folder each")

    def path_of(self, name: str) -> Path:
        """The file of an image."""
        return self.folder / f"{name}{SUFFIX}"

    def read(self, name: str) -> StoredMeasurement:
        """The measurement of an image."""
        return read_measurement(self.path_of(name))
