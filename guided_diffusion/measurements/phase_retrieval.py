"""Phase retrieval: the magnitudes of an oversampled Fourier transform."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from guided_diffusion.measurements.base import Operator, register_operator
from util.config.registry import Bounds
from util.errors import UserError
from util.seeding import ImageRandomness

RANGES = ((-1, 1), (0, 1))


@register_operator("phase_retrieval")
class PhaseRetrievalOperator(Operator):
    """A(x) = |F P x| in every channel (DPS, eq. 62): P pads with zeros, F is the centred orthonormal 2-D DFT.

    Each side n is padded by p = int(oversample/8 n) on either end, 64 at 256 pixels, so images (B, C, H, W) become
    magnitudes (B, C, H + 2 p_h, W + 2 p_w), 0 or more, with the mean at index (H/2 + p_h, W/2 + p_w). Where the
    padding lies changes phases only. The zeros around the image are the boundary rule. Where a magnitude is zero, the
    gradient is zero, which is one of its subgradients.

    Args:
        oversample: the padding at either end in eighths of the image's side, 0 or more; at 2 a side is half as long
            again.
        signal_range: the scale that P x is on, [-1, 1] (DPS) or [0, 1]; on [0, 1] x and -x differ in their magnitudes.
    """

    pictures = False

    def __init__(self, oversample: Annotated[float, Bounds(0, 100)] = 2.0,
                 signal_range: tuple[float, float] = (-1, 1)):
        super().__init__()
        if tuple(signal_range) not in RANGES:
            raise UserError(f"{self.name}: signal_range is {list(signal_range)}, expected [-1, 1] or [0, 1]")
        self.oversample, self.signed = oversample, tuple(signal_range) == (-1, 1)

    def draw(self, shape: tuple[int, int, int, int], randomness: ImageRandomness) -> None:
        """Record the sides of the measurement: nothing is random."""
        self.padded = tuple(map(self._padded, shape[2:]))

    def _padded(self, side: int) -> int:
        return side + 2 * int(self.oversample / 8 * side)

    def image_size_of(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(C, H + 2 p_h, W + 2 p_w) -> (H, W); UserError if no image has so many magnitudes."""
        sizes = [[side for side in range(1, padded + 1) if self._padded(side) == padded] for padded in shape[-2:]]
        if not all(sizes):
            raise UserError(f"{self.name}: no image has {shape[-2]}x{shape[-1]} magnitudes at oversample "
                            f"{self.oversample:g}; an image of 256x256 has {self._padded(256)}x{self._padded(256)}; "
                            "set the measurement's own oversample")
        return tuple(side for side, *_ in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """(..., H, W) in [-1, 1] -> (..., H + 2 p_h, W + 2 p_w)."""
        signal = x if self.signed else (x + 1) / 2
        return torch.fft.fftshift(torch.fft.fft2(signal, s=self.padded, norm="ortho").abs(), dim=(-2, -1))

    def forward_many(self, x: Tensor) -> Tensor:
        """(n, B, C, H, W) -> (n, B, C, H + 2 p_h, W + 2 p_w)."""
        return self(x)

    def initial_guess(self, y: Tensor) -> Tensor:
        """Mid-grey images (B, C, H, W): without phases nothing is known of where things are."""
        return y.new_zeros(self.image_shape)

    def lift(self, y: Tensor) -> Tensor:
        """The spectrum as a picture (B, C, H, W): 1 + log10(y / top)/2, cut at -1, four decades below the top.

        The top, H W / sqrt((H + 2 p_h)(W + 2 p_w)), is what the mean of a white image has. Reduced by averaging.
        """
        top = math.prod(self.image_shape[2:]) / math.sqrt(math.prod(self.padded))
        level = (1 + torch.log10((y / top).clamp_min(1e-4)) / 2).clamp_max(1)
        return F.adaptive_avg_pool2d(level, self.image_shape[2:])

    def ambiguities(self, x: Tensor) -> list[Tensor]:
        """x (B, C, H, W), turned by 180 degrees, and on [-1, 1] their negatives: A of them all is the same."""
        upright = [x, x.flip(-2, -1)]
        return [*upright, *(-image for image in upright)] if self.signed else upright
