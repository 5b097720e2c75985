"""Weights of the networks that judge images: found in a folder, or fetched once into torch's own."""

import socket
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import torch

from util.command import user_path
from util.errors import UserError
from util.logger import get_logger

NETWORK_TIMEOUT = 8.0                               # seconds without an answer after which the network counts as absent


@dataclass(frozen=True)
class WeightsFile:
    """A published file; its name ends in the first 8 digits of its SHA-256."""

    url: str
    megabytes: int
    other_name: str | None = None                   # of the same file, elsewhere

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]

    @property
    def sha256_prefix(self) -> str:
        return Path(self.name).stem.rsplit("-", 1)[1]


VGG16 = WeightsFile("https://download.pytorch.org/models/vgg16-397923af.pth", 528)
ALEXNET = WeightsFile("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", 233)
INCEPTION = WeightsFile("https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
                        "weights-inception-2015-12-05-6726825d.pth", 91, "pt_inception-2015-12-05-6726825d.pth")


@dataclass(frozen=True)
class PackagedFile:
    """A file inside an installed package, which is not imported."""

    package: str
    path: str

    @property
    def name(self) -> str:
        return Path(self.path).name


ST_LPIPS = PackagedFile("stlpips_pytorch", "weights/vST0.0/vgg_shift_tolerant.pth")


class MissingWeightsError(Exception):
    """A network cannot be had; the message is the reason, in a few words."""


def hub_folder() -> Path:
    """Where torch keeps downloaded weights: $TORCH_HOME/hub/checkpoints, by default under ~/.cache/torch."""
    return Path(torch.hub.get_dir()) / "checkpoints"


class WeightStore:
    """Finds files of weights.

    Args:
        folder: holds the files, under their published names; then nothing is ever fetched. When None, they lie in
            `hub_folder()`, and those that do not are fetched into it.

    Raises:
        UserError: `folder` is not there.
    """

    def __init__(self, folder: str | Path | None = None):
        self.folder = None if folder is None else user_path(folder)
        if self.folder is not None and not self.folder.is_dir():
            raise UserError(f"--weights_dir: folder '{folder}' not found; expected one that holds {VGG16.name}, "
                            f"{ALEXNET.name} and {INCEPTION.name}, or some of them")
        self._unreachable: dict[str, str] = {}      # server -> why, or nothing; each is asked once

    @property
    def place(self) -> Path:
        """The folder that a missing file should be put into."""
        return self.folder or hub_folder()

    def find(self, file: WeightsFile | PackagedFile) -> Path:
        """The path of a file, after fetching it if need be.

        Raises:
            MissingWeightsError: it is not there and cannot be fetched.
        """
        if isinstance(file, PackagedFile):
            return _find_packaged(file)
        folders = [self.folder, hub_folder()] if self.folder else [hub_folder()]
        for path in (folder / name for folder in folders for name in (file.name, file.other_name) if name):
            if path.is_file():
                return path
        if self.folder is not None:
            raise MissingWeightsError("no such file")
        server = urlsplit(file.url).netloc
        if server not in self._unreachable:
            self._unreachable[server] = _trouble_reaching(file.url)
        if self._unreachable[server]:
            raise MissingWeightsError(self._unreachable[server])
        return _fetch(file, hub_folder() / file.name)


def _find_packaged(file: PackagedFile) -> Path:
    package = find_spec(file.package)
    for folder in package.submodule_search_locations if package else ():
        if (path := Path(folder) / file.path).is_file():
            return path
    raise MissingWeightsError(f"pip install {file.package} brings them")


def _fetch(file: WeightsFile, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    get_logger().info(f"fetching {file.name} ({file.megabytes} MB, only once)")
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        torch.hub.download_url_to_file(file.url, str(path), hash_prefix=file.sha256_prefix)
    except Exception as error:              # the network, the disk and a damaged download fail in many ways
        raise MissingWeightsError(_reason(error)) from None
    finally:
        socket.setdefaulttimeout(timeout)
    return path


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)         # what lies behind a URLError
    return str(getattr(cause, "strerror", None) or cause or type(cause).__name__).splitlines()[0][:100]


def _trouble_reaching(url: str) -> str:
    """Why a server does not answer in time, if so; a thread asks, because looking up a host name has no timeout."""
    trouble = [f"no answer within {NETWORK_TIMEOUT:.0f} s"]

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.build_opener().open(request, timeout=NETWORK_TIMEOUT).close()
            trouble.clear()
        except urllib.error.HTTPError:              # an answer, too; some servers refuse HEAD and serve GET
            trouble.clear()
        except Exception as error:                  # in as many ways
            trouble[:] = [_reason(error)]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(NETWORK_TIMEOUT)
    return "".join(trouble)
