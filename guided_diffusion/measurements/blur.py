"""Blur: cross-correlation with a kernel, over an image extended by reflection."""

import math
from abc import abstractmethod
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

from guided_diffusion.measurements.base import LinearOperator, register_operator
from guided_diffusion.measurements.kernels import gaussian_kernel, motion_kernel, reflected_filter_matrix
from guided_diffusion.measurements.svd import RANK, SVD, axis, separable
from util.arrays import read_array
from util.command import user_path
from util.config.registry import Bounds, Fraction, Positive
from util.errors import UserError
from util.logger import logger
from util.resizer import apply_matrices
from util.seeding import ImageRandomness

Convolution = Literal["auto", "fft", "direct"]
KernelSize = Annotated[int, Bounds(least=3)]
Rcond = Annotated[float, Bounds(above=0, below=1, remedy="leave it out to cut at the numerical precision")]
SUM_TOLERANCE = 1e-4    # how far from one a kernel's sum may be without a warning
DEFAULT_RCOND = {torch.float32: math.sqrt(torch.finfo(torch.float32).eps), torch.float64: 1e-12}
LARGEST_DENSE = 48 ** 2     # pixels of images whose A is decomposed as a matrix
LARGEST_DIRECT = 5      # up to this size "auto" sums over the taps; above it the FFT took less time at 32 to 256 pixels
LARGEST_SEPARABLE = 256     # side up to which products with one matrix per axis take less time than the FFT


class Blur(LinearOperator):
    """(A x)[i] = sum_a k[a] x[i + a - r] in every channel, k of odd side 2 r + 1: (B, C, H, W) -> the same shape.

    The image is extended by reflection that does not repeat the edge pixel (DPS). A = C P, with P the extension by
    r pixels and C the correlation that keeps the inner H x W values, so A^T = P^T C^T: a full convolution whose
    border of r pixels is folded back. Kernels are float64 and cast to the image's dtype.

    `svd` is there for kernels that are a product of two profiles, as the reflection extends each axis by itself. The
    DCT-I, whose boundary rule this is, makes every A with a symmetric kernel diagonal, but in a basis that is
    orthogonal only if edge pixels count half: so its eigenvalues are not the singular values, and it serves no `svd`.

    Args:
        kernel_size: odd side of the kernel, at least 3; half of it must be smaller than the image.
        convolution: how C is computed; "auto" is "direct" for small kernels and "fft" for others, but for Gaussian blur
            of up to 256 pixels a side one matrix per axis. They agree within 1e-5 for images in [-1, 1].
        rcond: `pinv` and `project` leave out what A attenuates below this fraction of its largest gain (above 48 x 48
            pixels motion blur and given kernels damp it instead, see `pinv`). None stands for 3e-4 in float32, the
            square root of the machine precision, where lost detail and amplified rounding balance, and for 1e-12 in
            float64, where A A^+ A = A to that precision. The pseudo-inverse amplifies noise by up to 1/rcond: raise it
            for noisy measurements.
    """

    def __init__(self, kernel_size: KernelSize, convolution: Convolution = "auto", rcond: Rcond | None = None):
        super().__init__()
        if kernel_size % 2 == 0:
            raise UserError(f"{self.name}: kernel_size is {kernel_size}, expected an odd number, which keeps the "
                            f"image's size; use {kernel_size + 1}")
        self.kernel_size, self.rcond = kernel_size, rcond
        self.radius = kernel_size // 2
        self.direct = convolution == "direct" or (convolution == "auto" and kernel_size <= LARGEST_DIRECT)
        self.register_drawn("kernel", torch.float64)                                               # (B, 1, k, k)
        self._spectrum: tuple[Tensor | None, Tensor] = None, torch.empty(0)              # a kernel and its spectrum
        self._factors: tuple[Tensor | None, tuple[Tensor, ...]] = None, ()               # a kernel and the SVD of A

    @abstractmethod
    def draw_kernel(self, rng: np.random.Generator) -> np.ndarray:
        """The kernel of one image, (k, k) in float64 with sum one."""

    def draw(self, shape: tuple[int, int, int, int], randomness: ImageRandomness) -> None:
        """Make one kernel per image of `shape` (B, C, H, W).

        Raises:
            UserError: the image is too small to be extended by the kernel's radius.
        """
        if self.radius >= min(shape[2:]):
            raise UserError(f"{self.name}: a kernel_size of {self.kernel_size} needs images larger than {self.radius} "
                            f"pixels, found {shape[2]}x{shape[3]}; use a kernel_size of at most "
                            f"{2 * min(shape[2:]) - 1} or larger images")
        kernels = [self.draw_kernel(rng) for rng in randomness.numpy_generators]
        self.kernel = torch.from_numpy(np.stack(kernels))[:, None].to(self.kernel)

    def refuse_drawn(self, name: str, values: Tensor) -> str | None:
        """A kernel is not negative, and not nothing."""
        fits = values.isfinite().all() and (values >= 0).all() and (values.flatten(1).sum(1) > 0).all()
        return None if fits else "finite ones that are not negative and not all zero"

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

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y, (B, C, H, W) -> the same shape.

        Up to 48 x 48 pixels by A's singular values: those below rcond of the largest are left out. Above that size by
        conjugate gradients, which damp instead of cutting and take up to 10/rcond iterations, at most 500 in float32
        and 3000 in float64; without an rcond, `LinearOperator.pinv` chooses between next to none and 1e-2.
        """
        if math.prod(y.shape[2:]) > LARGEST_DENSE:
            return super().pinv(y) if self.rcond is None else self.damped_pinv(y, self.rcond)
        u, s, vt = self._svd(y)
        inverse = torch.where(s >= self._cutoff(y) * s[:, :1], 1 / s, 0)[:, None]                         # (B, 1, n)
        return ((y.flatten(2) @ u * inverse) @ vt).view_as(y)

    def _cutoff(self, like: Tensor) -> float:
        return DEFAULT_RCOND[like.dtype] if self.rcond is None else self.rcond

    def _svd(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """U (B, n, n), s (B, n), V^T (B, n, n) of the matrices of A, n = H W, in y's dtype; kept until the kernel
        changes."""
        kernel, factors = self._factors
        if kernel is not self.kernel:
            size = y.shape[2:]
            with torch.inference_mode(False), torch.no_grad():
                basis = torch.eye(size.numel(), dtype=torch.float64, device=y.device).view(-1, 1, 1, *size)
                basis = basis.expand(-1, len(y), -1, -1, -1)
                columns = torch.cat([self.forward_many(part) for part in basis.split(256)])           # (n, B, 1, H, W)
                factors = torch.linalg.svd(columns.flatten(2).permute(1, 2, 0))
            self._factors = self.kernel, factors
        return tuple(factor.to(y) for factor in factors)

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
    """Gaussian blur of standard deviation `intensity` pixels; see `kernels.gaussian_kernel`.

    The kernel is the product of two profiles and each axis is extended by itself, so A x = G_h x G_w^T, whose
    singular values are the products of the axes': A^+ has a closed form.
    """

    has_svd = True

    def __init__(self, kernel_size: KernelSize, intensity: Positive, convolution: Convolution = "auto",
                 rcond: Rcond | None = None):
        super().__init__(kernel_size, convolution, rcond)
        self.intensity, self.convolution = intensity, convolution
        for name in ("height", "width"):            # G_h, G_w
            self.register_buffer(name, torch.empty(0, 0, dtype=torch.float64), persistent=False)

    def draw_kernel(self, rng: np.random.Generator) -> np.ndarray:
        """The same kernel (k, k) for every image."""
        return gaussian_kernel(self.kernel_size, self.intensity)

    def draw(self, shape: tuple[int, int, int, int], randomness: ImageRandomness) -> None:
        """As every blur, and build the matrices of the axes.

        Raises:
            UserError: the image is too small to be extended by the kernel's radius.
        """
        super().draw(shape, randomness)
        self.separable = self.convolution == "auto" and max(shape[2:]) <= LARGEST_SEPARABLE
        if self.separable:
            self.height, self.width = (_gaussian_matrix(self.kernel_size, self.intensity, side).to(self.height)
                                       for side in shape[2:])

    def forward_many(self, x: Tensor) -> Tensor:
        """(n, B, C, H, W) -> the same shape."""
        return apply_matrices(x, self.height, self.width) if self.separable else super().forward_many(x)

    def transpose(self, y: Tensor) -> Tensor:
        """A^T y = G_h^T y G_w: (B, C, H, W) -> the same shape."""
        return apply_matrices(y, self.height.mT, self.width.mT) if self.separable else super().transpose(y)

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y = V_h [(U_h^T y U_w) / (s_h s_w^T)] V_w^T, zero where s_h s_w^T is below rcond of its largest entry.

        (B, C, H, W) -> the same shape.
        """
        return self.svd(self._cutoff(y)).pinv(y)

    def svd(self, rcond: float = RANK) -> SVD:
        """The product of those of G_h and G_w; singular values below `rcond` of the largest count as 0."""
        sides = {dim: self.image_shape[dim] for dim in (-2, -1)}
        return separable({dim: axis(_gaussian_matrix, self.kernel_size, self.intensity, side)
                          for dim, side in sides.items()}, rcond)


def _gaussian_matrix(kernel_size: int, intensity: float, side: int) -> Tensor:
    """The blur of one axis of `side` pixels, (side, side) in float64 on the CPU."""
    return torch.from_numpy(reflected_filter_matrix(gaussian_kernel(kernel_size, intensity).sum(axis=0), side))


@register_operator("motion_blur")
class MotionBlurOperator(Blur):
    """Camera shake: every image has a random kernel of its own, guided_diffusion.measurements.kernels.motion_kernel.

    `intensity` is 0 (a straight stroke) to 1 (a long, shaky one).
    """

    def __init__(self, kernel_size: KernelSize, intensity: Fraction, convolution: Convolution = "auto",
                 rcond: Rcond | None = None):
        super().__init__(kernel_size, convolution, rcond)
        self.intensity = intensity

    def draw_kernel(self, rng: np.random.Generator) -> np.ndarray:
        """A kernel (k, k) drawn from `rng`."""
        return motion_kernel(self.kernel_size, self.intensity, rng)


@register_operator("blur")
class KernelBlurOperator(Blur):
    """Blur by a given kernel, the same for every image: correlation, as in DPS, or with `flip` convolution.

    Args:
        kernel: a .npy file (k, k), or an image whose brightness is the kernel; k is odd and at least 3. It is divided
            by its sum, with a warning where that is not one.
        flip: the kernel is a point-spread function, the picture of a point, which is convolved.
    """

    def __init__(self, kernel: str, flip: bool = False, convolution: Convolution = "auto", rcond: Rcond | None = None):
        self.values = read_kernel(kernel)
        if flip:
            self.values = np.flip(self.values).copy()
        super().__init__(len(self.values), convolution, rcond)
        self.files = {kernel: user_path(kernel)}
        self.profiles = _profiles(self.values)
        if self.profiles is not None:
            self.has_svd = True

    def draw_kernel(self, rng: np.random.Generator) -> np.ndarray:
        """The same kernel (k, k) for every image."""
        return self.values

    def svd(self) -> SVD:
        """The product of those of the two axes, if the kernel is a product of two profiles; UserError otherwise."""
        if self.profiles is None:
            return super().svd()
        return separable({dim: axis(_profile_matrix, profile, self.image_shape[dim])
                          for dim, profile in zip((-2, -1), self.profiles, strict=True)})


def _profiles(kernel: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The profiles along height and width, of sum one each, whose product is `kernel` (k, k) of sum one, to 1e-12 of
    its largest value; None if there are none."""
    height, width = kernel.sum(axis=1), kernel.sum(axis=0)
    fits = np.abs(np.outer(height, width) - kernel).max() <= RANK * kernel.max()
    return (tuple(height.tolist()), tuple(width.tolist())) if fits else None


def _profile_matrix(profile: tuple[float, ...], side: int) -> Tensor:
    """The blur of one axis of `side` pixels by a profile, (side, side) in float64 on the CPU."""
    return torch.from_numpy(reflected_filter_matrix(np.array(profile), side))


def read_kernel(file: str) -> np.ndarray:
    """Read a blur kernel (k, k), float64, non-negative, and divide it by its sum; a warning says so if it is not one.

    Raises:
        UserError: the file is missing or unreadable, is not square with an odd side of at least 3, or has values that
            are negative, not finite or all zero.
    """
    values = read_array(file, "blur: kernel").astype(np.float64)
    if values.ndim == 3:
        values = values.mean(axis=2)
    shape = "x".join(map(str, values.shape))
    if values.ndim != 2 or values.shape[0] != values.shape[1] or len(values) < 3 or len(values) % 2 == 0:
        raise UserError(f"blur: the kernel in '{file}' is {shape}, expected a square with an odd side of at least 3; "
                        "pad it with zeros around its centre")
    if not np.isfinite(values).all() or values.min() < 0 or values.max() == 0:
        raise UserError(f"blur: the kernel in '{file}' has values from {values.min():g} to {values.max():g}, expected "
                        "finite ones that are not negative and not all zero")
    total = values.sum()
    if abs(total - 1) > SUM_TOLERANCE:
        logger.warning(f"blur: the kernel in '{file}' sums to {total:g}, not 1; it was divided by its sum, so that the "
                       "blurred image is as bright as the image")
    return values / total
