"""Small layers of the ADM UNet, and what all networks have."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guided_diffusion.frozen import FrozenConvolution, NormalisedSiLU
from util.errors import UserError


class Network(nn.Module, ABC):
    """model(x_t, t): what a network predicts of noisy images, and its variance channels if it has them.

    Attributes:
        multiple: what the sides of images are multiples of, so that they survive all the halvings.
        autocast_dtype: run the network, and it alone, in this precision; the output is float32 all the same.
        process: parameters of `create_sampler` that the training fixed, where the network's files tell.
    """

    multiple: int
    autocast_dtype: torch.dtype | None = None
    process: Mapping[str, object] = {}

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """Noisy images (B, 3, H, W), their timesteps (B,) and labels (B,) -> (B, 3 or 6, H, W).

        Raises:
            UserError: images of another dtype than the weights, as of a measurement in float64.
        """
        weights = next(self.parameters(), x)
        if x.dtype != weights.dtype:
            raise UserError(f"the network takes images of {weights.dtype}, found {x.dtype}; convert the measurement: "
                            f"y.to({weights.dtype})")
        if self.autocast_dtype is None:
            return self._forward(x, timesteps, y)
        with torch.autocast(x.device.type, dtype=self.autocast_dtype):
            return self._forward(x, timesteps, y).float()

    @abstractmethod
    def _forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None) -> Tensor:
        """`forward` in whatever precision."""

    def check_image_size(self, height: int, width: int) -> None:
        """Raise UserError unless images of `height` x `width` survive all the halvings."""
        step = self.multiple
        if height < step or width < step or height % step or width % step:
            raise UserError(f"images of {height} x {width} do not fit the network: both sides must be multiples of "
                            f"{step}; use {max(step, height // step * step)} (of restorations: data.image_size)")


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding of timesteps (B,), fractional ones too -> (B, dim): cosines first, then sines.

    Frequency k of dim // 2 is max_period^(-2k / dim). Angles are computed in float32 whatever the network's precision,
    as the published checkpoints were trained.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(max_period) * exponents)
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    return F.pad(embedding, (0, dim % 2))


def in_channels_last(x: Tensor) -> bool:
    """Whether x is (B, C, H, W) with H, W > 1, laid out as (B, H, W, C)."""
    if x.dim() != 4:
        return False
    _, channels, height, width = x.shape
    return min(height, width) > 1 and x.stride() == (channels * height * width, 1, channels * width, channels)


class GroupNorm(nn.GroupNorm):
    """Group normalisation in the precision of what it normalises, its means and variances in float32.

    Autocast would have GPUs widen its input and its output, both kept for the gradient: half precision would take more
    memory than float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        if not x.is_cuda:
            return super().forward(x)
        with torch.autocast("cuda", enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)

    def silu(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """silu(norm(x) (1 + scale) + shift), or silu(norm(x)): (B, C, H, W), scale and shift (B, C) -> (B, C, H, W)."""
        if x.device.type == "cpu" and x.requires_grad and in_channels_last(x) and not torch.compiler.is_compiling():
            weight, bias = self.weight.expand(len(x), -1), self.bias.expand(len(x), -1)
            if scale is not None:
                weight, bias = weight * (1 + scale), bias * (1 + scale) + shift
            y, _, _ = NormalisedSiLU.apply(x, weight, bias, self.num_groups, self.eps)
            return y
        h = self(x)
        if scale is not None:
            h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        return F.silu(h)


class Conv2d(nn.Conv2d):
    """Convolution that keeps nothing of its input where its parameters are frozen, unless a compiler decides that."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        trained = self.weight.requires_grad or self.bias.requires_grad
        if trained or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(x)
        return FrozenConvolution.apply(x, self.weight, self.bias, self.stride, self.padding)


def normalization(channels: int, min_group: int = 1) -> GroupNorm:
    """Group normalisation with the 32 groups of every ADM checkpoint, or fewer, of `min_group` channels at least.

    A group of one channel forgets the mean of its channel.
    """
    return GroupNorm(min(32, channels // min_group), channels)


def zero_module(module: nn.Module) -> nn.Module:
    """Set all parameters of `module` to zero, so that a new residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
