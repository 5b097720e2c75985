"""How far and where the measurement moves a reverse step: two readings of p(y | x_t)."""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from guided_diffusion.condition_methods.base import grad_and_value
from guided_diffusion.condition_methods.step_size import StepSchedule, StepSize
from guided_diffusion.gaussian_diffusion import Step
from guided_diffusion.measurements.base import LinearOperator, Noise, Operator
from guided_diffusion.measurements.conjugate_gradients import column, damped_inverse, dot
from guided_diffusion.measurements.measurement import Measurement
from util.errors import UserError

Likelihood = Literal["point", "gaussian"]
ITERATIONS = 16                                     # of conjugate gradients


class Guidance(ABC):
    """What is added to x_{t-1} so that it agrees with the measurement."""

    @abstractmethod
    def check(self, operator: Operator, noiser: Noise | None) -> None:
        """Raise UserError if it cannot serve `operator` or, where one is given, `noiser`."""

    @abstractmethod
    def __call__(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        """The move of x_{t-1}, (B, C, H, W), and the measurement distance of x0_hat, (B,)."""


class PointGuidance(Guidance):
    """-zeta_t grad_{x_t} d(y, A(x0_hat))^power: p(x0 | x_t) is taken for a point at x0_hat (DPS, eq. 11)."""

    def __init__(self, step_size: StepSize):
        self.step_size = step_size

    def check(self, operator: Operator, noiser: Noise | None) -> None:
        if noiser is not None:
            self.step_size.check(noiser)

    def __call__(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        grad, distance = grad_and_value(step, measurement.distance)
        return -self.step_size(step, measurement, distance) * grad, distance


class GaussianGuidance(Guidance):
    """x0_hat moves towards the mean of p(x0 | x_t, y), with p(x0 | x_t) = N(x0_hat, C) and A linear: no step size.

        C     = (1 - ab) / sqrt(ab)  d x0_hat / d x_t           the covariance of x0, by Tweedie's formula
        r     = y - A x0_hat
        w     = A^T ((1 - ab) A A^T + V)^-1 r                   V the noise variance
        p     = C w                                             one gradient through the network
        a     = <r, A p>_V / (<A p, A p>_V + <w, p>)            <u, v>_V = u^T V^-1 v
        delta = scale a p

    x_{t-1} moves by delta times the factor of x0_hat in its mean. p is the direction of PiGDM (Song et al., ICLR 2023),
    and would be the exact move, with a = 1, if C were (1 - ab) I. a is the exact length along p: it has the least
    |r - A (a p)|_V^2 + (a p)^T C^-1 (a p), twice the negative log posterior. So there is no step size, fine detail
    behind an ill-conditioned A comes as fast as coarse shapes, and few steps do not blow up. The inverse is applied by
    16 steps of conjugate gradients: every w gives a descent, so it need not be exact. Where the noise variance depends
    on the image, V is what y suggests.

    Args:
        method: the name of the conditioning method, for messages.
        scale: 1 for the minimum. More goes beyond it, which helps where p is far from the way to the mean, as with
            missing pixels and blur; from 2 on the measurement error grows.
    """

    def __init__(self, method: str, scale: float):
        self.method, self.scale = method, scale

    def check(self, operator: Operator, noiser: Noise | None) -> None:
        who = f"conditioning method '{self.method}': likelihood gaussian"
        if not isinstance(operator, LinearOperator):
            raise UserError(f"{who} needs a linear operator, found '{operator.name}'; use likelihood: point")
        if noiser is not None and not noiser.has_variance:
            raise UserError(f"{who} weighs y by its noise variance, but noise '{noiser.name}' has none; use "
                            "likelihood: point, or another noise")

    def __call__(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        operator, variance = measurement.operator, measurement.noiser.variance(measurement.y)
        least = variance.flatten(1).amin(1)         # as the unit of V, so that nothing overflows where noise is weak
        weight, root = (column(least, variance) / variance).sqrt(), math.sqrt(1 - step.alpha_bar)

        def forward(x: Tensor) -> Tensor:
            return weight * operator(x)

        with torch.no_grad():
            prediction = operator(step.x0_hat)
            residual = weight * (measurement.y - prediction)
            u, _ = damped_inverse(lambda v: forward(root * v), lambda r: root * operator.transpose(weight * r),
                                  residual, least.sqrt(), ITERATIONS)       # sqrt(1 - ab) w
            w = u / root
        grad, _ = grad_and_value(step, lambda x0_hat: dot(w, x0_hat))
        p = (1 - step.alpha_bar) / math.sqrt(step.alpha_bar) * grad
        image = forward(p)
        curvature = dot(image, image) + least * dot(w, p).clamp_min(0)
        a = dot(residual, image).clamp_min(0) / curvature.clamp_min(torch.finfo(p.dtype).tiny)
        return self.scale * step.x0_coef * column(a, p) * p, measurement.noiser.distance(measurement.y, prediction)


def get_guidance(method: str, likelihood: Likelihood, scale: float, schedule: StepSchedule, power: float, gamma: float,
                 rescale: bool) -> Guidance:
    """The guidance of conditioning method `method`: see `GaussianGuidance`, and `StepSize` for that of a point.

    Raises:
        UserError: a value out of its range, or a step size's parameter where there is none to choose.
    """
    step_size = StepSize(method, scale, schedule, power, gamma, rescale)
    if likelihood == "point":
        return PointGuidance(step_size)
    standard = StepSize(method, scale)
    for key in ("schedule", "power", "gamma", "rescale"):
        if getattr(step_size, key) != getattr(standard, key):
            raise UserError(f"conditioning method '{method}': {key} is {getattr(step_size, key)}, but likelihood "
                            f"gaussian finds the size of each step; leave {key} out, or use likelihood: point")
    return GaussianGuidance(method, scale)
