"""ST-LPIPS: the package's own numbers without its code, and what it says of blur, noise and texture at equal PSNR."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.optimize import brentq
from torch import Tensor

from data.dataloader import DATASETS
from guided_diffusion import degrade, restore
from util.metrics import perceptual, weights
from util.metrics.scores import Metrics, psnr
from util.metrics.shift_tolerant import ShiftTolerantLPIPS
from util.metrics.weights import ST_LPIPS

NETWORK = perceptual.NETWORKS["st_lpips"]


@pytest.fixture(scope="module")
def network() -> ShiftTolerantLPIPS:
    return ShiftTolerantLPIPS(ST_LPIPS.find([]))


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    dataset = DATASETS.build("skimage", image_size=128)
    return torch.stack([dataset[k] for k in range(3)])


def test_it_is_that_of_its_package(network, photographs, monkeypatch):
    """Whose code is run here only, without what it prints and imports for that."""
    monkeypatch.setitem(sys.modules, "torchsummary", SimpleNamespace(summary=None))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(embed=None))
    from stlpips_pytorch import stlpips

    with torch.device("meta"):
        official = stlpips.LPIPS(net="vgg", variant="shift_tolerant", pretrained=False, verbose=False)
    state = torch.load(ST_LPIPS.find([]), map_location="cpu", weights_only=True)
    official.load_state_dict(state, strict=False, assign=True)
    x = photographs[:2, :, 30:75, 20:90]
    y = (x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    for a, b in ((x, y), (x[..., :18, :18], y[..., :18, :18])):
        with torch.no_grad():
            expected = official(a, b).flatten()
        assert expected.min() > 0.01
        torch.testing.assert_close(network(a, b), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(network(a, b), torch.cat([network(a[:1], b[:1]), network(a[1:], b[1:])]))


def score_with_it() -> int:
    x, perceptual.NETWORKS["st_lpips"] = torch.zeros(3, 20, 20), NETWORK             # not a fast one
    assert Metrics(networks=["st_lpips"])(x, x).st_lpips == 0
    assert not {"stlpips_pytorch", "torchsummary", "IPython"} & set(sys.modules)
    return 0


def test_only_the_packages_weights_are_used_and_nothing_is_printed(fork):
    process = fork(score_with_it)
    assert process.communicate() == ("", "") and process.returncode == 0


def test_images_too_small_for_its_strides_have_none(photographs):
    metrics = Metrics(networks=["st_lpips"])
    x, y = photographs[0, :, :18, :40], photographs[1, :, :18, :40]
    assert metrics(x, y).st_lpips > 0
    assert metrics(3 * x, (3 * x).clamp(-1, 1)).st_lpips == 0           # clamped, as PSNR
    assert math.isnan(metrics(x[:, :17], y[:, :17]).st_lpips)


def test_a_notebook_has_it(photographs):
    degraded = degrade(photographs[0, :, 40:72, 40:72], {"name": "super_resolution", "scale_factor": 4}, 0.05)
    restoration = restore(degraded, None, "lift", progress=False)
    expected = Metrics(networks=["st_lpips"])(restoration.samples[0], degraded.truth).st_lpips
    assert restoration.metrics["st_lpips"] == pytest.approx(expected) and expected > 0
    assert f"st_lpips {expected:.4g}" in restoration._repr_html_()


def test_without_its_package_it_is_left_out_with_the_remedy(monkeypatch, capsys):
    monkeypatch.setattr(weights, "find_spec", lambda package: None)
    assert Metrics(networks=["st_lpips"]).networks == {}
    assert capsys.readouterr().err == ("warning: left out: ST-LPIPS (vgg), as weights are missing: "
                                       "vgg_shift_tolerant.pth is not there, 'pip install stlpips_pytorch' gets it\n")


def degraded(x: Tensor, kind: str, decibels: float) -> Tensor:
    """The image (3, H, W), blurred, noisy, or with the phases of its texture drawn anew, at this PSNR.

    Texture is what lies above a Gaussian blur of 2 pixels; its spectrum's moduli are kept.
    """
    rng, image = np.random.default_rng(0), x.numpy().astype(np.float64)
    texture = image - gaussian_filter(image, (0, 2, 2))
    phases = np.angle(np.fft.rfft2(rng.standard_normal(image.shape[1:])))
    other = np.fft.irfft2(np.fft.rfft2(texture) * np.exp(1j * phases), s=image.shape[1:])
    noise = rng.standard_normal(image.shape)
    make = {"blur": lambda s: gaussian_filter(image, (0, s, s)), "noise": lambda s: image + s * noise,
            "texture": lambda s: image + s * (other - texture)}[kind]

    def at(s: float) -> Tensor:
        return torch.from_numpy(make(s)).float().clamp(-1, 1)

    return at(brentq(lambda s: psnr(at(s), x) - decibels, 0.01, 20, xtol=1e-4))


def test_at_equal_psnr_texture_scores_better_than_blur_and_noise(network, photographs):
    """Where PSNR cannot tell: what has the right texture in the wrong place looks better than what has none."""
    scores = {kind: network(torch.stack([degraded(x, kind, 25.0) for x in photographs[:2]]), photographs[:2])
              for kind in ("blur", "noise", "texture")}
    assert (scores["texture"] < scores["blur"]).all() and (scores["texture"] < scores["noise"]).all(), scores


def test_a_shift_by_a_pixel_is_nearly_the_same_image(network, photographs):
    x, shifted = photographs[:2, ..., :-1], photographs[:2, ..., 1:]
    blurred = torch.stack([degraded(x[k], "blur", psnr(shifted[k], x[k])) for k in range(2)])
    assert (network(shifted, x) < 0.2 * network(blurred, x)).all()
