"""What is compared: exact priors, operators, methods; and the samples of one method on one of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from guided_diffusion.condition_methods import get_conditioning_method
from guided_diffusion.gaussian_diffusion import Sampler, create_sampler
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.method import Method
from guided_diffusion.priors.analytic import PRIORS, AnalyticPrior
from guided_diffusion.priors.distributions import Distribution, GaussianMixture
from guided_diffusion.priors.gaussians import DiagonalGaussian
from guided_diffusion.solvers.exact import posteriors
from util.config.yaml_text import parse_yaml
from util.errors import UserError, did_you_mean
from util.seeding import ImageRandomness

SIDE = 16                                           # of the images; a posterior's covariance is a matrix (768, 768)
PLANE = "plane"                                     # the mixture of two dimensions, for pictures
PRIOR_PARAMS: dict[str, dict] = {
    "gaussian": {}, "gaussian_lowrank": {"folder": "skimage", "components": 40},
    "gaussian_mixture": {"folder": "skimage", "components": 3},
}


@cache
def prior_of(name: str) -> tuple[Distribution, tuple[int, int, int]]:
    """A prior of the benchmark, and the shape of its images (C, H, W)."""
    if name == PLANE:                               # two channels of one pixel: colorization measures their mean
        means = torch.tensor([[-0.8, 0.8], [0.8, -0.6], [0.1, 0.6]], dtype=torch.float64).view(3, 2, 1, 1)
        return GaussianMixture([DiagonalGaussian(mean, 0.12 ** 2) for mean in means], [0.5, 0.3, 0.2]), (2, 1, 1)
    return PRIORS.build(name, image_size=SIDE, **PRIOR_PARAMS[name]), (3, SIDE, SIDE)


OPERATOR_PARAMS: dict[str, dict] = {
    "noise": {}, "super_resolution": {"scale_factor": 4}, "sr_average": {"scale_factor": 4}, "colorization": {},
    "inpainting": {"mask_opt": {"mask_type": "random", "mask_prob_range": [0.5, 0.5]}},
    "gaussian_blur": {"kernel_size": 9, "intensity": 1.5}, "motion_blur": {"kernel_size": 9, "intensity": 0.5},
    "compressed_sensing": {"ratio": 0.25},
}


@dataclass(frozen=True)
class Problem:
    """A prior, an operator and a noise level.

    Attributes:
        prior: of `prior_of`.
        operator: of `OPERATOR_PARAMS`.
        sigma: of the noise, on the scale of the images.
    """

    prior: str
    operator: str
    sigma: float

    def __str__(self) -> str:
        return f"{self.prior}, {self.operator}, sigma {self.sigma:g}"


@dataclass(frozen=True)
class Entrant:
    """A method with parameters, as "ps" or "ps:scale=0.3" names it, after `steps` of the process: a number, or several
    as `timestep_respacing` has them."""

    text: str
    steps: int | str
    method: Method = field(compare=False)

    @classmethod
    def parse(cls, text: str, steps: int | str) -> "Entrant":
        """UserError for an unknown name or parameter."""
        name, _, params = text.partition(":")
        try:
            values = parse_yaml("{" + params.replace("=", ": ") + "}")
        except ValueError as error:
            raise UserError(f"--methods {text}: {error}; expected a name, or name:key=value,key=value") from None
        name = {"unconditional": "vanilla"}.get(name, name)
        return cls(text, steps, get_conditioning_method(name, **values))

    @property
    def title(self) -> str:
        """The method, and its steps."""
        return f"{self.text} ({self.steps})"

    @property
    def count(self) -> int:
        """How many steps there are."""
        return sum(map(int, str(self.steps).split(",")))


@dataclass(frozen=True)
class Arena:
    """Measurements of images of the prior, with several entries of each, and their posteriors.

    Attributes:
        measurement: (B, ...), entry b is one of `samples` of the image `names[b]`.
        posteriors: of each image, with the entries of the batch that are its samples.
    """

    problem: Problem
    distribution: Distribution
    measurement: Measurement
    posteriors: Sequence[tuple[Distribution, slice]]
    names: tuple[str, ...]
    samples: tuple[int, ...]
    seed: int

    def randomness(self, purpose: str = "sampling") -> ImageRandomness:
        """The streams of the entries."""
        return ImageRandomness(self.seed, self.names, self.samples, purpose)

    def exact_samples(self) -> Tensor:
        """Independent samples of the posteriors, (B, C, H, W)."""
        like = torch.zeros(self.measurement.image_shape)
        randomness = self.randomness("exact")
        z, u = randomness.randn_like(like), randomness.rand_like(like.flatten(1)[:, :1])
        return torch.cat([posterior.drawn(z[rows], u[rows]) for posterior, rows in self.posteriors])


def arena(problem: Problem, images: int, samples: int, seed: int) -> Arena:
    """Draw `images` images of the prior, measure each once, and find the posteriors."""
    distribution, shape = prior_of(problem.prior)
    names = [f"image{i}" for i in range(images)]
    truth = distribution.sample(torch.zeros(images, *shape), ImageRandomness(seed, names, purpose="truth"))
    entries = tuple(name for name in names for _ in range(samples))
    numbers = tuple(range(samples)) * images
    operator = get_operator(problem.operator, **OPERATOR_PARAMS[problem.operator])
    measurement = Measurement.simulate(operator, get_noise("gaussian", sigma=problem.sigma),
                                       truth.repeat_interleave(samples, dim=0), ImageRandomness(seed, entries, numbers))
    return Arena(problem, distribution, measurement, posteriors(distribution, measurement, entries), entries, numbers,
                 seed)


def process_of(sampler: str, steps: int | str) -> Sampler:
    """The process; UserError for steps that it does not have."""
    return create_sampler(sampler, clip_denoised=False, timestep_respacing=steps)


def draw(entrant: Entrant, place: Arena, sampler: str) -> tuple[Tensor, int]:
    """The entrant's samples (B, C, H, W), and how often the network was evaluated for each."""
    process = process_of(sampler, entrant.steps)
    prior = AnalyticPrior(process.schedule, place.distribution, learn_sigma=True)
    calls: list[None] = []
    prior.register_forward_pre_hook(lambda *_: calls.append(None))
    x = entrant.method.restore(prior, process, place.measurement, place.randomness())
    return x, len(calls)


def problems(priors: Sequence[str], operators: Sequence[str], sigmas: Sequence[float]) -> list[Problem]:
    """All combinations; in the plane, the mean of the two coordinates is measured, and both of them if `operators` has
    denoising.

    Raises:
        UserError: an unknown prior, or an operator under which no posterior is known.
    """
    for name in priors:
        if name not in (*PRIOR_PARAMS, PLANE):
            raise UserError(f"unknown prior '{name}'; {did_you_mean(name, (*PRIOR_PARAMS, PLANE))}")
    for name in operators:
        if name not in OPERATOR_PARAMS:
            raise UserError(f"no posterior is known in closed form for operator '{name}'; "
                            f"{did_you_mean(name, OPERATOR_PARAMS)}")
    in_plane = ["noise"] * ("noise" in operators) + ["colorization"]
    return [Problem(prior, operator, sigma) for prior in priors
            for operator in (in_plane if prior == PLANE else operators) for sigma in sigmas]
