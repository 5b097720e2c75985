"""Random crops of photographs, to train on: an endless sequence that a seed and a number determine."""

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from data.dataloader import get_dataset
from util.errors import UserError
from util.img_utils import from_uint8, to_uint8
from util.logger import get_logger

logger = get_logger()


class RandomCrops(Dataset):
    """Crop number n of an endless sequence: photograph, scale, place and flip are a function of (seed, n).

    Files that cannot be read are named once and passed over.

    Args:
        folder: of photographs.
        crop: side of the crops, in pixels.
        scales: a crop shows a square of crop / scale pixels, scale uniform in this range, (low, high) with low > 0;
            of a smaller photograph as much as there is.
        seed: 0 or more.
        cached: receives decoded photographs by number, to be shared by several sequences; None to read them anew.

    Raises:
        UserError: the folder is not there, or holds no images.
    """

    def __init__(self, folder: str, crop: int, scales: tuple[float, float], seed: int, cached: dict | None):
        self.photographs = get_dataset("folder", root=folder)
        self.crop, self.scales, self.seed, self.cached = crop, scales, seed, cached
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
        side = min(self.crop / rng.uniform(*self.scales), *photograph.size)
        left, top = (rng.uniform(0, extent - side) for extent in photograph.size)
        box = (left, top, left + side, top + side)
        square = photograph.resize((self.crop, self.crop), Image.Resampling.BICUBIC, box)
        x = from_uint8(np.asarray(square))
        return x.flip(2) if rng.random() < 0.5 else x
