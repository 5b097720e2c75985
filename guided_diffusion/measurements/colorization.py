"""Colorization: the measurement is a grey image."""

from torch import Tensor

from guided_diffusion.measurements.base import LinearOperator, register_operator


@register_operator("colorization")
class ColorizationOperator(LinearOperator):
    """(A x)[i] = the mean of pixel i's channels: (B, C, H, W) in [-1, 1] -> (B, 1, H, W) in [-1, 1].

    Takes any C, H and W and has no border. A A^T = I/C, so A^+ = C A^T: the grey value in every channel.
    """

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
