"""Blind deblurring of Tran et al. on small networks: a known blur is undone, the loss falls, batches, what is refused.

Nothing here says how good the methods are with the authors' weights.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data.dataloader import get_dataset
from guided_diffusion.condition_methods import get_conditioning_method
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.measurements.kernel_wizard import ENCODER
from guided_diffusion.priors.deep_image_prior import CodePrior, ImagePrior
from guided_diffusion.priors.stylegan2 import Generator
from guided_diffusion.solvers import bks_generic, blind
from guided_diffusion.solvers.bks_generic import hyper_laplacian
from guided_diffusion.solvers.bks_stylegan2 import geocross, length, one_cycle, statistics
from util.errors import UserError
from util.seeding import ImageRandomness


class KnownBlur(nn.Module):
    """F(x, k): a mean of 3 x 3 pixels, plus a little of the mean of k, so that both have gradients."""

    def forward(self, x, code):
        return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1) + 0.01 * code.mean()


def photograph(size=32):
    return (get_dataset("skimage", images=["astronaut"], image_size=size)[0][None] + 1) / 2


def psnr(a, b):
    return -10 * math.log10(F.mse_loss(a, b))


@pytest.fixture
def small(monkeypatch):
    """small(name, **params) -> a method whose F is `KnownBlur`, for images of multiples of 16."""
    monkeypatch.setattr(bks_generic, "CHANNELS", 16)
    monkeypatch.setattr(blind, "STRIDE", 16)

    def build(name, **params):
        method = get_conditioning_method(name, **params)
        method._blur = KnownBlur()
        if name == "bks_stylegan2":
            torch.manual_seed(0)
            method._generator = Generator(16, style=8, layers=2, widths={4: 8, 8: 8, 16: 8}).requires_grad_(False)
        return method
    return build


QUICK = {"bks_generic": {"iterations": 4, "warm_up": 2, "distance": "l2"},
         "bks_stylegan2": {"epochs": 1, "image_steps": 3, "code_steps": 2, "mapped": 100}}


def test_a_known_small_blur_is_undone(small):
    truth = photograph()
    y = KnownBlur()(truth, torch.zeros(1))
    method = small("bks_generic", iterations=100, warm_up=60, lr=2e-2, hyper_laplacian=0.02, distance="l2")
    *_, x = method.reports(y, (1, 512, 1, 1), torch.Generator().manual_seed(0))
    assert psnr(x, truth) > psnr(y, truth) + 1
    assert psnr(KnownBlur()(x, torch.zeros(1)), y) > 30


def test_the_terms_of_bks_generic(small):
    method, y = small("bks_generic", distance="l2"), photograph(16)
    x, k = y.roll(1, -1), torch.full((1, 512, 1, 1), 0.1)
    blurred = method.blurred(x, k)
    far, size, sparse = 100 * (blurred - y).square().mean(), 0.1 * math.sqrt(512), hyper_laplacian(x)
    torch.testing.assert_close(method.loss(x, k, y, first=False), far + 5e-4 * size + 0.05 * sparse)
    rest = method.loss(x, k, y, first=True) - 0.6 * far - 5e-5 * size - 0.02 * sparse
    assert 0 < rest < 1                                                                 # 1 - SSIM
    perfect = method.loss(x, k, method.blurred(x, k), first=True) - 5e-5 * size - 0.02 * sparse
    torch.testing.assert_close(perfect, torch.tensor(0.0), atol=1e-5, rtol=0)


def test_the_hyper_laplacian_of_a_ramp_and_an_edge():
    ramp = torch.arange(16.0).expand(1, 3, 16, 16)
    inner = hyper_laplacian(ramp) * 16 / 14                                             # 0 at both reflected borders
    assert inner == pytest.approx(8 ** 0.66, rel=2e-3)
    spread, edge = torch.linspace(0, 1, 16).expand(1, 3, 16, 16), (torch.arange(16) > 7).float().expand(1, 3, 16, 16)
    assert hyper_laplacian(edge) < hyper_laplacian(spread)


def test_the_generator_finds_an_image_of_its_own(small):
    """The loss falls, and the best image is kept."""
    method = small("bks_stylegan2", epochs=3, image_steps=40, code_steps=3, mapped=200)
    network = method._generator
    torch.manual_seed(1)
    noises = [torch.randn(1, *shape) for shape in network.noise_shapes()]
    z = torch.randn(1, 1, 8)
    truth = ((network(network.mapping(z).expand(-1, network.num_styles, -1), noises) + 1) / 2).detach()
    y = method.blurred(truth, torch.zeros(1))
    images = list(method.reports(y, (1, 512, 1, 1), torch.Generator().manual_seed(0)))
    errors = [F.mse_loss(method.blurred(x, torch.zeros(1)), y).item() for x in images]
    assert len(images) == method.num_steps(None) == 6
    assert errors[-1] < errors[0] and all(b <= a * 1.2 for a, b in itertools.pairwise(errors))


def test_spheres_rates_and_angles(small):
    method = small("bks_stylegan2", image_steps=5)
    v, noise = torch.randn(1, 6, 8, requires_grad=True), torch.randn(1, 1, 4, 4, requires_grad=True)
    before = [tensor.detach().clone() for tensor in (v, noise)]
    method.move([v, noise], lambda: v.sum() + noise.sum())
    for tensor, old in zip((v, noise), before, strict=True):
        torch.testing.assert_close(length(tensor), length(old))
        assert tensor.sum() < old.sum()
    assert [one_cycle(p) for p in (0, 0.45, 0.9, 1)] == pytest.approx([0.1, 1, 0.1, 0.001])
    a = torch.eye(2)[None]                                                              # orthogonal: 90 degrees
    assert geocross(a).item() == pytest.approx(512 * (math.pi / 2) ** 2 / 2 / 6, rel=1e-3)
    assert geocross(torch.ones(1, 4, 8)).item() < 1e-4


def test_statistics_of_the_mapping(small, monkeypatch):
    network = small("bks_stylegan2")._generator
    monkeypatch.setattr("guided_diffusion.solvers.bks_stylegan2.CHUNK", 30)
    mean, std = statistics(network, 100, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    z = torch.cat([torch.randn(n, 8, generator=generator) for n in (30, 30, 30, 10)])
    w = F.leaky_relu(network.mapping(z), 5)
    torch.testing.assert_close(mean, w.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(std, w.std(0, correction=0), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", QUICK)
def test_batch_equals_single_runs(small, name):
    def restore(names):
        images = torch.cat([photograph(16), photograph(16).flip(-1)])[:len(names)] if names[0] == "a" else (
            photograph(16).flip(-1))
        randomness = ImageRandomness(3, names)
        measurement = Measurement.simulate(get_operator("gopro_blur", frames=4, kernel_size=5),
                                           get_noise("gaussian", sigma=0.05), 2 * images - 1, randomness)
        steps = []
        torch.manual_seed(len(names))               # of no consequence
        x = small(name, **QUICK[name]).restore(None, None, measurement, randomness,
                                               lambda step, x, distance: steps.append(step.index))
        assert steps == list(reversed(range(len(steps)))) and x.shape == images.shape and x.abs().max() <= 1
        return x
    batch, alone = restore(["a", "b"]), restore(["b"])
    torch.testing.assert_close(batch[1:], alone, atol=1e-4, rtol=0)
    assert (batch[0] - batch[1]).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(32, 32), (16, 48)])
def test_deep_image_priors(size):
    x = ImagePrior(min(size), channels=8)(torch.randn(1, 8, *size))
    assert x.shape == (1, 3, *size) and 0 < x.min() < x.max() < 1
    assert CodePrior((1, 512, 2, 3))(torch.randn(1, 64)).shape == (1, 512, 2, 3)


# ---- weights and refusals --------------------------------------------------------------------------------------------

def test_the_network_of_the_blur_is_loaded_without_its_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(blind, "KernelWizard", lambda: nn.Conv2d(3, 3, 3))              # which takes seconds
    state = {"weight": torch.full((3, 3, 3, 3), 0.01), "bias": torch.full((3,), 0.01)}
    file = tmp_path / "GOPRO_woVAE.pth"
    torch.save(state | {next(iter(ENCODER)): torch.ones(64, 64, 7, 7)}, file)
    method = get_conditioning_method("bks_generic", wizard=str(file), distance="l2")
    method.check(get_operator("gopro_blur"))
    assert all((tensor == 0.01).all() for tensor in method._blur.state_dict().values())
    del state["bias"]
    torch.save(state, file)
    with pytest.raises(UserError, match="'bks_generic': .*missing bias"):
        get_conditioning_method("bks_generic", wizard=str(file), distance="l2").check(get_operator("gopro_blur"))


@pytest.mark.parametrize("name", QUICK)
def test_missing_weights_are_a_mistake_before_anything_runs(name, workplace):
    method = get_conditioning_method(name, wizard="none.pth")
    with pytest.raises(UserError, match=f"'{name}': checkpoint none.pth not found.*links GOPRO_woVAE.pth"):
        method.check(get_operator("gopro_blur"))
    method._blur = KnownBlur()
    words = {"bks_stylegan2": "links .*550000.pt", "bks_generic": "vgg16-397923af.pth .*distance: l2"}[name]
    with pytest.raises(UserError, match=words):
        method.check(get_operator("gopro_blur"))


@pytest.mark.parametrize("name", QUICK)
def test_what_is_no_blur_is_refused(name):
    with pytest.raises(UserError, match="needs a blurred image .*found 'inpainting'; methods that serve 'inpainting'"):
        get_conditioning_method(name).check(get_operator("inpainting", mask_opt={"mask_type": "random",
                                                                                 "mask_prob_range": [0.5, 0.5]}))


def test_sizes_that_the_networks_cannot_make(small):
    method, randomness = small("bks_stylegan2", **QUICK["bks_stylegan2"]), ImageRandomness(0, ["a"])
    for size, words in ((24, "multiples of 16"), (32, "expected 16x16, which the generator makes")):
        measurement = Measurement.simulate(get_operator("gopro_blur", frames=2, kernel_size=5), get_noise("clean"),
                                           torch.zeros(1, 3, size, size), randomness)
        with pytest.raises(UserError, match=words):
            method.restore(None, None, measurement, randomness)
