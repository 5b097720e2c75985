"""Colorization: the measurement is a grey image."""

import torch
from torch import Tensor

from guided_diffusion.measurements.base import LinearOperator, register_operator
from guided_diffusion.measurements.svd import SVD, axis, separable


@register_operator("colorization")
class ColorizationOperator(LinearOperator):
    """(A x)[i] = the mean of pixel i's channels: (B, C, H, W) in [-1, 1] -> (B, 1, H, W) in [-1, 1].

    Takes any C, H and W and has no border. A A^T = I/C, so A^+ = C A^T: the grey value in every channel.
    """

    has_svd = True

    def forward(self, x: Tensor) -> Tensor:
        """(..., C, H, W) -> (..., 1, H, W)."""
        return x.mean(dim=-3, keepdim=True)

    def forward_many(self, x: Tensor) -> Tensor:
        """(n, B, C, H, W) -> (n, B, 1, H, W)."""
        return self(x)

    def transpose(self, y: Tensor) -> Tensor:
        """A^T y = y/C in every channel: (B, 1, H, W) -> (B, C, H, W)."""
        return self.pinv(y) / self.image_shape[1]

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y = y in every channel: (B, 1, H, W) -> (B, C, H, W)."""
        return y.repeat(1, self.image_shape[1], 1, 1)

    def initial_guess(self, y: Tensor) -> Tensor:
        """The grey image, (B, 1, H, W) -> (B, C, H, W)."""
        return self.pinv(y)

    def svd(self) -> SVD:
        """That of the channels' row (1/C, ..., 1/C): s = 1/sqrt(C) for the grey value, 0 for the colours."""
        return separable({-3: axis(_mean_row, self.image_shape[1])})


def _mean_row(n: int) -> Tensor:
    """What averages n values, (1, n)."""
    return torch.full((1, n), 1 / n, dtype=torch.float64)
