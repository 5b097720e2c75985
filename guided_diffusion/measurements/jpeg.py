"""JPEG: a photograph that was compressed and decoded."""

from typing import Annotated, Literal

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor

from guided_diffusion.measurements.base import Operator, register_operator
from util.config.registry import Bounds
from util.errors import UserError
from util.resizer import apply_matrices
from util.seeding import ImageRandomness

BLOCK = 8
LUMA_TABLE = """
16 11 10 16  24  40  51  61    12 12 14 19  26  58  60  55    14 13 16 24  40  57  69  56    14 17 22 29  51  87  80  62
18 22 37 56  68 109 103  77    24 35 55 64  81 104 113  92    49 64 78 87 103 121 120 101    72 92 95 98 112 100 103  99
"""
CHROMA_TABLE = """
17 18 24 47 99 99 99 99    18 21 26 66 99 99 99 99    24 26 56 99 99 99 99 99    47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99    99 99 99 99 99 99 99 99    99 99 99 99 99 99 99 99    99 99 99 99 99 99 99 99
"""
TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]])
CENTRE = np.array([0.0, 128.0, 128.0])                          # of Y, Cb and Cr among the values 0 to 255


@register_operator("jpeg")
class JPEGOperator(Operator):
    """Baseline JPEG and back, as libjpeg does it: (B, C, H, W) in [-1, 1] -> the same, at 8 bits; C is 3, or 1 (grey).

    RGB -> YCbCr (JFIF) -> chroma averaged over 2 x 2 pixels (4:2:0) -> DCT of 8 x 8 blocks -> division by the tables
    of ITU T.81, annex K, scaled to the quality -> rounding; then back, with linear interpolation of the chroma
    (repetition up to a width of 4). Planes that are no multiple of 8 are extended by their last row and column. Every
    rounding is passed straight through by the gradient: A is differentiated as if roundings were the identity, clipping
    to 0..255 included as it is.

    Args:
        quality: 1 to 100, libjpeg's and Pillow's.
        subsampling: of the chroma: 420 (4:2:0, half its rows and columns) or 444 (none).
    """

    def __init__(self, quality: Annotated[int, Bounds(1, 100)], subsampling: Literal[420, 444] = 420):
        super().__init__()
        self.quality, self.subsampling = quality, subsampling
        for name, value in {"luma_table": quantization_table(LUMA_TABLE, quality),
                            "chroma_table": quantization_table(CHROMA_TABLE, quality),
                            "to_ycc": TO_YCC, "to_rgb": np.linalg.inv(TO_YCC), "centre": CENTRE[:, None, None],
                            "dct": dct(np.eye(BLOCK), axis=0, norm="ortho")}.items():
            self.register_buffer(name, torch.from_numpy(value), persistent=False)

    def draw(self, shape: tuple[int, int, int, int], randomness: ImageRandomness) -> None:
        """Nothing is random.

        Raises:
            UserError: C is neither 3 nor 1.
        """
        if shape[1] not in (1, 3):
            raise UserError(f"jpeg: found images of {shape[1]} channels, expected 3 (colour) or 1 (grey)")

    def forward(self, x: Tensor) -> Tensor:
        """(..., C, H, W) -> the same."""
        pixels = 255 * (x + 1) / 2
        if x.shape[-3] == 1:
            decoded = self._code(round_through(pixels), self.luma_table)
        else:
            ycc = round_through(self._mix(self.to_ycc, pixels) + self.centre.to(x))
            luma = self._code(ycc[..., :1, :, :], self.luma_table)
            chroma = self._code_chroma(ycc[..., 1:, :, :])
            decoded = self._mix(self.to_rgb, torch.cat((luma, chroma), dim=-3) - self.centre.to(x))
        return 2 * round_through(decoded.clamp(0, 255)) / 255 - 1

    def forward_many(self, x: Tensor) -> Tensor:
        """(n, B, C, H, W) -> the same."""
        return self(x)

    @staticmethod
    def _mix(matrix: Tensor, x: Tensor) -> Tensor:
        """Multiply the channels of x (..., 3, H, W) by a matrix (3, 3)."""
        return torch.einsum("ij,...jhw->...ihw", matrix.to(x), x)

    def _code_chroma(self, chroma: Tensor) -> Tensor:
        if self.subsampling == 444:
            return self._code(chroma, self.chroma_table)
        h, w = chroma.shape[-2:]
        # the encoder extends rows at full resolution, columns of pixels to whole blocks, and averages after that
        wide = extend(chroma, 2 * -(-h // 2), 2 * BLOCK * -(-w // (2 * BLOCK)))
        means = wide.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).mean(dim=(-3, -1))
        ties = 1e-3 * (torch.arange(means.shape[-1], device=chroma.device) % 2 - 0.5)   # down in even columns, else up
        small = self._code(round_through(means + ties), self.chroma_table)[..., :-(-w // 2)]
        double = doubling if small.shape[-1] > 2 else repetition
        return round_through(apply_matrices(small, *(double(n, small) for n in small.shape[-2:])))[..., :h, :w]

    def _code(self, plane: Tensor, table: Tensor) -> Tensor:
        """Quantise the DCT of a plane (..., H, W) of values 0 to 255 and decode it: -> the same shape."""
        h, w = plane.shape[-2:]
        whole = extend(plane, BLOCK * -(-h // BLOCK), BLOCK * -(-w // BLOCK)) - 128
        blocks = whole.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK)).transpose(-2, -3)      # (.., a, b, 8, 8)
        coefficients = round_through(8 * apply_matrices(blocks, self.dct, self.dct)) / 8    # the precision of libjpeg's
        quantised = round_through(coefficients / table.to(plane))
        decoded = apply_matrices(quantised * table.to(plane), self.dct.mT, self.dct.mT)
        whole = decoded.transpose(-2, -3).flatten(-2).flatten(-3, -2) + 128
        return round_through(whole[..., :h, :w].clamp(0, 255))


def round_through(x: Tensor) -> Tensor:
    """Round to integers, ties away from zero; the derivative is taken to be one."""
    return x + ((x * (1 + 1e-6)).round() - x).detach()


def quantization_table(text: str, quality: int) -> np.ndarray:
    """A table of annex K, scaled as libjpeg does: (8, 8) integers from 1 to 255, float64."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = np.array(text.split(), dtype=np.float64).reshape(BLOCK, BLOCK)
    return np.floor((table * percent + 50) / 100).clip(1, 255)


def extend(x: Tensor, h: int, w: int) -> Tensor:
    """Repeat the last row and column: (..., H, W) -> (..., h, w)."""
    rows, columns = (torch.arange(n, device=x.device).clamp_max(side - 1)
                     for n, side in zip((h, w), x.shape[-2:], strict=True))
    return x.index_select(-2, rows).index_select(-1, columns)


def doubling(n: int, like: Tensor) -> Tensor:
    """The matrix (2 n, n) of linear interpolation to twice the samples: 3/4 of the nearest, 1/4 of the next one."""
    i = torch.arange(2 * n, device=like.device)
    near = i // 2
    far = (near + 2 * (i % 2) - 1).clamp(0, n - 1)
    eye = torch.eye(n, dtype=like.dtype, device=like.device)
    return 0.75 * eye[near] + 0.25 * eye[far]


def repetition(n: int, like: Tensor) -> Tensor:
    """The matrix (2 n, n) that takes every sample twice."""
    return torch.eye(n, dtype=like.dtype, device=like.device).repeat_interleave(2, dim=0)
