"""Image quality, on clamped float images; LPIPS only where its network can be had."""

import math
import socket
import time

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from util import compute_metric
from util.compute_metric import Metrics, psnr, ssim


@pytest.fixture(autouse=True)
def no_network(tmp_path, monkeypatch):
    """An empty hub folder, and a proxy that refuses every connection."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)


def image(seed=0, size=16):
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_psnr_is_ten_log_of_the_mean_square_on_the_unit_scale():
    x = image() * 0.9
    assert psnr(x + 0.02, x) == pytest.approx(-10 * math.log10(0.01 ** 2), abs=1e-4)
    assert psnr(x, image(1)) == pytest.approx(-10 * math.log10(float(((x - image(1)) ** 2).mean()) / 4), abs=1e-4)


def test_equal_images_score_best_without_a_warning(recwarn):
    assert psnr(image(), image()) == math.inf
    assert ssim(image(), image()) == pytest.approx(1)
    assert not recwarn.list


def test_images_are_clamped_and_not_stretched():
    x = image() * 0.2                                                   # low contrast
    assert psnr(x + 0.1, x) == pytest.approx(-20 * math.log10(0.05), abs=1e-4)
    extreme = torch.where(image(3) > 0, 1.0, -1.0)
    assert psnr(5 * extreme, extreme) == math.inf


def test_ssim_is_that_of_scikit_image():
    a, b = (image(s, 32).permute(1, 2, 0).numpy().astype(np.float64) / 2 + 0.5 for s in (0, 1))
    expected = structural_similarity(a, b, data_range=1.0, channel_axis=2)
    assert ssim(image(1, 32), image(0, 32)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [3, 4, 5, 6, 7, 8])
def test_small_images_have_an_ssim(size):
    assert ssim(image(0, size), image(0, size)) == pytest.approx(1)
    assert ssim(image(0, size), image(1, size)) < 0.9


@pytest.mark.parametrize("size", [1, 2])
def test_tiny_images_have_none(size):
    assert math.isnan(ssim(image(0, size), image(1, size)))


def test_without_the_network_there_is_one_warning_and_no_lpips(capsys):
    started = time.monotonic()
    scores = Metrics()(image(0), image(1))
    assert time.monotonic() - started < compute_metric.NETWORK_TIMEOUT + 5
    assert math.isnan(scores.lpips)
    assert scores.psnr == psnr(image(0), image(1))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    assert "LPIPS is left out" in captured.err
    assert "vgg16-397923af.pth" in captured.err
    assert "TORCH_HOME" in captured.err


def test_a_silent_server_does_not_hold_the_run_up(monkeypatch, capsys):
    monkeypatch.setattr(compute_metric, "NETWORK_TIMEOUT", 0.3)
    with socket.socket() as server:                                     # accepts, and never answers
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.getsockname()[1]}")
        started = time.monotonic()
        assert Metrics().lpips_network is None
        assert time.monotonic() - started < 3
    assert "LPIPS is left out" in capsys.readouterr().err


def test_a_damaged_file_means_no_lpips(tmp_path, capsys):
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "vgg16-397923af.pth").write_bytes(b"broken")
    assert Metrics().lpips_network is None
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_lpips_is_used_where_its_file_is(tmp_path, capfd):
    from torchvision.models import vgg16

    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    with torch.device("meta"):
        network = vgg16(weights=None)
    weights = {name: torch.zeros(1).expand(value.shape) for name, value in network.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    weights["features.0.weight"] = torch.randn(64, 3, 3, 3, generator=generator)
    weights["features.2.weight"] = torch.randn(64, 64, 3, 3, generator=generator)
    torch.save(weights, folder / "vgg16-397923af.pth")
    metrics = Metrics()
    assert metrics(image(0, 32), image(1, 32)).lpips > 0
    assert metrics(image(0, 32), image(0, 32)).lpips == 0
    assert metrics(3 * image(0, 32), (3 * image(0, 32)).clamp(-1, 1)).lpips == 0
    assert math.isnan(metrics(image(0, 8), image(1, 8)).lpips)          # too small for VGG16
    assert not any(p.requires_grad for p in metrics.lpips_network.parameters())
    assert capfd.readouterr() == ("", "")
