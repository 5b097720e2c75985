"""The generator of StyleGAN2: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020.

Parameter names are those of the usual PyTorch checkpoints, whose averaged generator is under `g_ema`. Every weight is
kept at unit variance and scaled by 1/sqrt(fan in) where it is used.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from util.checkpoint import load_state_dict
from util.fetch import find_weights

MAPPING_RATE = 0.01                                 # by which the mapping's weights are kept larger
WIDTHS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}     # channels by side
WHERE_TO_GET = ("the README of github.com/rosinality/stylegan2-pytorch links the FFHQ generator of 256 x 256 "
                "(550000.pt), whose place is models/stylegan2_ffhq_256.pt")


def leaky(x: Tensor) -> Tensor:
    """A leaky ReLU of slope 0.2 that keeps the variance."""
    return math.sqrt(2) * F.leaky_relu(x, 0.2)


def taps() -> Tensor:
    """The binomial low-pass filter (4, 4) for zeros between pixels, sum 4."""
    row = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return 4 * row[:, None] * row / 64


def low_pass(x: Tensor, kernel: Tensor, before: int, after: int) -> Tensor:
    """Every channel of x (B, C, H, W), with zeros around it, filtered by `kernel` (4, 4)."""
    padded = F.pad(x, (before, after, before, after)).flatten(0, 1)[:, None]
    return F.conv2d(padded, kernel.flip(0, 1)[None, None]).unflatten(0, x.shape[:2])[:, :, 0]


class Dense(nn.Module):
    """A linear layer."""

    def __init__(self, features: int, out: int, bias: float = 0.0, rate: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, features) / rate)
        self.bias = nn.Parameter(torch.full((out,), bias))
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(..., features) -> (..., out)."""
        return F.linear(x, self.weight * (self.rate / math.sqrt(self.weight.shape[1])), self.bias * self.rate)


class MappingLayer(Dense):
    """A layer of the mapping network: linear, then a leaky ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., features) -> (..., out)."""
        return leaky(super().forward(x))


class UnitLength(nn.Module):
    """z / rms(z) over the last axis."""

    def forward(self, z: Tensor) -> Tensor:
        """(..., features) -> the same shape."""
        return z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 1e-8)


class LowPass(nn.Module):
    """The filter after or before zeros are put between pixels; a buffer, as checkpoints have it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", taps())


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled by the style (eq. 1) and whose output by what that does (eq. 3)."""

    def __init__(self, channels: int, out: int, size: int, style: int, demodulate: bool = True, double: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, out, channels, size, size))
        self.modulation = Dense(style, channels, bias=1.0)
        self.demodulate, self.doubles = demodulate, double
        if double:
            self.blur = LowPass()

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """(B, C, H, W), (B, style) -> (B, out, H, W), or (B, out, 2 H, 2 W) if `double`."""
        weight = self.weight / math.sqrt(self.weight[0, 0].numel()) * self.modulation(style)[:, None, :, None, None]
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        stacked, (batch, out), size = x.flatten(0, 1)[None], weight.shape[:2], weight.shape[-1]
        if not self.doubles:
            same = F.conv2d(stacked, weight.flatten(0, 1), padding=size // 2, groups=batch)
            return same[0].unflatten(0, (batch, out))
        doubled = F.conv_transpose2d(stacked, weight.transpose(1, 2).flatten(0, 1), stride=2, groups=batch)
        return low_pass(doubled[0].unflatten(0, (batch, out)), self.blur.kernel, 1, 1)


class NoiseStrength(nn.Module):
    """x + strength * noise."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class Bias(nn.Module):
    """A bias per channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU."""

    def __init__(self, channels: int, out: int, style: int, double: bool = False):
        super().__init__()
        self.conv = ModulatedConv(channels, out, 3, style, double=double)
        self.noise, self.activate = NoiseStrength(), Bias(out)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        """(B, C, H, W), (B, style), noise (B, 1, H', W') of the output's size -> (B, out, H', W')."""
        return leaky(self.conv(x, style) + self.noise.weight * noise + self.activate.bias.view(-1, 1, 1))


class ToRGB(nn.Module):
    """A picture out of features, added to the doubled picture of the level before."""

    def __init__(self, channels: int, style: int, double: bool = True):
        super().__init__()
        self.conv = ModulatedConv(channels, 3, 1, style, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        if double:
            self.upsample = LowPass()

    def forward(self, x: Tensor, style: Tensor, picture: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B, style), (B, 3, H/2, W/2) -> (B, 3, H, W)."""
        own = self.conv(x, style) + self.bias
        if picture is None:
            return own
        spread = picture.new_zeros(*picture.shape[:2], 2 * picture.shape[2], 2 * picture.shape[3])
        spread[..., ::2, ::2] = picture
        return own + low_pass(spread, self.upsample.kernel, 2, 1)


class Generator(nn.Module):
    """Images (B, 3, size, size) on [-1, 1] or so from styles, one per layer, and noise maps.

    Args:
        size: side of the images, a power of 2 from 8 to 1024.
        style: length of a style.
        layers: of the mapping network.
        widths: channels by side.
    """

    def __init__(self, size: int = 256, style: int = 512, layers: int = 8, widths: dict[int, int] = WIDTHS):
        super().__init__()
        self.size, self.style_length = size, style
        sides = [2 ** k for k in range(3, size.bit_length())]
        self.num_styles = 2 * len(sides) + 2
        mapping = (MappingLayer(style, style, rate=MAPPING_RATE) for _ in range(layers))
        self.style = nn.Sequential(UnitLength(), *mapping)
        self.input = nn.ParameterDict({"input": nn.Parameter(torch.randn(1, widths[4], 4, 4))})
        self.conv1, self.to_rgb1 = StyledConv(widths[4], widths[4], style), ToRGB(widths[4], style, double=False)
        self.convs, self.to_rgbs, self.noises = nn.ModuleList(), nn.ModuleList(), nn.Module()
        for side in sides:
            before, here = widths[side // 2], widths[side]
            self.convs.extend([StyledConv(before, here, style, double=True), StyledConv(here, here, style)])
            self.to_rgbs.append(ToRGB(here, style))
        for layer, shape in enumerate(self.noise_shapes()):
            self.noises.register_buffer(f"noise_{layer}", torch.randn(1, *shape))

    def noise_shapes(self) -> list[tuple[int, int, int]]:
        """(1, H, W) of the noise map of every layer."""
        return [(1, 2 ** ((layer + 5) // 2), 2 ** ((layer + 5) // 2)) for layer in range(self.num_styles - 1)]

    def mapping(self, z: Tensor) -> Tensor:
        """z ~ N(0, I) (..., style) -> w of the same shape."""
        return self.style(z)

    def forward(self, w: Tensor, noises: Sequence[Tensor]) -> Tensor:
        """Styles (B, num_styles, style) and noise maps (B, *shape) of `noise_shapes` -> (B, 3, size, size)."""
        x = self.conv1(self.input["input"].expand(len(w), -1, -1, -1), w[:, 0], noises[0])
        picture = self.to_rgb1(x, w[:, 1])
        for k, to_rgb in enumerate(self.to_rgbs):
            x = self.convs[2 * k](x, w[:, 2 * k + 1], noises[2 * k + 1])
            x = self.convs[2 * k + 1](x, w[:, 2 * k + 2], noises[2 * k + 2])
            picture = to_rgb(x, w[:, 2 * k + 3], picture)
        return picture


def load_generator(path: str, size: int = 256) -> Generator:
    """A trained generator, frozen; every name and shape of the file must match.

    Args:
        path: a state dict, or a checkpoint that has it under `g_ema`.

    Raises:
        UserError: the file is missing, damaged, or another network's.
    """
    generator = Generator(size)
    file = find_weights(path, WHERE_TO_GET)
    load_state_dict(generator, file, select=lambda found: found.get("g_ema", found))
    return generator.eval().requires_grad_(False)
