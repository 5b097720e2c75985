"""PiGDM: Song et al., "Pseudoinverse-Guided Diffusion Models for Inverse Problems", ICLR 2023."""

import math
from typing import Literal

from torch import Tensor

from guided_diffusion.condition_methods.base import ConditioningMethod, grad_and_value, register_conditioning_method
from guided_diffusion.gaussian_diffusion import Step
from guided_diffusion.measurements.conjugate_gradients import dot
from guided_diffusion.measurements.data_steps import UNASKED, correction
from guided_diffusion.measurements.measurement import Measurement
from util.config.registry import NonNegative


@register_conditioning_method("pigdm")
class PseudoinverseGuidance(ConditioningMethod):
    """PiGDM (Song et al., 2023, eq. 7 and Algorithm 1): p(x_0 | x_t) = N(x0_hat, r^2 I), r^2 = 1 - ab.

        w       = r^2 A^T (r^2 A A^T + V)^-1 (y - A x0_hat)             nearly A^+ (y - A x0_hat) without noise
        g       = (d x0_hat / d x_t)^T w                                r^2 times the score of p(y | x_t)
        x_{t-1} = x' + scale c g,   x' ~ p(x_{t-1} | x_t)

    The paper's steps are those of ddim with eta = 1. The inverse as in `correction`, at most 25 steps.

    Args:
        scale: the paper has 1.
        weight: c. "bayes": x0_coef / sqrt(ab), the move of x_{t-1} if x_t had the score of p(x_t | y), with x0_coef the
            factor of x0_hat in its mean. "paper": sqrt(ab), of Algorithm 1. "release": sqrt(ab ab'), of the co-authors'
            code with its switch `awd`.
    """

    needs_grad = True
    needs_linear = True

    def __init__(self, scale: NonNegative = 1.0, weight: Literal["bayes", "paper", "release"] = "bayes"):
        self.scale, self.weight = scale, weight

    def conditioning(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        operator, ab = measurement.operator, step.alpha_bar
        w = correction(measurement, measurement.y - operator(step.x0_hat.detach()), 1 - ab, UNASKED)
        grad, _ = grad_and_value(step, lambda x0_hat: dot(w, x0_hat))
        weight = {"bayes": step.x0_coef / math.sqrt(ab), "paper": math.sqrt(ab),
                  "release": math.sqrt(ab * step.alpha_bar_prev)}[self.weight]
        return step.sample() + self.scale * weight * grad, measurement.distance(step.x0_hat.detach())
