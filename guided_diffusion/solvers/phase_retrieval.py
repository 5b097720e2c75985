"""ER, HIO and OSS: phase retrieval by iterated projections, the baselines of DPS's Table 3."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from guided_diffusion.gaussian_diffusion import Sampler
from guided_diffusion.measurements.base import Noise, Operator
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.measurements.phase_retrieval import PhaseRetrievalOperator
from guided_diffusion.method import register_conditioning_method
from guided_diffusion.solvers.base import Iteration, Solver
from util.config.registry import Count, Positive
from util.seeding import ImageRandomness

REPORTS = 100                                       # of a restoration, at most
STAGES, LEAST_ALPHA = 10, 0.05                      # of OSS


@dataclass(frozen=True)
class Constraints:
    """What is known of images (..., P, Q), real and on [0, 1]: their magnitudes, where they are zero, their sign."""

    magnitude: Tensor                               # (B, C, P, Q // 2 + 1), of the orthonormal real FFT
    support: Tensor                                 # (P, Q) bool

    def project(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The image with the measured magnitudes and the phases of g, and the misfit ||y - |F g||| of g per channel.

        (R, B, C, P, Q) -> the same shape and (R, B, C). Where F g = 0, so is the projection's.
        """
        spectrum = torch.fft.rfft2(g, norm="ortho")
        size = spectrum.abs()
        scaled = spectrum * (self.magnitude / size.clamp_min(torch.finfo(size.dtype).tiny))
        misfit = torch.linalg.vector_norm(self.magnitude - size, dim=(-2, -1))
        return torch.fft.irfft2(scaled, s=self.support.shape, norm="ortho"), misfit

    def misfit(self, g: Tensor) -> Tensor:
        """||y - |F g||| of each channel, (..., B, C, P, Q) -> (..., B, C)."""
        return self.project(g)[1]

    def allowed(self, g: Tensor) -> Tensor:
        """Where a pixel of g is in the support and not negative."""
        return self.support & (g >= 0)

    def feasible(self, g: Tensor) -> Tensor:
        """g where it is allowed, 0 elsewhere."""
        return torch.where(self.allowed(g), g, 0)


class IteratedProjections(Solver):
    """Images g on [0, 1] that are not negative, and zero beyond their own rectangle, the support.

    Every iteration asks for g' = F^-1(y G / |G|), G = F g, the image of the measured magnitudes with the phases of g;
    from G = y exp(2 pi i r), r uniform on [0, 1). Every channel is by itself, and `restarts` starts are followed at
    once. At every hundredth of the iterations g', set to 0 where it may not be, is held against y: what has the least
    ||y - |F g'||| of all, of each channel, is the result, and no truth is needed for that. As images are real, y(k) and
    y(-k), which noise makes differ, are replaced by their mean. That no pixel is above 1 is not used.

    Magnitudes do not tell a channel from its turn by 180 degrees, so channels may come out turned against each other.
    Each is turned like the first, whose own turn nobody knows, if they correlate better so. That is ours.
    """

    needs_prior = False
    needs = "phase_retrieval with signal_range: [0, 1], where images are not negative"

    def __init__(self, iterations: Count, restarts: Count):
        self.iterations, self.restarts = iterations, restarts
        self.report_every = math.ceil(iterations / REPORTS)

    @classmethod
    def serves(cls, operator: Operator, noiser: Noise | None = None) -> bool:
        return isinstance(operator, PhaseRetrievalOperator) and not operator.signed

    def num_steps(self, sampler: Sampler) -> int:
        """How often the state is reported, at most 100 times."""
        return math.ceil(self.iterations / self.report_every)

    @abstractmethod
    def states(self, constraints: Constraints, g: Tensor) -> Iterator[Tensor]:
        """g (R, B, C, P, Q) after each iteration, without end."""

    def iterates(self, prior: Callable | None, sampler: Sampler, measurement: Measurement,
                 randomness: ImageRandomness) -> Iterator[tuple[Iteration, Tensor]]:
        y = torch.fft.ifftshift(measurement.y, dim=(-2, -1)).clamp_min(0)                       # (B, C, P, Q)
        (height, width), (p, q) = measurement.image_shape[2:], y.shape[2:]
        mean = (y + y.flip(-2, -1).roll((1, 1), (-2, -1))) / 2
        support = F.pad(torch.ones(height, width, dtype=torch.bool, device=y.device), (0, q - width, 0, p - height))
        constraints = Constraints(mean[..., :q // 2 + 1], support)
        phases = 2 * math.pi * torch.stack([randomness.rand_like(y) for _ in range(self.restarts)])
        states = self.states(constraints, torch.fft.ifft2(torch.polar(y.expand_as(phases), phases), norm="ortho").real)
        best, least = torch.zeros_like(y), torch.full_like(y[..., 0, 0], torch.inf)
        for index in reversed(range(self.num_steps(sampler))):
            for _ in range(self.report_every):
                g = next(states)
            for candidate in constraints.feasible(constraints.project(g)[0]):                   # of R
                misfit = constraints.misfit(candidate)
                best = torch.where((misfit < least)[..., None, None], candidate, best)
                least = torch.minimum(misfit, least)
            x = 2 * agreeing(best[..., :height, :width].clamp(0, 1)) - 1
            yield Iteration(index, x), x


def agreeing(x: Tensor) -> Tensor:
    """Channels turned by 180 degrees where they correlate better with the first so, (B, C, H, W) -> the same shape."""
    turned, centred = x.flip(-2, -1), x - x.mean(dim=(-2, -1), keepdim=True)
    upright = (centred * centred[:, :1]).sum((-2, -1), keepdim=True)
    return torch.where((centred.flip(-2, -1) * centred[:, :1]).sum((-2, -1), keepdim=True) > upright, turned, x)


@register_conditioning_method("er")
class ErrorReduction(IteratedProjections):
    """Error reduction (Fienup, 1982, "Phase retrieval algorithms: a comparison"): g <- g' where it may be, 0 elsewhere.

    See `IteratedProjections`; iterations and restarts as in the DPS paper.
    """

    def __init__(self, iterations: Count = 10000, restarts: Count = 4):
        super().__init__(iterations, restarts)

    def states(self, constraints: Constraints, g: Tensor) -> Iterator[Tensor]:
        while True:
            g = constraints.feasible(constraints.project(g)[0])
            yield g


@register_conditioning_method("hio")
class HybridInputOutput(IteratedProjections):
    """Hybrid input-output (Fienup, 1982): g <- g' where it may be (in the support, 0 or more), g - beta g' elsewhere.

    See `IteratedProjections`; iterations, restarts and beta as in the DPS paper.
    """

    def __init__(self, iterations: Count = 10000, restarts: Count = 4, beta: Positive = 0.9):
        super().__init__(iterations, restarts)
        self.beta = beta

    def states(self, constraints: Constraints, g: Tensor) -> Iterator[Tensor]:
        while True:
            g = self.step(constraints, g, constraints.project(g)[0])
            yield g

    def step(self, constraints: Constraints, g: Tensor, projected: Tensor) -> Tensor:
        """g and g' -> the next g, (R, B, C, P, Q) each."""
        return torch.where(constraints.allowed(projected), projected, g - self.beta * projected)


@register_conditioning_method("oss")
class OversamplingSmoothness(HybridInputOutput):
    """Oversampling smoothness (Rodriguez et al., 2013): HIO, with what is beyond the support smoothed after each step.

        g <- F^-1(W F g) beyond the support,    W = exp(-(k / alpha)^2 / 2), k the frequency in cycles per P (or Q)

    in 10 equal stages, in which alpha falls linearly from P to P/20 (in the other axis from Q to Q/20). Each begins at
    the g of least ||y - |F g||| in the one before. The stages are those of a DPS author's repository, in which W is 1
    everywhere, as its frequencies are one point, so that OSS is HIO there.

    See `IteratedProjections`; iterations, restarts and beta as in the DPS paper.
    """

    def states(self, constraints: Constraints, g: Tensor) -> Iterator[Tensor]:
        best, least = g, torch.full(g.shape[:3], torch.inf, dtype=g.dtype, device=g.device)
        length = math.ceil(self.iterations / STAGES)
        for stage in range(STAGES + 1):             # the last one for what rounding adds
            smooth = window(constraints.support.shape, min(stage, STAGES - 1) / (STAGES - 1), like=g)
            g, least = best, torch.full_like(least, torch.inf)
            for _ in range(length):
                projected, misfit = constraints.project(g)
                best = torch.where((misfit < least)[..., None, None], g, best)
                least = torch.minimum(misfit, least)
                g = self.step(constraints, g, projected)
                smoothed = torch.fft.irfft2(smooth * torch.fft.rfft2(g), s=g.shape[-2:])
                g = torch.where(constraints.support, g, smoothed)
                yield g


def window(shape: tuple[int, int], progress: float, like: Tensor) -> Tensor:
    """W (P, Q // 2 + 1) of images of `shape` (P, Q) in the order of the real FFT; `progress` runs from 0 to 1."""
    p, q = shape
    factors = []
    for side, k in ((p, torch.fft.fftfreq(p, 1 / p)), (q, torch.fft.rfftfreq(q, 1 / q))):
        alpha = (1 - progress + progress * LEAST_ALPHA) * side
        factors.append(torch.exp(-(k.double() / alpha) ** 2 / 2).to(like))
    return factors[0][:, None] * factors[1]
