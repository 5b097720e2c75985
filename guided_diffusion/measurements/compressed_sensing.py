"""Compressed sensing: a random part of an orthonormal transform's coefficients."""

from typing import Annotated, Literal

import numpy as np
import torch
from scipy.fft import dct
from scipy.linalg import hadamard
from torch import Tensor

from guided_diffusion.measurements.base import LinearOperator, register_operator
from guided_diffusion.measurements.svd import SVD
from util.config.registry import Bounds
from util.errors import UserError
from util.resizer import apply_matrices
from util.seeding import ImageRandomness


@register_operator("compressed_sensing")
class CompressedSensingOperator(LinearOperator):
    """A x = S T_h x T_w^T in every channel: (B, C, H, W) -> (B, C, m).

    T_h and T_w are orthonormal (Walsh-Hadamard or DCT-II) and S takes m = round(ratio H W) coefficients, at least one,
    drawn without replacement for each image and shared by its channels. A A^T = I, so A^+ = A^T. Coefficients of an
    image in [-1, 1] lie in [-sqrt(H W), sqrt(H W)]; white noise of the image has the same sigma in them. The transforms
    need no border. The mean of an image is one of its coefficients and may be missing, as in DDRM.

    Args:
        ratio: the share of the coefficients that is measured, above 0 and at most 1.
        transform: "hadamard" (Sylvester's order; height and width must be powers of two) or "dct" (any size).
    """

    has_svd = True
    pictures = False

    def __init__(self, ratio: Annotated[float, Bounds(above=0, most=1)],
                 transform: Literal["hadamard", "dct"] = "hadamard"):
        super().__init__()
        self.ratio, self.transform = ratio, transform
        for name in ("height", "width"):
            self.register_buffer(name, torch.empty(0, 0, dtype=torch.float64), persistent=False)      # (n, n)
        self.register_drawn("index", torch.long)                                                      # (B, m)

    def draw(self, shape: tuple[int, int, int, int], randomness: ImageRandomness) -> None:
        """Draw each image's coefficients, for images of `shape` (B, C, H, W).

        Raises:
            UserError: Walsh-Hadamard transforms of other sizes than powers of two.
        """
        h, w = shape[2:]
        if self.transform == "hadamard" and (h & (h - 1) or w & (w - 1)):
            raise UserError(f"compressed_sensing: the hadamard transform needs sides that are powers of two, found "
                            f"{h}x{w}; use transform: dct")
        self.height, self.width = self._matrix(h), self._matrix(w)
        count = max(1, round(self.ratio * h * w))
        drawn = [np.sort(rng.choice(h * w, count, replace=False)) for rng in randomness.numpy_generators]
        self.index = torch.from_numpy(np.stack(drawn)).to(self.index)

    def _matrix(self, n: int) -> Tensor:
        """The orthonormal transform of n samples, (n, n)."""
        matrix = hadamard(n) / np.sqrt(n) if self.transform == "hadamard" else dct(np.eye(n), axis=0, norm="ortho")
        return torch.from_numpy(matrix).to(self.height)

    def forward(self, x: Tensor) -> Tensor:
        """(..., B, C, H, W) -> (..., B, C, m)."""
        return self._measured(apply_matrices(x, self.height, self.width))

    def forward_many(self, x: Tensor) -> Tensor:
        """(n, B, C, H, W) -> (n, B, C, m)."""
        return self(x)

    def transpose(self, y: Tensor) -> Tensor:
        """A^T y, the inverse transform with zeros for what was not measured: (B, C, m) -> (B, C, H, W)."""
        return apply_matrices(self._placed(y), self.height.mT, self.width.mT)

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y = A^T y: (B, C, m) -> (B, C, H, W)."""
        return self.transpose(y)

    def initial_guess(self, y: Tensor) -> Tensor:
        """A^+ y: (B, C, m) -> (B, C, H, W)."""
        return self.transpose(y)

    def refuse_drawn(self, name: str, values: Tensor) -> str | None:
        """The coefficients of an image are numbered from 0."""
        last = self.image_shape[2] * self.image_shape[3] - 1
        return None if (values == values.clamp(0, last).round()).all() else f"whole numbers from 0 to {last}"

    def svd(self) -> SVD:
        """V^T is the transform, S marks the measured coefficients, and U is the choice of them."""
        measured = self._placed(torch.ones_like(self.index, dtype=torch.float64)[:, None])
        return SVD(measured, lambda c: apply_matrices(c, self.height.mT, self.width.mT),
                   lambda x: apply_matrices(x, self.height, self.width), self._measured, self._placed)

    def _measured(self, coefficients: Tensor) -> Tensor:
        """(..., B, C, H, W) -> (..., B, C, m)."""
        index = self.index[:, None].expand(*coefficients.shape[:-2], -1)
        return coefficients.flatten(-2).gather(-1, index)

    def _placed(self, y: Tensor) -> Tensor:
        """The measured coefficients where they belong, with zeros between them: (B, C, m) -> (B, C, H, W)."""
        h, w = self.image_shape[2:]
        return y.new_zeros(*y.shape[:-1], h * w).scatter(-1, self.index[:, None].expand_as(y), y).unflatten(-1, (h, w))
