"""Small files with the names and shapes of the published weights of VGG16, AlexNet and Inception v3."""

from pathlib import Path

import torch
from torch import Tensor


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
