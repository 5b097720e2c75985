"""PnP-ADMM: Chan, Wang & Elgendy, "Plug-and-Play ADMM for Image Restoration", TCI 2017, with a network as denoiser."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import Sampler
from guided_diffusion.measurements.base import Noise, Operator
from guided_diffusion.measurements.conjugate_gradients import conjugate_gradients
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.method import register_conditioning_method
from guided_diffusion.priors.dncnn import DnCNN, load_dncnn
from guided_diffusion.solvers.base import Iteration, Solver, unit_measurement
from util.config.registry import Count, Positive
from util.seeding import ImageRandomness


@register_conditioning_method("pnp_admm")
class PlugAndPlayADMM(Solver):
    """ADMM whose proximal step is a denoiser D, a baseline of DPS (Chan et al., 2017, Algorithm 1, with rho constant).

        x <- (A^T A + rho I)^-1 (A^T y + rho (z - u))       conjugate gradients from the last x
        z <- D(x + u)
        u <- u + x - z

    from x = z = A^T y, u = 0, on [0, 1]; the last x is clipped. As in the DPS paper D is scico's DnCNN of 17 layers,
    trained for noise of 0.1, and everything else is scico's, too. D knows its noise level, so rho does not change how
    much is smoothed. With `denoiser: prior` the diffusion network takes its place, the modern form: D(v) is x0_hat of
    x_t = sqrt(alpha_bar_t) (2 v - 1), at the sampler's level t whose sqrt((1 - alpha_bar_t) / alpha_bar_t) is nearest
    to 2 sigma.

    Args:
        rho: penalty of x - z.
        iterations: how many.
        cg_tolerance, cg_iterations: the conjugate gradients end at this share of the residual that the last x leaves,
            or after so many iterations.
        denoiser: "dncnn" or "prior".
        weights: a file of a DnCNN (see `load_dncnn`) in place of the one that is shipped.
        sigma: noise level on [0, 1] that the diffusion network, or a DnCNN that is told one, removes. At the shipped
            DnCNN's 0.1 the diffusion network changes more than the data step can undo.
    """

    needs_linear = True

    def __init__(self, rho: Positive = 0.2, iterations: Count = 12, cg_tolerance: Positive = 1e-3,
                 cg_iterations: Count = 30, denoiser: Literal["dncnn", "prior"] = "dncnn", weights: str | None = None,
                 sigma: Positive = 0.03):
        self.rho, self.iterations, self.sigma, self.weights = rho, iterations, sigma, weights
        self.cg_tolerance, self.cg_iterations = cg_tolerance, cg_iterations
        self.needs_prior = denoiser == "prior"
        self._dncnn: DnCNN | None = None

    def check(self, operator: Operator, noiser: Noise | None = None) -> None:
        """As every method; also UserError if DnCNN's weights cannot be read."""
        super().check(operator, noiser)
        if not self.needs_prior:
            self.load()

    def load(self) -> DnCNN:
        """DnCNN, whose weights are read the first time."""
        if self._dncnn is None:
            self._dncnn = load_dncnn(path=self.weights)
        return self._dncnn

    def num_steps(self, sampler: Sampler) -> int:
        """The number of iterations."""
        return self.iterations

    def iterates(self, prior: Callable | None, sampler: Sampler, measurement: Measurement,
                 randomness: ImageRandomness) -> Iterator[tuple[Iteration, Tensor]]:
        operator, rho = measurement.operator, self.rho
        denoise = self.denoiser(prior, sampler, measurement.y, randomness)
        x = z = back_projection = operator.transpose(unit_measurement(operator, measurement.y))
        u = torch.zeros_like(x)
        for index in reversed(range(self.iterations)):
            x, _ = conjugate_gradients(lambda v: operator.transpose(operator(v)) + rho * v,
                                       back_projection + rho * (z - u), self.cg_tolerance, self.cg_iterations, x)
            z = denoise(x + u)
            u = u + x - z
            yield Iteration(index, 2 * z - 1), 2 * x.clamp(0, 1) - 1

    def denoiser(self, prior: Callable | None, sampler: Sampler, y: Tensor,
                 randomness: ImageRandomness) -> Callable[[Tensor], Tensor]:
        """D: images (B, C, H, W) on [0, 1], in the dtype and on the device of `y`, to denoised ones."""
        if not self.needs_prior:
            return partial(self.load().to(y), sigma=self.sigma)
        alpha_bar = sampler.schedule.alphas_cumprod
        index = int(np.abs(np.log((1 - alpha_bar) / alpha_bar) - 2 * math.log(2 * self.sigma)).argmin())
        scale = math.sqrt(alpha_bar[index])
        return lambda v: (sampler.step(prior, scale * (2 * v - 1), index, randomness).x0_hat + 1) / 2
