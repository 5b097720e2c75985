"""The networks of Karras et al., 2022, under the parameter names of NVIDIA's releases: `DhariwalUNet`, of the shape of
ADM, and `SongUNet`, of that of DDPM++ and NCSN++ (Song et al., ICLR 2021, "Score-Based Generative Modeling through
Stochastic Differential Equations"). They are for restoring: without dropout, and without augmentation."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guided_diffusion.nn import Conv2d, GroupNorm, timestep_embedding
from guided_diffusion.unet import Depth, Size, create_model
from util.config.registry import Bounds, OneOf, Registry
from util.errors import UserError

NETWORKS = Registry("network of format edm")
NETWORKS.register("adm")(create_model)
NetworkChoice = Annotated[str | dict, OneOf(NETWORKS)]
Extent = Annotated[int, Bounds(least=0, most=2 ** 13)]
CHANNELS_PER_HEAD = 64                              # of DhariwalUNet


class EDMNetwork(nn.Module, ABC):
    """F(x, c_noise): blocks on the way down (`enc`) and up (`dec`), by the side of their images and their number.

    Args:
        block: of (channels, out_channels, resample=None or "up" or "down", attention=False).
        image_size: side of the training images; it runs on any multiple of 2^(levels - 1).
        first: channels of the first convolution.
        widths: channels of every level.
        num_blocks: per level on the way down, one more on the way up.
        attn_resolutions: sides of images at which attention stands.
        attend_once: on the way up the last block of a level has it alone.
        residual: filters of the image's own way down (NCSN++), which is added at every level; None without it.
        label_dim, class_label: classes of the training, 0 for none, and the one to restore with.
        unused: names and shapes of further tensors in its checkpoints.
    """

    out_channels = 3

    def __init__(self, block: Callable, image_size: int, first: int, widths: Sequence[int], num_blocks: int,
                 attn_resolutions: Sequence[int], attend_once: bool, residual: Sequence[float] | None, label_dim: int,
                 class_label: int | None, unused: Mapping[str, tuple[int, ...]]):
        super().__init__()
        if (class_label is None) != (label_dim == 0) or (class_label or 0) >= max(1, label_dim):
            raise UserError(f"model config: network has label_dim {label_dim} and class_label {class_label}, expected "
                            f"{f'a class_label of 0 to {label_dim - 1}' if label_dim else 'none without classes'}")
        self.multiple = 2 ** (len(widths) - 1)
        if image_size % self.multiple:
            raise UserError(f"model config: network has image_size {image_size} and a channel_mult of {len(widths)} "
                            f"levels, expected a multiple of {self.multiple}")
        self.image_size, self.class_label, self.unused = image_size, class_label, unused
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        levels = [(image_size >> level, width) for level, width in enumerate(widths)]
        channels, skips, image = first, [first], 3
        for side, width in levels:
            if side == image_size:
                self.enc[f"{side}x{side}_conv"] = Conv2d(3, first, 3, padding=1)
            else:
                self.enc[f"{side}x{side}_down"] = block(channels, channels, resample="down")
                skips.append(channels)
                if residual:
                    self.enc[f"{side}x{side}_aux_residual"] = HalvedConv2d(image, channels, residual)
                    image = channels
            for i in range(num_blocks):
                self.enc[f"{side}x{side}_block{i}"] = block(channels, width, attention=side in attn_resolutions)
                channels = width
                skips.append(channels)
        for side, width in reversed(levels):
            if (side, width) == levels[-1]:
                self.dec[f"{side}x{side}_in0"] = block(channels, channels, attention=True)
                self.dec[f"{side}x{side}_in1"] = block(channels, channels)
            else:
                self.dec[f"{side}x{side}_up"] = block(channels, channels, resample="up")
            for i in range(num_blocks + 1):
                attention = side in attn_resolutions and (i == num_blocks or not attend_once)
                self.dec[f"{side}x{side}_block{i}"] = block(channels + skips.pop(), width, attention=attention)
                channels = width

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """(B, 3, H, W), (B,) -> (B, 3, H, W)."""
        emb = self.embed(c_noise)
        image, skips = x, []
        for name, layer in self.enc.items():
            if name.endswith("aux_residual"):
                x = image = skips[-1] = (x + layer(image)) * math.sqrt(0.5)
                continue
            x = layer(x, emb) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            if isinstance(layer, Block):
                x = layer(torch.cat([x, skips.pop()], dim=1) if "block" in name else x, emb)
        return self.finish(x)

    @abstractmethod
    def embed(self, c_noise: Tensor) -> Tensor:
        """The noise level, and the class, for the blocks: (B,) -> (B, emb_channels)."""

    @abstractmethod
    def finish(self, x: Tensor) -> Tensor:
        """Of the last block's output (B, channels, H, W) the network's."""


@NETWORKS.register("DhariwalUNet")
class DhariwalUNet(EDMNetwork):
    """The UNet of Dhariwal & Nichol, 2021, as in edm-imagenet-64x64-cond-adm.

    Args:
        Others: as those of the releases, see `EDMNetwork`.
        augment_dim: augmentation labels of the training; there are none in restorations.
    """

    def __init__(self, image_size: Size, model_channels: Size = 192, channel_mult: Sequence[Size] = (1, 2, 3, 4),
                 channel_mult_emb: Size = 4, num_blocks: Depth = 3, attn_resolutions: Sequence[Size] = (32, 16, 8),
                 label_dim: Extent = 0, class_label: Extent | None = None, augment_dim: Extent = 0):
        emb_channels = channel_mult_emb * model_channels
        widths = _widths(model_channels, channel_mult)
        super().__init__(partial(Block, emb_channels=emb_channels, head_channels=CHANNELS_PER_HEAD, eps=1e-5,
                                 adaptive_scale=True, skip_scale=1.0, project=False, taps=(1, 1)),
                         image_size, widths[0], widths, num_blocks, attn_resolutions, False, None, label_dim,
                         class_label, {"map_augment.weight": (model_channels, augment_dim)} if augment_dim else {})
        self.map_layer0 = nn.Linear(model_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        if label_dim:
            self.map_label = nn.Linear(label_dim, emb_channels, bias=False)
        self.out_norm = _group_norm(widths[0], 1e-5)
        self.out_conv = Conv2d(widths[0], 3, 3, padding=1)

    def embed(self, c_noise: Tensor) -> Tensor:
        """See `EDMNetwork.embed`."""
        noise = timestep_embedding(c_noise, self.map_layer0.in_features).to(c_noise.dtype)
        emb = self.map_layer1(F.silu(self.map_layer0(noise)))
        return F.silu(emb if self.class_label is None else emb + self.map_label.weight[:, self.class_label])

    def finish(self, x: Tensor) -> Tensor:
        """See `EDMNetwork.finish`."""
        return self.out_conv(self.out_norm.silu(x))


@NETWORKS.register("SongUNet")
class SongUNet(EDMNetwork):
    """The UNets of Song et al., 2021: DDPM++ as in edm-ffhq-64x64-uncond-vp, NCSN++ as in edm-ffhq-64x64-uncond-ve.

    Args:
        Others: as those of the releases, see `EDMNetwork`.
        embedding_type, encoder_type, channel_mult_noise, resample_filter: positional, standard, 1 and [1, 1] for
            DDPM++; fourier, residual, 2 and [1, 3, 3, 1] for NCSN++.
        augment_dim: augmentation labels of the training (9 in the releases); there are none in restorations.
    """

    def __init__(self, image_size: Size, model_channels: Size = 128, channel_mult: Sequence[Size] = (1, 2, 2, 2),
                 channel_mult_emb: Size = 4, num_blocks: Depth = 4, attn_resolutions: Sequence[Size] = (16,),
                 embedding_type: Literal["positional", "fourier"] = "positional",
                 encoder_type: Literal["standard", "residual"] = "standard", channel_mult_noise: Size = 1,
                 resample_filter: Sequence[Size] = (1, 1), label_dim: Extent = 0, class_label: Extent | None = None,
                 augment_dim: Extent = 0):
        emb_channels, noise_channels = (mult * model_channels for mult in (channel_mult_emb, channel_mult_noise))
        widths = _widths(model_channels, channel_mult)
        super().__init__(partial(Block, emb_channels=emb_channels, head_channels=None, eps=1e-6, adaptive_scale=False,
                                 skip_scale=math.sqrt(0.5), project=True, taps=resample_filter),
                         image_size, model_channels, widths, num_blocks, attn_resolutions, True,
                         resample_filter if encoder_type == "residual" else None, label_dim, class_label,
                         {"map_augment.weight": (noise_channels, augment_dim)} if augment_dim else {})
        self.map_noise = {"positional": Positional, "fourier": Fourier}[embedding_type](noise_channels)
        if label_dim:
            self.map_label = nn.Linear(label_dim, noise_channels)
        self.map_layer0 = nn.Linear(noise_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        self.dec[f"{image_size}x{image_size}_aux_norm"] = _group_norm(widths[0], 1e-6)
        self.dec[f"{image_size}x{image_size}_aux_conv"] = Conv2d(widths[0], 3, 3, padding=1)

    def embed(self, c_noise: Tensor) -> Tensor:
        """See `EDMNetwork.embed`; a label of n classes is sqrt(n) where others have 1."""
        emb = self.map_noise(c_noise)
        if self.class_label is not None:
            label = math.sqrt(self.map_label.in_features) * self.map_label.weight[:, self.class_label]
            emb = emb + label + self.map_label.bias
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def finish(self, x: Tensor) -> Tensor:
        """See `EDMNetwork.finish`."""
        norm, convolution = list(self.dec.values())[-2:]
        return convolution(norm.silu(x))


class Positional(nn.Module):
    """sin(f c) and cos(f c), frequencies f from 1 to 1/10000: (B,) -> (B, channels)."""

    def __init__(self, channels: int):
        super().__init__()
        self.half = channels // 2

    def forward(self, c_noise: Tensor) -> Tensor:
        exponents = torch.arange(self.half, device=c_noise.device, dtype=torch.float32) / max(1, self.half - 1)
        angles = c_noise.float()[:, None] * 10000 ** -exponents
        return torch.cat([angles.sin(), angles.cos()], dim=1).to(c_noise.dtype)


class Fourier(nn.Module):
    """sin(2 pi f c) and cos(2 pi f c) at the random frequencies f of the checkpoint: (B,) -> (B, channels)."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", torch.zeros(channels // 2))

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = c_noise.float()[:, None] * (2 * math.pi * self.freqs.float())
        return torch.cat([angles.sin(), angles.cos()], dim=1).to(c_noise.dtype)


class Block(nn.Module):
    """Two convolutions around the embedding of the noise level, added to the input, and self-attention where asked for.

    Args:
        resample: None, "up" or "down", by the filter `taps`.
        attention: over all pixels, in heads of `head_channels`; None for a single head.
        eps: of the normalisations.
        adaptive_scale: the embedding scales and shifts the second normalisation, otherwise it is added before it.
        skip_scale: factor of every sum of a block's input and output.
        project: where the resolution changes, the input passes a convolution even if the channels stay.
    """

    def __init__(self, channels: int, out_channels: int, emb_channels: int, resample: str | None = None,
                 attention: bool = False, *, head_channels: int | None, eps: float, adaptive_scale: bool,
                 skip_scale: float, project: bool, taps: Sequence[float]):
        super().__init__()
        self.adaptive_scale, self.skip_scale = adaptive_scale, skip_scale
        convolution = partial(ResampledConv2d, resample=resample, taps=taps) if resample else Conv2d
        self.norm0 = _group_norm(channels, eps)
        self.conv0 = convolution(channels, out_channels, 3, padding=1)
        self.affine = nn.Linear(emb_channels, 2 * out_channels if adaptive_scale else out_channels)
        self.norm1 = _group_norm(out_channels, eps)
        self.conv1 = Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity()
        if channels != out_channels or (resample and project):
            self.skip = convolution(channels, out_channels, 1)
        elif resample:
            self.skip = Resample(resample, taps)
        self.heads = out_channels // (head_channels or out_channels) if attention else 0
        if attention:
            if head_channels and out_channels % head_channels:
                raise UserError(f"model config: network: {out_channels} channels cannot be split into attention heads "
                                f"of {head_channels}; choose model_channels and channel_mult of multiples of it")
            self.norm2 = _group_norm(out_channels, eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, channels, H, W), (B, emb_channels) -> (B, out_channels, H', W')."""
        h, emb = self.conv0(self.norm0.silu(x)), self.affine(emb)
        h = self.norm1.silu(h, *emb.chunk(2, dim=1)) if self.adaptive_scale else self.norm1.silu(
            h + emb[:, :, None, None])
        x = (self.skip(x) + self.conv1(h)) * self.skip_scale
        return (x + self.proj(self._attend(self.norm2(x)))) * self.skip_scale if self.heads else x

    def _attend(self, x: Tensor) -> Tensor:
        """Channels of the qkv layer are in the order (head, channel, q|k|v)."""
        qkv = self.qkv(x).reshape(len(x), self.heads, -1, 3, x[0, 0].numel())               # (B, heads, C/heads, 3, L)
        h = F.scaled_dot_product_attention(*qkv.permute(3, 0, 1, 4, 2).contiguous().unbind())       # (B, heads, L, ...)
        return h.transpose(2, 3).reshape(x.shape)


class Resample(nn.Module):
    """Half or twice the side by a separable filter, pixels beyond the border being 0: (B, C, H, W) -> (B, C, H', W').

    Args:
        resample: "up" or "down".
        taps: the filter, normalised here, of an even number of taps: [1, 1] averages or repeats pixels.
    """

    def __init__(self, resample: str, taps: Sequence[float]):
        super().__init__()
        self.resample = resample
        self.register_buffer("resample_filter", _filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        return _resampled(x, self.resample_filter, self.resample)


class ResampledConv2d(Conv2d):
    """`Resample`, then a convolution."""

    def __init__(self, *args, resample: str, taps: Sequence[float], **kwargs):
        super().__init__(*args, **kwargs)
        self.resample = resample
        self.register_buffer("resample_filter", _filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return super().forward(_resampled(x, self.resample_filter, self.resample))


class HalvedConv2d(Conv2d):
    """A 3 x 3 convolution, as far beyond the border as the filter reaches, then half the side by the filter."""

    def __init__(self, channels: int, out_channels: int, taps: Sequence[float]):
        super().__init__(channels, out_channels, 3, padding=1 + _reach(len(taps)))
        self.register_buffer("resample_filter", _filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/2, W/2)."""
        return _resampled(super().forward(x), self.resample_filter, "down", padding=0)


def _widths(model_channels: int, channel_mult: Sequence[int]) -> list[int]:
    if not channel_mult:
        raise UserError("model config: network: channel_mult names no level, expected a list of numbers")
    return [model_channels * mult for mult in channel_mult]


def _filter(taps: Sequence[float]) -> Tensor:
    if len(taps) % 2:
        raise UserError(f"model config: network: resample_filter has {len(taps)} taps, expected an even number")
    taps = torch.tensor(taps, dtype=torch.float32)
    return (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]                          # (1, 1, taps, taps)


def _reach(taps: int) -> int:
    """Pixels that a filter looks beyond the border."""
    return (taps - 1) // 2


def _resampled(x: Tensor, kernel: Tensor, direction: str, padding: int | None = None) -> Tensor:
    channels, padding = x.shape[1], _reach(kernel.shape[-1]) if padding is None else padding
    kernel = kernel.to(x.dtype).expand(channels, -1, -1, -1)
    if direction == "up":
        return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=channels)
    return F.conv2d(x, kernel, stride=2, padding=padding, groups=channels)


def _group_norm(channels: int, eps: float) -> GroupNorm:
    """Group normalisation in 32 groups, or fewer, so that each has 4 channels."""
    groups = max(1, min(32, channels // 4))
    if channels % groups:
        raise UserError(f"model config: network: {channels} channels cannot be normalised in {groups} groups; choose "
                        "model_channels and channel_mult so that widths are multiples of 32, or of 4 below 64")
    return GroupNorm(groups, channels, eps)
