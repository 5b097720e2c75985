"""Classical baselines, by scikit-image or conjugate gradients: no prior, no training, nothing random."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from skimage import restoration
from torch import Tensor

from guided_diffusion.measurements.base import LinearOperator, Noise, Operator
from guided_diffusion.measurements.blur import Blur
from guided_diffusion.measurements.inpainting import InpaintingOperator
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.method import CONDITIONING_METHODS, register_conditioning_method
from guided_diffusion.solvers.base import ClassicalRestorer, to_arrays
from util.config.registry import Count, NonNegative, Positive
from util.errors import UserError


@register_conditioning_method("lift")
class Lift(ClassicalRestorer):
    """The measurement in image space, clipped: bicubic upsampling of super-resolution, y itself for most others."""

    def estimate(self, measurement: Measurement) -> Sequence[np.ndarray]:
        return to_arrays(measurement.lift())


@register_conditioning_method("pinv")
class PseudoInverse(ClassicalRestorer):
    """A^+ y: sharper than the lifted measurement and noisier, so that a denoiser should follow, see `after`."""

    needs_linear = True

    def estimate(self, measurement: Measurement) -> Sequence[np.ndarray]:
        return to_arrays(measurement.operator.pinv(measurement.y))


class Penalised(LinearOperator):
    """x -> (A x, sqrt(balance) D x), D the differences of neighbouring pixels: (B, C, H, W) -> (B, m)."""

    def __init__(self, operator: LinearOperator, balance: float):
        super().__init__()
        self.operator, self.weight, self.image_shape = operator, math.sqrt(balance), operator.image_shape

    def forward(self, x: Tensor) -> Tensor:
        parts = self.operator(x), self.weight * x.diff(dim=-1), self.weight * x.diff(dim=-2)
        return torch.cat([part.flatten(1) for part in parts], dim=1)


@register_conditioning_method("tikhonov")
class Tikhonov(ClassicalRestorer):
    """argmin_x ||y - A x||^2 + balance ||D x||^2, D the differences of neighbouring pixels, by conjugate gradients.

    Tikhonov & Arsenin (1977), "Solutions of ill-posed problems". It is the Wiener filter of `wiener` for any linear
    operator with any border.

    Args:
        balance: noise over signal; larger is smoother.
    """

    needs_linear = True

    def __init__(self, balance: Positive = 0.03):
        self.balance = balance

    def estimate(self, measurement: Measurement) -> Sequence[np.ndarray]:
        penalised = Penalised(measurement.operator, self.balance)
        nothing = penalised(measurement.y.new_zeros(measurement.image_shape))
        y = measurement.y.flatten(1)
        return to_arrays(penalised.damped_pinv(torch.cat([y, nothing[:, y.shape[1]:]], dim=1), rcond=1e-4))


class Denoiser(ClassicalRestorer):
    """A denoiser, applied to what another classical restorer makes of the measurement.

    Args:
        after: that restorer: lift, pinv, tikhonov, wiener, richardson_lucy, biharmonic, ...
        after_params: its parameters.
    """

    def __init__(self, after: str, after_params: dict | None):
        cls = CONDITIONING_METHODS[after]
        if not issubclass(cls, ClassicalRestorer):
            classical = [name for name in CONDITIONING_METHODS if issubclass(CONDITIONING_METHODS[name],
                                                                             ClassicalRestorer)]
            raise UserError(f"conditioning method '{self.name}': after is '{after}', which needs a prior; "
                            f"choose from {', '.join(classical)}")
        self.first: ClassicalRestorer = CONDITIONING_METHODS.build(after, **(after_params or {}))

    def check(self, operator: Operator, noiser: Noise | None = None) -> None:
        self.first.check(operator, noiser)


@register_conditioning_method("total_variation")
class TotalVariation(Denoiser):
    """argmin_u ||u - v||^2 / 2 + weight TV(u) in every colour channel, v the image that `after` gives.

    Chambolle (2004), "An algorithm for total variation minimization and applications"; scikit-image's
    `denoise_tv_chambolle`.

    Args:
        weight: on [0, 1]; 0 leaves v as it is.
        after, after_params: see `Denoiser`.
    """

    def __init__(self, weight: NonNegative = 0.05, after: str = "lift", after_params: dict | None = None):
        super().__init__(after, after_params)
        self.weight = weight

    def estimate(self, measurement: Measurement) -> Sequence[np.ndarray]:
        return [tv_denoised(image, self.weight) for image in self.first.estimate(measurement)]


def tv_denoised(image: np.ndarray, weight: float) -> np.ndarray:
    """The total-variation denoising of an image (H, W, C), every channel by itself."""
    return restoration.denoise_tv_chambolle(image, weight=weight, channel_axis=-1) if weight else image


@register_conditioning_method("non_local_means")
class NonLocalMeans(Denoiser):
    """The mean of pixels whose surroundings, in all colours, look alike, of the image that `after` gives.

    Buades, Coll & Morel (2005), "A non-local algorithm for image denoising"; scikit-image's `denoise_nl_means`.

    Args:
        h: how fast weights fall with the patches' distance, on [0, 1].
        sigma: standard deviation of the noise, on [0, 1]: expected and taken off the patches' distance.
        patch_size: side of the patches.
        patch_distance: how far apart two patches may be, in pixels.
        after, after_params: see `Denoiser`.
    """

    def __init__(self, h: Positive = 0.02, sigma: NonNegative = 0.02, patch_size: Count = 5,
                 patch_distance: Count = 6, after: str = "lift", after_params: dict | None = None):
        super().__init__(after, after_params)
        self.h, self.sigma, self.patch_size, self.patch_distance = h, sigma, patch_size, patch_distance

    def estimate(self, measurement: Measurement) -> Sequence[np.ndarray]:
        return [restoration.denoise_nl_means(image, self.patch_size, self.patch_distance, self.h, sigma=self.sigma,
                                             channel_axis=-1)
                for image in self.first.estimate(measurement)]


class Deconvolution(ClassicalRestorer):
    """A deconvolution by the kernel of each image, every channel by itself."""

    needs = "a convolution by a known kernel (gaussian_blur, motion_blur or blur)"

    @classmethod
    def serves(cls, operator: Operator, noiser: Noise | None = None) -> bool:
        return isinstance(operator, Blur)


@register_conditioning_method("wiener")
class Wiener(Deconvolution):
    """|H|^2 / (|H|^2 + balance |L|^2) of the inverse filter, H the blur's and L the Laplacian's transfer function.

    scikit-image's `wiener`, on the image's periodic extension by reflection, where a symmetric blur is a circular
    convolution exactly.

    Args:
        balance: noise over signal; larger is smoother.
    """

    def __init__(self, balance: Positive = 0.01):
        self.balance = balance

    def estimate(self, measurement: Measurement) -> Sequence[np.ndarray]:
        # operators correlate; the point spread function of the convolution is the kernel turned by half a circle
        spreads = measurement.operator.kernel.cpu().numpy()[:, 0, ::-1, ::-1]                           # (B, k, k)
        return [np.stack([self.deconvolve(channel, spread) for channel in np.moveaxis(image, -1, 0)], axis=-1)
                for image, spread in zip(to_arrays(measurement.lift()), spreads, strict=True)]

    def deconvolve(self, y: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """One channel (H, W) on [0, 1] and its point spread function (k, k), k odd -> (H, W)."""
        periods = [max(1, 2 * side - 2) for side in y.shape]
        extended = [period * math.ceil(len(spread) / period) for period in periods]         # at least the kernel's side
        pad = [(0, size - side) for size, side in zip(extended, y.shape, strict=True)]
        restored = restoration.wiener(np.pad(y, pad, mode="reflect"), spread, self.balance, clip=False)
        return restored[:y.shape[0], :y.shape[1]]


@register_conditioning_method("richardson_lucy")
class RichardsonLucy(Deconvolution):
    """u <- u A^T(v / A u) / A^T 1 from a grey image u, v the blurred image, both on [0, 1].

    It fits y ever better and amplifies noise with it, so few iterations. Richardson (1972), Lucy (1974), with the
    operator's own A and A^T: a library's convolution ends in black, and the reflection of a y that was blurred by an
    asymmetric kernel is the blur of no image.

    Args:
        num_iter: iterations.
    """

    def __init__(self, num_iter: Count = 20):
        self.num_iter = num_iter

    def estimate(self, measurement: Measurement) -> Sequence[np.ndarray]:
        operator, y = measurement.operator, measurement.y.double()
        u = y.new_full(measurement.image_shape, 0.5)
        ones = operator(torch.ones_like(u))
        v, seen = ((y + ones) / 2).clamp_min(0), operator.transpose(ones)
        for _ in range(self.num_iter):
            ratio = operator.transpose(v / operator(u).clamp_min(1e-6))
            u = torch.where(seen > 1e-6, u * ratio / seen, u).clamp_min(0)
        return to_arrays(2 * u - 1)


@register_conditioning_method("biharmonic")
class Biharmonic(ClassicalRestorer):
    """Missing pixels solve the biharmonic equation with the observed ones around them, every channel by itself.

    Damelin & Hoang (2018), "On surface completion and image inpainting by biharmonic functions"; scikit-image's
    `inpaint_biharmonic`.

    Args:
        tv_weight: 0 keeps the observed pixels with their noise; above 0 the completed image is denoised with this
            weight, see `total_variation`, and the missing pixels are computed again from it.
    """

    needs = "missing pixels (inpainting)"

    def __init__(self, tv_weight: NonNegative = 0.0):
        self.tv_weight = tv_weight

    @classmethod
    def serves(cls, operator: Operator, noiser: Noise | None = None) -> bool:
        return isinstance(operator, InpaintingOperator)

    def estimate(self, measurement: Measurement) -> Sequence[np.ndarray]:
        missing = measurement.operator.mask.cpu().numpy()[:, 0] == 0                                    # (B, H, W)
        if missing.all(axis=(1, 2)).any():
            raise UserError(f"conditioning method '{self.name}' fills in from the pixels that are there, and an image "
                            "has none; lower mask_prob_range, or use lift")
        images = to_arrays(measurement.lift())
        return [self.complete(image, holes) for image, holes in zip(images, missing, strict=True)]

    def complete(self, image: np.ndarray, missing: np.ndarray) -> np.ndarray:
        """An image (H, W, C) on [0, 1] whose pixels `missing` (H, W) may hold anything -> (H, W, C)."""
        if not missing.any():
            return tv_denoised(image, self.tv_weight)
        filled = restoration.inpaint_biharmonic(image, missing, channel_axis=-1)
        if not self.tv_weight:
            return filled
        return restoration.inpaint_biharmonic(tv_denoised(filled, self.tv_weight), missing, channel_axis=-1)
