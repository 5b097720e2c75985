"""The blocks of the ADM UNet: residual and attention blocks, changes of resolution."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from guided_diffusion.frozen import halve
from guided_diffusion.nn import Conv2d, normalization, zero_module
from util.errors import UserError


class Upsample(nn.Module):
    """Double height and width by nearest neighbour, then a 3x3 convolution if `use_conv`."""

    def __init__(self, channels: int, use_conv: bool):
        super().__init__()
        self.use_conv = use_conv
        if use_conv:
            self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, channels, 2 H, 2 W)."""
        x = F.interpolate(x, scale_factor=2, mode="nearest").to(x.dtype)        # autocast on GPUs widens it
        return self.conv(x) if self.use_conv else x


class Downsample(nn.Module):
    """Halve height and width by a strided 3x3 convolution if `use_conv`, otherwise by averaging."""

    def __init__(self, channels: int, use_conv: bool):
        super().__init__()
        self.op = Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else halve

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W), H and W even -> (B, channels, H/2, W/2)."""
        return self.op(x)


class ResBlock(nn.Module):
    """Two convolutions around the timestep embedding, with an optional change of resolution before the first.

    `resample` is None, "up" or "down". With `scale_shift` the embedding scales and shifts the second normalisation,
    otherwise it is added before it. `min_group`: see `normalization`.
    """

    def __init__(self, channels: int, out_channels: int, emb_channels: int, dropout: float, scale_shift: bool,
                 use_checkpoint: bool = False, resample: str | None = None, min_group: int = 1):
        super().__init__()
        self.scale_shift, self.use_checkpoint = scale_shift, use_checkpoint
        self.in_layers = nn.Sequential(
            normalization(channels, min_group), nn.SiLU(), Conv2d(channels, out_channels, 3, padding=1))
        self.resample = {None: nn.Identity, "up": partial(Upsample, channels, False),
                         "down": partial(Downsample, channels, False)}[resample]()
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels if scale_shift else out_channels))
        self.out_layers = nn.Sequential(
            normalization(out_channels, min_group), nn.SiLU(), nn.Dropout(dropout),
            zero_module(Conv2d(out_channels, out_channels, 3, padding=1)))
        same = out_channels == channels
        self.skip_connection = nn.Identity() if same else Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, channels, H, W), (B, emb_channels) -> (B, out_channels, H', W')."""
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._forward, x, emb, use_reentrant=False)
        return self._forward(x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, _, convolution = self.in_layers       # `norm.silu` activates, too; SiLU keeps the checkpoints' numbering
        h = convolution(self.resample(norm.silu(x)))
        emb = self.emb_layers(emb)                                      # (B, out_channels [x 2])
        norm, _, dropout, convolution = self.out_layers
        h = norm.silu(h, *emb.chunk(2, dim=1)) if self.scale_shift else norm.silu(h + emb[:, :, None, None])
        return self.skip_connection(self.resample(x)) + convolution(dropout(h))


class AttentionBlock(nn.Module):
    """Self-attention over all pixels.

    The qkv channels of the checkpoints come in two orders: legacy is head-major, (head, q|k|v, channel), and new is
    (q|k|v, head, channel).
    """

    def __init__(self, channels: int, num_heads: int, num_head_channels: int, new_order: bool,
                 use_checkpoint: bool = False, min_group: int = 1):
        super().__init__()
        self.num_heads = num_heads if num_head_channels == -1 else channels // num_head_channels
        if self.num_heads < 1 or channels % self.num_heads or (
                num_head_channels != -1 and channels % num_head_channels):
            raise UserError(f"model config: {channels} channels cannot be split into attention heads (num_heads "
                            f"{num_heads}, num_head_channels {num_head_channels}); choose a divisor of {channels}")
        self.new_order, self.use_checkpoint = new_order, use_checkpoint
        self.norm = normalization(channels, min_group)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_module(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        flat = x.reshape(batch, channels, height * width)
        width_of_head = channels // self.num_heads
        # fused kernels take q, k and v whose channels are neighbours in memory
        qkv = self.qkv(self.norm(flat)).transpose(1, 2).contiguous()                        # (B, L, 3C)
        if self.new_order:
            q, k, v = qkv.view(batch, -1, 3, self.num_heads, width_of_head).unbind(2)
        else:
            q, k, v = qkv.view(batch, -1, self.num_heads, 3, width_of_head).unbind(3)
        h = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)))   # (B, heads, L, C / heads)
        h = h.transpose(1, 2).reshape(batch, -1, channels).transpose(1, 2)                  # (B, C, L)
        return (flat + self.proj_out(h)).view_as(x)


class TimestepSequential(nn.Sequential):
    """A sequence whose residual blocks also see the timestep embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """As `ResBlock.forward`."""
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x
