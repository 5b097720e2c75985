"""Small layers of the ADM UNet."""

import math

import torch
from torch import Tensor, nn


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding of timesteps (B,), fractional ones too -> (B, dim): cosines first, then sines.

    Frequency k of dim // 2 is max_period^(-2k / dim). Angles are computed in float32 whatever the network's precision,
    as the published checkpoints were trained.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(max_period) * exponents)
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    return nn.functional.pad(embedding, (0, dim % 2))


def normalization(channels: int) -> nn.GroupNorm:
    """Group normalisation with the 32 groups of every ADM checkpoint."""
    return nn.GroupNorm(32, channels)


def zero_module(module: nn.Module) -> nn.Module:
    """Set all parameters of `module` to zero, so that a new residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
