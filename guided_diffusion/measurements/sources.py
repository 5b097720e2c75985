"""Where measurements come from: made from clean images, made by someone else, or saved by an earlier run."""

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.dataloader import ARRAY_SUFFIX, Batch, ImageDataset
from guided_diffusion.measurements.base import Noise, Operator
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.measurements.trial import check_measurement
from util.checkpoint import fingerprint
from util.errors import UserError
from util.logger import logger
from util.run.measurements import MeasurementFolder, StoredMeasurement
from util.seeding import ImageRandomness

COLOURS = 3
LARGEST_VALUE = 5                                   # of a photograph on [-1, 1], with much noise


class Source(ABC):
    """The measurements of a run. A data loader reads `names`, the length and the items: images or measurements.

    Attributes:
        names: a name per image.
        size: words for the size of the images.
        image_size: side of all images; None where they may differ.
        knows_truth: whether clean images are known, of some at least.
    """

    names: tuple[str, ...]
    size = "their own size"
    image_size: int | None = None
    knows_truth = False

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def __getitem__(self, index: int) -> Tensor:
        """What is read of image `index`, without a batch axis; UserError if it cannot be read."""

    @abstractmethod
    def measure(self, operator: Operator, noiser: Noise, batch: Batch, device: torch.device,
                randomness: ImageRandomness) -> Measurement:
        """The measurements (B, ...) of a batch, on `device`; UserError where operator and batch do not fit."""

    def check(self, operator: Operator, noiser: Noise) -> None:
        """Raise UserError, before anything is restored, if operator, noise and what there is to restore do not fit."""
        noiser.check(operator)
        if (trial := self._trial()) is not None:
            batch, randomness = trial
            check_measurement(self.measure(operator, noiser, batch, torch.device("cpu"), randomness))

    def truth(self, batch: Batch, b: int) -> Tensor | None:
        """The clean image (3, H, W) of entry b; None where nobody knows it."""
        return None

    def alpha(self, name: str) -> Tensor | None:
        """The opacity (h, w) in [0, 1] that goes with the restored image; None where it is opaque."""
        return None

    @abstractmethod
    def files(self, name: str) -> list[Path]:
        """What image `name` is read from."""

    def fingerprint(self, name: str) -> str:
        """Sixteen digits per file that image `name` is read from; none where one cannot be read now."""
        try:
            return "".join(map(fingerprint, self.files(name)))
        except OSError:
            return ""

    def _trial(self) -> tuple[Batch, ImageRandomness] | None:
        """A batch of the first image that can be read."""
        for index, name in enumerate(self.names):
            try:
                return Batch([name], [0], self[index][None]), ImageRandomness(0, [name])
            except UserError:
                continue
        return None


class Simulated(Source):
    """Clean images (3, S, S), measured here."""

    knows_truth = True

    def __init__(self, dataset: ImageDataset):
        self.dataset, self.names, self.image_size = dataset, dataset.names, dataset.image_size
        self.size = f"{self.image_size} x {self.image_size}"

    def __getitem__(self, index: int) -> Tensor:
        return self.dataset[index]

    def measure(self, operator: Operator, noiser: Noise, batch: Batch, device: torch.device,
                randomness: ImageRandomness) -> Measurement:
        return Measurement.simulate(operator, noiser, batch.images.to(device), randomness)

    def _trial(self) -> tuple[Batch, ImageRandomness]:
        grey = torch.zeros(1, COLOURS, self.image_size, self.image_size)
        return Batch(["trial"], [0], grey), ImageRandomness(0, ["trial"])

    def truth(self, batch: Batch, b: int) -> Tensor:
        return batch.images[b]

    def files(self, name: str) -> list[Path]:
        return [self.dataset.path_of(name)]


class Observed(Source):
    """Photographs that are already degraded, of any size, and arrays such as Fourier magnitudes.

    Args:
        dataset: the files.
        usual_size: side of the images of measurements whose shape does not tell.
    """

    def __init__(self, dataset: ImageDataset, usual_size: int):
        self.dataset, self.names, self.usual_size = dataset, dataset.names, usual_size

    def __getitem__(self, index: int) -> Tensor:
        return self.dataset[index]

    def measure(self, operator: Operator, noiser: Noise, batch: Batch, device: torch.device,
                randomness: ImageRandomness) -> Measurement:
        name, y = batch.names[0], batch.images.to(device)
        try:
            if not operator.pictures and not all(map(self._is_array, batch.names)):
                raise UserError(f"operator '{operator.name}' measures no pictures; give its measurements as .npy files")
            shape = y.shape[1:] if y.dim() > 3 else (1, *y.shape[1:])           # a channel axis, as grey has none
            size = (operator.image_size_of(tuple(shape)) if y.dim() > 2 else None) or (self.usual_size, self.usual_size)
            return Measurement.from_data(operator, noiser, y, (len(y), COLOURS, *size), randomness)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None

    def _is_array(self, name: str) -> bool:
        return self.dataset.path_of(name).suffix.lower() == ARRAY_SUFFIX

    def files(self, name: str) -> list[Path]:
        return [self.dataset.path_of(name)]

    def check(self, operator: Operator, noiser: Noise) -> None:
        super().check(operator, noiser)
        if (trial := self._trial()) is None:
            return
        batch, _ = trial
        warn_of_observed(batch.names[0], *(self.measure(operator, noiser, batch, torch.device("cpu"),
                                                        ImageRandomness(seed, batch.names)) for seed in (0, 1)))

    def alpha(self, name: str) -> Tensor | None:
        return self.dataset.alpha(name)


def warn_of_scale(name: str, measurement: Measurement) -> None:
    """Warn of pictures on another scale than [-1, 1]; `name` is that of the photograph."""
    if measurement.operator.pictures and (largest := measurement.y.abs().max().item()) > LARGEST_VALUE:
        logger.warning(f"{name}: values up to {largest:g}, but photographs are on [-1, 1]; if these are grey levels "
                       "from 0 to 255, divide them by 127.5 and subtract 1")


def warn_of_observed(name: str, first: Measurement, second: Measurement) -> None:
    """Warn of a photograph on another scale, and where it would be restored with a mask or a kernel that only the seed
    decides.

    Args:
        name: of the photograph.
        first, second: it as a measurement, with two seeds.
    """
    warn_of_scale(name, first)
    drawn = [name for name, values in second.operator.drawn().items()
             if not torch.equal(values, first.operator.drawn()[name])]
    if drawn:
        logger.warning(f"operator '{first.operator.name}' draws its {', '.join(drawn)} at random, which is hardly how "
                       "the photographs were made; name a file with the kernel (operator blur) or the mask "
                       "(mask_type: file), or give .npz files with --load_measurements")


class Stored(Source):
    """Measurements that an earlier run saved.

    Args:
        folder: the files.
        truths: clean images, for the scores; images of the same name count.
    """

    def __init__(self, folder: MeasurementFolder, truths: ImageDataset | None = None):
        self.folder, self.names, self.truths = folder, tuple(folder.names), truths
        self.knows_truth = truths is not None and not set(truths.names).isdisjoint(self.names)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.folder.read(self.names[index]).y)

    def measure(self, operator: Operator, noiser: Noise, batch: Batch, device: torch.device,
                randomness: ImageRandomness) -> Measurement:
        entries = {name: self.folder.read(name) for name in dict.fromkeys(batch.names)}
        stored = [entries[name] for name in batch.names]
        try:
            return Measurement.stored(operator, noiser, batch.images.to(device),
                                      (len(stored), *stored[0].image_shape), _stack_drawn(stored), randomness)
        except UserError as error:
            raise UserError(f"{batch.names[0]}: {error}") from None

    def check(self, operator: Operator, noiser: Noise) -> None:
        super().check(operator, noiser)
        if (trial := self._trial()) is not None:
            batch, randomness = trial
            warn_of_scale(batch.names[0], self.measure(operator, noiser, batch, torch.device("cpu"), randomness))

    def files(self, name: str) -> list[Path]:
        known = self.truths is not None and name in self.truths.names
        return [self.folder.path_of(name), *([self.truths.path_of(name)] if known else [])]

    def truth(self, batch: Batch, b: int) -> Tensor | None:
        name = batch.names[b]
        if self.truths is None or name not in self.truths.names:
            return None
        _, height, width = self.folder.read(name).image_shape
        self.truths.image_size = height if height == width else None
        try:
            truth = self.truths[self.truths.names.index(name)]
            if truth.shape[1:] == (height, width):
                return truth
            logger.warning(f"{name}: the clean image is not of {height}x{width} pixels; it is not used")
        except UserError as error:
            logger.warning(f"{error}; {name} is not scored")
        return None


def _stack_drawn(stored: list[StoredMeasurement]) -> dict[str, Tensor]:
    """What was drawn for several images, with a batch axis; UserError if it has different shapes."""
    drawn = {}
    for name in set.intersection(*(set(entry.drawn) for entry in stored)):
        values = [entry.drawn[name] for entry in stored]
        if len({array.shape for array in values}) > 1:
            raise UserError(f"{name} has other shapes in other files; restore them with --batch_size 1")
        drawn[name] = torch.from_numpy(np.stack(values))
    return drawn


def to_store(measurement: Measurement, b: int, operator: dict, noise: dict, seed: int,
             observed: bool) -> StoredMeasurement:
    """Entry b of a measurement as it is saved, with the settings of its operator and noise."""
    drawn = {name: values[b].cpu().numpy() for name, values in measurement.operator.drawn().items()}
    return StoredMeasurement(measurement.y[b].cpu().numpy(), measurement.image_shape[1:], operator, noise, seed,
                             observed, drawn)
