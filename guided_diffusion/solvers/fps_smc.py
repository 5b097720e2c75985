"""FPS-SMC: Dou and Song, "Diffusion Posterior Sampling for Linear Inverse Problem Solving: A Filtering Perspective",
ICLR 2024."""

import math
from collections.abc import Callable, Iterator
from typing import Literal

from torch import Tensor

from guided_diffusion.gaussian_diffusion import Sampler, Step
from guided_diffusion.measurements.base import LinearOperator, Noise, Operator
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.method import register_conditioning_method
from guided_diffusion.solvers.base import Solver
from guided_diffusion.solvers.ddrm import is_white
from guided_diffusion.solvers.particles import log_normal, one_of, predict, resampled, white
from util.config.registry import Count, Fraction
from util.seeding import ImageRandomness


@register_conditioning_method("fps_smc")
class FilteringPosteriorSampling(Solver):
    """Particles that follow a diffused measurement, coefficient by coefficient in the basis of A's singular vectors.

        y_T  = A z,   y_t' = d(y, y_t) + sqrt(c (1 - ab')) A z                          the measurement's path
        d(x_0, x_t) = sqrt(ab') x_0 + sqrt((1 - c)(1 - ab') / (1 - ab)) (x_t - sqrt(ab) x_0)
        p(x_t' | x_t) = N(d(x0_hat, x_t), v),   v = c (1 - ab')                         DDIM
                                                c = (1 - ab / ab') / (1 - ab)           the ancestral one
        p(y_t | x_t)  = N(A x_t, ab sigma^2)
        x_t' ~ p(x_t' | x_t) p(y_t' | x_t') / Z,   Z = N(y_t'; A d(x0_hat, x_t), v A A^T + ab' sigma^2)

    Weights are Z / p(y_t | x_t), at first Z, so that at the end only p(y | x_0) has been counted, and particles
    approach the posterior as their number and the steps grow: the variance of a weight is finite where v < ab' sigma^2,
    which takes small steps. The paper and its code differ twice: they weigh by Z alone, which counts y at every step,
    as the y_t share its noise (for a N(0, 1) and sigma 0.5, 100 steps, the variance is 0.04 in place of 0.2, and 0.016
    with 1000 steps); and their c is 0.95 throughout, with which not even the prior is sampled (see the sampler
    `renoise`). Systematic resampling after every step; one particle of the last is returned.

    Args:
        particles: of each image; evaluations of the network are as many per step.
        c: stochasticity of the process, 1 for the most; null for the ancestral one, 0.95 for that of the paper.
        weights: "posterior", or "released" for Z alone.
    """

    needs = "an operator with a closed singular value decomposition, and gaussian noise"

    def __init__(self, particles: Count = 5, c: Fraction | None = None,
                 weights: Literal["posterior", "released"] = "posterior"):
        self.particles, self.c, self.weights = particles, c, weights

    @classmethod
    def serves(cls, operator: Operator, noiser: Noise | None = None) -> bool:
        known = noiser is None or (is_white(noiser) and noiser.white_sigma > 0)
        return isinstance(operator, LinearOperator) and operator.has_svd and known

    def num_evaluations(self, sampler: Sampler) -> int:
        return self.particles * sampler.num_steps

    def iterates(self, prior: Callable, sampler: Sampler, measurement: Measurement,
                 randomness: ImageRandomness) -> Iterator[tuple[Step, Tensor]]:
        svd, variance = measurement.operator.svd(), measurement.noiser.white_sigma ** 2
        s, y = svd.singular.to(measurement.y), svd.ut(measurement.y)
        seen, shape = (s > 0).to(s), measurement.image_shape
        x_t = white(self.particles, shape, y, randomness)
        y_t, counted = s * svd.vt(randomness.randn_like(y)), False          # whether x_t has the weight p(y_t | x_t)
        for index in reversed(range(sampler.num_steps)):
            step, x0_hat = predict(prior, sampler, x_t, index, randomness)
            ab, ab_next = step.alpha_bar, step.alpha_bar_prev
            c = (1 - ab / ab_next) / (1 - ab) if self.c is None else self.c
            keep = math.sqrt((1 - c) * (1 - ab_next) / (1 - ab))
            before = log_normal(y_t, s * svd.vt(x_t), ab * variance, seen) if counted else 0.0

            def diffused(x0: Tensor, x: Tensor, ab=ab, ab_next=ab_next, keep=keep) -> Tensor:
                return math.sqrt(ab_next) * x0 + keep * (x - math.sqrt(ab) * x0)

            v, r = c * (1 - ab_next), ab_next * variance
            y_t = diffused(y, y_t) + math.sqrt(v) * s * svd.vt(randomness.randn_like(y))
            mean, z = svd.vt(diffused(x0_hat, x_t)), svd.vt(white(self.particles, shape, y, randomness))
            weight = log_normal(y_t, s * mean, v * s ** 2 + r, seen)
            gain = v * s / (v * s ** 2 + r)
            moved = mean + gain * (y_t - s * mean) + math.sqrt(v) * (r / (v * s ** 2 + r)).sqrt() * z
            x_t = resampled(svd.v(moved), weight - before, randomness)
            counted = self.weights == "posterior"
            yield step, x_t[0] if index else one_of(x_t, randomness)
