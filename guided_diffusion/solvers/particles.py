"""What sequential Monte Carlo methods share: several states per image, (P, B, C, H, W), and their resampling."""

from collections.abc import Callable

import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import Sampler, Step
from util.seeding import ImageRandomness


def white(count: int, shape: tuple[int, ...], like: Tensor, randomness: ImageRandomness) -> Tensor:
    """Standard normal numbers for `count` particles of each image, (count, *shape)."""
    empty = like.new_empty(shape)
    return torch.stack([randomness.randn_like(empty) for _ in range(count)])


def predict(prior: Callable, sampler: Sampler, x_t: Tensor, index: int, randomness: ImageRandomness
            ) -> tuple[Step, Tensor]:
    """x0_hat of every particle (P, B, C, H, W), and the step of the first; one evaluation for each, one by one."""
    steps = [sampler.step(prior, particle, index, randomness) for particle in x_t]
    return steps[0], torch.stack([step.x0_hat for step in steps])


def log_normal(x: Tensor, mean: Tensor, variance: Tensor | float, where: Tensor) -> Tensor:
    """log N(x; mean, variance) of independent coefficients, summed over those with `where` = 1, constants left out:
    (P, B, C, H, W) -> (P, B)."""
    variance = torch.as_tensor(variance, dtype=x.dtype, device=x.device)
    terms = ((x - mean) ** 2 / variance + variance.log()) * where
    return -terms.flatten(2).sum(2) / 2


def resampled(x: Tensor, log_weights: Tensor, randomness: ImageRandomness) -> Tensor:
    """Particles (P, B, C, H, W) drawn in proportion to their weights, (P, B) in logarithms, every image by itself.

    Systematic resampling: a particle is drawn as often as its weight says, rounded up or down.
    """
    count = len(x)
    ends = torch.softmax(log_weights, dim=0).cumsum(0).mT.contiguous()                          # (B, P)
    u = randomness.rand_like(ends[:, :1])
    points = (torch.arange(count, dtype=ends.dtype, device=ends.device) + u) / count
    chosen = torch.searchsorted(ends, points).clamp_max(count - 1).mT                           # (P, B)
    return x[chosen, torch.arange(x.shape[1], device=x.device)]


def one_of(x: Tensor, randomness: ImageRandomness) -> Tensor:
    """A particle of each image, all alike: (P, B, C, H, W) -> (B, C, H, W)."""
    u = randomness.rand_like(x[0].flatten(1)[:, :1])[:, 0]
    return x[(u * len(x)).long().clamp_max(len(x) - 1), torch.arange(x.shape[1], device=x.device)]
