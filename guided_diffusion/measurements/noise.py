"""Measurement noise. Everything is on the [-1, 1] scale of the images."""

import torch
from torch import Tensor

from guided_diffusion.measurements.base import Noise, register_noise
from util.errors import UserError
from util.seeding import ImageRandomness


@register_noise("clean")
class Clean(Noise):
    """No noise: y = A(x)."""

    def forward(self, y: Tensor, randomness: ImageRandomness) -> Tensor:
        """(B, ...) -> the same."""
        return y


@register_noise("gaussian")
class GaussianNoise(Noise):
    """y + sigma n, n ~ N(0, I).

    Args:
        sigma: standard deviation on the [-1, 1] scale, as in DPS and DPPS: 0.05 is 6.4 grey levels of 255. Papers
            that state it on the [0, 1] scale mean twice as much noise by the same number.
    """

    def __init__(self, sigma: float):
        if sigma < 0:
            raise UserError(f"noise 'gaussian': sigma is {sigma}, expected 0 or a positive number")
        self.sigma = sigma

    def forward(self, y: Tensor, randomness: ImageRandomness) -> Tensor:
        """(B, ...) -> the same shape."""
        return y + self.sigma * randomness.randn_like(y)

    def variance(self, prediction: Tensor) -> Tensor | None:
        """sigma^2 everywhere, in the shape of `prediction`; None when sigma is 0."""
        return torch.full_like(prediction, self.sigma ** 2) if self.sigma > 0 else None


@register_noise("poisson")
class PoissonNoise(Noise):
    """Photon counts: with a = (y + 1)/2 clipped to [0, 1], N ~ Poisson(255 rate a), the noisy y is
    2 N/(255 rate) - 1, clipped to [-1, 1] (DPS, appendix B and official code).

    Args:
        rate: counts per grey level of 255, positive; noise falls as 1/sqrt(rate).
    """

    def __init__(self, rate: float = 1.0):
        if rate <= 0:
            raise UserError(f"noise 'poisson': rate is {rate}, expected a positive number")
        self.rate = rate
        self.peak = 255 * rate                                  # expected counts of a white pixel

    def forward(self, y: Tensor, randomness: ImageRandomness) -> Tensor:
        """(B, ...) -> the same shape."""
        counts = (self.peak * ((y + 1) / 2).clamp(0, 1)).to(randomness.device)
        drawn = [torch.poisson(image, generator=g) for image, g in zip(counts, randomness.generators, strict=True)]
        return (2 * torch.stack(drawn).to(y.device) / self.peak - 1).clamp(-1, 1)

    def distance(self, y: Tensor, prediction: Tensor) -> Tensor:
        """||y - prediction|| times the mean of 1/|y| over the entries of each image, (B, ...) -> (B,).

        |y| is taken as at least 1/255, which at rate 1 is the smallest that can occur.
        """
        weight = y.abs().clamp_min(1 / 255).reciprocal().flatten(1).mean(1)
        return weight * super().distance(y, prediction)

    def variance(self, prediction: Tensor) -> Tensor:
        """4 max(E N, 1) / (255 rate)^2 with E N = 255 rate (prediction + 1)/2, the prediction clipped to [-1, 1]."""
        counts = (self.peak * ((prediction + 1) / 2).clamp(0, 1)).clamp_min(1)
        return 4 * counts / self.peak ** 2
