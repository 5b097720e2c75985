"""Random crops of photographs, to train on: an endless sequence that a seed and a number determine."""

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import adjust_brightness, adjust_contrast, adjust_saturation

from data.dataloader import get_dataset
from util.errors import UserError
from util.img_utils import from_uint8, to_uint8
from util.logger import logger


class RandomCrops(Dataset):
    """Crop number n of an endless sequence: photograph, scale, place, flip and colours are a function of (seed, n).

    Files that cannot be read are named once and passed over.

    Args:
        folder: of photographs; "skimage" for those of scikit-image.
        crop: side of the crops, in pixels.
        scales: a crop shows a square of crop / scale pixels, scale uniform in this range, (low, high) with low > 0;
            of a smaller photograph as much as there is.
        seed: 0 or more.
        cached: receives decoded photographs by number, to be shared by several sequences; None to read them anew.
        zooms: in place of `scales`, for photographs that are aligned, such as faces: whatever the crop's pixels, it
            shows a square of the photograph's shorter side / zoom, zoom uniform in this range, (low, high) with
            low >= 1. So [1, 1.15] moves and enlarges a little.
        colour_jitter: brightness, contrast and saturation are multiplied by factors that are uniform in
            1 - colour_jitter .. 1 + colour_jitter; 0 to 1.

    Raises:
        UserError: the folder is not there, or holds no images.
    """

    def __init__(self, folder: str, crop: int, scales: tuple[float, float], seed: int, cached: dict | None,
                 zooms: tuple[float, float] | None = None, colour_jitter: float = 0.0):
        self.photographs = get_dataset("skimage") if folder == "skimage" else get_dataset("folder", root=folder)
        self.crop, self.scales, self.seed, self.cached = crop, scales, seed, cached
        self.zooms, self.colour_jitter = zooms, colour_jitter
        self.unreadable: set[int] = set()

    def _photograph(self, rng: np.random.Generator) -> Image.Image:
        """One that can be read; UserError if there is none."""
        while len(self.unreadable) < len(self.photographs):
            index = int(rng.integers(len(self.photographs)))
            if self.cached is not None and index in self.cached:
                return self.cached[index]
            try:
                photograph = Image.fromarray(to_uint8(self.photographs[index]))
            except UserError as error:
                if index not in self.unreadable:
                    logger.warning(f"{error}; passed over")
                self.unreadable.add(index)
                continue
            if self.cached is not None:
                self.cached[index] = photograph
            return photograph
        raise UserError(f"none of the {len(self.photographs)} images can be read")

    def __getitem__(self, number: int) -> Tensor:
        """(3, crop, crop) float32 in [-1, 1]; UserError if no file can be read."""
        rng = np.random.default_rng((self.seed, number))
        photograph = self._photograph(rng)
        shorter = min(photograph.size)
        side = shorter / rng.uniform(*self.zooms) if self.zooms else min(self.crop / rng.uniform(*self.scales), shorter)
        left, top = (rng.uniform(0, extent - side) for extent in photograph.size)
        box = (left, top, left + side, top + side)
        square = photograph.resize((self.crop, self.crop), Image.Resampling.BICUBIC, box)
        x = from_uint8(np.asarray(square))
        x = x.flip(2) if rng.random() < 0.5 else x
        return jitter_colours(x, *rng.uniform(1 - self.colour_jitter, 1 + self.colour_jitter, 3)
                              ) if self.colour_jitter else x


def jitter_colours(x: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """An image (3, H, W) in [-1, 1] with its values times `brightness`, the differences to its mean grey times
    `contrast`, and those to each pixel's grey times `saturation`; clipped after each, all on [0, 1]."""
    unit = adjust_brightness((x + 1) / 2, brightness)
    return 2 * adjust_saturation(adjust_contrast(unit, contrast), saturation) - 1
