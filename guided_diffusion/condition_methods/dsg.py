"""DSG: Yang et al., "Guidance with Spherical Gaussian Constraint for Conditional Diffusion", ICML 2024."""

from torch import Tensor

from guided_diffusion.condition_methods.base import ConditioningMethod, grad_and_value, register_conditioning_method
from guided_diffusion.gaussian_diffusion import Sampler, Step
from guided_diffusion.measurements.conjugate_gradients import column, norm
from guided_diffusion.measurements.measurement import Measurement
from util.config.registry import Count, Fraction


@register_conditioning_method("dsg")
class SphericalGaussianGuidance(ConditioningMethod):
    """DSG (Yang et al., 2024, Algorithm 1): guidance that stays on the sphere where x_{t-1} lies anyway.

        r       = ||std||                       sqrt(n) std for one std of all n numbers of an image
        d*      = -r g / ||g||,                 g = grad_{x_t} d(y, A(x0_hat))
        m       = z std + weight (d* - z std)
        x_{t-1} = mean + r m / ||m||

    A step without noise has a sphere of radius 0 and is not guided: with ddim, eta must be above 0. There is no step
    size to choose; that of the noise model's distance, if it is a positive factor, cancels.

    Args:
        weight: 0 for a step of the prior, 1 for the point of the sphere nearest to the measurement.
        interval: guide every interval-th step, the last one among them. The authors' YAML files have up to 20; their
            command lines set 1.
    """

    needs_grad = True
    guided = "every interval-th step that has noise; set sampler: ddpm, or ddim with eta: 1, and guide more steps"

    def __init__(self, weight: Fraction = 0.2, interval: Count = 1):
        self.weight, self.interval = weight, interval

    def guides(self, sampler: Sampler) -> bool:
        return not all(sampler.deterministic(index) for index in range(0, sampler.num_steps, self.interval))

    def conditioning(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        if step.index % self.interval:
            return step.sample(), measurement.distance(step.x0_hat)
        grad, distance = grad_and_value(step, measurement.distance)
        radius, noise = column(norm(step.std), grad), step.std * step.randomness.randn_like(grad)
        nearest = -radius * grad / column(norm(grad), grad)
        move = noise + self.weight * (nearest - noise)
        return step.mean + radius * move / column(norm(move), move), distance
