"""Networks that judge images, and what is computed from their features: LPIPS, ST-LPIPS, FID, KID.

FID and KID are those of torchmetrics, on the 2048 features of torch-fidelity's Inception v3: the weights that the
metrics were defined with (TensorFlow's of 2015-12-05, converted) and its bilinear resize to 299 x 299.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from util.checkpoint import read_checkpoint
from util.errors import UserError
from util.logger import logger
from util.metrics.shift_tolerant import ShiftTolerantLPIPS
from util.metrics.weights import ALEXNET, INCEPTION, ST_LPIPS, VGG16, WeightsFile

EXTRACTOR = "Inception v3 (2015-12-05, torch-fidelity), 2048 features"
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000            # Binkowski et al., 2018, as in torchmetrics
MIN_SIDE = {"lpips_vgg": 16, "lpips_alex": 31, "st_lpips": 18}      # below, the network's strides leave nothing
PERCEPTUAL = tuple(MIN_SIDE)                        # networks that score an image


def _inception(path: Path) -> nn.Module:
    """uint8 images (B, 3, H, W) -> (features (B, 2048),), frozen.

    Raises:
        UserError: the file is damaged, holds more than tensors and plain containers, or belongs to something else.
    """
    read_checkpoint(path)           # the library's own load would run whatever code a file holds
    from torch_fidelity import FeatureExtractorInceptionV3

    try:
        return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    except (RuntimeError, TypeError, AttributeError):
        raise UserError(f"{path} is not the published {INCEPTION.name}; download it again") from None


def _lpips(net: str, backbone: str, path: Path) -> nn.Module:
    """LPIPS 0.1 (Zhang et al., 2018) on a torchvision network, whose file is read strictly and without running code."""
    from torchvision.models import get_model

    with torch.device("meta"):
        network = get_model(backbone, weights=None)
    network.load_state_dict(read_checkpoint(path), strict=True, assign=True)
    import lpips

    judge = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    for part in judge.net.children():
        for index, layer in part.named_children():
            layer.load_state_dict(network.features[int(index)].state_dict())
    return judge.requires_grad_(False)


NETWORKS: dict[str, tuple[str, WeightsFile, Callable[[Path], nn.Module]]] = {
    "lpips_vgg": ("LPIPS (vgg)", VGG16, partial(_lpips, "vgg", "vgg16")),
    "lpips_alex": ("LPIPS (alex)", ALEXNET, partial(_lpips, "alex", "alexnet")),
    "st_lpips": ("ST-LPIPS (vgg)", ST_LPIPS, ShiftTolerantLPIPS),
    "inception": ("FID and KID", INCEPTION, _inception),
}


def load_networks(names: Sequence[str], folders: Sequence[Path], device: torch.device | str = "cpu"
                  ) -> dict[str, nn.Module]:
    """The networks of these names (keys of NETWORKS), without those that cannot be had, which one warning names."""
    found, lost = {}, {}
    for name in names:
        _, file, build = NETWORKS[name]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")     # lpips calls torchvision in a way that is going away
                found[name] = build(file.find(folders)).to(device)
        except (UserError, ImportError) as error:
            lost[name] = str(error)
        except Exception as error:      # whatever a file of other contents makes the libraries raise
            lost[name] = f"{file.name} is not the published file ({type(error).__name__})"
    if lost:
        titles = [NETWORKS[name][0] for name in lost]
        logger.warning(f"left out: {', '.join(titles)}, as weights are missing: {'; '.join(lost.values())}")
    return found


def frechet_distance(real: Tensor, restored: Tensor) -> float:
    """FID (Heusel et al., 2017) of features (N, D) and (M, D): the Frechet distance of the Gaussians fitted to them.

    |mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)). NaN for fewer than two images on a side. It is biased upwards
    when images are few (up to D leave the covariances singular), so only figures from equally many images compare.
    """
    if min(len(real), len(restored)) < 2:
        return float("nan")
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_given(real), sync_on_compute=False)
    return max(0.0, float(_compute(metric, real, restored)))


def kernel_distance(real: Tensor, restored: Tensor, seed: int = 0) -> float:
    """KID (Binkowski et al., 2018) of features (N, D) and (M, D): unbiased squared MMD, kernel (x.y / D + 1)^3.

    Unlike FID it has no bias from few images, and may be negative. Over all images where the sides are equal and have
    at most 1000; else the mean over 100 random subsets of as many as the smaller side has, 1000 at most. NaN for fewer
    than two images on a side.
    """
    size = min(len(real), len(restored), KID_SUBSET_SIZE)
    if size < 2:
        return float("nan")
    from torchmetrics.image.kid import KernelInceptionDistance

    subsets = 1 if len(real) == len(restored) == size else KID_SUBSETS
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        warnings.simplefilter("ignore")             # that features are kept
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(feature=_given(real), subsets=subsets, subset_size=size, sync_on_compute=False)
        return float(_compute(metric, real, restored)[0])


def _given(features: Tensor) -> nn.Module:
    """Stands for the network where features are already computed."""
    network = nn.Identity()
    network.num_features = features.shape[1]
    return network


def _compute(metric: nn.Module, real: Tensor, restored: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """The metric of all features; it must not gather those of other processes on its own (`sync_on_compute`)."""
    metric.update(real.cpu().double(), real=True)
    metric.update(restored.cpu().double(), real=False)
    return metric.compute()
