"""Super-resolution as DDRM has it: the average of blocks."""

import torch
from torch import Tensor

from guided_diffusion.measurements.base import LinearOperator, register_operator
from guided_diffusion.measurements.svd import SVD, axis, separable
from util.config.registry import Count
from util.errors import UserError
from util.seeding import ImageRandomness


@register_operator("sr_average")
class BlockAverageOperator(LinearOperator):
    """(A x)[i] = the mean of the i-th block of s x s pixels, in every channel: (B, C, H, W) -> (B, C, H/s, W/s).

    DDRM (Kawar et al., 2022), "sr2", "sr4". [-1, 1] -> [-1, 1]; blocks do not overlap, so there is no border rule.
    A A^T = I/s^2, so A^+ = s^2 A^T: nearest-neighbour upsampling.

    Args:
        scale_factor: side s of a block, at least 1; it must divide height and width.
    """

    has_svd = True

    def __init__(self, scale_factor: Count):
        super().__init__()
        self.scale_factor = scale_factor

    def draw(self, shape: tuple[int, int, int, int], randomness: ImageRandomness) -> None:
        """Nothing is random.

        Raises:
            UserError: the factor does not divide H and W.
        """
        h, w = shape[2:]
        if h % self.scale_factor or w % self.scale_factor:
            raise UserError(f"sr_average: scale_factor {self.scale_factor} does not divide the image size {h}x{w}; "
                            "choose a factor that divides height and width, or another image size")

    def image_size_of(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(C, H/s, W/s) -> (H, W)."""
        return tuple(self.scale_factor * side for side in shape[-2:])

    def forward(self, x: Tensor) -> Tensor:
        """(..., H, W) -> (..., H/s, W/s)."""
        s = self.scale_factor
        return x.unflatten(-1, (-1, s)).unflatten(-3, (-1, s)).mean(dim=(-3, -1))       # (..., H/s, s, W/s, s)

    def forward_many(self, x: Tensor) -> Tensor:
        """(n, B, C, H, W) -> (n, B, C, H/s, W/s)."""
        return self(x)

    def transpose(self, y: Tensor) -> Tensor:
        """A^T y = A^+ y / s^2: (B, C, H/s, W/s) -> (B, C, H, W)."""
        return self.pinv(y) / self.scale_factor ** 2

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y, every value on its whole block: (B, C, H/s, W/s) -> (B, C, H, W)."""
        return y.repeat_interleave(self.scale_factor, dim=-2).repeat_interleave(self.scale_factor, dim=-1)

    def initial_guess(self, y: Tensor) -> Tensor:
        """Nearest-neighbour upsampling: (B, C, H/s, W/s) -> (B, C, H, W)."""
        return self.pinv(y)

    def svd(self) -> SVD:
        """The product of those of the two axes: s = 1/scale_factor, or 0."""
        return separable({dim: axis(_block_means, self.image_shape[dim], self.scale_factor) for dim in (-2, -1)})


def _block_means(side: int, s: int) -> Tensor:
    """What averages blocks of s values, (side/s, side)."""
    return torch.eye(side // s, dtype=torch.float64).repeat_interleave(s, dim=1) / s
