"""DPS: Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems", ICLR 2023."""

import torch
from torch import Tensor

from guided_diffusion.condition_methods.base import ConditioningMethod, grad_and_value, register_conditioning_method
from guided_diffusion.condition_methods.likelihoods import (
    LIKELIHOODS,
    Likelihood,
    LikelihoodChoice,
    LikelihoodGuided,
    register_likelihood,
)
from guided_diffusion.condition_methods.step_size import SCHEDULES, ScheduleChoice
from guided_diffusion.gaussian_diffusion import Step
from guided_diffusion.measurements.base import Noise, Operator
from guided_diffusion.measurements.measurement import Measurement
from util.config.registry import Count, NonNegative, Positive
from util.errors import UserError


@register_likelihood("point")
class PointLikelihood(Likelihood):
    """p(y | x_t) = p(y | x0_hat): p(x0 | x_t) is taken for a point at x0_hat (DPS, eq. 11).

        guidance = -f_t s_t grad_{x_t} d(y, A(x0_hat))^power

    d is the noise model's distance, for Gaussian noise the norm. With power 2 the gradient is that of the squared norm
    (eq. 16), 2 d grad d; the paper's zeta', which divides it by the norm (appendix C.2), is power 1 with scale =
    2 zeta'. Power 0.5 makes a norm of a distance that is a squared norm already, such as poisson's likelihood shot,
    whose root is the norm of eq. 20.

    A step of a respaced process takes s_t of the N steps at once, N/n on average if it has n. Guidance is a drift
    next to that of the prior, which goes s_t times as far in that step; so must the guidance, or few steps end far from
    y. The method's `scale` is thus that of the full process for every respacing.

    Args:
        schedule: f_t, how the step size changes along the sampling, see `step_size`.
        power: what is differentiated: 1 for the norm (the authors' code), 2 for its square.
        rescale: false leaves s_t out, as the authors' code does: fewer steps are no larger.
    """

    def __init__(self, schedule: ScheduleChoice = "constant", power: Positive = 1.0, rescale: bool = True):
        self.schedule, self.power, self.rescale = SCHEDULES.make(schedule), power, rescale

    def check(self, operator: Operator, noiser: Noise | None) -> None:
        if self.schedule.needs_variance and noiser is not None and not noiser.has_variance:
            raise UserError(f"schedule {self.schedule.name} divides by the noise variance, but noise '{noiser.name}' "
                            "has none; use schedule: constant, or another noise")

    def guidance(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            distance = measurement.distance(step.x0_hat)                        # d(y, A(x0_hat)) of each image, (B,)
            tiny = torch.finfo(distance.dtype).tiny                             # a root has no gradient at 0
            grad, = torch.autograd.grad((distance.clamp_min(tiny) ** self.power).sum(), step.x_t)
        size = self.schedule(step, measurement) * (step.stride if self.rescale else 1)
        return -size * grad, distance.detach()


@register_conditioning_method("ps")
class PosteriorSampling(LikelihoodGuided):
    """DPS, Algorithms 1 and 2: the score of p(y | x_t) by that of p(y | x0_hat) (eq. 11, 15).

        x'      ~ p(x_{t-1} | x_t)
        x_{t-1} = x' - scale f_t s_t grad_{x_t} d(y, A(x0_hat))^power

    Args:
        scale: step size.
        likelihood: "point", as above, or with its parameters, {name: point, power: 2}, see `PointLikelihood`;
            "gaussian" or "stationary" for an x0 spread about x0_hat, which find the size of each step by themselves,
            see `GaussianLikelihood` and `StationaryLikelihood`: scale is then 1 or so.
    """

    def __init__(self, scale: NonNegative = 1.0, likelihood: LikelihoodChoice = "point"):
        self.scale, self.likelihood = scale, LIKELIHOODS.make(likelihood)

    def conditioning(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        x = step.sample()                                                       # x' ~ p(x_{t-1} | x_t)
        guidance, distance = self.likelihood.guidance(step, measurement)        # -grad_{x_t} d(y, A(x0_hat))
        return x + self.scale * guidance, distance


@register_conditioning_method("ps+")
class PosteriorSamplingPlus(ConditioningMethod):
    """DPS with the distance averaged over K perturbed clean images; in the authors' code, not in the paper.

        d       = 1/K sum_k d(y, A(x0_hat + perturbation v_k)),   v_k uniform on [0, 1)
        x_{t-1} = x' - scale s_t grad_{x_t} d

    v_k has mean 1/2, which shifts x0_hat by half the perturbation; `centred` removes that.

    Args:
        scale: step size.
        num_sampling: K.
        perturbation: width of the perturbation on the image scale of [-1, 1].
        centred: v_k uniform on [-1/2, 1/2) instead of the authors' [0, 1).
        rescale: as in `PointLikelihood`.
    """

    needs_grad = True

    def __init__(self, scale: NonNegative = 1.0, num_sampling: Count = 5, perturbation: NonNegative = 0.05,
                 centred: bool = False, rescale: bool = True):
        self.scale, self.num_sampling, self.perturbation = scale, num_sampling, perturbation
        self.centred, self.rescale = centred, rescale

    def conditioning(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        shift = 0.5 if self.centred else 0.0

        def perturbed_distance(x0_hat: Tensor) -> Tensor:
            draws = [step.randomness.rand_like(x0_hat) - shift for _ in range(self.num_sampling)]
            return sum(measurement.distance(x0_hat + self.perturbation * v) for v in draws) / self.num_sampling

        grad, distance = grad_and_value(step, perturbed_distance)
        size = self.scale * step.stride if self.rescale else self.scale
        return step.sample() - size * grad, distance
