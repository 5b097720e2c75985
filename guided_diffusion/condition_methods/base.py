"""What a conditioning method is: whatever plugs into the ancestral sampling loop."""

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import Sampler, Step
from guided_diffusion.measurements.base import kind_of
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.method import CONDITIONING_METHODS, Method, register_conditioning_method
from util.errors import UserError
from util.seeding import ImageRandomness

__all__ = [
    "CONDITIONING_METHODS",
    "ConditioningMethod",
    "diffused_measurement",
    "grad_and_value",
    "register_conditioning_method",
]


def grad_and_value(step: Step, distance: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Each image's gradient of distance(x0_hat) with respect to x_t, (B, C, H, W), and the distance itself, (B,)."""
    with torch.enable_grad():
        value = distance(step.x0_hat)
        return torch.autograd.grad(value.sum(), step.x_t)[0], value.detach()


def diffused_measurement(step: Step, y: Tensor) -> Tensor:
    """y_t = sqrt(alpha_bar_t) y + sqrt(1 - alpha_bar_t) n: a measurement (B, ...) at the noise level of x_t."""
    return math.sqrt(step.alpha_bar) * y + math.sqrt(1 - step.alpha_bar) * step.randomness.randn_like(y)


class ConditioningMethod(Method):
    """One reverse step under a measurement. `__init__` lists the YAML's `params`."""

    needs_grad = False                              # gradients through the network with respect to x_t

    def start(self, sampler: Sampler, measurement: Measurement, randomness: ImageRandomness) -> Tensor:
        """The state x_T (B, C, H, W) before the first step: pure noise, in the dtype of y, unless overridden."""
        return randomness.randn_like(measurement.y.new_empty(measurement.image_shape))

    def gradient_at(self, index: int) -> bool:
        """Whether step `index`, 0 the last, needs gradients through the network with respect to x_t."""
        return self.needs_grad

    @abstractmethod
    def conditioning(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        """Return x_{t-1} (B, C, H, W) and the measurement distance (B,)."""

    def _next(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        """What `conditioning` gives; UserError where that is something else than it says."""
        with self.differentiated():
            found = self.conditioning(step, measurement)
        if not isinstance(found, tuple) or len(found) != 2:
            raise UserError(f"conditioning method '{self.name}' gives {kind_of(found)}, expected x_(t-1) and the "
                            "distance of each image: return x, distance")
        x, distance = found
        self.check_state(x, step.x_t)
        if not isinstance(distance, Tensor) or distance.shape != (len(x),):
            raise UserError(f"conditioning method '{self.name}' gives {kind_of(distance)} as distances, expected one "
                            f"number per image, [{len(x)}]")
        return x, distance

    def restore(self, prior: Callable, sampler: Sampler, measurement: Measurement, randomness: ImageRandomness,
                callback: Callable | None = None) -> Tensor:
        """Run the whole reverse process and return the restored images (B, C, H, W)."""
        x_t = self.start(sampler, measurement, randomness)
        for index in reversed(range(sampler.num_steps)):
            with torch.set_grad_enabled(self.gradient_at(index)):
                step = sampler.step(prior, x_t.detach().requires_grad_(self.gradient_at(index)), index, randomness)
            with torch.no_grad():
                x_t, distance = self._next(step, measurement)
                if callback is not None:
                    callback(step, x_t, distance)
        return x_t.detach()
