"""What a network predicts: processors from its output to x0_hat, eps, mean and variance of p(x_{t-1} | x_t).

Indices are an int (one step for the whole batch) or a tensor (B,) (training), always of the respaced process.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from guided_diffusion.schedule import Schedule
from util.config.registry import Registry

MEAN_PROCESSORS = Registry("model_mean_type")
VAR_PROCESSORS = Registry("model_var_type")
register_mean_processor = MEAN_PROCESSORS.register
register_var_processor = VAR_PROCESSORS.register


def dynamic_threshold(x0: Tensor, quantile: float = 0.95) -> Tensor:
    """Imagen's dynamic thresholding (Saharia et al., 2022, section 2.3) of images (B, ...), each by its own quantile.

    With s = max(1, quantile of |x0|): clamp to [-s, s], then divide by s, so the result lies in [-1, 1].
    """
    magnitudes = x0.abs().flatten(1)                # of any number, while torch.quantile takes 2^24 at most
    rank = quantile * (magnitudes.shape[1] - 1)
    below, above = (magnitudes.kthvalue(1 + k, dim=1).values for k in (math.floor(rank), math.ceil(rank)))
    s = torch.lerp(below, above, rank - math.floor(rank)).clamp_min(1).view(-1, *[1] * (x0.dim() - 1))
    return x0.clamp(-s, s) / s


class MeanProcessor(ABC):
    """From the network's first three channels to x0_hat, eps and the mean of p(x_{t-1} | x_t).

    Args:
        dynamic_threshold: threshold x0_hat per image, see `dynamic_threshold`.
        clip_denoised: clamp x0_hat to [-1, 1]; gradients vanish where it saturates.
    """

    name: str                                       # set by the registry

    def __init__(self, schedule: Schedule, dynamic_threshold: bool = False, clip_denoised: bool = True):
        self.schedule = schedule
        self.dynamic_threshold, self.clip_denoised = dynamic_threshold, clip_denoised

    @abstractmethod
    def raw_x0(self, x_t: Tensor, index: int | Tensor, output: Tensor) -> Tensor:
        """The clean image that the network's output stands for, before any threshold: (B, C, H, W)."""

    def eps(self, x_t: Tensor, index: int | Tensor, output: Tensor) -> Tensor:
        """The noise that the network's output stands for: (x_t - sqrt(alpha_bar) x0) / sqrt(1 - alpha_bar)."""
        at = self.schedule.at
        x0 = self.raw_x0(x_t, index, output)
        signal, noise = at("sqrt_alphas_cumprod", index, x_t), at("sqrt_one_minus_alphas_cumprod", index, x_t)
        return (x_t - signal * x0) / noise

    def process_xstart(self, x0: Tensor) -> Tensor:
        """Apply the thresholds that were asked for."""
        if self.dynamic_threshold:
            x0 = dynamic_threshold(x0)
        return x0.clamp(-1, 1) if self.clip_denoised else x0

    def x0_hat(self, x_t: Tensor, index: int | Tensor, output: Tensor) -> Tensor:
        """The posterior mean E[x_0 | x_t] (DPS eq. 10) after the thresholds: (B, C, H, W)."""
        return self.process_xstart(self.raw_x0(x_t, index, output))

    def mean(self, x_t: Tensor, index: int | Tensor, output: Tensor, x0_hat: Tensor) -> Tensor:
        """The mean of q(x_{t-1} | x_t, x_0 = x0_hat) (Ho et al., 2020, eq. 7)."""
        return self.schedule.posterior_mean(x0_hat, x_t, index)


@register_mean_processor("epsilon")
class EpsilonXMeanProcessor(MeanProcessor):
    """The network predicts the noise: x0 = (x_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar)."""

    def raw_x0(self, x_t: Tensor, index: int | Tensor, output: Tensor) -> Tensor:
        at = self.schedule.at
        return (at("sqrt_recip_alphas_cumprod", index, x_t) * x_t
                - at("sqrt_recipm1_alphas_cumprod", index, x_t) * output)

    def eps(self, x_t: Tensor, index: int | Tensor, output: Tensor) -> Tensor:
        return output


@register_mean_processor("start_x")
class StartXMeanProcessor(MeanProcessor):
    """The network predicts the clean image."""

    def raw_x0(self, x_t: Tensor, index: int | Tensor, output: Tensor) -> Tensor:
        return output


@register_mean_processor("v_prediction")
class VPredictionMeanProcessor(MeanProcessor):
    """The network predicts v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0 (Salimans & Ho, 2022, section 4).

    So x0 = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v and eps = sqrt(1 - alpha_bar) x_t + sqrt(alpha_bar) v.
    """

    def raw_x0(self, x_t: Tensor, index: int | Tensor, output: Tensor) -> Tensor:
        at = self.schedule.at
        return (at("sqrt_alphas_cumprod", index, x_t) * x_t
                - at("sqrt_one_minus_alphas_cumprod", index, x_t) * output)

    def eps(self, x_t: Tensor, index: int | Tensor, output: Tensor) -> Tensor:
        at = self.schedule.at
        return (at("sqrt_one_minus_alphas_cumprod", index, x_t) * x_t
                + at("sqrt_alphas_cumprod", index, x_t) * output)


@register_mean_processor("previous_x")
class PreviousXMeanProcessor(MeanProcessor):
    """The network predicts the mean of x_{t-1} itself; x0 is what would give that mean."""

    def raw_x0(self, x_t: Tensor, index: int | Tensor, output: Tensor) -> Tensor:
        at = self.schedule.at
        coef1, coef2 = at("posterior_mean_coef1", index, x_t), at("posterior_mean_coef2", index, x_t)
        return (output - coef2 * x_t) / coef1

    def mean(self, x_t: Tensor, index: int | Tensor, output: Tensor, x0_hat: Tensor) -> Tensor:
        return output


class VarianceProcessor(ABC):
    """From the network's last three channels, where it has them, to the log variance of p(x_{t-1} | x_t)."""

    name: str                                       # set by the registry
    learned = False                                 # whether the network must have variance channels

    def __init__(self, schedule: Schedule):
        self.schedule = schedule

    @abstractmethod
    def log_variance(self, index: int | Tensor, output: Tensor | None, like: Tensor) -> float | Tensor:
        """Finite log variance, a number or a tensor that broadcasts to the image `like` (B, C, H, W).

        Args:
            output: the variance channels (B, C, H, W); None where the network has none.
        """


@register_var_processor("learned")
class LearnedVarianceProcessor(VarianceProcessor):
    """The network predicts the log variance itself."""

    learned = True

    def log_variance(self, index: int | Tensor, output: Tensor | None, like: Tensor) -> float | Tensor:
        return output


@register_var_processor("learned_range")
class LearnedRangeVarianceProcessor(VarianceProcessor):
    """The network interpolates between log beta_tilde (at -1) and log beta (at 1) (Nichol & Dhariwal, 2021, eq. 15)."""

    learned = True

    def log_variance(self, index: int | Tensor, output: Tensor | None, like: Tensor) -> float | Tensor:
        low = self.schedule.at("posterior_log_variance_clipped", index, like)
        high = self.schedule.at("log_betas", index, like)
        fraction = (output + 1) / 2
        return fraction * high + (1 - fraction) * low


@register_var_processor("fixed_small")
class FixedSmallVarianceProcessor(VarianceProcessor):
    """beta_tilde, optimal for a single known x_0; at index 0, where it is 0, the value of index 1."""

    def log_variance(self, index: int | Tensor, output: Tensor | None, like: Tensor) -> float | Tensor:
        return self.schedule.at("posterior_log_variance_clipped", index, like)


@register_var_processor("fixed_large")
class FixedLargeVarianceProcessor(VarianceProcessor):
    """beta, optimal for x_0 ~ N(0, I); at index 0 beta_tilde of index 1, for a better decoder likelihood."""

    def log_variance(self, index: int | Tensor, output: Tensor | None, like: Tensor) -> float | Tensor:
        return self.schedule.at("log_betas_clipped", index, like)
