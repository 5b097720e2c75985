"""The generator of StyleGAN2: names of the usual checkpoints, its layers by their equations, strict loading."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from guided_diffusion.priors.stylegan2 import Generator, ModulatedConv, load_generator, low_pass, taps
from tests.helpers import normal
from util.errors import UserError

WIDTHS = {4: 6, 8: 5, 16: 4}


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return Generator(16, style=7, layers=2, widths=WIDTHS).requires_grad_(False).double()


def draws(generator, batch=2):
    w = normal(batch, generator.num_styles, generator.style_length)
    return w, [normal(batch, *shape, seed=i) for i, shape in enumerate(generator.noise_shapes())]


def test_names_and_shapes_of_the_published_checkpoint_of_256():
    expected = {f"style.{i}.{kind}": shape for i in range(1, 9) for kind, shape in
                (("weight", (512, 512)), ("bias", (512,)))} | {"input.input": (1, 512, 4, 4)}

    def modulated(name, channels, out, size):
        return {f"{name}.weight": (1, out, channels, size, size), f"{name}.modulation.weight": (channels, 512),
                f"{name}.modulation.bias": (channels,)}

    def styled(name, channels, out):
        return modulated(f"{name}.conv", channels, out, 3) | {f"{name}.noise.weight": (1,),
                                                              f"{name}.activate.bias": (out,)}

    expected |= styled("conv1", 512, 512) | modulated("to_rgb1.conv", 512, 3, 1) | {"to_rgb1.bias": (1, 3, 1, 1)}
    channels = [512, 512, 512, 512, 512, 256, 128]                                      # of 4 to 256 pixels
    for k, (before, here) in enumerate(itertools.pairwise(channels)):
        expected |= styled(f"convs.{2 * k}", before, here) | {f"convs.{2 * k}.conv.blur.kernel": (4, 4)}
        expected |= styled(f"convs.{2 * k + 1}", here, here)
        expected |= modulated(f"to_rgbs.{k}.conv", here, 3, 1)
        expected |= {f"to_rgbs.{k}.bias": (1, 3, 1, 1), f"to_rgbs.{k}.upsample.kernel": (4, 4)}
    expected |= {f"noises.noise_{i}": (1, 1, side, side) for i, side in
                 enumerate([4, 8, 8, 16, 16, 32, 32, 64, 64, 128, 128, 256, 256])}
    with torch.device("meta"):
        found = {name: tuple(tensor.shape) for name, tensor in Generator(256).state_dict().items()}
    assert found == expected


def test_a_modulated_convolution_by_its_equations():
    """Eq. 1 and 3, image by image; the doubling one on zeros between the pixels, then the low-pass filter."""
    x, style = normal(2, 3, 5, 6), normal(2, 7, seed=1)
    for double in (False, True):
        conv = ModulatedConv(3, 4, 3, style=7, double=double).requires_grad_(False).double()
        y = conv(x, style)
        for b in range(2):
            s = conv.modulation.weight @ style[b] / math.sqrt(7) + 1
            weight = conv.weight[0] / math.sqrt(27) * s.view(1, 3, 1, 1)
            weight = weight / weight.square().sum((1, 2, 3), keepdim=True).sqrt()
            image = x[b:b + 1]
            if double:
                spread = torch.zeros(1, 3, 9, 11, dtype=x.dtype)
                spread[..., ::2, ::2] = image
                expected = low_pass(F.conv2d(spread, weight.flip(-2, -1), padding=2), taps().double(), 1, 1)
            else:
                expected = F.conv2d(image, weight, padding=1)
            torch.testing.assert_close(y[b:b + 1], expected)
    assert y.shape == (2, 4, 10, 12)


def test_the_low_pass_filter_keeps_constants_between_zeros():
    spread = torch.zeros(1, 1, 16, 16)
    spread[..., ::2, ::2] = 3
    doubled = low_pass(spread, taps(), 2, 1)
    assert doubled.shape == spread.shape
    torch.testing.assert_close(doubled[..., 2:-2, 2:-2], torch.full((1, 1, 12, 12), 3.0))


def test_every_part_plays_its_part(small):
    w, noises = draws(small)
    assert small.num_styles == 6 and len(noises) == 5
    x = small(w, noises)
    assert x.shape == (2, 3, 16, 16) and x.isfinite().all()
    torch.testing.assert_close(small(w[1:], [noise[1:] for noise in noises]), x[1:])
    for i in range(6):
        changed = w.clone()
        changed[0, i] += 1
        different = (small(changed, noises) - x).flatten(1).abs().amax(1)
        assert different[0] > 1e-6 and different[1] == 0
    strengths = [small.conv1.noise, *(conv.noise for conv in small.convs)]
    for i, strength in enumerate(strengths):
        torch.testing.assert_close(small(w, [n + (k == i) for k, n in enumerate(noises)]), x)       # strength 0
        strength.weight.fill_(0.5)
        assert (small(w, [n + (k == i) for k, n in enumerate(noises)]) - small(w, noises)).abs().max() > 1e-6
        strength.weight.fill_(0.0)


def test_the_mapping_by_its_equations(small):
    z = normal(3, 7)
    x = z / z.square().mean(1, keepdim=True).sqrt()
    for i in (1, 2):
        layer = small.style[i]
        x = x @ layer.weight.T * 0.01 / math.sqrt(7) + 0.01 * layer.bias
        x = math.sqrt(2) * torch.where(x > 0, x, 0.2 * x)
    torch.testing.assert_close(small.mapping(z), x, atol=1e-6, rtol=1e-6)


def test_gradients_reach_styles_and_noise(small):
    w, noises = draws(small, batch=1)
    small.convs[0].noise.weight.fill_(0.3)
    leaves = [w.requires_grad_(), noises[1].requires_grad_()]
    direction = normal(1, 6, 7, seed=9)
    gradients = torch.autograd.grad(small(w, noises).square().sum(), leaves)
    step = 1e-6
    ahead, behind = (small(w.detach() + s * direction, noises).square().sum() for s in (step, -step))
    torch.testing.assert_close((gradients[0] * direction).sum(), (ahead - behind).detach() / (2 * step), rtol=1e-5,
                               atol=1e-6)
    assert gradients[1].abs().max() > 0
    small.convs[0].noise.weight.fill_(0.0)


def test_strict_loading(tmp_path):
    file, state = tmp_path / "g.pt", Generator(8, layers=8).state_dict()
    for content in (state, {"g_ema": state, "g": {"other": torch.ones(1)}, "latent_avg": torch.zeros(512)}):
        torch.save(content, file)
        (tmp_path / "g.pt.sha256").unlink(missing_ok=True)
        loaded = load_generator(str(file), size=8)
        assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
        assert not any(p.requires_grad for p in loaded.parameters())
    with pytest.raises(UserError, match="missing convs.2.conv.weight"):
        load_generator(str(file), size=16)
    with pytest.raises(UserError, match="not found.*rosinality/stylegan2-pytorch links"):
        load_generator(str(tmp_path / "none.pt"))
