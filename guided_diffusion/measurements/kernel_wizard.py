"""The blur network of Tran et al., "Explore Image Deblurring via Encoded Blur Kernel Space", CVPR 2021.

Only F, which applies a blur that a code k describes; its encoder G, which finds the code of a pair of images, is not
needed to blur. Parameter names are the official checkpoint's.
"""

import torch
from torch import Tensor, nn

CODE_CHANNELS = 512
STRIDE = 128                                        # image pixels per entry of the code
_WIDE = [1024, 1024, 3, 3]
ENCODER = {                                         # the encoder's tensors in the checkpoint, name -> shape
    f"kernel_extractor.model.{name}.weight": tuple(shape) for name, shape in {
        "1": [64, 128, 7, 7], "4": [128, 64, 3, 3], "7": [256, 128, 3, 3], "10": [512, 256, 3, 3],
        "13": [1024, 512, 3, 3], "16": _WIDE,
        **{f"{block}.conv_block.{conv}": _WIDE for block in range(19, 23) for conv in (1, 5)}}.items()}


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x)))."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return x + self.conv2(self.conv1(x).relu())


class AdapterLevel(nn.Module):
    """A level of a U-Net at whose bottom the code is appended: halve, go through the levels below, double.

    Args:
        outer, inner: channels of this level's input and of the level below.
        submodule: the level below; None at the bottom.
        top: the outermost level, which has no activation before and a tanh after it.
    """

    def __init__(self, outer: int, inner: int, submodule: "AdapterLevel | None" = None, top: bool = False):
        super().__init__()
        halve = nn.Conv2d(outer, inner, 4, stride=2, padding=1, bias=False)
        double = nn.ConvTranspose2d(2 * inner, outer, 4, stride=2, padding=1, bias=top)
        self.down = nn.Sequential(halve) if top else nn.Sequential(nn.LeakyReLU(0.2), halve)
        self.submodule = submodule
        self.up = nn.Sequential(nn.ReLU(), double, nn.Tanh()) if top else nn.Sequential(nn.ReLU(), double)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """(B, outer, h, w) -> the same shape."""
        below = self.down(x)                                                            # (B, inner, h/2, w/2)
        pair = [below, code] if self.submodule is None else [self.submodule(below, code), below]
        return self.up(torch.cat(pair, dim=1))


class KernelWizard(nn.Module):
    """F(x, k): the sharp image x (B, 3, H, W) in [0, 1], blurred as the code k (B, 512, H/128, W/128) says.

    Features at a quarter of the size (10 residual blocks), an adapter that mixes in the code, and a decoder
    (20 residual blocks, two pixel shuffles) whose output is added to x. H and W are multiples of 128.
    """

    def __init__(self):
        super().__init__()

        def conv(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(channels, out, 3, stride, padding=1)

        def leaky() -> nn.LeakyReLU:
            return nn.LeakyReLU(0.1)

        self.feature_extractor = nn.Sequential(
            conv(3, 64), leaky(), conv(64, 64, stride=2), leaky(), conv(64, 64, stride=2), leaky(),
            *(ResidualBlock(64) for _ in range(10)))
        level = AdapterLevel(512, 512)
        for outer, inner in ((256, 512), (128, 256), (64, 128)):
            level = AdapterLevel(outer, inner, level)
        self.adapter = nn.ModuleDict({"model": AdapterLevel(64, 64, level, top=True)})
        self.recon_trunk = nn.Sequential(
            *(ResidualBlock(64) for _ in range(20)),
            conv(64, 256), nn.PixelShuffle(2), leaky(), conv(64, 256), nn.PixelShuffle(2), leaky(),
            conv(64, 64), leaky(), conv(64, 3))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """(B, 3, H, W), (B, 512, H/128, W/128) -> (B, 3, H, W)."""
        return x + self.recon_trunk(self.adapter["model"](self.feature_extractor(x), code))
