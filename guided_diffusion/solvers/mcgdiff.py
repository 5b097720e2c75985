"""MCGdiff: Cardoso et al., "Monte Carlo guided Denoising Diffusion models for Bayesian linear inverse problems", ICLR
2024."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import Sampler, Step
from guided_diffusion.measurements.base import Noise, Operator
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.method import register_conditioning_method
from guided_diffusion.solvers.base import Solver
from guided_diffusion.solvers.fps_smc import FilteringPosteriorSampling
from guided_diffusion.solvers.particles import log_normal, one_of, predict, resampled, white
from util.config.registry import Count, Positive
from util.seeding import ImageRandomness


@register_conditioning_method("mcgdiff")
class MonteCarloGuidedDiffusion(Solver):
    """Particles whose observed coefficients are led to the noise level at which y is a state of the process.

    In the basis of A's singular vectors y_i / s_i = x_0,i + (sigma / s_i) n is a state of the noise level tau_i with
    (1 - ab_tau) / ab_tau = sigma^2 / s_i^2: what y tells is x_tau,i = o_i := sqrt(ab_tau) y_i / s_i. Above it, with
    q_t = ab_t / ab_tau and d_t = 1 - (1 - kappa) q_t,

        g_t(x)   = N(x; sqrt(q_t) o, d_t)                       o at the noise level of x_t
        p(x_t' | x_t) = N(m, v)                                 the ancestral step, v = beta_tilde
        x_t' ~ p(x_t' | x_t) g_t'(x_t') / Z,   Z = N(sqrt(q_t') o; m, v + d_t')
        weight   = Z / g_t(x_t)

    while t' >= tau_i, and the unconditional step below. So weights multiply to g at the last level above tau_i alone,
    and particles approach the posterior as their number and the steps grow. Systematic resampling after every step; one
    particle of the last is returned.

    Args:
        particles: of each image; evaluations of the network are as many per step.
        kappa: variance of g at tau itself.
    """

    needs = FilteringPosteriorSampling.needs

    def __init__(self, particles: Count = 64, kappa: Positive = 1e-4):
        self.particles, self.kappa = particles, kappa

    @classmethod
    def serves(cls, operator: Operator, noiser: Noise | None = None) -> bool:
        return FilteringPosteriorSampling.serves(operator, noiser)

    def num_evaluations(self, sampler: Sampler) -> int:
        return self.particles * sampler.num_steps

    def iterates(self, prior: Callable, sampler: Sampler, measurement: Measurement,
                 randomness: ImageRandomness) -> Iterator[tuple[Step, Tensor]]:
        svd, shape = measurement.operator.svd(), measurement.image_shape
        inverse = svd.inverse.to(measurement.y)
        ab_tau = (inverse > 0).to(inverse) / (1 + (measurement.noiser.white_sigma * inverse) ** 2)   # 0 where s is 0
        goal = ab_tau.sqrt() * inverse * svd.ut(measurement.y)                                  # o, (B, C, H, W)

        def potential(ab: float) -> tuple[Tensor, Tensor, Tensor]:
            """Where g_t is there at alpha_bar = ab, its mean and its variance."""
            led = (ab <= ab_tau).to(goal)
            q = led * ab / ab_tau.clamp_min(ab)
            return led, q.sqrt() * goal, 1 - (1 - self.kappa) * q

        def pulled(mean: Tensor, v: float, ab: float, z: Tensor) -> tuple[Tensor, Tensor]:
            """A draw from N(mean, v) g, and log Z."""
            led, centre, d = potential(ab)
            gain, free = v / (v + d), math.sqrt(v) * z
            drawn = (1 - gain) * mean + gain * centre + (gain * d).sqrt() * z
            return torch.where(led > 0, drawn, mean + free), log_normal(centre, mean, v + d, led)

        schedule = sampler.schedule
        z = svd.vt(white(self.particles, shape, goal, randomness))
        x_t, _ = pulled(torch.zeros_like(z), 1.0, float(schedule.alphas_cumprod[-1]), z)
        for index in reversed(range(sampler.num_steps)):
            step, x0_hat = predict(prior, sampler, svd.v(x_t), index, randomness)
            mean = svd.vt(schedule.posterior_mean(x0_hat, svd.v(x_t), index))
            led, centre, d = potential(step.alpha_bar)
            on = led * potential(step.alpha_bar_prev)[0]                    # those that are left now keep their g_t
            before = log_normal(x_t, centre, d, on)
            v = float(schedule.posterior_variance[index])
            moved, z_norm = pulled(mean, v, step.alpha_bar_prev, svd.vt(white(self.particles, shape, goal, randomness)))
            x_t = resampled(moved, z_norm - before, randomness)
            yield step, svd.v(x_t[0] if index else one_of(x_t, randomness))
