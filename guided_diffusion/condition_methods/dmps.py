"""DMPS: Meng & Kabashima, "Diffusion Model Based Posterior Sampling for Noisy Linear Inverse Problems", ACML 2024."""

import math
from typing import Literal

from torch import Tensor

from guided_diffusion.condition_methods.base import ConditioningMethod, register_conditioning_method
from guided_diffusion.gaussian_diffusion import Sampler, Step
from guided_diffusion.measurements.data_steps import UNASKED, correction
from guided_diffusion.measurements.measurement import Measurement
from util.config.registry import NonNegative
from util.errors import UserError


@register_conditioning_method("dmps")
class NoisePerturbedLikelihood(ConditioningMethod):
    """DMPS (Meng & Kabashima, 2024, Theorem 1 and Algorithm 1): p(y | x_t) as if every x_0 were equally likely.

        s^2     = (1 - ab) / ab
        u       = x_t / sqrt(ab)                                        then x_0 ~ N(u, s^2 I)
        score   = A^T (s^2 A A^T + V)^-1 (y - A u) / sqrt(ab)           of p(y | x_t)
        x_{t-1} = x' + scale x0_coef (1 - ab) / sqrt(ab) score,         x' ~ p(x_{t-1} | x_t)

    x0_coef is the factor of x0_hat in the mean of x_{t-1}; for ddpm x0_coef / sqrt(ab) (1 - ab) is the paper's
    (1 - alpha_t) / sqrt(alpha_t). No gradient through the network. The inverse as in `correction`, at most 25 steps.
    Steps must be small, and many: the correction is that of x_t, whose noise renoise leaves behind, so that it is
    refused.

    Args:
        scale: the paper's lambda, 1.75 for all tasks; 1 for Bayes' rule.
        at: where the score is taken, at "x_t", or at the new "sample" x' with ab of x_t, as in the authors' code.
    """

    needs_linear = True

    def __init__(self, scale: NonNegative = 1.75, at: Literal["x_t", "sample"] = "x_t"):
        self.scale, self.at = scale, at

    def check_process(self, sampler: Sampler) -> None:
        super().check_process(sampler)
        if sampler.name == "renoise":
            raise UserError("conditioning method 'dmps' corrects x_t, whose noise sampler 'renoise' leaves behind, so "
                            "that it diverges; set sampler: ddpm, and 50 steps or more, such as --diffusion_config "
                            "configs/demo_ddpm_diffusion_config.yaml")

    def conditioning(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        x, operator = step.sample(), measurement.operator
        u = (step.x_t if self.at == "x_t" else x) / math.sqrt(step.alpha_bar)
        s2 = (1 - step.alpha_bar) / step.alpha_bar
        # (1 - ab) / sqrt(ab) times the score is s^2 A^T (s^2 A A^T + V)^-1 (y - A u)
        move = correction(measurement, measurement.y - operator(u), s2, UNASKED)
        return x + self.scale * step.x0_coef * move, measurement.distance(step.x0_hat)
