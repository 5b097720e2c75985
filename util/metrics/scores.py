"""Image quality on float images, never on stretched ones: PSNR, SSIM (scikit-image), LPIPS (`lpips`, VGG16 and
AlexNet), ST-LPIPS, and the features of FID and KID (torchmetrics)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from util.img_utils import to_uint8, to_unit
from util.metrics.perceptual import MIN_SIDE, PERCEPTUAL, load_networks
from util.metrics.weights import weights_folders


@dataclass(frozen=True)
class Scores:
    """How close a restored image is to the true one; NaN where a metric does not apply."""

    psnr: float                                     # dB, infinite for equal images
    ssim: float                                     # at most 1
    lpips_vgg: float                                # 0 for equal images, as the following
    lpips_alex: float = float("nan")
    st_lpips: float = float("nan")


PER_IMAGE = tuple(field.name for field in fields(Scores))


def psnr(restored: Tensor, label: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of an image (3, H, W) in [-1, 1], clamped and scored on [0, 1]."""
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(1 / np.mean((_array(label) - _array(restored)) ** 2)))


def ssim(restored: Tensor, label: Tensor) -> float:
    """Structural similarity (Wang et al., 2004) of an image (3, H, W) in [-1, 1], clamped and scored on [0, 1].

    scikit-image's defaults: uniform 7 x 7 windows, mean over the channels. Images of 3 to 6 pixels get the largest odd
    window that fits; for smaller ones it is NaN.
    """
    side = min(label.shape[1:])
    if side < 3:
        return float("nan")
    window = min(7, side - 1 + side % 2)
    return float(structural_similarity(
        _array(label), _array(restored), data_range=1.0, channel_axis=0, win_size=window))


def _array(x: Tensor) -> np.ndarray:
    return to_unit(x.detach()).cpu().double().numpy()


class Metrics:
    """PSNR, SSIM and, where their networks can be had, LPIPS, ST-LPIPS and the features that FID and KID compare.

    Args:
        device: where the networks run.
        weights_dir: a folder with the networks' files, see `util.metrics.weights`.
        networks: which of `util.metrics.perceptual.NETWORKS` to load; one warning names those that cannot be had.

    Raises:
        UserError: `weights_dir` is not there.
    """

    def __init__(self, device: torch.device | str = "cpu", weights_dir: str | Path | None = None,
                 networks: Sequence[str] = PERCEPTUAL):
        self.device = torch.device(device)
        self.networks = load_networks(networks, weights_folders(weights_dir), self.device)

    def __call__(self, restored: Tensor, label: Tensor) -> Scores:
        """Score an image (3, H, W) in [-1, 1] against the true one of the same shape."""
        assert restored.shape == label.shape and label.dim() == 3, (restored.shape, label.shape)
        return Scores(psnr(restored, label), ssim(restored, label),
                      **{name: self._perceptual(name, restored, label) for name in PERCEPTUAL})

    @torch.no_grad()
    def _perceptual(self, name: str, restored: Tensor, label: Tensor) -> float:
        if name not in self.networks or min(label.shape[1:]) < MIN_SIDE[name]:
            return float("nan")
        pair = [x[None].to(self.device, torch.float32).clamp(-1, 1) for x in (restored, label)]
        return float(self.networks[name](*pair))

    def features(self, x: Tensor) -> Tensor | None:
        """The features (D,) of an image (3, H, W) in [-1, 1], on the CPU; None without the network.

        The network was defined on 8-bit images, so `x` is rounded to 8 bits, as in the saved file.
        """
        if "inception" not in self.networks:
            return None
        levels = torch.from_numpy(to_uint8(x)).permute(2, 0, 1)[None].to(self.device)
        features, = self.networks["inception"](levels)
        return features[0].cpu()
