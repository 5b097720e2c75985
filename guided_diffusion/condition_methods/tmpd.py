"""TMPD: Boys et al., "Tweedie Moment Projected Diffusions for Inverse Problems", TMLR 2024."""

import math

import torch
from torch import Tensor

from guided_diffusion.condition_methods.base import ConditioningMethod, register_conditioning_method
from guided_diffusion.gaussian_diffusion import Step
from guided_diffusion.measurements.base import Noise, Operator
from guided_diffusion.measurements.conjugate_gradients import dot
from guided_diffusion.measurements.data_steps import variance
from guided_diffusion.measurements.measurement import Measurement


@register_conditioning_method("tmpd")
class TweedieMomentProjection(ConditioningMethod):
    """TMPD (Boys et al., 2024, eq. 10 to 12): p(x_0 | x_t) = N(x0_hat, r J), r = (1 - ab) / sqrt(ab), by Tweedie.

        J       = d x0_hat / d x_t
        c       = A J^T A^T 1 + V / r                   row sums for the matrix A J A^T + V / r
        delta   = J^T A^T [(y - A x0_hat) / c]
        x_{t-1} ~ p(x_{t-1} | x_t, x0_hat + delta)

    Two vector-Jacobian products of the network. No step size. Row sums of a covariance that is not positive, as a
    network's may be, count as 0. Where A has weights of both signs (`fourier`, `compressed_sensing`) they cancel in the
    sums, and steps go far beyond y: such measurements, which are no pictures, are refused.
    """

    needs_grad = True
    needs_linear = True
    needs = "a linear operator whose measurements are pictures, means of pixels"

    @classmethod
    def serves(cls, operator: Operator, noiser: Noise | None = None) -> bool:
        return super().serves(operator, noiser) and operator.pictures

    def conditioning(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        operator, y = measurement.operator, measurement.y
        ratio = (1 - step.alpha_bar) / math.sqrt(step.alpha_bar)

        def pull_back(v: Tensor, keep: bool) -> Tensor:                         # J^T A^T v
            image = operator.transpose(v)
            with torch.enable_grad():
                return torch.autograd.grad(dot(image, step.x0_hat).sum(), step.x_t, retain_graph=keep)[0]

        spread = operator(pull_back(torch.ones_like(y), keep=True)).clamp_min(0)
        residual = y - operator(step.x0_hat.detach())
        delta = pull_back(residual / (spread + variance(measurement) / ratio), keep=False)
        return step.sample() + step.x0_coef * delta, measurement.distance(step.x0_hat.detach())
