"""How far samples are from a posterior that is known: bias, spread, distances between distributions, coverage.

Samples are (n, d) tensors, float64, d the values of an image, all of one posterior.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import torch
from torch import Tensor

from guided_diffusion.priors.distributions import Distribution, GaussianMixture

DIRECTIONS, RESAMPLES = 64, 40
LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)      # of credible intervals


@dataclass(frozen=True)
class Scores:
    """What was found for one measurement, or the mean over several.

    Attributes:
        bias: of the mean, root mean square over the values, in units of the posterior's standard deviation; what the
            finite number of samples adds is taken off.
        variance_ratio: trace of the samples' covariance over that of the posterior.
        sliced_w2: 2-Wasserstein distance to exact samples, mean over random directions, in units of the posterior's
            standard deviation. As many exact samples have about 0.1 to each other: the row `exact` shows it.
        mmd: maximum mean discrepancy squared, unbiased, kernel exp(-r^2 / (2 median^2)); about 0 for exact samples.
        coverage: level -> mean probability, under the posterior, of the central interval of a value's samples.
        chi_square: ||y - A x||^2 / (m sigma^2) of the samples.
        mode_error: total variation distance of a mixture's weights; None for one component.
        modes, exact_modes: the weights of the samples and of the posterior.
        sliced_w2_error, mmd_error: half the 95 % interval, 1.96 standard deviations of the bootstrap over the samples.
    """

    bias: float
    variance_ratio: float
    sliced_w2: float
    mmd: float
    coverage: dict[float, float]
    chi_square: float
    mode_error: float | None
    modes: list[float]
    exact_modes: list[float]
    sliced_w2_error: float
    mmd_error: float


def score(x: Tensor, exact: Tensor, posterior: Distribution, shape: tuple[int, int, int], chi_square: float) -> Scores:
    """Judge samples x (n, d) by the posterior and by exact samples (n, d) of it."""
    mean, variance = moments(posterior, shape)
    n = len(x)
    spread = x.var(dim=0)
    square = ((x.mean(dim=0) - mean) ** 2 - spread / n) / variance
    unit = variance.mean().sqrt()
    projected, projected_exact = (project(samples) / unit for samples in (x, exact))
    kernels = Kernels(x, exact)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(n, (n,), generator=generator) for _ in range(RESAMPLES)]
    w2 = [sliced_w2(projected[i], projected_exact) for i in rows]
    mmd = [kernels.mmd(i) for i in rows]
    modes, exact_modes = [], []
    if isinstance(posterior, GaussianMixture):
        modes = posterior.responsibilities(x.view(-1, *shape)).mean(dim=0).tolist()
        exact_modes = posterior.weights.tolist()
    return Scores(
        bias=math.sqrt(max(square.mean().item(), 0.0)), variance_ratio=(spread.sum() / variance.sum()).item(),
        sliced_w2=sliced_w2(projected, projected_exact), mmd=kernels.mmd(torch.arange(n)),
        coverage=coverage(x, posterior, shape), chi_square=chi_square,
        mode_error=sum(abs(a - b) for a, b in zip(modes, exact_modes, strict=True)) / 2 if modes else None,
        modes=modes, exact_modes=exact_modes, sliced_w2_error=half_interval(w2), mmd_error=half_interval(mmd))


def average(parts: Sequence[Scores]) -> Scores:
    """The mean over independent measurements; the modes are those of the first."""
    def mean(name: str) -> float:
        return fmean(vars(part)[name] for part in parts)

    def root_mean_square(name: str) -> float:
        return math.sqrt(fmean(vars(part)[name] ** 2 for part in parts))

    count = math.sqrt(len(parts))
    return replace(
        parts[0], bias=root_mean_square("bias"), variance_ratio=mean("variance_ratio"), sliced_w2=mean("sliced_w2"),
        mmd=mean("mmd"), chi_square=mean("chi_square"),
        mode_error=None if parts[0].mode_error is None else mean("mode_error"),
        coverage={level: fmean(part.coverage[level] for part in parts) for level in LEVELS},
        sliced_w2_error=root_mean_square("sliced_w2_error") / count, mmd_error=root_mean_square("mmd_error") / count)


def marginals(posterior: Distribution, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Means and variances of every value in each component, (K, d), and the weights (K,)."""
    components, weights = [posterior], torch.ones(1, dtype=torch.float64)
    if isinstance(posterior, GaussianMixture):
        components, weights = posterior.components, posterior.weights
    like = torch.zeros(1, *shape, dtype=torch.float64)
    means = torch.stack([c.mean.expand(shape).flatten() for c in components])
    variances = torch.stack([c.diagonal(lambda e: e, like).expand_as(like).flatten() for c in components])
    return means, variances, weights


def moments(posterior: Distribution, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Mean and variance of every value, (d,) each."""
    means, variances, weights = marginals(posterior, shape)
    mean = weights @ means
    return mean, weights @ (variances + means ** 2) - mean ** 2


def coverage(x: Tensor, posterior: Distribution, shape: tuple[int, int, int]) -> dict[float, float]:
    """level -> the posterior's probability of the central intervals of the samples x (n, d), mean over the values.

    Their ends are order statistics at (n + 1) q - 1, interpolated, whose probability is q on average for exact samples.
    """
    means, variances, weights = marginals(posterior, shape)
    ordered, n = x.sort(dim=0).values, len(x)
    found = {}
    for level in LEVELS:
        ends = []
        for q in ((1 - level) / 2, (1 + level) / 2):
            place = min(max((n + 1) * q - 1, 0.0), n - 1.0)
            low = math.floor(place)
            end = torch.lerp(ordered[low], ordered[min(low + 1, n - 1)], place - low)
            ends.append(weights @ torch.special.ndtr((end - means) / variances.sqrt()))
        found[level] = (ends[1] - ends[0]).mean().item()
    return found


def project(x: Tensor) -> Tensor:
    """Samples (n, d) along fixed random directions of length one, (n, DIRECTIONS)."""
    directions = torch.randn(x.shape[1], DIRECTIONS, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    return x @ (directions / directions.norm(dim=0))


def sliced_w2(a: Tensor, b: Tensor) -> float:
    """The root mean square over directions of the distance of two sorted projections (n, DIRECTIONS)."""
    return (a.sort(dim=0).values - b.sort(dim=0).values).square().mean().sqrt().item()


class Kernels:
    """The Gaussian kernel between samples x (n, d) and exact ones (n, d), of the median distance of the exact ones."""

    def __init__(self, x: Tensor, exact: Tensor):
        distance = torch.cdist(exact, exact)
        width = distance[distance > 0].median()
        self.xx, self.xy = (torch.exp(-torch.cdist(x, other).square() / (2 * width ** 2)) for other in (x, exact))
        yy = torch.exp(-distance.square() / (2 * width ** 2))
        self.yy = (yy.sum() - yy.diagonal().sum()) / (len(yy) * (len(yy) - 1))

    def mmd(self, rows: Tensor) -> float:
        """MMD^2 of the samples of these rows (repeated ones are not compared with themselves)."""
        count = torch.bincount(rows, minlength=len(self.xx)).to(self.xx)
        among = (count @ self.xx @ count - count ** 2 @ self.xx.diagonal()) / (len(rows) ** 2 - (count ** 2).sum())
        return (among + self.yy - 2 * (count @ self.xy).sum() / (len(rows) * self.xy.shape[1])).item()


def half_interval(values: Sequence[float]) -> float:
    """Half the 95 % interval of what has bootstrapped `values`."""
    return 1.96 * stdev(values)
