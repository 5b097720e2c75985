"""PnP-DM: Wu et al., "Principled Probabilistic Imaging Using Diffusion Models as Plug-and-Play Priors", 2024."""

from collections.abc import Callable, Iterator
from typing import Annotated

from torch import Tensor

from guided_diffusion.gaussian_diffusion import Sampler
from guided_diffusion.measurements.data_steps import conditional_draw
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.method import register_conditioning_method
from guided_diffusion.solvers.base import Iteration, Solver
from guided_diffusion.solvers.noise_levels import ancestral, level_below, sigmas
from util.config.registry import Bounds, Count, Positive, Repeats
from util.seeding import ImageRandomness


@register_conditioning_method("pnp_dm")
class SplitGibbs(Solver):
    """PnP-DM (Wu et al., 2024, Algorithm 1): Gibbs sampling of an image x and of a copy z that y sees, rho apart.

        p(x, z | y) ~ p(x) exp(-||x - z||^2 / (2 rho^2)) N(y; A z, V)
        z ~ p(z | x, y)         exactly if A is linear, else by Langevin dynamics from x
        x ~ p(x | z)            the reverse process from x_t = sqrt(ab_t) z, at the noise level t where sigma_t = rho
        rho = max(rho_min, rho_max decay^i),    i = 0..99 along the iterations, however many there are

    The x of this chain have the posterior of noise V + rho^2 A A^T: the exact one as rho_min goes to 0, but slowly.
    rho is rounded down to a level of the sampler. Transitions are those of ddpm, whatever the sampler is, since others
    do not sample the prior; the authors take Euler steps of the same reverse diffusion. An iteration takes as many
    evaluations of the network as there are levels below rho.

    Args:
        iterations: of both steps; the authors have 100, of which they discard 40.
        rho_max: the first rho.
        rho_min: the last one; null for the sigma of white noise, 0.1 for other noise. The authors have 0.3 for colour
            photographs, six times their noise.
        decay: of rho in a hundredth of the iterations.
        average: the last iterations whose mean is returned, 1 for a sample of the posterior.
        langevin_steps, step: of z if A is not linear, see `conditional_langevin`.
    """

    def __init__(self, iterations: Repeats = 100, rho_max: Positive = 10.0, rho_min: Positive | None = None,
                 decay: Annotated[float, Bounds(above=0, most=1)] = 0.9, average: Count = 1,
                 langevin_steps: Count = 100, step: Annotated[float, Bounds(above=0, below=2)] = 0.5):
        self.iterations, self.rho_max, self.rho_min, self.decay = iterations, rho_max, rho_min, decay
        self.average, self.langevin_steps, self.step = average, langevin_steps, step

    def num_steps(self, sampler: Sampler) -> int:
        """One per iteration, each of which evaluates the network several times."""
        return self.iterations

    def num_evaluations(self, sampler: Sampler) -> int:
        """Where `rho_min` is null, as many as for noise that is not white."""
        return sum(level + 1 for level in self.levels(sampler, None))

    def levels(self, sampler: Sampler, white_sigma: float | None) -> list[int]:
        """The level t of every iteration, (iterations,)."""
        least = self.rho_min or (0.1 if white_sigma is None else white_sigma)
        return [level_below(sampler.schedule, max(self.rho_max * self.decay ** (100 * i / self.iterations), least))
                for i in range(self.iterations)]

    def iterates(self, prior: Callable, sampler: Sampler, measurement: Measurement,
                 randomness: ImageRandomness) -> Iterator[tuple[Iteration, Tensor]]:
        process, sigma = ancestral(sampler), sigmas(sampler.schedule)
        x, total = measurement.initial_guess(), 0
        for i, level in enumerate(self.levels(sampler, measurement.noiser.white_sigma)):
            left = self.iterations - 1 - i
            z = conditional_draw(measurement, x, sigma[level] ** 2, self.langevin_steps, self.step, randomness)
            x = process.schedule.sqrt_alphas_cumprod[level] * z
            for index in reversed(range(level + 1)):
                x = process.step(prior, x, index, randomness).sample()
            total = total + x if left < self.average else 0
            yield Iteration(left, z), x if left else total / min(self.average, self.iterations)
