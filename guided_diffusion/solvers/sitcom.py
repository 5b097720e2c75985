"""SITCOM: Alkhouri et al., "SITCOM: Step-wise Triple-Consistent Diffusion Sampling for Inverse Problems", ICML 2025."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import Sampler, Step
from guided_diffusion.measurements.conjugate_gradients import column
from guided_diffusion.measurements.data_steps import chi_square
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.method import register_conditioning_method
from guided_diffusion.solvers.adam import Adam
from guided_diffusion.solvers.base import Solver
from util.config.registry import Count, NonNegative, Positive
from util.seeding import ImageRandomness


@register_conditioning_method("sitcom")
class StepwiseTripleConsistency(Solver):
    """SITCOM (Alkhouri et al., 2025, Algorithm 1): the network's input that makes its x0_hat agree with y.

        v       = argmin_v mean((y - A x0_hat(v))^2) + proximity mean((v - x_t)^2)          by Adam from x_t
        x_{t-1} = sqrt(ab') x0_hat(v) + sqrt(1 - ab') z

    Adam ends for an image after `iterations` steps, or as soon as its residual is what noise makes of it,
    ||y - A x0_hat||_V^2 <= margin m with m observed numbers, for Gaussian noise sigma^2 m. So a step takes up to
    iterations + 1 evaluations of the network and as many backward passes but one.

    The paper has the second term, the authors' code does not. That takes the x0_hat before the last Adam step, stops at
    (sigma + 0.001)^2 m, and keeps the iterate that is nearest to the truth, which no one else can.

    Args:
        iterations: Adam steps at every noise level, at most.
        lr: of Adam.
        proximity: the weight of staying at x_t.
        margin: of the residual's square over its expectation.
    """

    def __init__(self, iterations: Count = 30, lr: Positive = 0.02, proximity: NonNegative = 0.0,
                 margin: Positive = 1.0):
        self.iterations, self.lr, self.proximity, self.margin = iterations, lr, proximity, margin

    def num_evaluations(self, sampler: Sampler) -> int:
        return sampler.num_steps * (self.iterations + 1)

    def iterates(self, prior: Callable, sampler: Sampler, measurement: Measurement,
                 randomness: ImageRandomness) -> Iterator[tuple[Step, Tensor]]:
        x_t = randomness.randn_like(measurement.y.new_empty(measurement.image_shape))
        for index in reversed(range(sampler.num_steps)):
            step = self.consistent(prior, sampler, measurement, x_t, index, randomness)
            z = randomness.randn_like(x_t)
            x_t = math.sqrt(step.alpha_bar_prev) * step.x0_hat + math.sqrt(1 - step.alpha_bar_prev) * z
            yield step, x_t

    @torch.enable_grad()
    def consistent(self, prior: Callable, sampler: Sampler, measurement: Measurement, x_t: Tensor, index: int,
                   randomness: ImageRandomness) -> Step:
        """The step from the input v that Adam finds; its x0_hat has no graph."""
        v, adam = x_t, Adam(self.lr)
        for k in range(self.iterations + 1):
            v = v.detach().requires_grad_()
            step = sampler.step(prior, v, index, randomness)
            residual = measurement.y - measurement.operator(step.x0_hat)
            active = chi_square(measurement, residual.detach()) > self.margin
            if k == self.iterations or not active.any():
                break
            loss = mean_square(residual) + self.proximity * mean_square(v - x_t)
            gradient, = torch.autograd.grad(v[0].numel() * loss.sum(), v)           # a pixel's share is of order one
            v = torch.where(column(active, v), v + adam.move(gradient), v)
        return replace(step, x_t=x_t, x0_hat=step.x0_hat.detach())


def mean_square(x: Tensor) -> Tensor:
    """Of each image, (B, ...) -> (B,)."""
    return (x ** 2).flatten(1).mean(1)
