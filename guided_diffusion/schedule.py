"""The discrete variance-preserving process: betas, respacing as an index map, float64 coefficients."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from util.errors import UserError, did_you_mean

NOISE_SCHEDULES = ("linear", "cosine")
MOST_STEPS = 10 ** 6
NEARLY_CLEAN = 0.5                                  # alpha_bar of a first step that noise alone is no start for
LEADING_ZERO = re.compile(r"\s*0\d")                 # of the second section of "1,000", which is no thousand


def get_named_beta_schedule(name: str | Sequence[float], steps: int) -> np.ndarray:
    """The betas (steps,) in float64 of a named noise schedule, or those that are given in place of its name.

    "linear" (Ho et al., 2020) runs from 1e-4 to 0.02 at 1000 steps and is rescaled by 1000 / steps elsewhere;
    "cosine" (Nichol & Dhariwal, 2021, eq. 17) has alpha_bar(u) = cos^2((u + 0.008) / 1.008 * pi / 2), betas <= 0.999.

    Raises:
        UserError: unknown name, a number of steps at which the schedule does not exist, or betas that are not between
            0 and 1 or not as many as the steps.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise UserError(f"steps is {steps}, expected 1 to {MOST_STEPS}")
    if not isinstance(name, str):
        betas = np.array(name, dtype=np.float64)
        if len(betas) != steps or not ((betas > 0) & (betas < 1)).all():
            raise UserError(f"noise_schedule: {len(betas)} betas from {betas.min(initial=1):g} to "
                            f"{betas.max(initial=0):g}, expected as many as steps ({steps}), each more than 0 and less "
                            "than 1")
        return betas
    if name == "linear":
        scale = 1000 / steps
        if scale * 0.02 >= 1:
            raise UserError(f"steps is {steps}: the linear noise schedule reaches beta = 1 below 21 steps; "
                            "use more steps and shorten the process by timestep_respacing")
        return np.linspace(scale * 1e-4, scale * 0.02, steps, dtype=np.float64)
    if name == "cosine":
        u = np.arange(steps + 1, dtype=np.float64) / steps
        alpha_bar = np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    raise UserError(f"unknown noise_schedule '{name}'; {did_you_mean(name, NOISE_SCHEDULES)}")


def space_timesteps(num_timesteps: int, section_counts: int | str | Sequence[int] | None) -> np.ndarray:
    """The timesteps that a shortened process retains, ascending, int64.

    Args:
        num_timesteps: length of the process that the network was trained with.
        section_counts: how many steps to keep of each of equally long sections: a list, "10,15,20", a single
            number, "ddimN" (N steps at a constant integer stride, Song et al., 2021), or None / "" for all.

    Within a section of L timesteps of which n are kept, step i is the multiple i (L - 1) / (n - 1) of the stride,
    summed step by step and rounded half to even; n = 1 keeps the section's first.

    Raises:
        UserError: the request cannot be read, or cannot be met.
    """
    if section_counts is None or section_counts == "":
        return np.arange(num_timesteps)
    if isinstance(section_counts, str) and section_counts.startswith("ddim"):
        return _constant_stride(num_timesteps, *_parse_counts(section_counts[4:], section_counts, at_most=1))
    counts = _parse_counts(section_counts, section_counts, at_most=num_timesteps)
    base, longer = divmod(num_timesteps, len(counts))
    kept, start = [], 0
    for i, count in enumerate(counts):
        size = base + (i < longer)
        if count > size:
            raise UserError(f"timestep_respacing {section_counts!r} asks for {count} of the {size} timesteps of "
                            f"section {i + 1}; expected at most {size}")
        stride = (size - 1) / (count - 1) if count > 1 else 0.0
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += size
    return np.array(kept, dtype=np.int64)


def _parse_counts(counts: int | str | Sequence[int], request: object, at_most: int) -> list[int]:
    """Read `at_most` or fewer section counts; UserError if they are no numbers, negative, or keep no step at all."""
    items = counts.split(",") if isinstance(counts, str) else [counts] if isinstance(counts, int) else counts
    try:
        numbers = [] if any(LEADING_ZERO.match(str(item)) for item in items) else [int(item) for item in items]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= at_most or min(numbers) < 0 or sum(numbers) < 1:
        raise UserError(f"timestep_respacing is {request!r}, expected a number of steps such as 250, one number "
                        "per section such as \"10,15,20\", or \"ddim50\"")
    return numbers


def _constant_stride(num_timesteps: int, count: int) -> np.ndarray:
    """`count` timesteps 0, s, 2s, ... at the smallest integer stride s that gives exactly that many."""
    reachable = {len(range(0, num_timesteps, stride)): stride for stride in range(num_timesteps, 0, -1)}
    if count not in reachable:
        below = max((n for n in reachable if n < count), default=None)
        above = min((n for n in reachable if n > count), default=None)
        nearest = " or ".join(str(n) for n in (below, above) if n is not None)
        raise UserError(f"timestep_respacing 'ddim{count}': no integer stride through {num_timesteps} timesteps "
                        f"gives exactly {count} steps; the nearest possible is {nearest}, or use \"{count}\" "
                        "without ddim")
    return np.arange(0, num_timesteps, reachable[count])


@dataclass(frozen=True, eq=False)
class Schedule:
    """All coefficients of a (respaced) process, float64 arrays of shape (num_steps,), index 0 the last step taken.

    Respacing is the map `timesteps`: step i of this process shows timestep `timesteps[i]` to the network.
    Symbols: beta_t, alpha_t = 1 - beta_t, alpha_bar_t = product of alpha up to t, alpha_bar_{-1} = 1 (Ho et al., 2020).
    """

    betas: np.ndarray
    timesteps: np.ndarray
    num_train_steps: int
    rescale_timesteps: bool = False                 # the network sees t * 1000 / num_train_steps
    _tensors: dict[tuple[str, torch.device], Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def create(cls, noise_schedule: str | Sequence[float], steps: int,
               timestep_respacing: int | str | Sequence[int] | None = None,
               rescale_timesteps: bool = False) -> "Schedule":
        """Build a schedule of `steps`, named or given by its betas, and keep the timesteps that `timestep_respacing`
        asks for.

        Betas of the retained steps: beta_i = 1 - alpha_bar_i / alpha_bar_{i-1}, so alpha_bar is unchanged there.
        """
        alpha_bar = np.cumprod(1 - get_named_beta_schedule(noise_schedule, steps))
        timesteps = space_timesteps(steps, timestep_respacing)
        kept = alpha_bar[timesteps]
        return cls(1 - kept / np.append(1.0, kept[:-1]), timesteps, steps, rescale_timesteps)

    @property
    def num_steps(self) -> int:
        """Steps of the reverse process."""
        return len(self.betas)

    @cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """alpha_bar_t."""
        return np.cumprod(1 - self.betas)

    @cached_property
    def alphas_cumprod_prev(self) -> np.ndarray:
        """alpha_bar_{t-1}, 1 at index 0."""
        return np.append(1.0, self.alphas_cumprod[:-1])

    @cached_property
    def sqrt_alphas_cumprod(self) -> np.ndarray:
        """sqrt(alpha_bar_t), the factor of x_0 in x_t."""
        return np.sqrt(self.alphas_cumprod)

    @cached_property
    def sqrt_one_minus_alphas_cumprod(self) -> np.ndarray:
        """sqrt(1 - alpha_bar_t), the standard deviation of the noise in x_t."""
        return np.sqrt(1 - self.alphas_cumprod)

    @cached_property
    def sqrt_recip_alphas_cumprod(self) -> np.ndarray:
        """sqrt(1 / alpha_bar_t)."""
        return np.sqrt(1 / self.alphas_cumprod)

    @cached_property
    def sqrt_recipm1_alphas_cumprod(self) -> np.ndarray:
        """sqrt(1 / alpha_bar_t - 1)."""
        return np.sqrt(1 / self.alphas_cumprod - 1)

    @cached_property
    def posterior_variance(self) -> np.ndarray:
        """beta_tilde_t, the variance of q(x_{t-1} | x_t, x_0) (Ho et al., 2020, eq. 7); 0 at index 0."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_variance_clipped(self) -> np.ndarray:
        """beta_tilde_t with the 0 of index 0 replaced by the value of index 1 (by beta_0 if there is no index 1)."""
        first = self.posterior_variance[1] if self.num_steps > 1 else self.betas[0]
        return np.append(first, self.posterior_variance[1:])

    @cached_property
    def posterior_log_variance_clipped(self) -> np.ndarray:
        """log of `posterior_variance_clipped`, finite everywhere."""
        return np.log(self.posterior_variance_clipped)

    @cached_property
    def log_betas(self) -> np.ndarray:
        """log beta_t."""
        return np.log(self.betas)

    @cached_property
    def log_betas_clipped(self) -> np.ndarray:
        """log beta_t, with the clipped beta_tilde at index 0."""
        return np.append(self.posterior_log_variance_clipped[:1], self.log_betas[1:])

    @cached_property
    def posterior_mean_coef1(self) -> np.ndarray:
        """The factor of x_0 in the mean of q(x_{t-1} | x_t, x_0)."""
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> np.ndarray:
        """The factor of x_t in the mean of q(x_{t-1} | x_t, x_0)."""
        return (1 - self.alphas_cumprod_prev) * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)

    @cached_property
    def model_timesteps(self) -> np.ndarray:
        """What the network is shown at each step: int64 timesteps, or float64 ones on the scale of 1000 if rescaled."""
        return self.timesteps * (1000.0 / self.num_train_steps) if self.rescale_timesteps else self.timesteps

    def stride(self, index: int) -> int:
        """How many timesteps of the training the step at `index` takes at once: 1 if none is left out."""
        return int(self.timesteps[index] - (self.timesteps[index - 1] if index else -1))

    def model_timestep(self, index: int | Tensor, like: Tensor) -> Tensor:
        """The network's time argument (B,) for a batch `like` (B, ...) at an index, or at indices (B,): int64, or
        float32 if rescaled.
        """
        dtype = torch.float32 if self.rescale_timesteps else torch.int64
        if isinstance(index, Tensor):
            return self._tensor("model_timesteps", like.device)[index].to(dtype)
        return torch.full((len(like),), self.model_timesteps[index].item(), dtype=dtype, device=like.device)

    def index_of(self, t: Tensor) -> Tensor:
        """The indices (B,) of the steps at which the network is shown t (B,)."""
        return torch.searchsorted(self._tensor("model_timesteps", t.device).float(), t.float() - 1e-3)

    def at(self, name: str, index: int | Tensor, like: Tensor) -> float | Tensor:
        """Coefficient `name` at `index`: a number, or for indices (B,) a tensor (B, 1, ...) in the dtype of `like`."""
        if isinstance(index, int):
            return float(getattr(self, name)[index])
        return self._tensor(name, index.device)[index].to(like).view(-1, *[1] * (like.dim() - 1))

    def _tensor(self, name: str, device: torch.device) -> Tensor:
        """All values of a coefficient, (num_steps,), copied to `device` once."""
        key = name, device
        if key not in self._tensors:
            self._tensors[key] = torch.from_numpy(getattr(self, name)).to(device)
        return self._tensors[key]

    def q_sample(self, x0: Tensor, index: int | Tensor, noise: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) noise (DPS eq. 8); x0 and noise (B, ...)."""
        return (self.at("sqrt_alphas_cumprod", index, x0) * x0
                + self.at("sqrt_one_minus_alphas_cumprod", index, x0) * noise)

    def posterior_mean(self, x0: Tensor, x_t: Tensor, index: int | Tensor) -> Tensor:
        """The mean of q(x_{t-1} | x_t, x_0) (Ho et al., 2020, eq. 7); x0 and x_t (B, ...)."""
        return (self.at("posterior_mean_coef1", index, x_t) * x0
                + self.at("posterior_mean_coef2", index, x_t) * x_t)
