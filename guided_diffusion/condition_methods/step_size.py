"""How the step size of a gradient changes along the sampling: DPS, appendix C.

    schedule           f_t                          DPS, appendix C.3 and table 5
    constant           1                            "constant"
    linear             1 - i/N                      "linear decay"
    exponential        gamma^i                      "exponential decay", gamma = 0.99
    inverse_variance   1 / sigma^2                  eq. 16, with power 2

i = N - 1 - t counts the noise levels passed since the noisiest one, t = N - 1, of the N = 1000 that the network was
trained with, so steps decay towards the clean image: 1 at first, 1/N or gamma^(N - 1) = 4e-5 at last. (In the paper's
Algorithm 1 the letter i runs down from N - 1; its decay is meant along the sampling.)
"""

from abc import ABC, abstractmethod
from typing import Annotated

import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import Step
from guided_diffusion.measurements.measurement import Measurement
from util.config.registry import Bounds, OneOf, Registry

SCHEDULES = Registry("step size schedule")
register_schedule = SCHEDULES.register
ScheduleChoice = Annotated[str | dict, OneOf(SCHEDULES)]


class StepSchedule(ABC):
    """The factor f_t of a step size. `__init__` lists the parameters that stand beside its name."""

    name: str                                       # set by the registry
    needs_variance = False                          # of the noise

    @abstractmethod
    def __call__(self, step: Step, measurement: Measurement) -> float | Tensor:
        """f_t: a number, or (B, 1, 1, 1) where images have their own."""


@register_schedule("constant")
class Constant(StepSchedule):
    """1 at every step."""

    def __call__(self, step: Step, measurement: Measurement) -> float:
        return 1.0


@register_schedule("linear")
class Linear(StepSchedule):
    """1 - i/N after i of N noise levels."""

    def __call__(self, step: Step, measurement: Measurement) -> float:
        return (step.timestep + 1) / step.num_train_steps


@register_schedule("exponential")
class Exponential(StepSchedule):
    """gamma^i after i noise levels."""

    def __init__(self, gamma: Annotated[float, Bounds(above=0, most=1)] = 0.99):
        self.gamma = gamma

    def __call__(self, step: Step, measurement: Measurement) -> float:
        return self.gamma ** (step.num_train_steps - 1 - step.timestep)


@register_schedule("inverse_variance")
class InverseVariance(StepSchedule):
    """1 / sigma^2, the noise variance on the scale of y: of each image, the mean over its informative entries."""

    needs_variance = True

    def __call__(self, step: Step, measurement: Measurement) -> Tensor:
        variance = measurement.noiser.variance(measurement.y)
        informative = measurement.operator.informative(measurement.y)
        total = (informative * variance).flatten(1).sum(1).clamp_min(torch.finfo(variance.dtype).tiny)
        return (informative.flatten(1).sum(1) / total).view(-1, 1, 1, 1)        # 0 where nothing is measured
