"""Measurement noise. Everything is on the [-1, 1] scale of the images unless a docstring says otherwise."""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from torch import Tensor

from guided_diffusion.measurements.base import Noise, register_noise
from util.config.registry import Bounds
from util.errors import UserError
from util.seeding import ImageRandomness

Range = tuple[float, float]
IMAGE_RANGE, UNIT_RANGE = (-1, 1), (0, 1)
GREY_LEVELS = 255
# Squares of sigma and rate are float32 numbers, counts 64-bit integers.
Rate = Annotated[float, Bounds(1e-15, 1e15)]
Sigma = Annotated[float, Bounds(1e-15, 1e15, remedy="for no noise at all use noise: {name: clean}")]


def sigma_of_images(noise: Noise, sigma: float, scale: Range) -> float:
    """The standard deviation on [-1, 1] of a `sigma` that was stated on `scale`.

    Raises:
        UserError: the scale is neither [-1, 1] nor [0, 1].
    """
    if tuple(scale) not in (IMAGE_RANGE, UNIT_RANGE):
        raise UserError(f"noise '{noise.name}': range is {list(scale)}, expected [-1, 1] or [0, 1]")
    return 2 * sigma if tuple(scale) == UNIT_RANGE else sigma


def weighted_norm(residual: Tensor, variance: Tensor) -> Tensor:
    """sqrt(sum_i w_i r_i^2) of each image, (B, ...) and (B, ...) -> (B,), with w_i proportional to 1/v_i, mean one.

    Its gradient is parallel to that of the Gaussian likelihood of variance v; for a uniform v it is the norm.
    """
    precision = variance.reciprocal().flatten(1)
    weight = precision / precision.mean(1, keepdim=True)
    return torch.linalg.vector_norm(weight.sqrt() * residual.flatten(1), dim=1)


@register_noise("clean")
class Clean(Noise):
    """No noise: y = A(x)."""

    white_sigma = 0.0

    def forward(self, y: Tensor, randomness: ImageRandomness) -> Tensor:
        """(B, ...) -> the same."""
        return y


@register_noise("gaussian")
class GaussianNoise(Noise):
    """y + sigma n, n ~ N(0, I).

    Args:
        sigma: standard deviation, positive; on [-1, 1], as in the code of DPS and DPPS, 0.05 is 6.4 grey levels of 255.
        range: the scale that `sigma` is stated on. [0, 1], as in the papers, makes twice as much noise of a number.
    """

    def __init__(self, sigma: Sigma, range: Range = IMAGE_RANGE):
        self.sigma = self.white_sigma = sigma_of_images(self, sigma, range)

    def forward(self, y: Tensor, randomness: ImageRandomness) -> Tensor:
        """(B, ...) -> the same shape."""
        return y + self.sigma * randomness.randn_like(y)

    def variance(self, prediction: Tensor) -> Tensor:
        """sigma^2 on [-1, 1] everywhere, in the shape of `prediction`."""
        return torch.full_like(prediction, self.sigma ** 2)


def photon_counts(clean: Tensor, peak: float, randomness: ImageRandomness) -> Tensor:
    """N ~ Poisson(peak a) with a = (clean + 1)/2 clipped to [0, 1], as 2 N/peak - 1: (B, ...) -> the same shape."""
    counts = (peak * ((clean + 1) / 2).clamp(0, 1)).to(randomness.device)
    drawn = [torch.poisson(image, generator=g) for image, g in zip(counts, randomness.generators, strict=True)]
    return 2 * torch.stack(drawn).to(clean.device) / peak - 1


def shot_variance(clean: Tensor, peak: float, least: float) -> Tensor:
    """The variance of `photon_counts`, 4 max(E N, least) / peak^2 with E N = peak a, in the shape of `clean`."""
    return 4 * (peak * ((clean + 1) / 2).clamp(0, 1)).clamp_min(least) / peak ** 2


def shot(y: Tensor, a: Tensor) -> Tensor:
    """(y - a)^2 / (2 y): the variance is the measured count, at least one (DPS, eq. 19 and 20)."""
    return (y - a) ** 2 / (2 * y.clamp_min(1))


def gaussian(y: Tensor, a: Tensor) -> Tensor:
    """1/2 log(2 pi a) + (y - a)^2 / (2 a): the variance is the predicted count (DPS, eq. 18 and 66)."""
    return _from_one_count(a, lambda m: (2 * math.pi * m).log() / 2 + (y - m) ** 2 / (2 * m),
                           lambda m: (1 / m + 1 - (y / m) ** 2) / 2)


def direct(y: Tensor, a: Tensor) -> Tensor:
    """a - y log a + log y!: the Poisson likelihood itself (DPS, eq. 17; eq. 64 omits the y before log a)."""
    return _from_one_count(a, lambda m: m - y * m.log() + torch.lgamma(y + 1), lambda m: 1 - y / m)


def _from_one_count(a: Tensor, f: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Tensor:
    """f(a) for a >= 1, below that its tangent at 1: finite, and a dark prediction is still pulled to its count."""
    m = a.clamp_min(1)
    return f(m) + slope(m).detach() * (a - m)


LIKELIHOODS = {"shot": shot, "gaussian": gaussian, "direct": direct}


@register_noise("poisson")
class PoissonNoise(Noise):
    """Photon counts: with a = (y + 1)/2 clipped to [0, 1], N ~ Poisson(255 rate a), the noisy y is
    2 N/(255 rate) - 1, clipped to [-1, 1] (DPS, appendix B and official code).

    Args:
        rate: counts per grey level of 255, 1e-15 to 1e15; noise falls as 1/sqrt(rate).
        likelihood: the distance. `shot`, `gaussian` and `direct` are negative log-likelihoods summed over the counts
            y_j = 255 rate (y + 1)/2, in nats, up to a constant. Their gradients grow with the number of counts: at
            256x256 and rate 1 a step of 1 on the norm is one of about 2e-4 here. With a_j the predicted counts:
                official    mean_j 1/|y_j| times the norm ||y - prediction|| on [-1, 1] (the code of DPS)
                ls          the norm ||y - prediction|| on [-1, 1], as for Gaussian noise (appendix C.4)
                shot        sum_j (y_j - a_j)^2 / (2 y_j)                       (eq. 19, 20)
                gaussian    sum_j 1/2 log(2 pi a_j) + (y_j - a_j)^2 / (2 a_j)   (eq. 18, 66)
                direct      sum_j a_j - y_j log a_j + log y_j!                  (eq. 17, 64 with y_j before the log)
            Variances are at least one count; below a_j = 1 the last two go on along their tangents.
    """

    of_pictures = True

    def __init__(self, rate: Rate = 1.0,
                 likelihood: Literal["official", "shot", "gaussian", "direct", "ls"] = "official"):
        self.peak, self.likelihood = GREY_LEVELS * rate, likelihood         # peak: the mean count of a white pixel

    def forward(self, y: Tensor, randomness: ImageRandomness) -> Tensor:
        """(B, ...) -> the same shape."""
        return photon_counts(y, self.peak, randomness).clamp(-1, 1)

    def distance(self, y: Tensor, prediction: Tensor) -> Tensor:
        """The chosen likelihood's distance, (B, ...) and (B, ...) -> (B,).

        `official` takes |y| as at least 1/255, which at rate 1 is the smallest that can occur.
        """
        if self.likelihood in LIKELIHOODS:
            counts = [self.peak * (values + 1) / 2 for values in (y, prediction)]
            return LIKELIHOODS[self.likelihood](*counts).flatten(1).sum(1)
        norm = super().distance(y, prediction)
        if self.likelihood == "ls":
            return norm
        return y.abs().clamp_min(1 / GREY_LEVELS).reciprocal().flatten(1).mean(1) * norm

    def variance(self, prediction: Tensor) -> Tensor:
        """4 max(E N, 1) / (255 rate)^2 with E N = 255 rate (prediction + 1)/2, the prediction clipped to [-1, 1]."""
        return shot_variance(prediction, self.peak, least=1)

    def expected_square(self, prediction: Tensor) -> Tensor:
        """E (y - prediction)^2 exactly, of counts N that are clipped to 255 rate, the prediction clipped to [-1, 1], in
        its shape.

        With m = E N, K the last count below the clipping, F and p the distribution function and the probabilities of
        N: the counts up to K give sum p(n) (n - m)^2 = m F(K) - m (K + 1 - m) p(K), all others (255 rate - m)^2 each.
        """
        m = self.peak * ((prediction.double() + 1) / 2).clamp(0, 1)
        last = torch.full_like(m, math.floor(self.peak))
        below = torch.special.gammaincc(last + 1, m)                                            # F(K)
        p = below - torch.special.gammaincc(last, m) if self.peak >= 1 else below
        clipped = torch.special.gammainc(last + 1, m) * (self.peak - m) ** 2
        return (4 / self.peak ** 2 * (m * below - m * (last + 1 - m) * p + clipped)).to(prediction)


@register_noise("poisson_gaussian")
class PoissonGaussianNoise(Noise):
    """A camera's noise: the photon counts of `poisson`, then Gaussian read-out noise: 2 N/(255 rate) - 1 + sigma n.

    Nothing is clipped after the counts, so the mean is the clean value.

    Args:
        rate: counts per grey level of 255, 1e-15 to 1e15.
        sigma: standard deviation of the read-out noise, positive.
        range: the scale that `sigma` is stated on, [-1, 1] or [0, 1].
    """

    of_pictures = True

    def __init__(self, rate: Rate, sigma: Sigma, range: Range = IMAGE_RANGE):
        self.peak, self.sigma = GREY_LEVELS * rate, sigma_of_images(self, sigma, range)

    def forward(self, y: Tensor, randomness: ImageRandomness) -> Tensor:
        """(B, ...) -> the same shape."""
        return photon_counts(y, self.peak, randomness) + self.sigma * randomness.randn_like(y)

    def distance(self, y: Tensor, prediction: Tensor) -> Tensor:
        """The norm on [-1, 1], weighted by the inverse of the variance that y itself suggests, with mean weight one."""
        return weighted_norm(y - prediction, self.variance(y))

    def variance(self, prediction: Tensor) -> Tensor:
        """4 E N / (255 rate)^2 + sigma^2 on [-1, 1], the prediction clipped to [-1, 1], in its shape."""
        return shot_variance(prediction, self.peak, least=0) + self.sigma ** 2


@register_noise("speckle")
class SpeckleNoise(Noise):
    """Multiplicative noise: the intensity u = (y + 1)/2 becomes u (1 + sigma n), n ~ N(0, I), not clipped.

    Args:
        sigma: relative standard deviation of the intensity, positive; a ratio, so it has no scale.
    """

    of_pictures = True

    def __init__(self, sigma: Sigma):
        self.sigma = sigma

    def forward(self, y: Tensor, randomness: ImageRandomness) -> Tensor:
        """(B, ...) -> the same shape."""
        return y + self.sigma * (y + 1) * randomness.randn_like(y)

    def distance(self, y: Tensor, prediction: Tensor) -> Tensor:
        """The norm on [-1, 1] with weights 1/(y + 1)^2 scaled to mean one; an intensity counts as at least 1/10, so
        that no dark pixel outweighs a white one by more than 100."""
        return weighted_norm(y - prediction, self._variance(y, least=0.2))

    def variance(self, prediction: Tensor) -> Tensor:
        """sigma^2 (prediction + 1)^2 on [-1, 1], the intensity at least one grey level, in the prediction's shape."""
        return self._variance(prediction, least=2 / GREY_LEVELS)

    def _variance(self, y: Tensor, least: float) -> Tensor:
        return self.sigma ** 2 * (y + 1).clamp_min(least) ** 2


@register_noise("salt_and_pepper")
class SaltAndPepperNoise(Noise):
    """Every entry is replaced with probability `fraction`, by -1 or 1 with equal chances.

    Args:
        fraction: share of the entries that are replaced, above 0 and at most 1.
    """

    of_pictures = True

    def __init__(self, fraction: Annotated[float, Bounds(above=0, most=1)]):
        self.fraction = fraction

    def forward(self, y: Tensor, randomness: ImageRandomness) -> Tensor:
        """(B, ...) -> the same shape."""
        u = randomness.rand_like(y)
        return torch.where(u < self.fraction, torch.where(u < self.fraction / 2, -1.0, 1.0).to(y), y)

    def distance(self, y: Tensor, prediction: Tensor) -> Tensor:
        """||y - prediction||_1 / sqrt(n), n the entries of an image: an outlier pulls no harder than any other entry.

        Its gradient has at most the length 1, as that of the norm.
        """
        residual = (y - prediction).flatten(1)
        return residual.abs().sum(1) / math.sqrt(residual.shape[1])

    def variance(self, prediction: Tensor) -> Tensor:
        """E (y - prediction)^2 = fraction (1 + prediction^2) on [-1, 1], in the shape of `prediction`."""
        return self.fraction * (1 + prediction ** 2)


@register_noise("quantization")
class Quantization(Noise):
    """Rounding to the nearest of L equidistant values from -1 to 1, after clipping to [-1, 1]; nothing is random.

    Args:
        bits: L = 2^bits, 1 to 16.
        levels: L itself, 2 to 65536; give one of the two.
    """

    of_pictures = True

    def __init__(self, bits: Annotated[int, Bounds(1, 16)] | None = None,
                 levels: Annotated[int, Bounds(2, 2 ** 16)] | None = None):
        if (bits is None) == (levels is None):
            raise UserError(f"noise '{self.name}': found bits {bits} and levels {levels}, expected one of the two")
        self.step = 2 / ((levels or 2 ** bits) - 1)             # between neighbouring values

    def forward(self, y: Tensor, randomness: ImageRandomness) -> Tensor:
        """(B, ...) -> the same shape."""
        return ((y.clamp(-1, 1) + 1) / self.step).round() * self.step - 1

    def distance(self, y: Tensor, prediction: Tensor) -> Tensor:
        """The norm of what exceeds half a step: how far the prediction is from all that would be rounded to y."""
        beyond = ((y - prediction).abs() - self.step / 2).clamp_min(0)
        return torch.linalg.vector_norm(beyond.flatten(1), dim=1)

    def variance(self, prediction: Tensor) -> Tensor:
        """step^2 / 12, that of an error that is uniform within half a step, in the shape of `prediction`."""
        return torch.full_like(prediction, self.step ** 2 / 12)
