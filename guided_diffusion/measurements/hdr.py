"""High dynamic range: an overexposed photograph."""

from torch import Tensor

from guided_diffusion.measurements.base import Operator, register_operator
from util.config.registry import Positive


@register_operator("hdr")
class HighDynamicRangeOperator(Operator):
    """A(x) = s x clipped to [-1, 1], per entry: (B, C, H, W) -> the same shape, any C, H, W; no border.

    DAPS (Zhang et al., CVPR 2025) has s = 2: what is beyond +-1/2 is lost, and its gradient is zero.

    Args:
        scale: the exposure s, positive.
    """

    def __init__(self, scale: Positive = 2.0):
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(..., C, H, W) -> the same."""
        return (self.scale * x).clamp(-1, 1)

    def forward_many(self, x: Tensor) -> Tensor:
        """(n, B, C, H, W) -> the same."""
        return self(x)

    def initial_guess(self, y: Tensor) -> Tensor:
        """y / s, exact where nothing was clipped: (B, C, H, W) -> the same."""
        return y / self.scale

    def lift(self, y: Tensor) -> Tensor:
        """The overexposed photograph y itself: (B, C, H, W) -> the same."""
        return y
