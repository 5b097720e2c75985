"""Image quality: PSNR and SSIM (scikit-image) and LPIPS (`lpips`, VGG16), on float images, never on stretched ones."""

import socket
import threading
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

from util.img_utils import to_unit
from util.logger import get_logger

LPIPS_MIN_SIDE = 16                                 # VGG16 halves an image four times before its last features
NETWORK_TIMEOUT = 8.0                               # seconds without an answer after which the network counts as absent


@dataclass(frozen=True)
class Scores:
    """How close a restored image is to the true one; NaN where a metric does not apply."""

    psnr: float                                     # dB, infinite for equal images
    ssim: float                                     # at most 1
    lpips: float                                    # 0 for equal images


def psnr(restored: Tensor, label: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of an image (3, H, W) in [-1, 1], clamped and scored on [0, 1]."""
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(_array(label), _array(restored), data_range=1.0))


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
    """PSNR, SSIM and, where its network can be had, LPIPS.

    Args:
        device: where LPIPS's network runs.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.lpips_network = load_lpips()
        if self.lpips_network is not None:
            self.lpips_network.to(self.device)

    def __call__(self, restored: Tensor, label: Tensor) -> Scores:
        """Score an image (3, H, W) in [-1, 1] against the true one of the same shape."""
        assert restored.shape == label.shape and label.dim() == 3, (restored.shape, label.shape)
        return Scores(psnr(restored, label), ssim(restored, label), self._lpips(restored, label))

    @torch.no_grad()
    def _lpips(self, restored: Tensor, label: Tensor) -> float:
        if self.lpips_network is None or min(label.shape[1:]) < LPIPS_MIN_SIDE:
            return float("nan")
        pair = [x[None].to(self.device, torch.float32).clamp(-1, 1) for x in (restored, label)]
        return float(self.lpips_network(*pair))


def load_lpips() -> nn.Module | None:
    """LPIPS (Zhang et al., 2018) with VGG16 features, or None, after a warning, where the features cannot be fetched.

    The VGG16 file lies in torch's hub folder, $TORCH_HOME/hub/checkpoints, and is fetched into it once.
    """
    from torchvision.models import VGG16_Weights

    url = VGG16_Weights.IMAGENET1K_V1.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    try:
        if not file.is_file():
            _fetch(url, file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import lpips
            return lpips.LPIPS(net="vgg", verbose=False).requires_grad_(False)
    except Exception as error:      # the network, the disk and a damaged file fail in many ways; all mean "no LPIPS"
        cause = getattr(error, "reason", error)     # what lies behind a URLError
        reason = str(getattr(cause, "strerror", None) or cause or type(cause).__name__).splitlines()[0][:100]
        get_logger().warning(f"LPIPS is left out, its VGG16 features cannot be had ({reason}); to have it, put "
                             f"{file.name} into {file.parent}, or set TORCH_HOME")
        return None


def _fetch(url: str, file: Path) -> None:
    _check_reachable(url)
    file.parent.mkdir(parents=True, exist_ok=True)
    get_logger().info("fetching LPIPS's VGG16 features (528 MB, only once)")
    with _socket_timeout(NETWORK_TIMEOUT):
        torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.rsplit("-", 1)[1])


def _check_reachable(url: str) -> None:
    """Raise OSError unless the server answers in time; a thread, because looking up a host name has no timeout."""
    failure: list[BaseException] = [TimeoutError(f"no answer within {NETWORK_TIMEOUT:.0f} s")]

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=NETWORK_TIMEOUT).close()
            failure.clear()
        except Exception as error:
            failure[:] = [error]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(NETWORK_TIMEOUT)
    if failure:
        raise failure[0]


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)
