"""DCPS: Janati et al., "Divide-and-Conquer Posterior Sampling for Denoising Diffusion Priors", NeurIPS 2024."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import Sampler, Step
from guided_diffusion.measurements.conjugate_gradients import column, dot, norm
from guided_diffusion.measurements.data_steps import variance
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.method import register_conditioning_method
from guided_diffusion.solvers.base import Solver
from util.config.registry import Count, Positive, Repeats
from util.seeding import ImageRandomness

LARGE_IMAGE, MANY_STEPS = 3 * 256 ** 2, 300         # what the authors' lr is for


@register_conditioning_method("dcps")
class DivideAndConquer(Solver):
    """DCPS (Janati et al., 2024, Algorithm 1): blocks of steps, each towards the measurement at its own end, tau.

        g(x_t)  = N(sqrt(ab_tau) y; A m, V),     m = E[x_tau | x_t, x0_hat(x_t)]        x_t itself at t = tau

    At the start of a block x_t takes `langevin_steps` of tamed Langevin dynamics on g(x_t) p(x_t):

        x <- x + h s + sqrt(2 h) z,    s = grad log g - eps / sqrt(1 - ab),    h = gamma / (1 + gamma ||s||)

    Every step then fits N(mu, diag(e^(2 rho))) to g(x_{t-1}) p(x_{t-1} | x_t), from the transition N(mean, std^2) of
    ddim with eta = 1, by `fits` steps of length l along the gradients of

        KL(N(mu, diag(e^(2 rho))) || N(mean, std^2)) - E log g(mu + e^rho z)            one z

    with respect to mu and to rho, and draws x_{t-1} from it. The last block ends at the cleanest level, whose x0_hat is
    the restored image.

    Gradients of unit norm make lengths depend on the size and on the number of steps: l is lr for 256 x 256 pixels in
    300 steps, and goes with the root of the number of pixels, and with one over that of steps. It knows nothing of
    sigma: weaker noise than 0.05 takes more steps, or more fits, before y is met. A step takes fits + 1 evaluations of
    the network, `fits` of them with a backward pass; the last step of a block and that of the whole take one.

    Args:
        blocks: how many; the authors have 3, of equal numbers of timesteps.
        fits: gradient steps for every transition.
        lr: see above.
        langevin_steps, gamma: see above.
    """

    needs_linear = True
    guided = "all but the last; take more steps"

    def __init__(self, blocks: Repeats = 3, fits: Count = 2, lr: Positive = 1.5, langevin_steps: Count = 5,
                 gamma: Positive = 1e-3):
        self.blocks, self.fits, self.lr = blocks, fits, lr
        self.langevin_steps, self.gamma = langevin_steps, gamma

    def ends(self, sampler: Sampler) -> list[int]:
        """The first level, and the last one of every block."""
        return sorted({round(end) for end in np.linspace(0, sampler.num_steps - 1, self.blocks + 1)}, reverse=True)

    def guides(self, sampler: Sampler) -> bool:
        return sampler.num_steps > 1

    def num_evaluations(self, sampler: Sampler) -> int:
        of_blocks = [self.langevin_steps + first - tau + self.fits * (first - tau - 1)
                     for first, tau in pairwise(self.ends(sampler))]
        return sum(of_blocks) + 1

    def iterates(self, prior: Callable, sampler: Sampler, measurement: Measurement,
                 randomness: ImageRandomness) -> Iterator[tuple[Step, Tensor]]:
        schedule, n = sampler.schedule, sampler.num_steps
        x = randomness.randn_like(measurement.y.new_empty(measurement.image_shape))
        length = self.lr * math.sqrt(x[0].numel() / LARGE_IMAGE) * MANY_STEPS / n
        for first, tau in pairwise(self.ends(sampler)):
            def pull(x: Tensor, index: int, tau: int = tau) -> tuple[Tensor, Step | None]:
                return self.pull(prior, sampler, measurement, x, index, tau, randomness)

            for _ in range(self.langevin_steps):
                gradient, step = pull(x, first)
                score = gradient - step.eps / math.sqrt(1 - step.alpha_bar)
                h = column(self.gamma / (1 + self.gamma * norm(score)), x)
                x = x + h * score + (2 * h).sqrt() * randomness.randn_like(x)
            for index in range(first, tau, -1):
                step = sampler.step(prior, x, index, randomness)
                std = math.sqrt(schedule.posterior_variance[index])
                mean = schedule.posterior_mean(step.x0_hat, x, index)
                mu, rho = mean, torch.full_like(mean, math.log(std))
                for _ in range(self.fits):
                    spread = rho.exp() * randomness.randn_like(mu)
                    gradient, _ = pull(mu + spread, index - 1)
                    along_mu = (mu - mean) / std ** 2 - gradient
                    along_rho = rho.exp() ** 2 / std ** 2 - 1 - gradient * spread
                    mu = mu - column(length / norm(along_mu), mu) * along_mu
                    rho = rho - column(length / norm(along_rho), rho) * along_rho
                x = mu + rho.exp() * randomness.randn_like(mu)
                yield step, x
        step = sampler.step(prior, x, 0, randomness)
        yield step, step.x0_hat

    def pull(self, prior: Callable, sampler: Sampler, measurement: Measurement, x_t: Tensor, index: int, tau: int,
             randomness: ImageRandomness) -> tuple[Tensor, Step | None]:
        """The gradient of log g at x_t, (B, C, H, W), and the step that it came from, None at tau."""
        ab_tau = sampler.schedule.alphas_cumprod[tau]
        with torch.enable_grad():
            x_t, step, m = x_t.detach().requires_grad_(), None, None
            if index > tau:
                step = sampler.step(prior, x_t, index, randomness)
                ratio = step.alpha_bar / ab_tau         # of the signal that is left between tau and t
                m = (math.sqrt(ab_tau) * (1 - ratio) * step.x0_hat + math.sqrt(ratio) * (1 - ab_tau) * x_t
                     ) / (1 - step.alpha_bar)
            residual = math.sqrt(ab_tau) * measurement.y - measurement.operator(x_t if m is None else m)
            log_g = -dot(residual, residual / variance(measurement)) / 2
            return torch.autograd.grad(log_g.sum(), x_t)[0], step
