"""DDNM and DDNM+: Wang et al., "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", ICLR 2023."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from torch import Tensor

from guided_diffusion.gaussian_diffusion import Sampler
from guided_diffusion.measurements.base import LinearOperator, Noise, Operator
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.method import register_conditioning_method
from guided_diffusion.solvers.base import Iteration, Solver
from guided_diffusion.solvers.ddrm import Spectrum, check_levels, is_white, levels, noise_level, predicted_noise
from util.config.registry import Count, Fraction, Repeats
from util.seeding import ImageRandomness


def itinerary(steps: int, length: int, repeat: int) -> list[int]:
    """The levels in the order of the visits, from steps - 1 down to 0 and then -1, with time travel (Algorithm 2): from
    every `length`-th level, repeat - 1 times, back to the level `length` above it."""
    left = dict.fromkeys(range(0, steps - length, length), repeat - 1)
    path = [steps - 1]
    while path[-1] >= 0:
        here = path[-1]
        back = left.get(here, 0) > 0
        left[here] = left.get(here, 0) - back
        path.append(here + length if back else here - 1)
    return path


@register_conditioning_method("ddnm")
class NullSpaceModel(Solver):
    """The range of A from y, its null space from the network; ab' = alpha_bar of the next state x_t'.

    Without noise (DDNM, eq. 13, any linear operator):

        x      = x0_hat - A^+(A x0_hat - y)
        x_t'   = sqrt(ab') x + sqrt(1 - ab') (eta z + sqrt(1 - eta^2) eps)

    With noise (DDNM+, appendix I) a coefficient in the basis of A's singular vectors moves to y as far as the noise
    of y fits into x_t', and gets what noise is missing: `Spectrum.transition` with eta_b = 1, as its equations are
    those of DDRM there. Where its noise does not fit, (y_bar - p) has the weight sqrt(1 - eta^2) s tau' / sigma.

    Args:
        steps: levels, evenly strided through the process; all of its steps where it has fewer.
        eta: share of fresh noise.
        travel_length, travel_repeat: time travel: every `travel_length` levels the state goes back as many, by new
            noise on x0_hat (before its correction), and comes down again, until it came `travel_repeat` times. 1 for
            none; otherwise network evaluations are about `travel_repeat` times the steps.
    """

    needs = "a linear operator without noise, or one with a closed singular value decomposition and gaussian noise"

    def __init__(self, steps: Count = 100, eta: Fraction = 0.85, travel_length: Count = 1, travel_repeat: Repeats = 1):
        self.steps, self.eta, self.travel_length, self.travel_repeat = steps, eta, travel_length, travel_repeat

    @classmethod
    def serves(cls, operator: Operator, noiser: Noise | None = None) -> bool:
        clean = noiser is None or noiser.white_sigma == 0
        return isinstance(operator, LinearOperator) and is_white(noiser) and (clean or operator.has_svd)

    def _path(self, sampler: Sampler) -> list[int]:
        return itinerary(len(levels(sampler, self.steps)), self.travel_length, self.travel_repeat)

    def check_process(self, sampler: Sampler) -> None:
        check_levels(sampler, self.steps)

    def num_steps(self, sampler: Sampler) -> int:
        """The evaluations of the network."""
        path = self._path(sampler)
        return sum(there < here for here, there in pairwise(path))

    def iterates(self, prior: Callable, sampler: Sampler, measurement: Measurement,
                 randomness: ImageRandomness) -> Iterator[tuple[Iteration, Tensor]]:
        operator, noisy = measurement.operator, measurement.noiser.white_sigma > 0
        spectrum = Spectrum(measurement) if noisy else None
        indices, path, left = levels(sampler, self.steps)[::-1], self._path(sampler), self.num_steps(sampler)
        x_t = randomness.randn_like(measurement.y.new_empty(measurement.image_shape))
        x0_hat = x_t
        for here, there in pairwise(path):
            z = randomness.randn_like(x_t)
            if there > here:
                x_t = sampler.q_sample(x0_hat, indices[there], z)
                continue
            step = sampler.step(prior, x_t, indices[here], randomness)
            ab = float(sampler.schedule.alphas_cumprod[indices[there]]) if there >= 0 else 1.0
            x0_hat, eps = step.x0_hat, predicted_noise(step)
            if noisy:
                x = spectrum.transition(x0_hat, eps, noise_level(ab), self.eta, 1.0, z)
            else:
                x = operator.project(x0_hat, measurement.y)
                x = x + noise_level(ab) * (self.eta * z + math.sqrt(1 - self.eta ** 2) * eps)
            x_t, left = math.sqrt(ab) * x, left - 1
            yield Iteration(left, x0_hat), x_t
