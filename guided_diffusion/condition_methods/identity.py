"""Unconditional sampling: the measurement is only watched."""

from torch import Tensor

from guided_diffusion.condition_methods.base import ConditioningMethod, register_conditioning_method
from guided_diffusion.gaussian_diffusion import Step
from guided_diffusion.measurements.measurement import Measurement


@register_conditioning_method("vanilla")
class Identity(ConditioningMethod):
    """x_{t-1} ~ p(x_{t-1} | x_t): a sample of the prior that ignores y, the control for every other method."""

    def conditioning(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        return step.sample(), measurement.distance(step.x0_hat)
