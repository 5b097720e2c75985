"""Undersampled Fourier measurements, as in magnetic resonance imaging."""

import math
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.measurements.base import LinearOperator, register_operator
from guided_diffusion.measurements.svd import SVD
from util.config.registry import Bounds, Fraction
from util.errors import UserError
from util.seeding import ImageRandomness

Sampling = Literal["cartesian", "radial", "random"]
GOLDEN_ANGLE = math.pi * (math.sqrt(5) - 1) / 2                     # between spokes, 111.25 degrees
AXES = (-2, -1)


@register_operator("fourier")
class FourierOperator(LinearOperator):
    """A x = m F x in every channel, as pairs (real, imaginary): (B, C, H, W) -> (B, C, H, W, 2).

    F is the centred orthonormal 2-D DFT, the mean at index (H/2, W/2), and m in {0, 1} the image's own mask, shared by
    its channels. Entries that are not sampled are zero, without noise. Coefficients of an image in [-1, 1] lie within
    +-sqrt(H W); noise of the image with standard deviation s has s / sqrt(2) in either part.

    Images are real, so the coefficient at -k is the conjugate of that at k, and sampling one of them tells both:
    A^T A = F^H w F with w(k) = (m(k) + m(-k)) / 2, which is 0, 1/2 or 1. So A^T y = Re F^H m y, A^+ y = A^T y / w, the
    division in the spectrum, and A^+ = A^T where the mask is symmetric.

    Args:
        sampling: cartesian (whole columns, drawn at random), radial (spokes through the centre at the golden angle,
            Winkelmann et al., 2007, from a random one on) or random (single points).
        acceleration: 1 over the share of the coefficients that is sampled, 1 or more; radial adds spokes until there
            are as many.
        centre: the share of the coefficients that is sampled around zero in any case, as a band of columns or an
            ellipse, at most 1 / acceleration.
    """

    has_svd = True
    pictures = False

    def __init__(self, sampling: Sampling = "cartesian", acceleration: Annotated[float, Bounds(least=1)] = 4.0,
                 centre: Fraction = 0.08):
        super().__init__()
        if centre > 1 / acceleration:
            raise UserError(f"fourier: a centre of {centre} is more than the share 1/{acceleration:g} that is sampled; "
                            f"lower centre to {1 / acceleration:.3g} or less")
        self.sampling, self.acceleration, self.centre = sampling, acceleration, centre
        self.register_drawn("mask")                                                                # (B, 1, H, W)

    def draw(self, shape: tuple[int, int, int, int], randomness: ImageRandomness) -> None:
        """Draw one mask per image of `shape` (B, C, H, W)."""
        masks = [sampling_mask(self.sampling, *shape[2:], self.acceleration, self.centre, rng)
                 for rng in randomness.numpy_generators]
        self.mask = torch.from_numpy(np.stack(masks))[:, None].to(self.mask)

    def image_size_of(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """(C, H, W, 2) -> (H, W)."""
        return tuple(shape[1:3]) if len(shape) == 4 else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., B, C, H, W) -> (..., B, C, H, W, 2)."""
        centred = torch.fft.fft2(torch.fft.ifftshift(x, AXES), norm="ortho")
        return torch.view_as_real(self.mask.to(x) * torch.fft.fftshift(centred, AXES))

    def forward_many(self, x: Tensor) -> Tensor:
        """(n, B, C, H, W) -> (n, B, C, H, W, 2)."""
        return self(x)

    def transpose(self, y: Tensor) -> Tensor:
        """A^T y = Re F^H m y: (B, C, H, W, 2) -> (B, C, H, W)."""
        return self._inverse(self.mask, y)

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y = Re F^H w^+ m y: (B, C, H, W, 2) -> (B, C, H, W)."""
        return self._inverse(self.mask / self._weight().clamp_min(0.5), y)

    def _inverse(self, weight: Tensor, y: Tensor) -> Tensor:
        """Re F^H (weight y)."""
        spectrum = torch.fft.ifftshift(weight.to(y) * torch.view_as_complex(y.contiguous()), AXES)
        return torch.fft.fftshift(torch.fft.ifft2(spectrum, norm="ortho").real, AXES)

    def _weight(self) -> Tensor:
        """w(k) = (m(k) + m(-k)) / 2, (B, 1, H, W)."""
        return (self.mask + mirrored(self.mask)) / 2

    def initial_guess(self, y: Tensor) -> Tensor:
        """A^+ y, zeros for what was not sampled: (B, C, H, W, 2) -> (B, C, H, W)."""
        return self.pinv(y)

    def informative(self, y: Tensor) -> Tensor:
        """The masks in the shape of y."""
        return self.mask[..., None].to(y).expand_as(y)

    def keep(self, y: Tensor) -> Tensor:
        """What was sampled."""
        return self.informative(y) * y

    def refuse_drawn(self, name: str, values: Tensor) -> str | None:
        """A mask holds zeros and ones."""
        return None if ((values == 0) | (values == 1)).all() else "1 for sampled coefficients and 0 for others"

    def svd(self) -> SVD:
        """V is the Hartley transform, Re F - Im F, which is orthogonal, symmetric and its own inverse; S = sqrt(w).

        The coefficients at k and -k mix those of F at k and its conjugate, so w, the same at both, is not changed.
        """
        singular = self._weight().double().sqrt()
        inverse = torch.where(singular > 0, 1 / singular, 0)
        return SVD(singular, hartley, hartley, lambda c: self.forward(hartley(inverse.to(c) * c)),
                   lambda y: inverse.to(y) * hartley(self.transpose(y)))


def hartley(x: Tensor) -> Tensor:
    """Re F x - Im F x, F as above: (..., H, W) -> the same shape."""
    spectrum = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(x, AXES), norm="ortho"), AXES)
    return spectrum.real - spectrum.imag


def mirrored(mask: Tensor) -> Tensor:
    """m(-k) of m(k), (..., H, W), with k = 0 at (H/2, W/2) and frequencies modulo the size."""
    return mask.flip(AXES).roll([1 - side % 2 for side in mask.shape[-2:]], AXES)


def sampling_mask(sampling: Sampling, height: int, width: int, acceleration: float, centre: float,
                  rng: np.random.Generator) -> np.ndarray:
    """A mask (height, width), 1 = sampled, float32; at least one column, spoke or point. See `FourierOperator`."""
    if sampling == "cartesian":
        return np.tile(_draw(_disc((width,), centre), max(1, round(width / acceleration)), rng), (height, 1))
    count = max(1, round(height * width / acceleration))
    kept = _disc((height, width), centre)
    if sampling == "random":
        return _draw(kept, count, rng)
    angle = rng.uniform(0, math.pi)
    while kept.sum() < count:
        kept[_spoke(angle, height, width)] = 1
        angle += GOLDEN_ANGLE
    return kept


def _disc(sides: tuple[int, ...], share: float) -> np.ndarray:
    """The coefficients that are nearest to zero, in units of the sides, as many as `share` says: 1, float32."""
    squares = sum(((np.arange(side) - side // 2).reshape(-1, *[1] * (len(sides) - 1 - axis)) / side) ** 2
                  for axis, side in enumerate(sides))
    nearest = np.argsort(squares, axis=None, kind="stable")[:round(share * squares.size)]
    mask = np.zeros(squares.size, dtype=np.float32)
    mask[nearest] = 1
    return mask.reshape(sides)


def _draw(kept: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`kept` and as many others, drawn without replacement, as make `count` in all."""
    mask = kept.copy()
    others = np.flatnonzero(mask == 0)
    mask.flat[rng.choice(others, max(0, count - (mask.size - others.size)), replace=False)] = 1
    return mask


def _spoke(angle: float, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the coefficients on a line through zero, (n,) each."""
    longer = max(height, width)
    steps = np.arange(-3 * longer // 2, 3 * longer // 2 + 1) / (2 * longer)             # to the corners at +-sqrt(1/2)
    rows, columns = (np.rint(side // 2 + side * steps * part).astype(int)
                     for side, part in ((height, math.sin(angle)), (width, math.cos(angle))))
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return rows[inside], columns[inside]
