"""Image quality, on clamped float images; LPIPS, FID and KID only where their networks can be had."""

import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch_fidelity import FeatureExtractorInceptionV3

from tests.fake_weights import write_alexnet, write_inception, write_st_lpips, write_vgg16
from util.errors import UserError
from util.fetch import command_for
from util.metrics import weights
from util.metrics.perceptual import NETWORKS, frechet_distance, kernel_distance
from util.metrics.scores import Metrics, psnr, ssim
from util.metrics.weights import ALEXNET, INCEPTION, VGG16

pytestmark = pytest.mark.usefixtures("offline")


def image(seed=0, size=16):
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_psnr_is_scikit_images():
    restored, label = ((image(seed).clamp(-1, 1) / 2 + 0.5).double().numpy() for seed in (0, 1))
    expected = peak_signal_noise_ratio(label, restored, data_range=1.0)
    assert psnr(image(0), image(1)) == pytest.approx(expected, abs=1e-5)


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


def hub(tmp_path):
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_without_networks_there_is_one_warning_and_no_lpips(monkeypatch, capsys):
    monkeypatch.setattr(weights, "find_spec", lambda package: None)
    metrics = Metrics(networks=list(NETWORKS))
    scores = metrics(image(0), image(1))
    assert math.isnan(scores.lpips_vgg)
    assert math.isnan(scores.lpips_alex)
    assert math.isnan(scores.st_lpips)
    assert metrics.features(image(0)) is None
    assert scores.psnr == psnr(image(0), image(1))
    captured = capsys.readouterr()
    assert captured.out == ""
    line, = captured.err.strip().splitlines()
    for word in ("LPIPS (vgg), LPIPS (alex), ST-LPIPS (vgg), FID and KID", VGG16.name, ALEXNET.name, INCEPTION.name,
                 "'python -m util.fetch vgg16'", "'python -m util.fetch inception'", "'pip install stlpips_pytorch'"):
        assert word in line


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize("content", [b"broken", b"", pickle.dumps(Malicious(), protocol=2), "another", "list",
                                     "incomplete"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_damaged_or_foreign_file_leaves_its_metric_out_and_runs_nothing(tmp_path, monkeypatch, capsys, name, content):
    folder = hub(tmp_path)
    file = folder / NETWORKS[name][1].name
    file.parent.mkdir(parents=True, exist_ok=True)
    package = SimpleNamespace(submodule_search_locations=[folder])
    monkeypatch.setattr(weights, "find_spec", lambda name: package)
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "incomplete":
        {"lpips_vgg": write_vgg16, "lpips_alex": write_alexnet, "inception": write_inception,
         "st_lpips": write_st_lpips}[name](file, missing=1)
    else:
        torch.save([torch.zeros(1)] if content == "list" else {"weight": torch.zeros(3)}, file)
    assert Metrics(networks=[name]).networks == {}
    line, = capsys.readouterr().err.strip().splitlines()
    assert file.name in line


def test_lpips_is_that_of_its_library_on_the_weights_in_torchs_folder(tmp_path, capfd, monkeypatch):
    folder = hub(tmp_path)
    write_vgg16(folder / VGG16.name)
    write_alexnet(folder / ALEXNET.name)
    metrics = Metrics()
    a, b = image(0, 40), image(1, 40)
    scores, itself = metrics(a, b), metrics(3 * a, (3 * a).clamp(-1, 1))
    assert (itself.lpips_vgg, itself.lpips_alex) == (0, 0)
    assert min(scores.lpips_vgg, scores.lpips_alex) > 1e-3
    assert scores.lpips_vgg != scores.lpips_alex
    small = metrics(image(0, 30), image(1, 30))
    assert small.lpips_vgg > 0
    assert math.isnan(small.lpips_alex)                                 # too small for AlexNet
    assert math.isnan(metrics(image(0, 15), image(1, 15)).lpips_vgg)    # and for VGG16
    assert not any(p.requires_grad for network in metrics.networks.values() for p in network.parameters())
    assert capfd.readouterr() == ("", "")

    import lpips

    for net, ours in (("vgg", scores.lpips_vgg), ("alex", scores.lpips_alex)):
        with pytest.warns(UserWarning):
            official = lpips.LPIPS(net=net, verbose=False)              # reads the same files by its own code
        with torch.no_grad():
            assert float(official(a[None], b[None])) == pytest.approx(ours, rel=1e-5)


@pytest.mark.parametrize("file", [VGG16, ALEXNET, INCEPTION])
def test_the_command_that_gets_a_file_is_that_of_the_table_of_weights(file):
    assert file.command == command_for(file.name)


def test_a_folder_of_weights_serves_where_there_is_no_network(tmp_path, capsys):
    folder = tmp_path / "weights"
    folder.mkdir()
    write_alexnet(folder / ALEXNET.name)
    write_inception(folder / INCEPTION.other_name)                      # the same file as published by pytorch-fid
    metrics = Metrics(weights_dir=folder, networks=list(NETWORKS))
    assert set(metrics.networks) == {"lpips_alex", "st_lpips", "inception"}
    line, = capsys.readouterr().err.strip().splitlines()
    assert f"{VGG16.name} is not there" in line
    with pytest.raises(UserError, match=r"elsewhere' not found.*vgg16-397923af.pth"):
        Metrics(weights_dir=tmp_path / "elsewhere")


def test_inception_sees_the_saved_levels(tmp_path):
    write_inception(tmp_path / INCEPTION.name)
    extractor = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"],
                                            feature_extractor_weights_path=str(tmp_path / INCEPTION.name))
    metrics = Metrics(weights_dir=tmp_path, networks=["inception"])
    x = image(0, 24) * 1.5
    levels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    features = metrics.features(x)
    assert features.shape == (2048,)
    torch.testing.assert_close(features, extractor(levels[None])[0][0])
    assert metrics.features(torch.full((3, 24, 24), 0.9)).min() > features.max() >= 0   # brightness


def test_fid_is_the_frechet_distance_of_gaussians():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(40, 5)) * 0.5 + 0.3
    (m1, c1), (m2, c2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (real, fake))
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet_distance(torch.tensor(real), torch.tensor(fake)) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(torch.tensor(real), torch.tensor(real)) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(torch.tensor(real), torch.tensor(real + 2)) == pytest.approx(5 * 4, rel=1e-6)


def mmd(x, y):
    """Unbiased squared MMD, written as sums over pairs."""
    def k(a, b):
        return (a @ b / len(a) + 1) ** 3
    n, m = len(x), len(y)
    return (sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
            + sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
            - 2 * sum(k(a, b) for a in x for b in y) / (n * m))


def test_kid_is_the_unbiased_mmd():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(9, 4)), rng.normal(size=(9, 4)) + 0.5
    assert kernel_distance(torch.tensor(x), torch.tensor(y)) == pytest.approx(mmd(x, y), rel=1e-9)


def test_kid_of_unequal_sides_is_close_repeats_itself_and_leaves_the_generator_alone():
    rng = np.random.default_rng(2)
    x, y = (torch.tensor(rng.normal(size=(n, 4)) + shift) for n, shift in ((30, 0.0), (20, 1.0)))
    before = torch.random.get_rng_state()
    value = kernel_distance(x, y)
    assert value == kernel_distance(x, y)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert value == pytest.approx(mmd(x.numpy(), y.numpy()), rel=0.3)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_one_image_has_no_distribution(distance):
    assert math.isnan(distance(torch.zeros(1, 4), torch.zeros(5, 4)))
    assert math.isnan(distance(torch.zeros(5, 4), torch.zeros(0, 4)))
