"""How far a method follows the gradient of the measurement distance: the step sizes of DPS, appendix C, and ours."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import Step
from guided_diffusion.measurements.base import Measurement, Noise
from util.errors import UserError

StepSchedule = Literal["constant", "linear", "exponential", "inverse_variance", "alpha_bar"]


@dataclass(frozen=True)
class StepSize:
    """The guidance zeta_t grad_{x_t} d^power with zeta_t = scale e_t f_t N/n, d the measurement distance of each image.

        schedule           f_t                          DPS, appendix C.3 and table 5
        constant           1                            "constant"
        linear             1 - i/N                      "linear decay"
        exponential        gamma^i                      "exponential decay", gamma = 0.99
        inverse_variance   1 / sigma^2                  eq. 16, with power 2
        alpha_bar          alpha_bar_t                  ours, with power 2

    i = N - 1 - t counts the noise levels passed since the noisiest one, t = N - 1, of the N = 1000 that the network was
    trained with, so steps decay towards the clean image: 1 at first, 1/N or gamma^(N - 1) = 4e-5 at last. (In the
    paper's Algorithm 1 the letter i runs down from N - 1; its decay is meant along the sampling.)

    e_t = 1 + (early - 1) t/(N - 1) makes the noisiest step `early` times as large as without, the last one stays.

    A respaced process takes n of the N steps. Guidance is a drift next to that of the prior, which a step of n carries
    N/n times as far; so must the guidance be carried, or few steps end far from y. `scale` is thus that of the full
    process for every n. `rescale: false` leaves N/n out, as the authors' code does.

    A step on the clean image (alpha_bar, below) cannot be carried that far: descent along the gradient of d^2 diverges
    from the length 1/||A||^2 on. Its scale s_n for n steps approaches that length as n falls, harmonically:

        1/s_n = n/N 1/(scale e_t) + (1 - n/N) ||A||^2

    which is N/n scale e_t where that is far below the limit, and keeps the chi-square of restorations nearly as it is
    from 20 steps on. Nonlinear operators have no known limit here: N/n.

    alpha_bar with power 2 is a step on the clean image: in u = x_t / sqrt(alpha_bar_t), which has its scale, the
    guidance is scale sqrt(alpha_bar_t) grad_u d^2, a gradient step on u, brought back to the scale of x_t. Other than
    that of the norm it shrinks with the residual, so images of any contrast agree with y alike; and other than the
    constant one with power 2 it does not grow by 1/alpha_bar_t where there is much noise, so few steps are stable.

    sigma^2 is the noise model's variance on the scale of y, where it differs between entries its mean over the observed
    ones. With power 2 the gradient is that of the squared norm, 2 d grad d, and zeta' of the paper, which divides
    it by the norm (appendix C.2), is power 1 with scale = 2 zeta'. Power 0.5 makes a norm of a distance that is
    a squared norm already, such as poisson's likelihood shot, whose root is the norm of eq. 20.

    Args:
        method: the name of the conditioning method, for messages.
        scale: 0 or more.
        power: positive.
        gamma: of the exponential schedule, above 0 and at most 1.
        rescale: whether a process of fewer steps takes larger ones, N/n.
        early: how many times as large the noisiest step is, 1 or more.

    Raises:
        UserError: a value out of its range.
    """

    method: str
    scale: float
    schedule: StepSchedule = "constant"
    power: float = 1.0
    gamma: float = 0.99
    rescale: bool = True
    early: float = 1.0

    def __post_init__(self):
        self._require(self.scale >= 0, "scale", "0 or more")
        self._require(self.power > 0, "power", "a positive number: 1 for the norm, 2 for its square")
        self._require(0 < self.gamma <= 1, "gamma", "more than 0 and at most 1")
        self._require(self.early >= 1, "early", "1 or more")

    def _require(self, condition: bool, key: str, expected: str) -> None:
        if not condition:
            raise UserError(f"conditioning method '{self.method}': {key} is {getattr(self, key)}, expected {expected}")

    def check(self, noiser: Noise) -> None:
        """Raise UserError if the schedule needs a noise variance and `noiser` has none."""
        if self.schedule == "inverse_variance" and noiser.variance(torch.zeros(1, 1)) is None:
            raise UserError(f"conditioning method '{self.method}': schedule inverse_variance divides by the noise "
                            f"variance, but noise '{noiser.name}' has none; use schedule: constant, or another noise")

    def __call__(self, step: Step, measurement: Measurement, distance: Tensor) -> float | Tensor:
        """What the gradient of d (`distance`, (B,)) is multiplied with: zeta_t power d^(power - 1), a number or
        (B, 1, 1, 1)."""
        scale = self.scale * (1 + (self.early - 1) * step.timestep / max(step.num_train_steps - 1, 1))
        size = scale * self._factor(step, measurement) * self._carried(scale, step, measurement)
        if self.power != 1:
            size = size * self.power * distance.clamp_min(torch.finfo(distance.dtype).tiny) ** (self.power - 1)
        return size.view(-1, 1, 1, 1) if isinstance(size, Tensor) else size

    def _carried(self, scale: float, step: Step, measurement: Measurement) -> float | Tensor:
        """How much larger than with all steps this one is: N/n, a number, or (B,) where it is kept within bounds.

        Args:
            scale: of this step in the full process, scale e_t.
        """
        if not self.rescale or step.stride == 1:
            return 1.0
        if self.schedule != "alpha_bar" or self.power != 2:
            return step.stride
        return step.stride / (1 + scale * measurement.curvature * (step.stride - 1))

    def _factor(self, step: Step, measurement: Measurement) -> float | Tensor:
        """f_t, a number or (B,)."""
        if self.schedule == "inverse_variance":
            variance = measurement.noiser.variance(measurement.y)
            observed = measurement.operator.observed(measurement.y)
            return observed.flatten(1).sum(1) / (observed * variance).flatten(1).sum(1)
        passed = step.num_train_steps - 1 - step.timestep
        return {"constant": 1.0, "linear": 1 - passed / step.num_train_steps, "exponential": self.gamma ** passed,
                "alpha_bar": step.alpha_bar}[self.schedule]
