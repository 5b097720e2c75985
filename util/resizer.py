"""Antialiased image resizing as one matrix per axis.

A resize is linear and separable, so it is fully described by a matrix (n_out, n_in) for each axis: applying it is two
products, its adjoint two transposed ones, and its pseudo-inverse is the product of the axes' pseudo-inverses.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from util.errors import UserError, did_you_mean


def cubic(x: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel with a = -1/2 (Keys, 1981), zero outside [-2, 2]."""
    x = np.abs(x)
    inner = 1.5 * x ** 3 - 2.5 * x ** 2 + 1
    outer = -0.5 * x ** 3 + 2.5 * x ** 2 - 4 * x + 2
    return inner * (x <= 1) + outer * ((x > 1) & (x <= 2))


def lanczos2(x: np.ndarray) -> np.ndarray:
    """sinc(x) sinc(x/2), zero outside [-2, 2]."""
    return np.sinc(x) * np.sinc(x / 2) * (np.abs(x) < 2)


def lanczos3(x: np.ndarray) -> np.ndarray:
    """sinc(x) sinc(x/3), zero outside [-3, 3]."""
    return np.sinc(x) * np.sinc(x / 3) * (np.abs(x) < 3)


def box(x: np.ndarray) -> np.ndarray:
    """One on [-1/2, 1/2)."""
    return ((x >= -0.5) & (x < 0.5)).astype(np.float64)


def linear(x: np.ndarray) -> np.ndarray:
    """The triangle of height one on [-1, 1]."""
    return np.maximum(1 - np.abs(x), 0)


KERNELS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {      # name -> kernel, width of its support
    "cubic": (cubic, 4), "lanczos2": (lanczos2, 4), "lanczos3": (lanczos3, 6), "box": (box, 1), "linear": (linear, 2),
}


def output_size(n_in: int, scale: float) -> int:
    """The length that `n_in` samples have after resizing by `scale`, rounded up."""
    return max(1, math.ceil(n_in * scale - 1e-9))


def resize_matrix(n_in: int, n_out: int | None = None, scale: float | None = None, kernel: str = "cubic",
                  antialias: bool = True) -> Tensor:
    """The matrix that resizes one axis from `n_in` to `n_out` samples, (n_out, n_in) in float64 on the CPU.

    Output j lies at input coordinate (j + (n_in scale - n_out)/2 + 1/2)/scale - 1/2. The kernel is stretched by
    1/scale when shrinking with `antialias`; every row is normalised to sum to one; taps outside the image are
    mirrored at the border, the edge sample repeated.

    Args:
        n_in: length of the input.
        n_out: length of the output; n_in scale rounded up when omitted.
        scale: output samples per input sample; n_out/n_in when omitted.
        kernel: cubic, lanczos2, lanczos3, box or linear.
        antialias: stretch the kernel when shrinking.

    Raises:
        UserError: unknown kernel, neither `n_out` nor `scale`, or one that is not positive.
    """
    if kernel not in KERNELS:
        raise UserError(f"unknown resizing kernel '{kernel}'; {did_you_mean(kernel, KERNELS)}")
    if n_out is None and scale is None:
        raise UserError("resizing needs an output size or a scale, found neither")
    if (n_out is not None and n_out < 1) or (scale is not None and not 0 < scale < math.inf):
        raise UserError(f"resizing to size {n_out} by scale {scale}: expected positive values")
    n_out = output_size(n_in, scale) if n_out is None else n_out
    scale = n_out / n_in if scale is None else scale

    function, width = KERNELS[kernel]
    stretch = min(scale, 1.0) if antialias else 1.0
    support = width / stretch
    centres = (np.arange(n_out) + (n_in * scale - n_out) / 2 + 0.5) / scale - 0.5                    # (n_out,)
    taps = np.floor(centres - support / 2)[:, None] + np.arange(math.ceil(support) + 2)              # (n_out, taps)
    weights = function(stretch * (centres[:, None] - taps))
    weights /= weights.sum(axis=1, keepdims=True)

    position = taps.astype(np.int64) % (2 * n_in)
    source = np.minimum(position, 2 * n_in - 1 - position)
    matrix = np.zeros((n_out, n_in))
    np.add.at(matrix, (np.arange(n_out)[:, None], source), weights)
    return torch.from_numpy(matrix)


def apply_matrices(x: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Apply one matrix per axis, `height` (h, H) then `width` (w, W): (..., H, W) -> (..., h, w), in x's dtype."""
    return height.to(x) @ x @ width.to(x).mT


def resize(x: Tensor, scale: float | None = None, size: tuple[int, int] | None = None, kernel: str = "cubic",
           antialias: bool = True) -> Tensor:
    """Resize images (..., H, W) by `scale`, or to `size` = (h, w), as `resize_matrix` says: -> (..., h, w)."""
    height, width = size if size is not None else (None, None)
    return apply_matrices(x, resize_matrix(x.shape[-2], height, scale, kernel, antialias),
                          resize_matrix(x.shape[-1], width, scale, kernel, antialias))
