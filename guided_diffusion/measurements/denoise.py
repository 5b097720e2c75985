"""Denoising: the measurement is the image itself, plus noise."""


from torch import Tensor

from guided_diffusion.measurements.base import LinearOperator, register_operator
from guided_diffusion.measurements.svd import SVD, separable


@register_operator("noise")
class DenoiseOperator(LinearOperator):
    """A = I, for images of any shape and value range."""

    has_svd = True

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        return x

    def forward_many(self, x: Tensor) -> Tensor:
        """(n, B, C, H, W) -> the same."""
        return x

    def transpose(self, y: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        return y

    def pinv(self, y: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        return y

    def svd(self) -> SVD:
        """U = S = V = I."""
        return separable({})
