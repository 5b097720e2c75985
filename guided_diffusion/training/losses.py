"""The training loss of Nichol & Dhariwal (2021), "Improved Denoising Diffusion Probabilistic Models", its bound, and
weights of its timesteps."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guided_diffusion.posterior_mean_variance import EpsilonXMeanProcessor, LearnedRangeVarianceProcessor
from guided_diffusion.schedule import Schedule
from util.img_utils import PIXEL_STEP

LossWeight = Literal["none", "min_snr", "p2"]
SNR_LIMIT = 5.0                                     # gamma of min-SNR
SQUARES = (4, 16, 64)                               # sides, in pixels, of the means in `coarse_errors`
MEAN_VARIANCE = 0.25                                # of such means over photographs on [-1, 1]


def loss_weights(schedule: Schedule, kind: LossWeight) -> Tensor:
    """Weight of each timestep's squared error of eps, (T,) float32 of mean 1; SNR = alpha_bar / (1 - alpha_bar).

    "none": 1, as Ho et al. (2020). "min_snr": min(SNR, 5) / SNR, Hang et al. (2023), "Efficient Diffusion Training via
    Min-SNR Weighting Strategy". "p2": 1 / (1 + SNR), Choi et al. (2022), "Perception Prioritized Training of Diffusion
    Models". Both take weight from the least noise, whose details matter less to what an image shows.
    """
    snr = torch.from_numpy(schedule.alphas_cumprod / (1 - schedule.alphas_cumprod))
    weights = {"none": torch.ones_like(snr), "min_snr": snr.clamp(max=SNR_LIMIT) / snr, "p2": 1 / (1 + snr)}[kind]
    return (weights / weights.mean()).float()


def random_steps(steps: int, power: float, count: int, generator: torch.Generator) -> Tensor:
    """Timesteps to train on, (count,) integers in 0..steps - 1: steps u^power rounded down, u uniform on [0, 1).

    1 is the uniform distribution of Ho et al. (2020), drawn as torch draws integers. With 2 the first tenth of the
    timesteps, those with the least noise, are 32 % of them.
    """
    if power == 1:
        return torch.randint(steps, (count,), generator=generator, device=generator.device)
    u = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
    return (steps * u ** power).long()


def coarse_errors(error: Tensor, snr: Tensor) -> Tensor:
    """What an error of eps, (B, 3, H, W), does to colours and coarse shapes, at SNRs (B,) -> (B,), in float32.

    Pooled as in the multiscale loss of Hoogeboom et al. (2023), "simple diffusion": the squared error of the means over
    squares of s x s pixels, s = 4, 16 and 64, times s^2, so that such a mean of N(0, I) counts as a pixel does. Each is
    weighted as P2 would at its own SNR, 1 / (1 + s^2 SNR / 4): a mean of noise far below the image's is lost in it.
    """
    total = torch.zeros_like(snr)
    for side in SQUARES:
        if side <= min(error.shape[-2:]):
            squares = (F.avg_pool2d(error, side) * side).square().flatten(1).mean(1)
            total = total + squares / (1 + MEAN_VARIANCE * side ** 2 * snr)
    return total


class HybridLoss(nn.Module):
    """L_simple + weight L_vlb (Nichol & Dhariwal, 2021, eq. 16) for a network that predicts eps and learned_range.

    Args:
        schedule: the forward process, with all its timesteps.
        vlb_weight: of the bound, which is summed over the timesteps in bits per dimension; 0.001 in the paper.
        loss_weight: of the timesteps in L_simple, see `loss_weights`.
        coarse_weight: of `coarse_errors`, which L_simple hardly counts: an error of 1 in the mean colour of eps, which
            makes strong noise a wrong colour of the whole image, is 3 of 3 H W squares.
    """

    def __init__(self, schedule: Schedule, vlb_weight: float, loss_weight: LossWeight = "none",
                 coarse_weight: float = 0.0):
        super().__init__()
        self.register_buffer("weights", loss_weights(schedule, loss_weight))
        self.schedule, self.vlb_weight, self.coarse_weight = schedule, vlb_weight, coarse_weight
        self.mean = EpsilonXMeanProcessor(schedule, clip_denoised=False)
        self.variance = LearnedRangeVarianceProcessor(schedule)

    def forward(self, model: nn.Module, x0: Tensor, index: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Clean crops (B, 3, s, s), steps (B,), N(0, I) like x0 -> mean loss, mean squared error of eps (scalars).

        The second is not weighted.
        """
        squares, bits, coarse = self.terms(model, x0, index, noise)
        loss = (self.weights[index] * squares + self.coarse_weight * coarse).mean()
        return loss + self.vlb_weight * self.schedule.num_steps * bits.mean(), squares.detach().mean()

    def terms(self, model: nn.Module, x0: Tensor, index: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same -> of each image, (B,): mean squared error of eps, bound in bits per dimension, `coarse_errors`."""
        x_t = self.schedule.q_sample(x0, index, noise)
        eps, variance = model(x_t, self.schedule.model_timestep(index, x_t)).chunk(2, dim=1)
        error = eps - noise
        alpha_bar = self.schedule.at("alphas_cumprod", index, x0).flatten()
        bits = self._bits(x0, x_t, index, eps.detach(), variance)
        return error.square().flatten(1).mean(1), bits, coarse_errors(error, alpha_bar / (1 - alpha_bar))

    def _bits(self, x0: Tensor, x_t: Tensor, index: Tensor, eps: Tensor, variance: Tensor) -> Tensor:
        """One term of the variational bound for each image, in bits per dimension: (B,)."""
        mean = self.mean.mean(x_t, index, eps, self.mean.x0_hat(x_t, index, eps))
        log_variance = self.variance.log_variance(index, variance, x_t)
        true_mean = self.schedule.posterior_mean(x0, x_t, index)
        true_log_variance = self.schedule.at("posterior_log_variance_clipped", index, x0)
        # KL(N(m1, v1) || N(m2, v2)) = (log v2 - log v1 + v1 / v2 + (m1 - m2)^2 / v2 - 1) / 2
        kl = 0.5 * (log_variance - true_log_variance + (true_log_variance - log_variance).exp()
                    + (true_mean - mean) ** 2 * (-log_variance).exp() - 1)
        first = (index == 0).view(-1, 1, 1, 1)
        nats = torch.where(first, discretised_nll(x0, mean, log_variance), kl)
        return nats.flatten(1).mean(1) / math.log(2)


def discretised_nll(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log of the probability that N(mean, variance) gives to the 8-bit level of x0 (Ho et al., 2020, eq. 13).

    The lowest and the highest level take the tails. Elementwise, in nats.
    """
    std = (0.5 * log_variance).exp()
    upper = torch.special.ndtr((x0 + PIXEL_STEP / 2 - mean) / std)
    lower = torch.special.ndtr((x0 - PIXEL_STEP / 2 - mean) / std)
    upper = torch.where(x0 > 1 - PIXEL_STEP / 2, 1.0, upper)
    lower = torch.where(x0 < -1 + PIXEL_STEP / 2, 0.0, lower)
    return -(upper - lower).clamp_min(1e-12).log()
