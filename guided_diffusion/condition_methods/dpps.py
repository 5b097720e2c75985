"""DPPS: Wu et al., "Diffusion Posterior Proximal Sampling for Image Restoration", ACM Multimedia 2024."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from guided_diffusion.condition_methods.base import register_conditioning_method
from guided_diffusion.condition_methods.likelihoods import LIKELIHOODS, LikelihoodChoice, LikelihoodGuided
from guided_diffusion.gaussian_diffusion import Sampler, Step
from guided_diffusion.measurements.base import LinearOperator
from guided_diffusion.measurements.measurement import Measurement
from util.config.registry import Count, NonNegative
from util.seeding import ImageRandomness

CHUNK_ELEMENTS = 2 ** 25                            # of candidates scored at once: 128 MiB per float32 tensor
CHUNK_ELEMENTS_ON_CPU = 2 ** 19                     # 2 MiB, which caches hold: larger chunks took longer


@register_conditioning_method("dpps")
class PosteriorProximalSampling(LikelihoodGuided):
    """DPS, keeping of several candidates the one that agrees best with y; ab, ab' = alpha_bar of x_t and x_{t-1}.

        x_T     = sqrt(ab_T) guess(y) + sqrt(1 - ab_T) z                                aligned initialisation
        m       = mean - scale f_t s_t grad_{x_t} d(y, A(x0_hat))^power                 as DPS, see `PointLikelihood`
        n       = floor(max(2, max_candidates (1 - exp(-ab / (1 - ab)))))               adaptive number
        x^i     = m + std z^i,   i = 1..n
        x_{t-1} = argmin_{x^i} || sqrt(ab') y - A(x^i - sqrt(1 - ab') eps) ||           proximal selection

    A step without noise returns m: the last one, and every one of ddim with eta = 0, where DPPS is DPS from another
    start. With the mean target the selection is argmin || c1 y + c2 A(x_t) - A(x^i) ||, c1 and c2 the factors of x0_hat
    and x_t in the mean of x_{t-1}. For a linear A, A(m + std z) = A(m) + A(std z), so a candidate costs one A.

    Args:
        scale: step size of the gradient.
        likelihood: how far and where the gradient leads, as in `ps`.
        max_candidates: upper limit of n; 1 is DPS.
        aligned_init: start from the lifted measurement instead of pure noise.
        adaptive: n as above; otherwise n = max_candidates at every step.
        proximal: select; otherwise take a single draw, as DPS does.
        target: what candidates are compared with, "eps" (the authors' code) or "mean".
        chunk: candidates scored at once; null for as many as 128 MiB hold (on the CPU 2 MiB). Changes no result.
    """

    def __init__(self, scale: NonNegative = 1.0, likelihood: LikelihoodChoice = "point", max_candidates: Count = 50,
                 aligned_init: bool = True, adaptive: bool = True, proximal: bool = True,
                 target: Literal["eps", "mean"] = "eps", chunk: Count | None = None):
        self.scale, self.likelihood = scale, LIKELIHOODS.make(likelihood)
        self.max_candidates, self.aligned_init, self.adaptive = max_candidates, aligned_init, adaptive
        self.proximal, self.target, self.chunk = proximal, target, chunk

    def start(self, sampler: Sampler, measurement: Measurement, randomness: ImageRandomness) -> Tensor:
        noise = super().start(sampler, measurement, randomness)
        if not self.aligned_init:
            return noise
        return sampler.q_sample(measurement.initial_guess(), sampler.num_steps - 1, noise)

    def num_candidates(self, step: Step) -> int:
        """n of this step, the same for all images."""
        if not self.proximal:
            return 1
        if not self.adaptive:
            return self.max_candidates
        snr = step.alpha_bar / (1 - step.alpha_bar)
        return min(self.max_candidates, math.floor(max(2, self.max_candidates * (1 - math.exp(-snr)))))

    def conditioning(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        guidance, distance = self.likelihood.guidance(step, measurement)        # -grad_{x_t} d(y, A(x0_hat))
        mean = step.mean + self.scale * guidance
        if step.deterministic:                      # every candidate is the mean
            return mean, distance
        return mean + step.std * self.select(mean, step, measurement), distance

    @torch.no_grad()
    def select(self, mean: Tensor, step: Step, measurement: Measurement) -> Tensor:
        """The noise z (B, C, H, W) of the best candidate mean + std z of each image."""
        n = self.num_candidates(step)
        if n == 1:
            return step.randomness.randn_like(mean)
        residual = self.residual(mean, step, measurement)
        elements = CHUNK_ELEMENTS_ON_CPU if mean.device.type == "cpu" else CHUNK_ELEMENTS
        chunk = self.chunk or max(1, elements // mean.numel())
        best_z = torch.zeros_like(mean)
        best_score = mean.new_full((len(mean),), math.inf)
        for first in range(0, n, chunk):
            z = torch.stack([step.randomness.randn_like(mean) for _ in range(min(chunk, n - first))])
            score, k = residual(z).flatten(2).norm(dim=2).min(dim=0)                    # (B,), (B,)
            better = score < best_score
            best_score = torch.where(better, score, best_score)
            best_z = torch.where(better.view(-1, 1, 1, 1), z[k, torch.arange(len(k), device=k.device)], best_z)
        return best_z

    def residual(self, mean: Tensor, step: Step, measurement: Measurement) -> Callable[[Tensor], Tensor]:
        """The function from noises z (n, B, C, H, W) to the residuals (n, B, ...) of the candidates mean + std z."""
        operator, y = measurement.operator, measurement.y
        if self.target == "eps":
            goal = math.sqrt(step.alpha_bar_prev) * y
            centre = mean - math.sqrt(1 - step.alpha_bar_prev) * step.eps
        else:
            goal = step.x0_coef * y + step.x_t_coef * operator(step.x_t)
            centre = mean
        if isinstance(operator, LinearOperator):
            offset = goal - operator(centre)
            return lambda z: offset - operator.forward_many(step.std * z)
        return lambda z: goal - operator.forward_many(centre + step.std * z)
