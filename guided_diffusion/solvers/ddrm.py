"""DDRM: Kawar et al., "Denoising Diffusion Restoration Models", NeurIPS 2022."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import Sampler, Step
from guided_diffusion.measurements.base import LinearOperator, Noise, Operator
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.method import register_conditioning_method
from guided_diffusion.schedule import NEARLY_CLEAN
from guided_diffusion.solvers.base import Solver
from util.config.registry import Count, Fraction
from util.errors import UserError
from util.seeding import ImageRandomness

ROUNDINGS = 10                                      # of y, that a measurement without noise is uncertain by


class Spectrum:
    """A measurement y = U S V^T x + noise of standard deviation sigma, coefficient by coefficient.

    What is called noise is never less than the rounding of y, so that no singular value divides it by zero. Random
    numbers are drawn as images and rotated by V^T, so that nothing depends on how the singular vectors were chosen.

    Attributes:
        y_bar: V's coefficients of the image as y has them, (U^T y) / s, 0 where s is 0; (B, C, H, W).
    """

    def __init__(self, measurement: Measurement):
        y = measurement.y
        self.svd = measurement.operator.svd()
        self.sigma = max(measurement.noiser.white_sigma, ROUNDINGS * torch.finfo(y.dtype).eps)
        self.seen = (self.svd.singular > 0).to(y)
        self.s, self.noise = self.svd.singular.to(y), self.sigma * self.svd.inverse.to(y)
        self.y_bar = self.svd.inverse.to(y) * self.svd.ut(y)

    def start(self, tau: float, z: Tensor) -> Tensor:
        """x_0 at the noise level tau, what y tells of it included: V v, (B, C, H, W); z is white, of the same shape.

            v ~ N(y_bar, tau^2 - sigma^2 / s^2)     where s tau > sigma
            v ~ N(0, tau^2)                         elsewhere
        """
        known = (self.s * tau > self.sigma).to(z)
        return self.svd.v(known * self.y_bar + (tau ** 2 - known * self.noise ** 2).clamp_min(0).sqrt()
                          * self.svd.vt(z))

    def transition(self, x0_hat: Tensor, eps: Tensor, tau: float, eta: float, eta_b: float, z: Tensor) -> Tensor:
        """x_0 at the noise level tau of the next state: V v with p = V^T x0_hat and

            v = p + sqrt(1 - eta^2) tau V^T eps + eta tau z                                 where s = 0
            v = p + sqrt(1 - eta^2) tau (y_bar - p) s / sigma + eta tau z                   where s tau < sigma
            v = (1 - eta_b) p + eta_b y_bar + sqrt(tau^2 - eta_b^2 sigma^2 / s^2) z         where s tau > sigma

        Images are (B, C, H, W). At tau = 0 it is x0_hat.
        """
        p, z = self.svd.vt(x0_hat), self.svd.vt(z)
        direction = torch.where(self.seen > 0, (self.y_bar - p) * self.s / self.sigma, self.svd.vt(eps))
        vague = p + tau * (math.sqrt(1 - eta ** 2) * direction + eta * z)
        spread = (tau ** 2 - (eta_b * self.noise) ** 2).clamp_min(0).sqrt()
        clear = (1 - eta_b) * p + eta_b * self.y_bar + spread * z
        return self.svd.v(torch.where(self.s * tau > self.sigma, clear, vague))


def is_white(noiser: Noise | None) -> bool:
    """Whether the noise is white and Gaussian, or absent."""
    return noiser is None or noiser.white_sigma is not None


def levels(sampler: Sampler, steps: int) -> list[int]:
    """`steps` indices of the sampler's process, or all if it has fewer, evenly strided; as in the released code 20 of
    1000 are 950, 900, ..., 0."""
    count = min(steps, sampler.num_steps)
    return [i * sampler.num_steps // count for i in reversed(range(count))]


def noise_level(alpha_bar: float) -> float:
    """sqrt((1 - alpha_bar) / alpha_bar): that of x_t / sqrt(alpha_bar) as x_0 + noise."""
    return math.sqrt((1 - alpha_bar) / alpha_bar)


def check_levels(sampler: Sampler, steps: int) -> None:
    """UserError where `levels` begin at a nearly clean one, while the restoration begins from noise."""
    start = levels(sampler, steps)[0]
    if (alpha_bar := sampler.schedule.alphas_cumprod[start]) > NEARLY_CLEAN:
        raise UserError(f"steps: {steps} begins at t = {sampler.schedule.timesteps[start]}, where images are nearly "
                        f"clean (alpha_bar {alpha_bar:.4g}), but from noise; take more steps")


def predicted_noise(step: Step) -> Tensor:
    """The noise in x_t that agrees with x0_hat after the thresholds, (B, C, H, W)."""
    return (step.x_t - math.sqrt(step.alpha_bar) * step.x0_hat) / math.sqrt(1 - step.alpha_bar)


@register_conditioning_method("ddrm")
class DenoisingDiffusionRestoration(Solver):
    """DDRM: every coefficient in the basis of A's singular vectors at its own noise level; see `Spectrum`.

        x_T  = V v / tau_T                                      `Spectrum.start`, as in the released code
        x_t' = sqrt(ab') V v                                    `Spectrum.transition`

    with tau = sqrt((1 - ab) / ab) of the process' states, ab' of the next one (eq. 4 to 8 with eta of all kinds alike).
    The released code differs in its operators: blurs lose their last tap and scramble the channels' filters, and
    singular values below 0.03 count as 0. Its samples are restorations, not samples of the posterior.

    Args:
        steps: network evaluations, evenly strided through the process; all of its steps where it has fewer.
        eta: share of fresh noise where y says nothing, or less than the state.
        eta_b: share of y where it says more than the state.
    """

    needs = "an operator with a closed singular value decomposition, and noise gaussian or clean"

    def __init__(self, steps: Count = 20, eta: Fraction = 0.85, eta_b: Fraction = 1.0):
        self.steps, self.eta, self.eta_b = steps, eta, eta_b

    @classmethod
    def serves(cls, operator: Operator, noiser: Noise | None = None) -> bool:
        return isinstance(operator, LinearOperator) and operator.has_svd and is_white(noiser)

    def check_process(self, sampler: Sampler) -> None:
        check_levels(sampler, self.steps)

    def num_steps(self, sampler: Sampler) -> int:
        """The evaluations of the network."""
        return len(levels(sampler, self.steps))

    def iterates(self, prior: Callable, sampler: Sampler, measurement: Measurement,
                 randomness: ImageRandomness) -> Iterator[tuple[Step, Tensor]]:
        spectrum, alpha_bar = Spectrum(measurement), sampler.schedule.alphas_cumprod
        indices = levels(sampler, self.steps)
        z = randomness.randn_like(measurement.y.new_empty(measurement.image_shape))
        tau = noise_level(alpha_bar[indices[0]])
        x_t = spectrum.start(tau, z) / tau
        for index, ab_next in zip(indices, [*alpha_bar[indices[1:]], 1.0], strict=True):
            step = sampler.step(prior, x_t, index, randomness)
            x_t = math.sqrt(ab_next) * spectrum.transition(
                step.x0_hat, predicted_noise(step), noise_level(ab_next), self.eta, self.eta_b,
                randomness.randn_like(x_t))
            yield step, x_t
