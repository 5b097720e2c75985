"""FAST-DIPS: Kim, Shin & Lim, "FAST-DIPS: Adjoint-Free Analytic Steps and Hard-Constrained Likelihood Correction for
Diffusion-Prior Inverse Problems", 2026, arXiv:2603.01591."""

import math

from torch import Tensor

from guided_diffusion.condition_methods.base import ConditioningMethod, register_conditioning_method
from guided_diffusion.gaussian_diffusion import Step
from guided_diffusion.measurements.conjugate_gradients import column
from guided_diffusion.measurements.data_steps import chi_square, descend, variance
from guided_diffusion.measurements.measurement import Measurement
from util.config.registry import Count, Positive


@register_conditioning_method("fast_dips")
class FastDips(ConditioningMethod):
    """FAST-DIPS (Kim et al., 2026): the image nearest to x0_hat that agrees with y as noise allows, then noised anew.

        min_x ||x - x0_hat||^2 / (2 s^2)  subject to  ||y - A x||_V^2 <= m,         s^2 = (1 - ab) / ab

    by ADMM from x = x0_hat, u = 0 and v = the nearest to A x that the constraint allows; a round is

        x <- `steps` gradient steps on rho ||A x - v + u||_V^2 / 2 + ||x - x0_hat||^2 / (2 s^2)
        v <- the point of the ball ||v - y||_V^2 <= m that is nearest to A x + u
        u <- u + A x - v

    and x_{t-1} = sqrt(ab') x + sqrt(1 - ab') z. Gradients of A alone; each step has the exact length of a linear A.

    For Gaussian noise the ball has the radius sigma sqrt(m), the norm of noise on m observed numbers. The authors'
    code has 0.05 instead, a norm over the whole image, which fits the noise. Its rho of 200 is 1/2 here at sigma 0.05:
    ours is in units of the noise's precision, so that it transfers.

    Args:
        rounds: of ADMM; the authors have 3, for nonlinear A 2.
        steps: of the gradient in a round; the authors have 1 for super-resolution and inpainting, 2 for blur, 5 for
            nonlinear A.
        rho: the weight of v, in units of V^-1.
    """

    def __init__(self, rounds: Count = 3, steps: Count = 2, rho: Positive = 0.5):
        self.rounds, self.steps, self.rho = rounds, steps, rho

    def conditioning(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        operator, y, z = measurement.operator, measurement.y, step.x0_hat
        s2, weak = (1 - step.alpha_bar) / step.alpha_bar, variance(measurement) / self.rho

        def nearest(prediction: Tensor) -> Tensor:
            beyond = chi_square(measurement, prediction - y).clamp_min(1).sqrt()
            return y + (prediction - y) / column(beyond, y)

        x, prediction = z, operator(z)
        v, u = nearest(prediction), 0
        for _ in range(self.rounds):
            x = descend(operator, x, v - u, weak, z, s2, self.steps)
            prediction = operator(x)
            v = nearest(prediction + u)
            u = u + prediction - v
        noise = step.randomness.randn_like(x)
        ab_prev = step.alpha_bar_prev
        return math.sqrt(ab_prev) * x + math.sqrt(1 - ab_prev) * noise, measurement.distance(z)
