"""How the measurement pulls at a reverse step: readings of p(y | x_t). That of DPS stands in `posterior_sampling`."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from guided_diffusion.condition_methods.base import ConditioningMethod
from guided_diffusion.gaussian_diffusion import Sampler, Step
from guided_diffusion.measurements.base import Noise, Operator
from guided_diffusion.measurements.conjugate_gradients import column, damped_inverse, dot
from guided_diffusion.measurements.data_steps import linearised, whitening
from guided_diffusion.measurements.measurement import Measurement
from util.config.registry import Natural, OneOf, Positive, Registry
from util.errors import UserError

LIKELIHOODS = Registry("likelihood")
register_likelihood = LIKELIHOODS.register
LikelihoodChoice = Annotated[str | dict, OneOf(LIKELIHOODS)]

ITERATIONS = 16                                     # of conjugate gradients


class Likelihood(ABC):
    """A reading of p(y | x_t). `__init__` lists the parameters that stand beside its name."""

    name: str                                       # set by the registry
    needs_variance = False                          # of the noise

    def check(self, operator: Operator, noiser: Noise | None) -> None:
        """Raise UserError if it cannot serve `operator` or, where one is given, `noiser`."""
        if self.needs_variance and noiser is not None and not noiser.has_variance:
            raise UserError(f"likelihood {self.name} weighs y by its noise variance, but noise '{noiser.name}' has "
                            "none; use likelihood: point, or another noise")

    def check_process(self, sampler: Sampler) -> None:
        """Raise UserError if its parameters do not fit the steps of `sampler`."""
        return

    def gradient_at(self, index: int) -> bool:
        """Whether step `index`, 0 the last, needs gradients through the network with respect to x_t."""
        return True

    @abstractmethod
    def guidance(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        """What brings x_{t-1} nearer to the measurement, (B, C, H, W), and the distance of x0_hat from it, (B,)."""


class LikelihoodGuided(ConditioningMethod):
    """A method whose steps follow `likelihood`, which its `__init__` makes."""

    likelihood: Likelihood
    needs_grad = True

    def check(self, operator: Operator, noiser: Noise | None = None) -> None:
        super().check(operator, noiser)
        self.likelihood.check(operator, noiser)

    def check_process(self, sampler: Sampler) -> None:
        super().check_process(sampler)
        self.likelihood.check_process(sampler)

    def gradient_at(self, index: int) -> bool:
        return self.likelihood.gradient_at(index)


@register_likelihood("gaussian")
class GaussianLikelihood(Likelihood):
    """p(x0 | x_t) = N(x0_hat, C): x0_hat moves towards the mean of p(x0 | x_t, y) and finds its step size.

        C     = (1 - ab) / sqrt(ab)  d x0_hat / d x_t           the covariance of x0, by Tweedie's formula
        J     = A, or its derivative at x0_hat
        r     = y - A x0_hat
        w     = J^T ((1 - ab) J J^T + V)^-1 r                   V the noise variance
        p     = C w                                             one gradient through the network
        a     = <r, J p>_V / (<J p, J p>_V + <w, p>)            <u, v>_V = u^T V^-1 v
        delta = a p

    x_{t-1} moves by delta times the factor of x0_hat in its mean. p is the direction of PiGDM (Song et al., ICLR 2023),
    and would be the exact move, with a = 1, if C were (1 - ab) I. a is the exact length along p: it has the least
    |r - J (a p)|_V^2 + (a p)^T C^-1 (a p), for a linear A twice the negative log posterior, for another its quadratic
    model of Gauss and Newton. So there is no step size, fine detail behind an ill-conditioned A comes as fast as coarse
    shapes, and few steps do not blow up. The inverse is applied by 16 steps of conjugate gradients: every w gives a
    descent, so it need not be exact. Where the noise variance depends on the image, V is what y suggests. Ours.

    The method's `scale` is 1 for that minimum. More goes beyond it, which helps where p is far from the way to the
    mean, as with missing pixels and blur; from 2 on the measurement error grows.
    """

    needs_variance = True

    def guidance(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        weight, least = whitening(measurement.noiser.variance(measurement.y))
        root = math.sqrt(1 - step.alpha_bar)
        with torch.no_grad():
            prediction, forward, transpose = linearised(measurement.operator, step.x0_hat)
            residual = weight * (measurement.y - prediction)
            u, _ = damped_inverse(lambda v: weight * forward(root * v), lambda r: root * transpose(weight * r),
                                  residual, least.sqrt(), ITERATIONS)       # sqrt(1 - ab) w
            w = u / root
        with torch.enable_grad():
            grad, = torch.autograd.grad(dot(w, step.x0_hat).sum(), step.x_t)
        p = (1 - step.alpha_bar) / math.sqrt(step.alpha_bar) * grad
        image = weight * forward(p)
        curvature = dot(image, image) + least * dot(w, p).clamp_min(0)
        a = dot(residual, image).clamp_min(0) / curvature.clamp_min(torch.finfo(p.dtype).tiny)
        return step.x0_coef * column(a, p) * p, measurement.noiser.distance(measurement.y, prediction)


@register_likelihood("stationary")
class StationaryLikelihood(Likelihood):
    """p(x0 | x_t) = N(x0_hat, C), C as if images were stationary and Gaussian, with a spectrum that falls.

        S     = 1 / (1 + (f / corner)^2)                        variance of a Fourier mode of f cycles per pixel
        C     = S s^2 / (S + s^2) of every mode,                s^2 = (1 - ab) / ab
        delta = C J^T (J C J^T + V)^-1 (y - A x0_hat)           V the noise variance, J = A or its derivative at x0_hat

    x_{t-1} moves by delta times the factor of x0_hat in its mean. For images of that Gaussian C is the covariance of x0
    given x_t, and delta, if A is linear, the move to the mean of p(x0 | x_t, y). For others it stands in for the
    network's derivative: no gradient goes through the network, and a step takes 0.4 of the time. What y tells of a
    pixel spreads to those around it, while a white C, as that of DiffPIR, leaves missing pixels where they are. By 16
    steps of conjugate gradients, with two Fourier transforms each, for which images wrap around. Where noise is low,
    x0_hat has edges, and what one pixel tells of another no longer depends on their distance alone: steps that are best
    left to `gaussian`. Ours.

    Args:
        corner: where the spectrum begins to fall, 0.06 or so for photographs; less stands for what
            their x0_hat leaves open, and fits less of the noise of y.
        gradients: which steps are those of `gaussian`, of those that there are; 0 is the last one.
    """

    needs_variance = True

    def __init__(self, corner: Positive = 0.06, gradients: Sequence[Natural] = ()):
        self.corner, self.gradients, self.gaussian = corner, frozenset(gradients), GaussianLikelihood()

    def check_process(self, sampler: Sampler) -> None:
        if min(self.gradients, default=0) >= (steps := sampler.num_steps):
            raise UserError(f"likelihood stationary: gradients are those of steps {sorted(self.gradients)}, but there "
                            f"are only 0 (the last) to {steps - 1}; name some of them, or none ([])")

    def gradient_at(self, index: int) -> bool:
        return index in self.gradients

    def guidance(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        if self.gradient_at(step.index):
            return self.gaussian.guidance(step, measurement)
        weight, least = whitening(measurement.noiser.variance(measurement.y))
        prediction, forward, transpose = linearised(measurement.operator, step.x0_hat)
        height, width = step.x0_hat.shape[-2:]
        down, along = (transform(n, dtype=step.x0_hat.dtype, device=step.x0_hat.device)
                       for transform, n in ((torch.fft.fftfreq, height), (torch.fft.rfftfreq, width)))
        fall = (down[:, None] ** 2 + along ** 2) / self.corner ** 2             # 1 / S - 1
        root = (fall + 1 / (1 - step.alpha_bar)).rsqrt()                        # of C = 1 / (1 / S + ab / (1 - ab))

        def colour(x: Tensor) -> Tensor:
            return torch.fft.irfft2(root * torch.fft.rfft2(x), s=(height, width))

        u, _ = damped_inverse(lambda v: weight * forward(colour(v)), lambda r: colour(transpose(weight * r)),
                              weight * (measurement.y - prediction), least.sqrt(), ITERATIONS)  # C^(-1/2) delta
        return step.x0_coef * colour(u), measurement.noiser.distance(measurement.y, prediction)
