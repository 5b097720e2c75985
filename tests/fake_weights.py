"""Weights with the published names and shapes: small files of VGG16, AlexNet and Inception v3; the KernelWizard's.

And a network of a few sums in place of Inception.
"""

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.helpers import deterministic
from util.checkpoint import read_checkpoint
from util.metrics import perceptual
from util.metrics.weights import ST_LPIPS

SALT, RESIDUAL_FACTOR = 30000, 0.3                  # of the KernelWizard


def write_vgg16(path: Path, missing: int = 0) -> None:
    _write_backbone("vgg16", path, missing)


def write_alexnet(path: Path, missing: int = 0) -> None:
    _write_backbone("alexnet", path, missing)


def _write_backbone(name: str, path: Path, missing: int) -> None:
    from torchvision.models import get_model

    with torch.device("meta"):
        shapes = {key: value.shape for key, value in get_model(name, weights=None).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    first = sorted((key for key in shapes if key.startswith("features") and key.endswith("weight")),
                   key=lambda key: int(key.split(".")[1]))[:2]
    _save({key: torch.randn(shape, generator=generator) if key in first else torch.zeros(1).expand(shape)
           for key, shape in shapes.items()}, path, missing)


def write_st_lpips(path: Path, missing: int = 0) -> None:
    state = read_checkpoint(Path(find_spec(ST_LPIPS.package).origin).parent / ST_LPIPS.name)
    _save({key: torch.zeros(1).expand(value.shape) for key, value in state.items()}, path, missing)


def write_inception(path: Path, missing: int = 0) -> None:
    """Every convolution averages its inputs, so the features grow with the brightness of an image."""
    from torch_fidelity import feature_extractor_inceptionv3

    class Shapes(feature_extractor_inceptionv3.FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            pass

    torch.save({}, path)
    with torch.device("meta"):
        network = Shapes("shapes", ["2048"], feature_extractor_weights_path=str(path))
    _save({key: _constant(key, value) for key, value in network.state_dict().items()}, path, missing)


def _constant(key: str, value: Tensor) -> Tensor:
    if value.dim() == 4:
        return torch.tensor(1 / value[0].numel()).expand(value.shape)
    if value.dtype == torch.long:
        return torch.tensor(1)
    return torch.tensor(float(key.endswith(("weight", "running_var")))).expand(value.shape)


def _save(state: dict[str, Tensor], path: Path, missing: int) -> None:
    torch.save(dict(list(state.items())[missing:]), path)


class ChannelMeans(nn.Module):
    """A feature extractor with Inception's interface: uint8 (B, 3, H, W) -> ((B, 3),)."""

    def forward(self, images):
        assert images.dtype == torch.uint8
        return (images.float().mean(dim=(2, 3)),)


class MeanDifference(nn.Module):
    """A perceptual metric with ST-LPIPS's interface, made from its file: the mean absolute difference."""

    def __init__(self, path: Path):
        super().__init__()

    def forward(self, x, y):
        return (x - y).abs().mean(dim=(1, 2, 3))


def use_fast_scores() -> None:
    """MeanDifference in place of ST-LPIPS, in a program that a test starts."""
    title, file, _ = perceptual.NETWORKS["st_lpips"]
    perceptual.NETWORKS["st_lpips"] = title, file, MeanDifference


def kernel_wizard_weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """A state dict with the official names, filled by the rule of the golden numbers; the encoder's share is zero."""
    filled = {}
    for k, (name, shape) in enumerate(shapes.items()):
        if name.startswith("kernel_extractor."):
            filled[name] = torch.zeros(1).expand(shape)                                 # takes no space in the file
            continue
        values = deterministic(SALT + k, tuple(shape))
        values *= math.sqrt(2 * 3 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
        if len(shape) > 1 and (".conv1." in name or ".conv2." in name):
            values *= RESIDUAL_FACTOR
        filled[name] = torch.from_numpy(values).float()
    return filled
