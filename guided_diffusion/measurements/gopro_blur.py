"""Blur as a camera makes it: exposures add up as light, and the picture is the camera's response to their mean."""

from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from guided_diffusion.measurements.base import Operator, register_operator
from guided_diffusion.measurements.kernels import motion_path
from util.config.registry import Bounds, Count, Fraction
from util.errors import UserError
from util.seeding import ImageRandomness

GAMMA = 2.2                                         # of the camera response b(v) = v^(1/2.2)


@register_operator("gopro_blur")
class GoproBlurOperator(Operator):
    """A(x) = 2 b(1/M sum_i S_i b^-1((x + 1)/2)) - 1 with b(v) = v^(1/2.2) (DPS, eq. 56), the GoPro data's model.

    The frames S_i are the image shifted (bilinear) to M points, equally far apart along a random path of one's own per
    image, see `kernels.motion_path`; (B, C, H, W) -> the same, [-1, 1] -> [-1, 1]. Beyond its border the image is
    reflected without repeating the edge pixel. Light is not negative: x below -1 counts as -1. In u = (x + 1)/2 a
    pixel is a mean in the 2.2-norm, so where all its frames are black it has the subgradient 0, which is used.

    Args:
        frames: M, 1 or more.
        kernel_size: side of the square that the path fits in, in pixels, at least 3; half of it must be smaller than
            the image.
        intensity: of the motion, 0 (a straight stroke) to 1 (a long, shaky one).
    """

    def __init__(self, frames: Count = 16, kernel_size: Annotated[int, Bounds(least=3)] = 31,
                 intensity: Fraction = 0.5):
        super().__init__()
        self.frames, self.kernel_size, self.intensity = frames, kernel_size, intensity
        self.radius = kernel_size // 2
        self.register_drawn("shifts", torch.float64)                                               # (B, M, 2)
        self._paths: tuple[Tensor | None, list] = None, []      # shifts, and their values, read from the device once

    def draw(self, shape: tuple[int, int, int, int], randomness: ImageRandomness) -> None:
        """Draw a path per image of `shape` (B, C, H, W).

        Raises:
            UserError: the image is too small to be extended by the path's radius.
        """
        if self.radius >= min(shape[2:]):
            raise UserError(f"{self.name}: a kernel_size of {self.kernel_size} needs images larger than {self.radius} "
                            f"pixels, found {shape[2]}x{shape[3]}; use a kernel_size of at most "
                            f"{2 * min(shape[2:]) - 1} or larger images")
        shifts = np.stack([self.draw_shifts(rng) for rng in randomness.numpy_generators])
        self.shifts = torch.from_numpy(shifts).to(self.shifts)

    def draw_shifts(self, rng: np.random.Generator) -> np.ndarray:
        """Where the frames of one image are, (M, 2) as (down, right) in pixels, mean 0, within the radius."""
        path = motion_path(self.kernel_size, self.intensity, rng)[:, ::-1] / 2
        travelled = np.concatenate(([0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))))
        times = np.linspace(0, travelled[-1], self.frames)
        points = np.stack([np.interp(times, travelled, axis) for axis in path.T], axis=1)
        points -= points.mean(axis=0)
        points *= min(1, self.radius / max(np.abs(points).max(), 1e-12))
        return points.clip(-self.radius, self.radius)           # the product may exceed it in its last digit

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return self.forward_many(x[None])[0]

    def forward_many(self, x: Tensor) -> Tensor:
        """(n, B, C, H, W) -> the same shape."""
        light = ((x + 1) / 2).clamp_min(0) ** GAMMA
        light = F.pad(light.flatten(0, 1), (self.radius,) * 4, mode="reflect").unflatten(0, x.shape[:2])
        mean = torch.stack([sum(self._shift(image, *shift) for shift in path) / self.frames
                            for image, path in zip(light.unbind(1), self._shift_values(), strict=True)], dim=1)
        lit = mean > 0
        return 2 * torch.where(lit, torch.where(lit, mean, 1) ** (1 / GAMMA), 0) - 1

    def refuse_drawn(self, name: str, values: Tensor) -> str | None:
        """Frames lie within the radius."""
        return None if (values.abs() <= self.radius).all() else f"pixels, {-self.radius} to {self.radius}"

    def _shift_values(self) -> list[list[list[float]]]:
        """The shifts as numbers, kept until others are drawn."""
        shifts, values = self._paths
        if shifts is not self.shifts:
            values = self.shifts.tolist()
            self._paths = self.shifts, values
        return values

    def _shift(self, padded: Tensor, down: float, right: float) -> Tensor:
        """The image inside `padded` (n, C, H + 2 r, W + 2 r), seen from a camera moved by this much: (n, C, H, W)."""
        for dim, amount in ((-2, down), (-1, right)):
            side = padded.shape[dim] - 2 * self.radius
            whole = min(int(np.floor(amount)), self.radius - 1)
            first = padded.narrow(dim, self.radius + whole, side)
            second = padded.narrow(dim, self.radius + whole + 1, side)
            padded = torch.lerp(first, second, amount - whole)
        return padded
