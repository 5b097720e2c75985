"""Small layers of the ADM UNet."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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


class Standardise(torch.autograd.Function):
    """x_hat = (x - mean) rstd in every group of channels, rstd = 1 / sqrt(variance + eps); (B, C, H, W) -> the same.

    dL/dx = rstd (g - mean(g) - x_hat mean(g x_hat)), g = dL/dx_hat, means over the group.
    """

    @staticmethod
    def forward(ctx, x: Tensor, groups: int, eps: float) -> Tensor:
        batch, channels, *size = x.shape
        x_hat, _, rstd = torch.native_group_norm(x, None, None, batch, channels, math.prod(size), groups, eps)
        ctx.save_for_backward(x_hat, rstd)
        return x_hat

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None, None]:
        x_hat, rstd = ctx.saved_tensors                                             # (B, C, H, W), (B, groups)
        (batch, groups), channels = rstd.shape, g.shape[1]

        def per_channel(values: Tensor) -> Tensor:                                  # (B, groups) -> (B, C, 1, 1)
            return values.repeat_interleave(channels // groups, dim=1)[:, :, None, None].to(g)

        def group_mean(values: Tensor) -> Tensor:                                   # (B, C, H, W) -> (B, groups)
            return values.sum((2, 3)).view(batch, groups, -1).sum(2, dtype=rstd.dtype) / (values[0].numel() / groups)

        offset, slope = per_channel(-rstd * group_mean(g)), per_channel(-rstd * group_mean(g * x_hat))
        return torch.addcmul(offset, g, per_channel(rstd)).addcmul_(x_hat, slope), None, None


def in_channels_last(x: Tensor) -> bool:
    """Whether x is (B, C, H, W) with H, W > 1, laid out as (B, H, W, C)."""
    if x.dim() != 4:
        return False
    _, channels, height, width = x.shape
    return min(height, width) > 1 and x.stride() == (channels * height * width, 1, channels * width, channels)


class GroupNorm(nn.GroupNorm):
    """Group normalisation in the precision of what it normalises, its means and variances in float32.

    Autocast would have GPUs widen its input and its output, both kept for the gradient: half precision would take more
    memory than float32. On a CPU, the gradient is fast for images in channels_last: torch's own took 98 ms for 128
    channels of 256 x 256 in bf16, and this one 13.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        if x.is_cuda:
            with torch.autocast("cuda", enabled=False):
                return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        if x.device.type != "cpu" or not x.requires_grad or not in_channels_last(x):
            return super().forward(x)
        weight, bias = (parameter.to(x)[:, None, None] for parameter in (self.weight, self.bias))
        return torch.addcmul(bias, Standardise.apply(x, self.num_groups, self.eps), weight)


def normalization(channels: int) -> GroupNorm:
    """Group normalisation with the 32 groups of every ADM checkpoint."""
    return GroupNorm(32, channels)


def zero_module(module: nn.Module) -> nn.Module:
    """Set all parameters of `module` to zero, so that a new residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
