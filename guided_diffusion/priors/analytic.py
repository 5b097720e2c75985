"""Priors whose score is known exactly, with the UNet's call: model(x_t, t) -> predicted noise [, variance channels]."""

from functools import partial

import torch
from torch import Tensor, nn

from guided_diffusion.schedule import Schedule


class AnalyticPrior(nn.Module):
    """The exact noise predictor eps = (x_t - sqrt(alpha_bar) E[x_0 | x_t]) / sqrt(1 - alpha_bar) of a known prior.

    Args:
        schedule: of the sampler that will call it, so that timesteps can be looked up.
    """

    def __init__(self, schedule: Schedule):
        super().__init__()
        self.schedule = schedule
        self.register_buffer("model_timesteps", torch.from_numpy(schedule.model_timesteps).float())

    def index(self, t: Tensor) -> Tensor:
        """The steps (B,) whose timesteps the network is shown as t (B,)."""
        return torch.searchsorted(self.model_timesteps, t.float() - 1e-3)


class GaussianPrior(AnalyticPrior):
    """Images ~ N(mean, C) with a stationary covariance C, diagonal in the orthonormal 2-D Fourier basis.

    Args:
        schedule: of the sampler that will call it.
        spectrum: variance of every Fourier mode, (H, W) or (C, H, W), 0 or more, symmetric under negation of the
            frequency; a number for white images of that pixel variance.
        mean: broadcasts to (C, H, W).
        learn_sigma: append variance channels for model_var_type "learned_range", whose variance is the mean over
            pixels of the exact Var(x_{t-1} | x_t); for a white spectrum that makes every step of DDPM exact.
    """

    def __init__(self, schedule: Schedule, spectrum: Tensor | float, mean: Tensor | float = 0.0,
                 learn_sigma: bool = False):
        super().__init__(schedule)
        self.register_buffer("spectrum", torch.as_tensor(spectrum, dtype=torch.float32))
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32))
        self.learn_sigma = learn_sigma

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, C, H, W), (B,) -> (B, C, H, W), or (B, 2C, H, W) with variance channels."""
        index = self.index(t)
        alpha_bar = self.schedule.at("alphas_cumprod", index, x_t)
        gain = (1 - alpha_bar).sqrt() / (alpha_bar * self.spectrum + 1 - alpha_bar)
        eps = torch.fft.ifft2(gain * torch.fft.fft2(x_t - alpha_bar.sqrt() * self.mean)).real
        return torch.cat([eps, self.variance_channels(x_t, index)], dim=1) if self.learn_sigma else eps

    def variance_channels(self, x_t: Tensor, index: Tensor) -> Tensor:
        """v in [-1, 1] for variances between beta_tilde and beta: (v + 1) / 2 interpolates their logarithms."""
        at = partial(self.schedule.at, index=index, like=x_t)
        alpha_bar = at("alphas_cumprod")
        x0_variance = self.spectrum * (1 - alpha_bar) / (alpha_bar * self.spectrum + 1 - alpha_bar)
        variance = at("posterior_variance") + at("posterior_mean_coef1") ** 2 * x0_variance
        variance = variance.mean(dim=(-2, -1), keepdim=True)
        low, high = at("posterior_log_variance_clipped"), at("log_betas")
        return (2 * (variance.log() - low) / (high - low) - 1).expand_as(x_t)


class MixturePrior(AnalyticPrior):
    """Images ~ sum_k weight_k N(means_k, std^2 I): several modes, so that posteriors can be multimodal.

    Args:
        schedule: of the sampler that will call it.
        means: (K, C, H, W).
        std: of every component, 0 or more.
        weights: (K,), positive, of any sum; equal when omitted.
    """

    def __init__(self, schedule: Schedule, means: Tensor, std: float, weights: Tensor | None = None):
        super().__init__(schedule)
        self.register_buffer("means", means)
        self.register_buffer("log_weights", (torch.ones(len(means)) if weights is None else weights).log())
        self.std = std

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, C, H, W), (B,) -> (B, C, H, W)."""
        alpha_bar = self.schedule.at("alphas_cumprod", self.index(t), x_t)
        variance = alpha_bar * self.std ** 2 + 1 - alpha_bar                            # of x_t in a component
        offsets = x_t[:, None] - alpha_bar.sqrt()[:, None] * self.means                 # (B, K, C, H, W)
        log_likelihood = -offsets.flatten(2).square().sum(2) / (2 * variance.view(-1, 1))
        responsibility = torch.softmax(self.log_weights + log_likelihood, dim=1)        # (B, K)
        return (1 - alpha_bar).sqrt() / variance * torch.einsum("bk,bkchw->bchw", responsibility, offsets)
