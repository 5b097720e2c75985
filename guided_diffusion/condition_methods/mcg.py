"""MCG: Chung et al., "Improving Diffusion Models for Inverse Problems using Manifold Constraints", NeurIPS 2022."""

from torch import Tensor

from guided_diffusion.condition_methods.base import (
    ConditioningMethod,
    diffused_measurement,
    grad_and_value,
    register_conditioning_method,
)
from guided_diffusion.condition_methods.step_size import StepSize
from guided_diffusion.gaussian_diffusion import Step
from guided_diffusion.measurements.measurement import Measurement


@register_conditioning_method("mcg")
class ManifoldConstraintGradient(ConditioningMethod):
    """The manifold constrained gradient, then the projection on the diffused measurement (their Algorithm 1).

        x'      ~ p(x_{t-1} | x_t)
        x''     = x' - scale grad_{x_t} ||y - A(x0_hat)||
        y_t     = sqrt(alpha_bar_t) y + sqrt(1 - alpha_bar_t) n
        x_{t-1} = x'' - A^+(A x'' - y_t)

    Args:
        scale: step size of the gradient of the norm (not of its square), 0 or more.
        rescale: as in `ps`.
    """

    needs_grad = True
    needs_linear = True

    def __init__(self, scale: float = 1.0, rescale: bool = True):
        self.step_size = StepSize(self.name, scale, rescale=rescale)

    def conditioning(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        grad, distance = grad_and_value(step, measurement.distance)
        x = step.sample() - self.step_size(step, measurement, distance) * grad
        return measurement.operator.project(x, diffused_measurement(step, measurement.y)), distance
