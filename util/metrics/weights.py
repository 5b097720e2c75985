"""Weights of the networks that judge images: found in a folder, or in a package; `util.fetch` gets them."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from util.command import user_path
from util.config.config import REPOSITORY
from util.errors import UserError


@dataclass(frozen=True)
class WeightsFile:
    """A published file, and the command that gets it; of one inside a package, `name` is its place there."""

    name: str
    command: str
    other_name: str = ""                            # of the same file, elsewhere
    package: str = ""

    def find(self, folders: Sequence[Path]) -> Path:
        """Where it is; UserError, which says how to get it, where it is not."""
        if self.package:                            # which is not imported
            spec = find_spec(self.package)
            folders = [Path(folder) for folder in spec.submodule_search_locations] if spec else []
        for path in (folder / name for folder in folders for name in (self.name, self.other_name) if name):
            if path.is_file():
                return path
        raise UserError(f"{Path(self.name).name} is not there, '{self.command}' gets it")


VGG16 = WeightsFile("vgg16-397923af.pth", "python -m util.fetch vgg16")
ALEXNET = WeightsFile("alexnet-owt-7be5be79.pth", "python -m util.fetch alexnet")
INCEPTION = WeightsFile("weights-inception-2015-12-05-6726825d.pth", "python -m util.fetch inception",
                        "pt_inception-2015-12-05-6726825d.pth")
ST_LPIPS = WeightsFile("weights/vST0.0/vgg_shift_tolerant.pth", "pip install stlpips_pytorch",
                       package="stlpips_pytorch")


def weights_folders(weights_dir: str | Path | None = None) -> list[Path]:
    """Where the files may lie: in `weights_dir`, by default where `util.fetch` puts them, or where torch does.

    Raises:
        UserError: `weights_dir` is not there.
    """
    folder = REPOSITORY / "models" if weights_dir is None else user_path(weights_dir)
    if not folder.is_dir():
        raise UserError(f"--weights_dir: folder '{weights_dir}' not found; expected one that holds {VGG16.name}, "
                        f"{ALEXNET.name} and {INCEPTION.name}, or some of them")
    return [folder, Path(torch.hub.get_dir()) / "checkpoints"]
