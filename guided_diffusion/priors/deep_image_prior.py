"""Deep image priors (Ulyanov, Vedaldi & Lempitsky, CVPR 2018): networks whose weights are the image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def layer(channels: int, out: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution on reflected borders, batch normalisation, leaky ReLU."""
    return nn.Sequential(nn.Conv2d(channels, out, size, stride, padding=size // 2, padding_mode="reflect"),
                         nn.BatchNorm2d(out), nn.LeakyReLU(0.2))


class ImagePrior(nn.Module):
    """Noise (1, C, H, W) -> an image (1, 3, H, W) on [0, 1]: an hourglass with skip connections.

    Args:
        side: the shorter side of the images; each level halves it, as long as 4 pixels are left.
        levels: at most.
        channels: of the noise and of every level.
        skip: channels of a skip connection.
    """

    def __init__(self, side: int, levels: int = 5, channels: int = 128, skip: int = 16):
        super().__init__()
        levels = max(1, min(levels, side.bit_length() - 3))
        self.down = nn.ModuleList(nn.Sequential(layer(channels, channels, stride=2), layer(channels, channels))
                                  for _ in range(levels))
        self.skips = nn.ModuleList(layer(channels, skip, size=1) for _ in range(levels))
        self.up = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(channels + skip), layer(channels + skip, channels),
                                              layer(channels, channels, size=1)) for _ in range(levels))
        self.colours = nn.Conv2d(channels, 3, 1)

    def forward(self, noise: Tensor) -> Tensor:
        """(1, C, H, W) -> (1, 3, H, W)."""
        skipped, x = [], noise
        for skip, down in zip(self.skips, self.down, strict=True):
            skipped.append(skip(x))
            x = down(x)
        for skip, up in zip(reversed(skipped), reversed(self.up), strict=True):
            x = up(torch.cat([F.interpolate(x, size=skip.shape[2:], mode="bilinear"), skip], dim=1))
        return self.colours(x).sigmoid()


class CodePrior(nn.Module):
    """Noise (1, C) -> the code of a blur, of `shape` (1, K, h, w): two linear layers, with a leaky ReLU between.

    Args:
        channels: of the noise and of the layer between.
    """

    def __init__(self, shape: tuple[int, ...], channels: int = 64):
        super().__init__()
        self.shape = shape
        self.layers = nn.Sequential(nn.Linear(channels, channels), nn.LeakyReLU(0.2),
                                    nn.Linear(channels, math.prod(shape)))

    def forward(self, noise: Tensor) -> Tensor:
        """(1, C) -> `shape`."""
        return self.layers(noise).view(self.shape)
