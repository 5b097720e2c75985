"""The reverse process: one step as a distribution, DDPM and DDIM."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guided_diffusion.posterior_mean_variance import (
    MEAN_PROCESSORS,
    VAR_PROCESSORS,
    MeanProcessor,
    VarianceProcessor,
)
from guided_diffusion.schedule import Schedule
from util.config.registry import Fraction, Registry, check_arguments
from util.errors import UserError
from util.seeding import ImageRandomness

SAMPLERS = Registry("sampler")
register_sampler = SAMPLERS.register


@dataclass(frozen=True)
class Step:
    """One reverse transition x_t -> x_{t-1} ~ N(mean, std^2); tensors are (B, C, H, W).

    In a loop that needs gradients, `x_t` is a leaf and `x0_hat` carries the graph back to it; nothing else does.
    For all mean types but previous_x, mean = x0_coef x0_hat + x_t_coef x_t.
    """

    index: int                                      # 0 is the last step
    x_t: Tensor
    x0_hat: Tensor                                  # after the thresholds
    eps: Tensor                                     # the predicted noise before any threshold
    mean: Tensor
    std: Tensor
    deterministic: bool                             # whether std is 0, as at index 0 and in ddim with eta = 0
    alpha_bar: float
    alpha_bar_prev: float
    x0_coef: float
    x_t_coef: float
    timestep: int                                   # noise level of x_t among those of the training, the noisiest last
    num_train_steps: int
    stride: int                                     # levels of the training from x_t to x_{t-1}, 1 if none is left out
    randomness: ImageRandomness

    def sample(self) -> Tensor:
        """Draw x_{t-1} (B, C, H, W)."""
        return self.mean + self.std * self.randomness.randn_like(self.mean)


class Sampler(ABC):
    """A reverse process: a schedule, the reading of the network's output, and the transition of one step.

    Args:
        schedule: the (respaced) process.
        mean_processor, var_processor: what the network's channels say.
        eta: stochasticity of `DDIM`, 0 to 1; the others have none.
    """

    name: str                                       # set by the registry

    def __init__(self, schedule: Schedule, mean_processor: MeanProcessor, var_processor: VarianceProcessor,
                 eta: float = 0.0):
        self.schedule, self.mean_processor, self.var_processor = schedule, mean_processor, var_processor
        self.eta = eta

    @property
    def num_steps(self) -> int:
        """Steps of the loop, one network evaluation each."""
        return self.schedule.num_steps

    @property
    def learned_variance(self) -> bool:
        """Whether the network must have variance channels."""
        return self.var_processor.learned

    def check_model_channels(self, out_channels: int, image_channels: int = 3) -> None:
        """Raise UserError if a network of `out_channels` contradicts the variance type."""
        if out_channels != image_channels * (2 if self.learned_variance else 1):
            learn_sigma = str(self.learned_variance).lower()
            remedy = "fixed_small or fixed_large" if self.learned_variance else "learned_range"
            raise UserError(f"the network has {out_channels} output channels, but model_var_type "
                            f"'{self.var_processor.name}' needs learn_sigma: {learn_sigma}; "
                            f"set that if it fits the checkpoint, else set model_var_type: {remedy}")

    def q_sample(self, x0: Tensor, index: int | Tensor, noise: Tensor) -> Tensor:
        """x0 at the noise level of `index`, see `Schedule.q_sample`."""
        return self.schedule.q_sample(x0, index, noise)

    @abstractmethod
    def mean_coefficients(self, index: int) -> tuple[float, float]:
        """The factors of x0_hat and x_t in the mean of x_{t-1}."""

    def deterministic(self, index: int) -> bool:
        """Whether the transition at `index` has no noise."""
        return index == 0

    @abstractmethod
    def mean_and_std(self, x_t: Tensor, index: int, x0_hat: Tensor, output: Tensor,
                     var_output: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x_{t-1}, (B, C, H, W) each, the latter 0 at index 0.

        Args:
            output: the network's mean channels (B, C, H, W).
            var_output: its variance channels (B, C, H, W), None where it has none.
        """

    def step(self, model: Callable, x_t: Tensor, index: int, randomness: ImageRandomness) -> Step:
        """The transition from x_t (B, C, H, W) at `index`; x0_hat has a graph if gradients are enabled."""
        channels = x_t.shape[1]
        output = model(x_t, self.schedule.model_timestep(index, x_t))
        _check_output(output, x_t)
        self.check_model_channels(output.shape[1], channels)
        output, var_output = output[:, :channels], output[:, channels:] if self.learned_variance else None
        x0_hat = self.mean_processor.x0_hat(x_t, index, output)
        with torch.no_grad():
            eps = self.mean_processor.eps(x_t, index, output).detach()
            mean, std = self.mean_and_std(x_t, index, x0_hat, output, var_output)
        x0_coef, x_t_coef = self.mean_coefficients(index)
        return Step(index, x_t, x0_hat, eps, mean.detach(), std, self.deterministic(index),
                    float(self.schedule.alphas_cumprod[index]), float(self.schedule.alphas_cumprod_prev[index]),
                    x0_coef, x_t_coef, int(self.schedule.timesteps[index]), self.schedule.num_train_steps,
                    self.schedule.stride(index), randomness)


def _check_output(output: object, x_t: Tensor) -> None:
    """UserError unless a prior gives (B, ..., H, W) for x_t (B, C, H, W), in no wider a dtype, with a gradient where
    x_t asks for one."""
    if not isinstance(output, Tensor):
        raise UserError(f"the prior gives a {type(output).__name__}, expected a tensor")
    alike = output.shape[:1] + output.shape[2:] == x_t.shape[:1] + x_t.shape[2:]
    if not alike or torch.promote_types(output.dtype, x_t.dtype) != x_t.dtype:
        raise UserError(f"the prior gives {list(output.shape)} of {output.dtype} for images of {list(x_t.shape)} and "
                        f"{x_t.dtype}; expected the same, or twice as many channels")
    if torch.is_grad_enabled() and x_t.requires_grad and not output.requires_grad:
        raise UserError("the prior gives no gradient with respect to x_t, which this method needs; let it run without "
                        "torch.no_grad, detach and numpy")


@register_sampler("ddpm")
class DDPM(Sampler):
    """Ancestral sampling (Ho et al., 2020, Algorithm 2) with the network's mean and variance types."""

    def mean_coefficients(self, index: int) -> tuple[float, float]:
        return float(self.schedule.posterior_mean_coef1[index]), float(self.schedule.posterior_mean_coef2[index])

    def mean_and_std(self, x_t: Tensor, index: int, x0_hat: Tensor, output: Tensor,
                     var_output: Tensor | None) -> tuple[Tensor, Tensor]:
        mean = self.mean_processor.mean(x_t, index, output, x0_hat)
        if index == 0:
            return mean, torch.zeros_like(x_t)
        log_variance = self.var_processor.log_variance(index, var_output, x_t)
        if isinstance(log_variance, float):
            return mean, x_t.new_full((), math.exp(log_variance / 2)).expand_as(x_t)
        return mean, torch.exp(log_variance / 2)


@register_sampler("ddim")
class DDIM(Sampler):
    """Song et al. (2021), eq. 12, eps recomputed from the thresholded x0_hat; the variance type plays no part.

    sigma = eta sqrt((1 - ab') / (1 - ab)) sqrt(1 - ab / ab'), ab' = alpha_bar of the next state;
    x' = sqrt(ab') x0_hat + sqrt(1 - ab' - sigma^2) eps + sigma z. eta = 0 is deterministic, eta = 1 is DDPM
    with fixed_small.
    """

    def sigma(self, index: int) -> float:
        """The standard deviation of the step at `index`."""
        ab, prev = self.schedule.alphas_cumprod[index], self.schedule.alphas_cumprod_prev[index]
        return float(self.eta * math.sqrt((1 - prev) / (1 - ab)) * math.sqrt(1 - ab / prev))

    def deterministic(self, index: int) -> bool:
        return self.sigma(index) == 0

    def mean_coefficients(self, index: int) -> tuple[float, float]:
        ab, prev = self.schedule.alphas_cumprod[index], self.schedule.alphas_cumprod_prev[index]
        direction = math.sqrt(max(1 - prev - self.sigma(index) ** 2, 0.0))
        x_t_coef = direction / math.sqrt(1 - ab)
        return math.sqrt(prev) - math.sqrt(ab) * x_t_coef, x_t_coef

    def mean_and_std(self, x_t: Tensor, index: int, x0_hat: Tensor, output: Tensor,
                     var_output: Tensor | None) -> tuple[Tensor, Tensor]:
        x0_coef, x_t_coef = self.mean_coefficients(index)
        return x0_coef * x0_hat + x_t_coef * x_t, x_t.new_full((), self.sigma(index)).expand_as(x_t)


@register_sampler("renoise")
class Renoise(DDIM):
    """DDIM with the largest sigma that its eq. 12 allows, so that nothing is left of x_t but its x0_hat.

    x' = sqrt(ab') x0_hat + sqrt(1 - ab') z, the step of DiffPIR with zeta = 1 (Zhu et al., "Denoising Diffusion Models
    for Plug-and-Play Image Restoration", CVPR Workshops 2023). Every step starts from the mean of what x_t tells, while
    ddpm and ddim carry on what chance and errors have put into x_t. So its samples lie between samples and the mean of
    the posterior: nearer to the truth, but too alike. With a Gaussian prior and many steps they have half the variance.
    """

    def sigma(self, index: int) -> float:
        return math.sqrt(1 - self.schedule.alphas_cumprod_prev[index])


def create_sampler(
    sampler: str = "ddpm",
    steps: int = 1000,
    noise_schedule: str | Sequence[float] = "linear",
    model_mean_type: str = "epsilon",
    model_var_type: str = "learned_range",
    dynamic_threshold: bool = False,
    clip_denoised: bool = True,
    rescale_timesteps: bool = False,
    timestep_respacing: int | str | list[int] | None = "",
    eta: Fraction = 0.0,
) -> Sampler:
    """Build a sampler from a diffusion config (DPS's keys, plus `eta` for ddim).

    Args:
        sampler: "ddpm", "ddim" or "renoise".
        steps: length of the process that the network was trained with.
        noise_schedule: "linear" or "cosine", or the betas of all steps.
        model_mean_type: "epsilon", "start_x", "v_prediction" or "previous_x".
        model_var_type: "learned", "learned_range", "fixed_small" or "fixed_large".
        dynamic_threshold, clip_denoised: thresholds of x0_hat, see `MeanProcessor`.
        rescale_timesteps: show the network timesteps on a scale of 1000 whatever `steps` is.
        timestep_respacing: which steps to take, see `space_timesteps`; "" or null for all.
        eta: stochasticity of ddim, between 0 (deterministic) and 1 (ddpm's, which may be named for ddpm, too).

    Raises:
        UserError: a wrong type, an unknown name, or an impossible value.
    """
    check_arguments(create_sampler, dict(locals()), "diffusion config")
    cls = SAMPLERS[sampler]
    if eta and not (cls is DDIM or cls is DDPM and eta == 1):
        raise UserError(f"diffusion config: eta is {eta}, but sampler '{sampler}' takes no eta"
                        f"{' but 1' if cls is DDPM else ''}; set sampler: ddim, or leave eta out")
    schedule = Schedule.create(noise_schedule, steps, timestep_respacing, rescale_timesteps)
    mean_processor = MEAN_PROCESSORS[model_mean_type](schedule, dynamic_threshold, clip_denoised)
    return cls(schedule, mean_processor, VAR_PROCESSORS[model_var_type](schedule), eta)
