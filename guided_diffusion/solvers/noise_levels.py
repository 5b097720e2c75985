"""The noise levels of a process seen as x_0 + sigma n: sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t).

A state u of that kind is x_t / sqrt(alpha_bar_t). Solvers take their levels from those of the sampler, so that a
network is asked only about those that `timestep_respacing` keeps.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from torch import Tensor

from guided_diffusion.gaussian_diffusion import DDPM, Sampler, Step
from guided_diffusion.schedule import Schedule
from util.seeding import ImageRandomness


def sigmas(schedule: Schedule) -> np.ndarray:
    """sigma_t of every step, (num_steps,), ascending."""
    return np.sqrt((1 - schedule.alphas_cumprod) / schedule.alphas_cumprod)


def level_below(schedule: Schedule, sigma: float) -> int:
    """The index of the noisiest level whose sigma_t is at most `sigma`; 0 where there is none."""
    return max(int(np.searchsorted(sigmas(schedule), sigma * (1 + 1e-9), side="right")) - 1, 0)


def descent(schedule: Schedule, index: int, steps: int, power: float = 7.0) -> list[int]:
    """Up to `steps` levels from `index` towards 0, on the grid of Karras et al. (2022), eq. 5, that ends at level 0.

    The points are equidistant in sigma^(1/power); each becomes the nearest level, and a level counts once.
    """
    roots = sigmas(schedule)[:index + 1] ** (1 / power)
    points = np.linspace(roots[index], roots[0], steps + 1)[:-1]
    return list(dict.fromkeys(int(np.abs(roots - point).argmin()) for point in points))


def predict(prior: Callable, sampler: Sampler, u: Tensor, index: int, randomness: ImageRandomness) -> Step:
    """The step at the level `index` of a state u = x_0 + sigma n (B, C, H, W), with its x0_hat."""
    return sampler.step(prior, math.sqrt(sampler.schedule.alphas_cumprod[index]) * u, index, randomness)


def flow(prior: Callable, sampler: Sampler, u: Tensor, index: int, steps: int, randomness: ImageRandomness) -> Tensor:
    """Where the probability flow from u = x_0 + sigma n (B, C, H, W) at the level `index` ends, (B, C, H, W).

    Euler steps of du/dsigma = (u - x0_hat) / sigma through the levels of `descent`, `steps` evaluations at most.
    """
    levels, sigma = descent(sampler.schedule, index, steps), sigmas(sampler.schedule)
    for level, following in pairwise(levels):
        x0_hat = predict(prior, sampler, u, level, randomness).x0_hat
        u = x0_hat + sigma[following] / sigma[level] * (u - x0_hat)
    return predict(prior, sampler, u, levels[-1], randomness).x0_hat


def ancestral(sampler: Sampler) -> DDPM:
    """The process of `sampler` with the transitions of DDPM, which sample the prior whatever sampler was chosen."""
    return DDPM(sampler.schedule, sampler.mean_processor, sampler.var_processor)
