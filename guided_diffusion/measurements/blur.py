"""Blur: cross-correlation with a kernel, over an image extended by reflection."""

import math
from abc import abstractmethod
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

from guided_diffusion.measurements.base import LinearOperator, register_operator
from util.errors import UserError
from util.kernels import gaussian_kernel, motion_kernel, reflected_filter_matrix
from util.seeding import ImageRandomness

Convolution = Literal["auto", "fft", "direct"]
LARGEST_DIRECT = 5      # up to this size "auto" sums over the taps; above it the FFT took less time at 32 to 256 pixels


class Blur(LinearOperator):
    """(A x)[i] = sum_a k[a] x[i + a - r] in every channel, k of odd side 2 r + 1: (B, C, H, W) -> the same shape.

    The image is extended by reflection that does not repeat the edge pixel (DPS). A = C P, with P the extension by
    r pixels and C the correlation that keeps the inner H x W values, so A^T = P^T C^T: a full convolution whose
    border of r pixels is folded back. Kernels are float64 and cast to the image's dtype.

    Args:
        kernel_size: odd side of the kernel, at least 3; half of it must be smaller than the image.
        intensity: see the subclasses.
        convolution: how C is computed; "auto" is "direct" for small kernels and "fft" for others. They agree within
            1e-5 for images in [-1, 1].
        rcond: `pinv` and `project` leave out what A attenuates below this fraction of its largest gain. None stands
            for the square root of the machine precision (3e-4 in float32), where lost detail and amplified
            rounding balance. The pseudo-inverse amplifies noise by up to 1/rcond: raise it for noisy measurements.
    """

    def __init__(self, kernel_size: int, intensity: float, convolution: Convolution = "auto",
                 rcond: float | None = None):
        super().__init__()
        if kernel_size < 3 or kernel_size % 2 == 0:
            nearest = max(3, kernel_size + 1)
            raise UserError(f"{self.name}: kernel_size is {kernel_size}, expected an odd number of at least 3, which "
                            f"keeps the image's size; use {nearest}")
        if rcond is not None and not 0 < rcond < 1:
            raise UserError(f"{self.name}: rcond is {rcond}, expected a number between 0 and 1; leave it out to cut "
                            "at the numerical precision")
        self.kernel_size, self.intensity, self.rcond = kernel_size, intensity, rcond
        self.radius = kernel_size // 2
        self.direct = convolution == "direct" or (convolution == "auto" and kernel_size <= LARGEST_DIRECT)
        self.register_buffer("kernel", torch.empty(0, dtype=torch.float64), persistent=False)      # (B, 1, k, k)
        self._spectrum: tuple[Tensor | None, Tensor] = None, torch.empty(0)              # a kernel and its spectrum

    @abstractmethod
    def draw_kernel(self, rng: np.random.Generator) -> np.ndarray:
        """The kernel of one image, (k, k) in float64 with sum one."""

    def prepare(self, shape: tuple[int, int, int, int], randomness: ImageRandomness) -> None:
        """Make one kernel per image of `shape` (B, C, H, W).

        Raises:
            UserError: the image is too small to be extended by the kernel's radius.
        """
        super().prepare(shape, randomness)
        if self.radius >= min(shape[2:]):
            raise UserError(f"{self.name}: a kernel_size of {self.kernel_size} needs images larger than {self.radius} "
                            f"pixels, found {shape[2]}x{shape[3]}; use a kernel_size of at most "
                            f"{2 * min(shape[2:]) - 1} or larger images")
        kernels = [self.draw_kernel(rng) for rng in randomness.numpy_generators]
        self.kernel = torch.from_numpy(np.stack(kernels))[:, None].to(self.kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.forward_many(x[None])[0]

    def forward_many(self, x: Tensor) -> Tensor:
        """(n, B, C, H, W) -> the same shape."""
        padded = F.pad(x.flatten(0, 1), (self.radius,) * 4, mode="reflect").unflatten(0, x.shape[:2])
        if self.direct:
            return F.conv2d(padded.flatten(1, 2), self._taps(x), groups=math.prod(x.shape[1:3])).view_as(x)
        return self._filter(padded, self._kernel_spectrum(x).conj())[..., :x.shape[-2], :x.shape[-1]].contiguous()

    def transpose(self, y: Tensor) -> Tensor:
        """A^T y: (B, C, H, W) -> the same shape."""
        if self.direct:
            taps = self._taps(y[None]).flip(-2, -1)
            full = F.conv2d(y.flatten(0, 1)[None], taps, padding=2 * self.radius, groups=len(taps))
            full = full[0].unflatten(0, y.shape[:2])
        else:
            full = self._filter(y, self._kernel_spectrum(y))
        full = full[..., :y.shape[-2] + 2 * self.radius, :y.shape[-1] + 2 * self.radius]
        return _fold(_fold(full, self.radius, dim=-2), self.radius, dim=-1)

    def pinv(self, y: Tensor, rtol: float | None = None, max_iterations: int | None = None) -> Tensor:
        """A^+ y by CGLS, (B, C, H, W) -> the same shape.

        What A attenuates to a fraction s contributes s^2 to the gradient A^T(y - A x) that stops the iteration, so
        `rtol` is rcond^2 unless given. `max_iterations` is 300 in float32 and 3000 in float64 unless given; where it
        ends the iteration, the faintest detail is left out, and A A^+ A = A holds to about 1e-3 in float32.
        """
        if max_iterations is None:
            max_iterations = 3000 if y.dtype == torch.float64 else 300
        return super().pinv(y, self._cutoff(y) ** 2 if rtol is None else rtol, max_iterations)

    def _cutoff(self, like: Tensor) -> float:
        return math.sqrt(torch.finfo(like.dtype).eps) if self.rcond is None else self.rcond

    def _taps(self, x: Tensor) -> Tensor:
        """The kernels for a grouped convolution of x (n, B, C, H, W): (B C, 1, k, k)."""
        return self.kernel.to(x).repeat_interleave(x.shape[2], dim=0)

    def _filter(self, x: Tensor, spectrum: Tensor) -> Tensor:
        """Circular filtering of x (..., B, C, h, w), zero-padded to the spectrum's size, which the result has."""
        size = self._fft_size()
        return torch.fft.irfft2(torch.fft.rfft2(x, s=size) * spectrum, s=size)

    def _fft_size(self) -> tuple[int, int]:
        """The smallest fast sizes at which an extended image does not wrap around onto kept values."""
        return tuple(next_fast_len(side + 2 * self.radius, real=True) for side in self.image_shape[2:])

    def _kernel_spectrum(self, x: Tensor) -> Tensor:
        """The kernels' spectrum (B, 1, n, m) for images like x, kept until the kernel changes."""
        kernel, spectrum = self._spectrum
        if kernel is not self.kernel or spectrum.real.dtype != x.dtype or spectrum.device != x.device:
            with torch.inference_mode(False), torch.no_grad():
                spectrum = torch.fft.rfft2(self.kernel.to(x), s=self._fft_size())
            self._spectrum = self.kernel, spectrum
        return spectrum


def _fold(x: Tensor, radius: int, dim: int) -> Tensor:
    """The adjoint of extending axis `dim` by reflection: n + 2 radius -> n, the border added where it came from."""
    n = x.shape[dim] - 2 * radius
    inner = x.narrow(dim, radius, n).clone()
    inner.narrow(dim, 1, radius).add_(x.narrow(dim, 0, radius).flip(dim))
    inner.narrow(dim, n - 1 - radius, radius).add_(x.narrow(dim, radius + n, radius).flip(dim))
    return inner


@register_operator("gaussian_blur")
class GaussianBlurOperator(Blur):
    """Gaussian blur of standard deviation `intensity` pixels; the kernel is util.kernels.gaussian_kernel.

    The kernel is the product of two profiles and each axis is extended by itself, so A x = G_h x G_w^T, whose
    singular values are the products of the axes': A^+ has a closed form.
    """

    def __init__(self, kernel_size: int, intensity: float, convolution: Convolution = "auto",
                 rcond: float | None = None):
        super().__init__(kernel_size, intensity, convolution, rcond)
        if intensity <= 0:
            raise UserError(f"{self.name}: intensity is {intensity}, expected a positive standard deviation in pixels")

    def draw_kernel(self, rng: np.random.Generator) -> np.ndarray:
        """The same kernel (k, k) for every image."""
        return gaussian_kernel(self.kernel_size, self.intensity)

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y = V_h [(U_h^T y U_w) / (s_h s_w^T)] V_w^T, zero where s_h s_w^T is below rcond of its largest entry.

        (B, C, H, W) -> the same shape.
        """
        (u_h, s_h, vt_h), (u_w, s_w, vt_w) = (self._axis_svd(side, y) for side in y.shape[-2:])
        gains = s_h[:, None] * s_w
        inverse = torch.where(gains >= self._cutoff(y) * gains.max(), 1 / gains, 0)
        return vt_h.mT @ (inverse * (u_h.mT @ y @ u_w)) @ vt_w

    def _axis_svd(self, side: int, like: Tensor) -> tuple[Tensor, ...]:
        return tuple(factor.to(like) for factor in _gaussian_svd(self.kernel_size, self.intensity, side))


@lru_cache(maxsize=4)
def _gaussian_svd(kernel_size: int, intensity: float, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """U, s, V^T of the blur of one axis of `side` pixels, float64 on the CPU."""
    profile = gaussian_kernel(kernel_size, intensity).sum(axis=0)
    return torch.linalg.svd(torch.from_numpy(reflected_filter_matrix(profile, side)))


@register_operator("motion_blur")
class MotionBlurOperator(Blur):
    """Camera shake: every image has a random kernel of its own, util.kernels.motion_kernel.

    `intensity` is 0 (a straight stroke) to 1 (a long, shaky one).
    """

    def __init__(self, kernel_size: int, intensity: float, convolution: Convolution = "auto",
                 rcond: float | None = None):
        super().__init__(kernel_size, intensity, convolution, rcond)
        if not 0 <= intensity <= 1:
            raise UserError(f"{self.name}: intensity is {intensity}, expected 0 (straight) to 1 (shaky)")

    def draw_kernel(self, rng: np.random.Generator) -> np.ndarray:
        """A kernel (k, k) drawn from `rng`."""
        return motion_kernel(self.kernel_size, self.intensity, rng)
