"""DiffPIR: Zhu et al., "Denoising Diffusion Models for Plug-and-Play Image Restoration", CVPR Workshops 2023."""

import math

from torch import Tensor

from guided_diffusion.condition_methods.base import ConditioningMethod, register_conditioning_method
from guided_diffusion.gaussian_diffusion import Sampler, Step
from guided_diffusion.measurements.base import LinearOperator
from guided_diffusion.measurements.data_steps import UNASKED, descend, proximal, variance
from guided_diffusion.measurements.measurement import Measurement
from util.config.registry import Count, Fraction, Positive
from util.seeding import ImageRandomness


@register_conditioning_method("diffpir")
class PlugAndPlayRestoration(ConditioningMethod):
    """DiffPIR (Zhu et al., 2023, Algorithm 1): half-quadratic splitting along the reverse process, no gradients.

        x_0     = argmin_x ||y - A x||_V^2 / 2 + lam ||x - x0_hat||^2 / (2 s^2),            s^2 = (1 - ab) / ab
        eps'    = (x_t - sqrt(ab) x_0) / sqrt(1 - ab)
        x_{t-1} = sqrt(ab') x_0 + sqrt(1 - ab') (sqrt(1 - zeta) eps' + sqrt(zeta) z)

    The data step as in `correction`, at most 25 steps; if A is not linear, along its gradient. It starts from
    the lifted measurement at the first noise level. The sampler's transitions play no part, only its levels do.

    The authors' code has images on [0, 1] next to an s that belongs to [-1, 1], so that its lambda is four times ours:
    7 for blur and 2 to 12 for super-resolution, times what its YAML files say. It leaves out the last data step.

    Args:
        lam: 1 trusts x0_hat as if its error had the variance s^2; more trusts it more.
        zeta: the part of new noise: 0 for a deterministic process, 1 for the sampler renoise.
        gradient_steps: of the data step if A is not linear.
    """

    def __init__(self, lam: Positive = 1.75, zeta: Fraction = 0.3, gradient_steps: Count = 5):
        self.lam, self.zeta, self.gradient_steps = lam, zeta, gradient_steps

    def start(self, sampler: Sampler, measurement: Measurement, randomness: ImageRandomness) -> Tensor:
        noise = super().start(sampler, measurement, randomness)
        return sampler.q_sample(measurement.initial_guess(), sampler.num_steps - 1, noise)

    def conditioning(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        ab, ab_prev, z = step.alpha_bar, step.alpha_bar_prev, step.x0_hat
        operator, r2 = measurement.operator, (1 - ab) / ab / self.lam
        if isinstance(operator, LinearOperator):
            x = proximal(measurement, z, r2, UNASKED)
        else:
            x = descend(operator, z, measurement.y, variance(measurement), z, r2, self.gradient_steps)
        eps = (step.x_t - math.sqrt(ab) * x) / math.sqrt(1 - ab)
        noise = math.sqrt(1 - self.zeta) * eps + math.sqrt(self.zeta) * step.randomness.randn_like(x)
        return math.sqrt(ab_prev) * x + math.sqrt(1 - ab_prev) * noise, measurement.distance(z)
