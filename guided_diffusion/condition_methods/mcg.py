"""MCG: Chung et al., "Improving Diffusion Models for Inverse Problems using Manifold Constraints", NeurIPS 2022."""

from torch import Tensor

from guided_diffusion.condition_methods.base import (
    ConditioningMethod,
    diffused_measurement,
    grad_and_value,
    register_conditioning_method,
)
from guided_diffusion.gaussian_diffusion import Step
from guided_diffusion.measurements.measurement import Measurement
from util.config.registry import NonNegative


@register_conditioning_method("mcg")
class ManifoldConstraintGradient(ConditioningMethod):
    """The manifold constrained gradient, then the projection on the diffused measurement (their Algorithm 1).

        x'      ~ p(x_{t-1} | x_t)
        x''     = x' - scale s_t grad_{x_t} ||y - A(x0_hat)||
        y_t     = sqrt(alpha_bar_t) y + sqrt(1 - alpha_bar_t) n
        x_{t-1} = x'' - A^+(A x'' - y_t)

    Args:
        scale: step size of the gradient of the norm (not of its square).
        rescale: as in `PointLikelihood`.
    """

    needs_grad = True
    needs_linear = True

    def __init__(self, scale: NonNegative = 1.0, rescale: bool = True):
        self.scale, self.rescale = scale, rescale

    def conditioning(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        grad, distance = grad_and_value(step, measurement.distance)
        size = self.scale * step.stride if self.rescale else self.scale
        x = step.sample() - size * grad
        return measurement.operator.project(x, diffused_measurement(step, measurement.y)), distance
