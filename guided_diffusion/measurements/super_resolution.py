"""Super-resolution: antialiased bicubic reduction by an integer factor."""

from functools import lru_cache

import torch
from torch import Tensor

from guided_diffusion.measurements.base import LinearOperator, register_operator
from guided_diffusion.measurements.svd import SVD, axis, separable
from util.config.registry import Count
from util.errors import UserError
from util.resizer import apply_matrices, resize, resize_matrix
from util.seeding import ImageRandomness


@lru_cache(maxsize=4)
def _reduction(side: int, factor: int) -> tuple[Tensor, Tensor]:
    """D (side/factor, side) of one axis and D^+, float64 on the CPU."""
    matrix = resize_matrix(side, scale=1 / factor)
    return matrix, torch.linalg.pinv(matrix)


@register_operator("super_resolution")
class SuperResolutionOperator(LinearOperator):
    """A x = D_h x D_w^T in every channel: (B, C, H, W) -> (B, C, H/s, W/s).

    D_h and D_w are the matrices of the antialiased bicubic reduction (a = -1/2, kernel stretched by s, mirrored at
    the border with the edge pixel repeated), so A is their Kronecker product, A^T and A^+ are those of their
    transposes and pseudo-inverses. Values of a measurement may leave [-1, 1] a little, as bicubic filters overshoot.

    Args:
        scale_factor: the reduction s per axis, at least 1; it must divide height and width.
        in_shape: [1, C, H, W] as in DPS's YAML; checked against the images where given, and needed for nothing.
    """

    has_svd = True

    def __init__(self, scale_factor: Count, in_shape: tuple[int, int, int, int] | None = None):
        super().__init__()
        self.scale_factor = scale_factor
        self.in_shape = in_shape
        for name in ("height", "width", "height_pinv", "width_pinv"):
            self.register_buffer(name, torch.empty(0, 0, dtype=torch.float64), persistent=False)

    def draw(self, shape: tuple[int, int, int, int], randomness: ImageRandomness) -> None:
        """Build the matrices for images of `shape` (B, C, H, W).

        Raises:
            UserError: the factor does not divide H and W, or `in_shape` is another shape.
        """
        factor, (h, w) = self.scale_factor, shape[2:]
        if self.in_shape is not None and tuple(self.in_shape[1:]) != tuple(shape[1:]):
            raise UserError(f"super_resolution: in_shape is {list(self.in_shape)}, but the images are "
                            f"{list(shape[1:])}; leave in_shape out to take the images' own shape, or choose another "
                            "data.image_size")
        if h % factor or w % factor:
            raise UserError(f"super_resolution: scale_factor {factor} does not divide the image size {h}x{w}; choose "
                            "a factor that divides height and width, or another image size")
        self.height, self.height_pinv = (matrix.to(self.height) for matrix in _reduction(h, factor))
        self.width, self.width_pinv = (matrix.to(self.width) for matrix in _reduction(w, factor))

    def image_size_of(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(C, H/s, W/s) -> (H, W)."""
        return tuple(self.scale_factor * side for side in shape[-2:])

    def forward(self, x: Tensor) -> Tensor:
        """(..., C, H, W) -> (..., C, H/s, W/s)."""
        return apply_matrices(x, self.height, self.width)

    def forward_many(self, x: Tensor) -> Tensor:
        """(n, B, C, H, W) -> (n, B, C, H/s, W/s)."""
        return self(x)

    def transpose(self, y: Tensor) -> Tensor:
        """A^T y = D_h^T y D_w: (B, C, H/s, W/s) -> (B, C, H, W)."""
        return apply_matrices(y, self.height.mT, self.width.mT)

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y = D_h^+ y (D_w^+)^T: (B, C, H/s, W/s) -> (B, C, H, W)."""
        return apply_matrices(y, self.height_pinv, self.width_pinv)

    def initial_guess(self, y: Tensor) -> Tensor:
        """Nearest-neighbour upsampling, DPPS's start: (B, C, H/s, W/s) -> (B, C, H, W)."""
        return y.repeat_interleave(self.scale_factor, dim=-2).repeat_interleave(self.scale_factor, dim=-1)

    def lift(self, y: Tensor) -> Tensor:
        """Bicubic upsampling: (B, C, H/s, W/s) -> (B, C, H, W)."""
        return resize(y, scale=self.scale_factor)

    def svd(self) -> SVD:
        """The product of those of D_h and D_w."""
        return separable({dim: axis(resize_matrix, self.image_shape[dim], None, 1 / self.scale_factor)
                          for dim in (-2, -1)})
