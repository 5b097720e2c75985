"""ILVR: Choi et al., "ILVR: Conditioning Method for Denoising Diffusion Probabilistic Models", ICCV 2021."""

from functools import lru_cache

from torch import Tensor

from guided_diffusion.condition_methods.base import (
    ConditioningMethod,
    diffused_measurement,
    register_conditioning_method,
)
from guided_diffusion.gaussian_diffusion import Sampler, Step
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.measurements.svd import on
from util.config.registry import Fraction, Repeats
from util.resizer import apply_matrices, resize_matrix


@register_conditioning_method("ilvr")
class IterativeLatentVariableRefinement(ConditioningMethod):
    """An unconditional step, then the low frequencies of the measurement.

        x'      ~ p(x_{t-1} | x_t)
        y_t     = sqrt(alpha_bar_t) y + sqrt(1 - alpha_bar_t) n
        x_{t-1} = x' + phi(A^+(y_t - A x'))                     phi: bicubic reduction by `factor`, and back

    For A = I, a reference image, this is x' - phi(x') + phi(y_t), their eq. 8; with phi = 1 (factor 1) it is
    `projection`. No gradients through the network. Like every projection it brings the measurement's noise back in at
    every step, though what phi lets through only.

    Args:
        factor: N of phi; larger is smoother. The released code has 32, which leaves 8 x 8 values of an image of 256.
        range_t: share of the process, at its end, that is left alone: 0.2 for the last fifth.
    """

    needs_linear = True
    guided = "those before the share range_t at the end of the process; lower it"

    def __init__(self, factor: Repeats = 4, range_t: Fraction = 0.0):
        self.factor, self.range_t = factor, range_t

    def guides(self, sampler: Sampler) -> bool:
        return sampler.schedule.timesteps[-1] >= self.range_t * sampler.schedule.num_train_steps

    def conditioning(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        x, distance = step.sample(), measurement.distance(step.x0_hat)
        if step.timestep < self.range_t * step.num_train_steps:
            return x, distance
        operator = measurement.operator
        correction = operator.pinv(diffused_measurement(step, measurement.y) - operator(x))
        return x + apply_matrices(correction, *(on(low_pass(side, self.factor), x) for side in x.shape[-2:])), distance


@lru_cache(maxsize=8)
def low_pass(side: int, factor: int) -> Tensor:
    """The reduction of one axis by `factor` and its way back, (side, side) in float64 on the CPU."""
    down = resize_matrix(side, scale=1 / factor)
    return resize_matrix(len(down), n_out=side) @ down
