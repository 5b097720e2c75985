"""The posterior itself, where prior and likelihood are Gaussian: what every other sampler is compared with."""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import Sampler, Step
from guided_diffusion.measurements.base import LinearOperator, Noise, Operator
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.method import register_conditioning_method
from guided_diffusion.priors.analytic import AnalyticPrior
from guided_diffusion.priors.distributions import Distribution
from guided_diffusion.priors.posterior import of_one, posterior
from guided_diffusion.solvers.base import Solver
from util.errors import UserError
from util.seeding import ImageRandomness


@register_conditioning_method("exact")
class ExactPosterior(Solver):
    """The reverse process of p(x_0 | y), known in closed form for an exact prior, a linear A and Gaussian noise.

        E[x_0 | x_t, y]     of the posterior (a Gaussian or a mixture, like the prior) takes the place of x0_hat
        x_{t-1} ~ p(x_{t-1} | x_t, y)

    Args:
        transition: "exact" draws x_{t-1} as it is distributed, a component of a mixture first, so that any number of
            steps gives samples of the posterior, but for x_T being pure noise; "sampler" takes the sampler's step, as
            all methods do, with the exact score: what is left is the error of its discretisation.
    """

    needs = "a linear operator and gaussian noise"
    needs_exact_prior = True

    def __init__(self, transition: Literal["exact", "sampler"] = "exact"):
        self.transition = transition

    @classmethod
    def serves(cls, operator: Operator, noiser: Noise | None = None) -> bool:
        return isinstance(operator, LinearOperator) and (noiser is None or bool(noiser.white_sigma))

    def iterates(self, prior: Callable, sampler: Sampler, measurement: Measurement,
                 randomness: ImageRandomness) -> Iterator[tuple[Step, Tensor]]:
        if not isinstance(prior, AnalyticPrior):
            raise UserError(f"method '{self.name}' needs a prior that is known in closed form (model config: prior)")
        prior.check_size(measurement.image_shape)
        networks = [(AnalyticPrior(sampler.schedule, distribution, sampler.learned_variance), rows)
                    for distribution, rows in posteriors(prior.distribution, measurement, randomness.names)]

        def conditional(x_t: Tensor, t: Tensor) -> Tensor:
            return torch.cat([network(x_t[rows], t[rows]) for network, rows in networks])

        x_t = randomness.randn_like(measurement.y.new_empty(measurement.image_shape))
        for index in reversed(range(sampler.num_steps)):
            step = sampler.step(conditional, x_t, index, randomness)
            if self.transition == "exact":
                x_t = self.drawn(step, sampler, [(network.distribution, rows) for network, rows in networks])
            else:
                x_t = step.sample()
            yield step, x_t

    @staticmethod
    def drawn(step: Step, sampler: Sampler, parts: list[tuple[Distribution, slice]]) -> Tensor:
        """x_{t-1} ~ p(x_{t-1} | x_t, y) of the ancestral process, (B, C, H, W)."""
        at = [float(getattr(sampler.schedule, name)[step.index]) for name in (
            "alphas_cumprod", "posterior_mean_coef1", "posterior_mean_coef2", "posterior_variance")]
        z = step.randomness.randn_like(step.x_t)
        u = step.randomness.rand_like(step.x_t.flatten(1)[:, :1])
        return torch.cat([distribution.transition(step.x_t[rows], *at, z[rows], u[rows])
                          for distribution, rows in parts])


def posteriors(prior: Distribution, measurement: Measurement,
               names: tuple[str, ...]) -> list[tuple[Distribution, slice]]:
    """The posterior of every image, and the entries of the batch that are samples of it: neighbours of one measurement.
    """
    y = measurement.y
    firsts = [b for b, name in enumerate(names) if b == 0 or name != names[b - 1] or not torch.equal(y[b], y[b - 1])]
    return [(posterior(prior, of_one(measurement, first)), slice(first, last))
            for first, last in zip(firsts, [*firsts[1:], len(names)], strict=True)]
