"""Priors whose score is known exactly, with the UNet's call: model(x_t, t) -> predicted noise [, variance channels]."""

import torch
from torch import Tensor, nn

from guided_diffusion.priors.distributions import Distribution
from guided_diffusion.schedule import Schedule


class AnalyticPrior(nn.Module):
    """The exact noise predictor eps = (x_t - sqrt(alpha_bar) E[x_0 | x_t]) / sqrt(1 - alpha_bar) of a distribution.

    Args:
        schedule: of the sampler that will call it, so that timesteps can be looked up.
        distribution: of the images.
        learn_sigma: append variance channels for model_var_type "learned_range": the exact variance of each value of
            x_{t-1} given x_t, beta_tilde + c1^2 Var(x_0 | x_t) with c1 the factor of x_0 in its mean.
    """

    def __init__(self, schedule: Schedule, distribution: Distribution, learn_sigma: bool = False):
        super().__init__()
        self.schedule, self.distribution, self.learn_sigma = schedule, distribution, learn_sigma
        self.register_buffer("model_timesteps", torch.from_numpy(schedule.model_timesteps).float())

    def index(self, t: Tensor) -> Tensor:
        """The steps (B,) whose timesteps the network is shown as t (B,)."""
        return torch.searchsorted(self.model_timesteps, t.float() - 1e-3)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, C, H, W), (B,) -> (B, C, H, W), or (B, 2C, H, W) with variance channels."""
        index = self.index(t)
        alpha_bar = self.schedule.at("alphas_cumprod", index, x_t)
        eps = -(1 - alpha_bar).sqrt() * self.distribution.score(x_t, alpha_bar)
        return torch.cat([eps, self.variance_channels(x_t, index)], dim=1) if self.learn_sigma else eps

    def variance_channels(self, x_t: Tensor, index: Tensor) -> Tensor:
        """v for the variances between beta_tilde and beta: (v + 1) / 2 interpolates their logarithms; (B, C, H, W)."""
        ab, beta_tilde, c1, low, high = (self.schedule.at(name, index, x_t) for name in (
            "alphas_cumprod", "posterior_variance", "posterior_mean_coef1", "posterior_log_variance_clipped",
            "log_betas"))
        variance = beta_tilde + c1 ** 2 * self.distribution.x0_variance(x_t, ab)
        return (2 * (variance.log() - low) / (high - low) - 1).expand_as(x_t)
