"""Antialiased bicubic resizing as one matrix per axis.

A resize is linear and separable, so it is fully described by a matrix (n_out, n_in) for each axis: applying it is two
products, its adjoint two transposed ones, and its pseudo-inverse is the product of the axes' pseudo-inverses.
"""

import math

import numpy as np
import torch
from torch import Tensor


def cubic(x: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel with a = -1/2 (Keys, 1981), zero outside [-2, 2]."""
    x = np.abs(x)
    inner = 1.5 * x ** 3 - 2.5 * x ** 2 + 1
    outer = -0.5 * x ** 3 + 2.5 * x ** 2 - 4 * x + 2
    return inner * (x <= 1) + outer * ((x > 1) & (x <= 2))


def resize_matrix(n_in: int, n_out: int | None = None, scale: float | None = None) -> Tensor:
    """The matrix that resizes one axis from `n_in` to `n_out` samples, (n_out, n_in) in float64 on the CPU.

    Output j lies at input coordinate (j + (n_in scale - n_out)/2 + 1/2)/scale - 1/2. The cubic kernel is stretched by
    1/scale when shrinking; every row is normalised to sum to one; taps outside the image are mirrored at the border,
    the edge sample repeated.

    Args:
        n_in: length of the input.
        n_out: length of the output; n_in scale rounded up when omitted.
        scale: output samples per input sample; n_out/n_in when omitted.
    """
    n_out = max(1, math.ceil(n_in * scale - 1e-9)) if n_out is None else n_out
    scale = n_out / n_in if scale is None else scale
    assert n_out > 0 and 0 < scale < math.inf, (n_in, n_out, scale)

    stretch = min(scale, 1.0)
    support = 4 / stretch
    centres = (np.arange(n_out) + (n_in * scale - n_out) / 2 + 0.5) / scale - 0.5                    # (n_out,)
    taps = np.floor(centres - support / 2)[:, None] + np.arange(math.ceil(support) + 2)              # (n_out, taps)
    weights = cubic(stretch * (centres[:, None] - taps))
    weights /= weights.sum(axis=1, keepdims=True)

    position = taps.astype(np.int64) % (2 * n_in)
    source = np.minimum(position, 2 * n_in - 1 - position)
    matrix = np.zeros((n_out, n_in))
    np.add.at(matrix, (np.arange(n_out)[:, None], source), weights)
    return torch.from_numpy(matrix)


def apply_matrices(x: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Apply one matrix per axis, `height` (h, H) then `width` (w, W): (..., H, W) -> (..., h, w), in x's dtype."""
    return height.to(x) @ x @ width.to(x).mT


def resize(x: Tensor, scale: float) -> Tensor:
    """Resize images (..., H, W) by `scale`, as `resize_matrix` says: -> (..., h, w)."""
    return apply_matrices(x, *(resize_matrix(side, scale=scale) for side in x.shape[-2:]))
