"""Inpainting: some pixels are missing."""

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.measurements.base import LinearOperator, register_operator
from guided_diffusion.measurements.svd import SVD
from util.arrays import read_array
from util.command import user_path
from util.config.registry import Count, Fraction, Natural, check_arguments
from util.errors import UserError, did_you_mean
from util.logger import logger
from util.seeding import ImageRandomness

NEEDS = {"box": ("mask_len_range",), "extreme": ("mask_len_range",), "random": ("mask_prob_range",),
         "both": ("mask_len_range", "mask_prob_range"), "file": ("file",)}

MARGIN = 16                                         # pixels between rectangle and border, as in DPS


class MaskGenerator:
    """Draws the masks of DPS's inpainting tasks; its arguments are the keys of `mask_opt`.

    Args:
        mask_type: box (a rectangle is missing), random (single pixels are missing), both (rectangle and pixels),
            extreme (all but a rectangle is missing) or file (the mask is read from a file).
        mask_len_range: [low, high): height and width of the rectangle are independent uniform integers from it;
            with equal ends, that length.
        mask_prob_range: [low, high): the fraction of missing pixels is uniform in it.
        image_size: side, or [height, width], that the images must have; any when omitted.
        margin: [rows, columns] between rectangle and border, at least; when omitted, [16, 16] as in DPS, or less where
            the image is too small for that.
        file: image or .npy (height, width) in black, 0, and one other value (in any colour channel), whose pixels are
            kept, of the images' size; for mask_type file.
    """

    def __init__(self, mask_type: str, mask_len_range: tuple[Count, Count] | None = None,
                 mask_prob_range: tuple[Fraction, Fraction] | None = None,
                 image_size: Count | tuple[Count, Count] | None = None,
                 margin: tuple[Natural, Natural] | None = None, file: str | None = None):
        if mask_type not in NEEDS:
            raise UserError(f"mask_opt: unknown mask_type '{mask_type}'; {did_you_mean(mask_type, NEEDS)}")
        self.mask_type, self.margin = mask_type, margin
        self.mask_len_range, self.mask_prob_range = mask_len_range, mask_prob_range
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else image_size
        given = {"mask_len_range": mask_len_range, "mask_prob_range": mask_prob_range, "file": file}
        for key in NEEDS[mask_type]:
            if given[key] is None:
                raise UserError(f"mask_opt: mask_type '{mask_type}' needs {key}; add it to mask_opt")
        if file is not None and mask_type != "file":
            raise UserError(f"mask_opt: file needs mask_type 'file', found '{mask_type}'; set mask_type: file")
        for key in ("mask_len_range", "mask_prob_range"):
            low, high = given[key] or (0, 0)
            if low > high:
                raise UserError(f"mask_opt: {key} is [{low}, {high}], expected the lower end first")
        if mask_prob_range is not None and mask_prob_range[0] == 1:
            raise UserError("mask_opt: mask_prob_range is [1, 1], which leaves no pixel; it is the share of missing "
                            "ones, such as [0.92, 0.92]")
        self.file, self.file_mask = file, read_mask(file) if file is not None else None

    def check_size(self, height: int, width: int) -> None:
        """Raise UserError if images of this size cannot have such a mask."""
        size = f"{height}x{width}"
        if self.image_size is not None and tuple(self.image_size) != (height, width):
            raise UserError(f"mask_opt: image_size is {self.image_size[0]}x{self.image_size[1]}, but the images are "
                            f"{size}; leave image_size out to take the images' own size, or choose another "
                            "data.image_size")
        if self.file_mask is not None and self.file_mask.shape != (height, width):
            found = "x".join(map(str, self.file_mask.shape))
            raise UserError(f"mask_opt: the mask in file is {found}, but the images are {size}; "
                            f"give a mask of {size} (height x width)")
        if "mask_len_range" in NEEDS[self.mask_type]:
            margins = self._margins(height, width)
            if self._longest() > min(height - 2 * margins[0], width - 2 * margins[1]):
                raise UserError(f"mask_opt: a box of up to {self._longest()} pixels with margin {list(margins)} does "
                                f"not fit into images of {size}; lower mask_len_range or margin")

    def _longest(self) -> int:
        low, high = self.mask_len_range
        return max(low, high - 1)

    def _margins(self, height: int, width: int) -> tuple[int, int]:
        """`margin`, or the default for images of this size."""
        if self.margin is not None:
            return tuple(self.margin)
        return tuple(max(0, min(MARGIN, (side - self._longest()) // 2)) for side in (height, width))

    def draw(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """A mask (height, width), 1 = kept, 0 = missing, float32."""
        if self.mask_type == "file":
            return self.file_mask
        if self.mask_type == "random":
            return self._pixels(height, width, rng)
        mask = self._box(height, width, rng)
        if self.mask_type == "extreme":
            return 1 - mask
        return mask * self._pixels(height, width, rng) if self.mask_type == "both" else mask

    def _box(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """A rectangle is missing: size from [low, high), corner from [margin, side - margin - size)."""
        low, high = self.mask_len_range
        h, w = rng.integers(low, max(high, low + 1), size=2)
        corner = [rng.integers(margin, max(side - margin - length, margin + 1))
                  for margin, side, length in zip(self._margins(height, width), (height, width), (h, w), strict=True)]
        mask = np.ones((height, width), dtype=np.float32)
        mask[corner[0]:corner[0] + h, corner[1]:corner[1] + w] = 0
        return mask

    def _pixels(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """Exactly int(p height width) pixels are missing, p uniform in the range, drawn without replacement."""
        missing = int(height * width * rng.uniform(*self.mask_prob_range))
        mask = np.ones(height * width, dtype=np.float32)
        mask[rng.choice(height * width, missing, replace=False)] = 0
        return mask.reshape(height, width)


def read_mask(file: str) -> np.ndarray:
    """Read a mask (height, width) from an image or a .npy file, 1 where any colour channel is nonzero, float32.

    Raises:
        UserError: the file is missing, holds no image or no plane, has more values than two, or keeps no pixel.
    """
    pixels = read_array(file, "mask_opt: file")
    if pixels.ndim not in (2, 3) or not np.isfinite(pixels).all():
        raise UserError(f"mask_opt: file '{file}' holds numbers of shape {list(pixels.shape)}, expected finite numbers "
                        "of shape [height, width]")
    values = np.unique(pixels)
    if len(values) > 2 or 0 not in values and len(values) == 2:
        raise UserError(f"mask_opt: the mask in '{file}' has {len(values)} values, from {values[0]:g} to "
                        f"{values[-1]:g}, expected 0 for missing pixels and one other for kept ones; give it hard "
                        "edges and save it as PNG or .npy, as JPEG changes values")
    mask = (pixels.reshape(*pixels.shape[:2], -1) != 0).any(axis=2)
    if not mask.any():
        raise UserError(f"mask_opt: the mask in '{file}' is black everywhere; make the kept pixels white")
    if (kept := mask.mean()) < 0.5:
        logger.warning(f"mask_opt: the mask in '{file}' keeps {kept:.1%} of the pixels, the white ones, and the others "
                       "are filled in; if white is what is missing, invert it")
    return mask.astype(np.float32)


@register_operator("inpainting")
class InpaintingOperator(LinearOperator):
    """A = diag(m), m the image's own mask in {0, 1}, shared by its channels: (B, C, H, W) -> the same shape.

    A is an orthogonal projection: A^T = A^+ = A.

    Args:
        mask_opt: the keys of `MaskGenerator`.
        observed_only: drop the noise of missing pixels, as in DPS, Eq. 52. Off by default: the official code keeps
            that noise in y, where it adds a constant to every distance.
        keep_known: put the known pixels of y, with their noise, into the restored images.
    """

    has_svd = True

    def __init__(self, mask_opt: dict, observed_only: bool = False, keep_known: bool = False):
        super().__init__()
        check_arguments(MaskGenerator, mask_opt, where="operator 'inpainting': mask_opt")
        self.masks = MaskGenerator(**mask_opt)
        self.observed_only, self.keep_known = observed_only, keep_known
        if self.masks.file is not None:
            self.files = {self.masks.file: user_path(self.masks.file)}
        self.register_drawn("mask")                                             # (B, 1, H, W) once prepared

    def draw(self, shape: tuple[int, int, int, int], randomness: ImageRandomness) -> None:
        """Draw one mask per image of `shape` (B, C, H, W).

        Raises:
            UserError: such masks do not fit images of this size.
        """
        height, width = shape[2:]
        self.masks.check_size(height, width)
        drawn = [self.masks.draw(height, width, rng) for rng in randomness.numpy_generators]
        self.mask = torch.from_numpy(np.stack(drawn))[:, None].to(self.mask)

    def forward(self, x: Tensor) -> Tensor:
        """(..., B, C, H, W) -> the same."""
        return self.mask.to(x) * x

    def forward_many(self, x: Tensor) -> Tensor:
        """(n, B, C, H, W) -> the same."""
        return self(x)

    def transpose(self, y: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        return self(y)

    def pinv(self, y: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        return self(y)

    def informative(self, y: Tensor) -> Tensor:
        """The masks in the shape of y."""
        return self.mask.to(y).expand_as(y)

    def keep(self, y: Tensor) -> Tensor:
        """All of y, or its observed pixels if `observed_only`."""
        return self(y) if self.observed_only else y

    def finish(self, x: Tensor, y: Tensor) -> Tensor:
        """x, or y where it is known if `keep_known`: (B, C, H, W) -> the same."""
        return torch.where(self.mask > 0, y, x) if self.keep_known else x

    def refuse_drawn(self, name: str, values: Tensor) -> str | None:
        """A mask holds zeros and ones."""
        return None if ((values == 0) | (values == 1)).all() else "0 for missing and 1 for kept pixels"

    def svd(self) -> SVD:
        """S = diag(m), V = I and U = diag(m)."""
        return SVD(self.mask.double(), lambda c: c, lambda x: x, self.forward, self.forward)
