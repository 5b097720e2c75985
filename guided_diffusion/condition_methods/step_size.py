"""How far a method follows the gradient of the measurement distance: the step sizes of DPS, appendix C."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import Step
from guided_diffusion.measurements.base import Noise
from guided_diffusion.measurements.measurement import Measurement
from util.errors import UserError

StepSchedule = Literal["constant", "linear", "exponential", "inverse_variance"]


@dataclass(frozen=True)
class StepSize:
    """The guidance zeta_t grad_{x_t} d^power with zeta_t = scale f_t s_t, d the measurement distance of each image.

        schedule           f_t                          DPS, appendix C.3 and table 5
        constant           1                            "constant"
        linear             1 - i/N                      "linear decay"
        exponential        gamma^i                      "exponential decay", gamma = 0.99
        inverse_variance   1 / sigma^2                  eq. 16, with power 2

    i = N - 1 - t counts the noise levels passed since the noisiest one, t = N - 1, of the N = 1000 that the network was
    trained with, so steps decay towards the clean image: 1 at first, 1/N or gamma^(N - 1) = 4e-5 at last. (In the
    paper's Algorithm 1 the letter i runs down from N - 1; its decay is meant along the sampling.)

    A step of a respaced process takes s_t of the N steps at once, N/n on average if it has n. Guidance is a drift
    next to that of the prior, which goes s_t times as far in that step; so must the guidance, or few steps end far from
    y. `scale` is thus that of the full process for every respacing. `rescale: false` leaves s_t out, as the authors'
    code does.

    sigma^2 is the noise model's variance on the scale of y, where it differs between entries its mean over the
    informative ones. With power 2 the gradient is that of the squared norm, 2 d grad d, and zeta' of the paper, which
    divides it by the norm (appendix C.2), is power 1 with scale = 2 zeta'. Power 0.5 makes a norm of a distance that is
    a squared norm already, such as poisson's likelihood shot, whose root is the norm of eq. 20.

    Args:
        method: the name of the conditioning method, for messages.
        scale: 0 or more.
        power: positive.
        gamma: of the exponential schedule, above 0 and at most 1.
        rescale: whether a process of fewer steps takes larger ones, s_t.

    Raises:
        UserError: a value out of its range.
    """

    method: str
    scale: float
    schedule: StepSchedule = "constant"
    power: float = 1.0
    gamma: float = 0.99
    rescale: bool = True

    def __post_init__(self):
        self._require(self.scale >= 0, "scale", "0 or more")
        self._require(self.power > 0, "power", "a positive number: 1 for the norm, 2 for its square")
        self._require(0 < self.gamma <= 1, "gamma", "more than 0 and at most 1")

    def _require(self, condition: bool, key: str, expected: str) -> None:
        if not condition:
            raise UserError(f"conditioning method '{self.method}': {key} is {getattr(self, key)}, expected {expected}")

    def check(self, noiser: Noise) -> None:
        """Raise UserError if the schedule needs a noise variance and `noiser` has none."""
        if self.schedule == "inverse_variance" and not noiser.has_variance:
            raise UserError(f"conditioning method '{self.method}': schedule inverse_variance divides by the noise "
                            f"variance, but noise '{noiser.name}' has none; use schedule: constant, or another noise")

    def __call__(self, step: Step, measurement: Measurement, distance: Tensor) -> float | Tensor:
        """What the gradient of d (`distance`, (B,)) is multiplied with: zeta_t power d^(power - 1), a number or
        (B, 1, 1, 1)."""
        size = self.scale * self._factor(step, measurement) * (step.stride if self.rescale else 1)
        if self.power != 1:
            size = size * self.power * distance.clamp_min(torch.finfo(distance.dtype).tiny) ** (self.power - 1)
        return size.view(-1, 1, 1, 1) if isinstance(size, Tensor) else size

    def _factor(self, step: Step, measurement: Measurement) -> float | Tensor:
        """f_t, a number or (B,)."""
        if self.schedule == "inverse_variance":
            variance = measurement.noiser.variance(measurement.y)
            informative = measurement.operator.informative(measurement.y)
            tiny = torch.finfo(variance.dtype).tiny             # no step where nothing is measured
            return informative.flatten(1).sum(1) / (informative * variance).flatten(1).sum(1).clamp_min(tiny)
        passed = step.num_train_steps - 1 - step.timestep
        factors = {"constant": 1.0, "linear": 1 - passed / step.num_train_steps, "exponential": self.gamma ** passed}
        return factors[self.schedule]
