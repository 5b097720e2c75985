"""Alternating projections: Score-SDE (Song et al., ICLR 2021, appendix I) and ILVR (Choi et al., ICCV 2021)."""

from torch import Tensor

from guided_diffusion.condition_methods.base import (
    ConditioningMethod,
    diffused_measurement,
    register_conditioning_method,
)
from guided_diffusion.gaussian_diffusion import Step
from guided_diffusion.measurements.measurement import Measurement


@register_conditioning_method("projection")
class Projection(ConditioningMethod):
    """An unconditional step, then the closest image that has the diffused measurement.

        x'      ~ p(x_{t-1} | x_t)
        y_t     = sqrt(alpha_bar_t) y + sqrt(1 - alpha_bar_t) n
        x_{t-1} = x' - A^+(A x' - y_t)

    For super-resolution A^+ A is ILVR's low-pass filter. No gradients through the network. The projection brings the
    measurement's noise back in at every step, so the method suits noiseless measurements.
    """

    needs_linear = True

    def conditioning(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        x = measurement.operator.project(step.sample(), diffused_measurement(step, measurement.y))
        return x, measurement.distance(step.x0_hat)
