"""DAPS: Zhang et al., "Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing", CVPR 2025."""

from collections.abc import Callable, Iterator
from typing import Annotated

from torch import Tensor

from guided_diffusion.gaussian_diffusion import Sampler
from guided_diffusion.measurements.data_steps import conditional_draw, conditional_langevin
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.method import register_conditioning_method
from guided_diffusion.solvers.base import Iteration, Solver
from guided_diffusion.solvers.noise_levels import descent, flow, sigmas
from util.config.registry import Bounds, Count, Fraction, Positive, Repeats
from util.errors import UserError
from util.seeding import ImageRandomness


@register_conditioning_method("daps")
class DecoupledAnnealing(Solver):
    """DAPS (Zhang et al., 2025, Algorithm 1): a clean image from every noise level, made to agree with y, noised anew.

        x0_hat  = the end of the probability flow from u_k, ode_steps Euler steps
        x       ~ N(x; x0_hat, (spread sigma_k)^2 I) N(y; A x, V)
        u_{k-1} = x + sigma_{k-1} z

    x is drawn exactly if A is linear, else by Langevin dynamics from x0_hat, whose step falls linearly towards `last`
    of itself along the levels. The levels are the sampler's: the authors have 200 from 100 to 0.1, while
    timestep_respacing "200" has them from 157 to 0.01. A level takes ode_steps evaluations of the network, fewer where
    few levels are left.

    The paper has spread 1, and always 100 Langevin steps of a length (`lr` 1e-4, 5e-5 or 2e-5 by task) that does not
    lead to that distribution: where y says nothing an x of spread 1 would carry the noise sigma_k into a state that
    counts as one of noise sigma_{k-1}. Its tau is 0.01 for every noise; its code takes the gradient of the square
    itself, which makes that tau 0.00707 here.

    Args:
        ode_steps: of the probability flow.
        spread: how far x0_hat is taken to be off, in units of sigma_k.
        langevin_steps, step: for an A that is not linear, see `conditional_langevin`.
        last: the factor of the Langevin step at the last level.
        lr: Langevin steps of this length for every A; null for the above.
        tau: a standard deviation in place of the noise model's for steps of `lr`; null for that.
    """

    def __init__(self, ode_steps: Repeats = 5, spread: Positive = 0.4, langevin_steps: Count = 100,
                 step: Annotated[float, Bounds(above=0, below=2)] = 0.5, last: Fraction = 0.01,
                 lr: Positive | None = None, tau: Positive | None = None):
        if tau is not None and lr is None:
            raise UserError(f"conditioning method '{self.name}': tau is {tau:g} without lr, whose steps it is for; "
                            "give lr as well, or leave tau out")
        self.ode_steps, self.spread, self.langevin_steps = ode_steps, spread, langevin_steps
        self.step, self.last, self.lr, self.tau = step, last, lr, tau

    def num_evaluations(self, sampler: Sampler) -> int:
        return sum(len(descent(sampler.schedule, index, self.ode_steps)) for index in range(sampler.num_steps))

    def iterates(self, prior: Callable, sampler: Sampler, measurement: Measurement,
                 randomness: ImageRandomness) -> Iterator[tuple[Iteration, Tensor]]:
        x = measurement.y.new_zeros(measurement.image_shape)
        for index, sigma in reversed(list(enumerate(sigmas(sampler.schedule)))):
            u = x + sigma * randomness.randn_like(x)
            x0_hat = flow(prior, sampler, u, index, self.ode_steps, randomness)
            r2, factor = (self.spread * sigma) ** 2, self.last + (1 - self.last) * (index + 1) / sampler.num_steps
            if self.lr is None:
                x = conditional_draw(measurement, x0_hat, r2, self.langevin_steps, factor * self.step, randomness)
            else:
                x = conditional_langevin(measurement, x0_hat, r2, self.langevin_steps, self.step, randomness,
                                         self.tau, factor * self.lr)
            yield Iteration(index, x0_hat), x
