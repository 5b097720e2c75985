"""DPS: Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems", ICLR 2023."""

from torch import Tensor

from guided_diffusion.condition_methods.base import ConditioningMethod, grad_and_value, register_conditioning_method
from guided_diffusion.condition_methods.guidance import Likelihood, get_guidance
from guided_diffusion.condition_methods.step_size import StepSchedule, StepSize
from guided_diffusion.gaussian_diffusion import Step
from guided_diffusion.measurements.base import Noise, Operator
from guided_diffusion.measurements.measurement import Measurement


@register_conditioning_method("ps")
class PosteriorSampling(ConditioningMethod):
    """DPS, Algorithms 1 and 2: the score of p(y | x_t) by that of p(y | x0_hat) (eq. 11, 15).

        x'      ~ p(x_{t-1} | x_t)
        x_{t-1} = x' - scale f_t grad_{x_t} d(y, A(x0_hat))^power

    d is the noise model's distance, for Gaussian noise the norm. The paper's step zeta_i = zeta' / ||y - A(x0_hat)||
    on the squared norm is scale = 2 zeta' here, with power 1.

    Args:
        scale: step size, 0 or more.
        schedule: how it changes along the sampling, f_t: constant, linear, exponential or inverse_variance; see
            `StepSize`.
        power: what is differentiated: 1 for the norm (the authors' code), 2 for its square (eq. 16).
        gamma: the factor per noise level of the exponential schedule.
        rescale: `scale` is that of the full process, and fewer steps are larger; false for the authors' code, where
            they are not.
        likelihood: "point" for p(y | x_t) = p(y | x0_hat), as above; "gaussian" for an x0 spread about x0_hat, which
            finds the size of each step by itself, see `GaussianGuidance`: `scale` is then 1 or so, and the parameters
            from schedule to rescale have no part in it. Ours.
    """

    needs_grad = True

    def __init__(self, scale: float = 1.0, schedule: StepSchedule = "constant", power: float = 1.0,
                 gamma: float = 0.99, rescale: bool = True, likelihood: Likelihood = "point"):
        self.guidance = get_guidance(self.name, likelihood, scale, schedule, power, gamma, rescale)

    def check(self, operator: Operator, noiser: Noise | None = None) -> None:
        super().check(operator, noiser)
        self.guidance.check(operator, noiser)

    def conditioning(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        move, distance = self.guidance(step, measurement)
        return step.sample() + move, distance


@register_conditioning_method("ps+")
class PosteriorSamplingPlus(ConditioningMethod):
    """DPS with the distance averaged over K perturbed clean images; in the authors' code, not in the paper.

        d       = 1/K sum_k d(y, A(x0_hat + perturbation v_k)),   v_k uniform on [0, 1)
        x_{t-1} = x' - scale grad_{x_t} d

    v_k has mean 1/2, which shifts x0_hat by half the perturbation; `centred` removes that.

    Args:
        scale: step size, 0 or more.
        num_sampling: K, 1 or more.
        perturbation: width of the perturbation on the image scale of [-1, 1], 0 or more.
        centred: v_k uniform on [-1/2, 1/2) instead of the authors' [0, 1).
        rescale: as in `ps`.
    """

    needs_grad = True

    def __init__(self, scale: float = 1.0, num_sampling: int = 5, perturbation: float = 0.05, centred: bool = False,
                 rescale: bool = True):
        self.step_size = StepSize(self.name, scale, rescale=rescale)
        self.num_sampling, self.perturbation, self.centred = num_sampling, perturbation, centred
        self.require(num_sampling >= 1, "num_sampling", "1 or more")
        self.require(perturbation >= 0, "perturbation", "0 or more")

    def conditioning(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        shift = 0.5 if self.centred else 0.0

        def perturbed_distance(x0_hat: Tensor) -> Tensor:
            draws = [step.randomness.rand_like(x0_hat) - shift for _ in range(self.num_sampling)]
            return sum(measurement.distance(x0_hat + self.perturbation * v) for v in draws) / self.num_sampling

        grad, distance = grad_and_value(step, perturbed_distance)
        return step.sample() - self.step_size(step, measurement, distance) * grad, distance
