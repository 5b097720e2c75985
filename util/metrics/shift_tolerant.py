"""ST-LPIPS (Ghildyal & Liu, ECCV 2022): LPIPS on a VGG16 that small shifts of an image hardly change.

The weights come from the wheel of `stlpips_pytorch`; nothing of its code is imported or run.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from util.checkpoint import read_checkpoint

VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)
TAPS = (3, 9, 17, 25, 33)                           # layers whose features are compared: each block's last
RENAMED = ((r"net\.slice\d\.", "layers."), (r"lin(\d)\.model\.1\.weight", r"weights.\1"), (r"scaling_layer\.", ""))


class BlurPool(nn.Module):
    """Every second pixel of (B, C, H, W), after the blur [1, 2, 1] x [1, 2, 1] / 16, so that nothing is aliased."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("filt", torch.empty(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.filt, stride=2, groups=x.shape[1])


class ShiftTolerantLPIPS(nn.Module):
    """d(x, y) = sum_l mean_hw sum_c w_lc (x_l / |x_l| - y_l / |y_l|)^2 of the features of five layers.

    Two batches (B, 3, H, W) in [-1, 1], of 18 pixels or more, -> (B,), 0 for equal images.

    Args:
        path: `vgg_shift_tolerant.pth`, read strictly and without running code.

    Raises:
        UserError: the file is damaged, or holds more than tensors and plain containers.
        RuntimeError: it belongs to something else.
    """

    def __init__(self, path: Path):
        super().__init__()
        with torch.device("meta"):
            self.layers = nn.Sequential(*_layers())
            self.weights = nn.ParameterList(torch.empty(1, c, 1, 1) for c in (64, 128, 256, 512, 512))
            for name in ("shift", "scale"):
                self.register_buffer(name, torch.empty(1, 3, 1, 1))
        state = read_checkpoint(path)
        for pattern, name in RENAMED:
            state = {re.sub(pattern, name, key): value for key, value in state.items()}
        self.load_state_dict(state, assign=True)
        self.requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        pairs = zip(self.features(torch.cat([x, y])), self.weights, strict=True)
        return sum((weight * (own[:len(x)] - own[len(x):]).square()).sum(1).mean((1, 2)) for own, weight in pairs)

    def features(self, x: Tensor) -> Iterator[Tensor]:
        """The features (B, C, h, w) of each of the five layers, of length 1 in every pixel."""
        x = (x - self.shift) / self.scale
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in TAPS:
                yield x / (x.norm(dim=1, keepdim=True) + 1e-10)


def _layers() -> Iterator[nn.Module]:
    channels = 3
    for width in VGG16:
        if width == "pool":
            yield from (nn.MaxPool2d(2, stride=1), BlurPool(channels))
        else:
            yield from (nn.Conv2d(channels, width, 3, padding=1), nn.ReLU())
            channels = width
