"""RED-diff: Mardani et al., "A Variational Perspective on Solving Inverse Problems with Diffusion Models", 2024."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import Sampler, Step
from guided_diffusion.measurements.data_steps import likelihood_gradient, variance
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.method import register_conditioning_method
from guided_diffusion.solvers.adam import Adam
from guided_diffusion.solvers.base import Solver
from guided_diffusion.solvers.noise_levels import sigmas
from util.config.registry import NonNegative, Positive
from util.seeding import ImageRandomness


@register_conditioning_method("red_diff")
class RegularisedByDenoising(Solver):
    """RED-diff (Mardani et al., 2024, Algorithm 1): an image mu that Adam moves at every noise level, high to low, from
    the lifted measurement.

        x_t   = sqrt(ab) mu + sqrt(1 - ab) z
        loss  = mean((y - A mu)^2) / 2 + w mean((eps(x_t) - z) mu),     eps - z held constant
        w     = max(lam s, n / m sigma^2 / s),                          s = sqrt((1 - ab) / ab)
        mu   <- an Adam step, betas 0.9 and 0.99

    The means are over the m entries of y and the n pixels, so that lam transfers to other sizes. No gradient through
    the network; mu is returned. The paper's weight is lam s, without sigma: it leaves the prior nothing in the end, and
    mu fits the noise. (eps - z) / s is minus the score of mu at the noise level s, so that at the second weight the
    loss has the gradient of the negative log posterior, times sigma^2 / m; sigma^2 is the mean variance of the noise.
    What z adds to the gradient then grows towards the end, where Adam would leave mu as rough as its moves are long:
    they shrink with the root of the share of the levels that are left.

    Args:
        lam: the weight of the prior while noise is strong. The paper has 0.25; its scripts pass 1.
        lr: of Adam. The authors have 0.1, in scripts 0.25 for inpainting and 0.5 for blur and nonlinear A.
        posterior: the second weight, and moves that shrink; false for the paper.
    """

    def __init__(self, lam: NonNegative = 0.25, lr: Positive = 0.1, posterior: bool = True):
        self.lam, self.lr, self.posterior = lam, lr, posterior

    def iterates(self, prior: Callable, sampler: Sampler, measurement: Measurement,
                 randomness: ImageRandomness) -> Iterator[tuple[Step, Tensor]]:
        y, ones = measurement.y, torch.ones_like(measurement.y)
        mu, adam = measurement.initial_guess(), Adam(self.lr, beta2=0.99)
        share = mu[0].numel() / y[0].numel()            # n / m; the gradients are n times those of the loss
        weakest = share * self.posterior * variance(measurement).flatten(1).mean(1).view(-1, 1, 1, 1)
        levels = sigmas(sampler.schedule)
        for index, s in reversed(list(enumerate(levels))):
            z = randomness.randn_like(mu)
            step = sampler.step(prior, sampler.q_sample(mu, index, z), index, randomness)
            weight = torch.maximum(weakest / s, weakest.new_tensor(self.lam * s))
            pull = share * likelihood_gradient(measurement.operator, mu, y, ones)
            length = ((index + 1) / len(levels)) ** 0.5 if self.posterior else 1.0
            mu = mu + length * adam.move(weight * (step.eps - z) - pull)
            yield step, mu
