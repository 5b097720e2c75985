"""Priors for any size and for tiles: equal to the whole where that is defined, and without seams everywhere."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import conv2d

from guided_diffusion.condition_methods import CONDITIONING_METHODS
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.priors.analytic import AnalyticPrior
from guided_diffusion.priors.gaussians import StationaryGaussian
from guided_diffusion.priors.tiling import PaddedPrior, TiledPrior, reflect
from util.errors import UserError
from util.seeding import ImageRandomness

T = torch.zeros(1, dtype=torch.long)


def local(x, t):
    """A network whose receptive field is a pixel, with variance channels."""
    return torch.cat([x ** 3, x.sin()], dim=1)


def offset(x, t):
    """The opposite of local: every window is moved by its own mean."""
    return x - x.mean(dim=(2, 3), keepdim=True)


@pytest.mark.parametrize("side", [1, 15, 16, 17, 31, 64, 101])
@pytest.mark.parametrize("overlap", [None, 0, 1, 8, 15])
def test_weights_of_the_windows_sum_to_one_and_cover_every_pixel(side, overlap):
    windows = TiledPrior(local, 16, overlap).windows(side, torch.zeros(1, dtype=torch.float64))
    total = torch.zeros(side, dtype=torch.float64)
    for start, weights in windows:
        assert 0 <= start <= side - len(weights) and len(weights) == min(16, side)
        assert (weights >= 0).all()
        total[start:start + len(weights)] += weights
    torch.testing.assert_close(total, torch.ones_like(total))
    starts = [start for start, _ in windows]
    wanted = 6 if overlap is None else overlap
    assert all(a + 16 - b >= wanted for a, b in pairwise(starts))
    assert len(starts) == (1 if side <= 16 else math.ceil((side - 16) / (16 - wanted)) + 1)


@pytest.mark.parametrize("size", [(16, 16), (40, 16), (9, 33), (41, 57)])
def test_tiles_of_a_local_network_are_its_whole(size):
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(TiledPrior(local, 16)(x, T.expand(2)), local(x, T))
    torch.testing.assert_close(PaddedPrior(local, 8)(x, T.expand(2)), local(x, T))


def test_tiles_equal_the_whole_for_an_exact_prior_of_white_images_through_a_whole_restoration():
    sampler = create_sampler(steps=1000, model_var_type="learned_range", timestep_respacing=10)
    exact = AnalyticPrior(sampler.schedule, StationaryGaussian(0.3, 0.1), learn_sigma=True)
    operator, noiser = get_operator("super_resolution", scale_factor=2), get_noise("gaussian", sigma=0.1)
    x = torch.randn(2, 3, 26, 30, generator=torch.Generator().manual_seed(0)).mul(0.5).clamp(-1, 1)
    method, results = CONDITIONING_METHODS.build("dpps", scale=0.5), []
    for model in (exact, TiledPrior(exact, 12), PaddedPrior(exact, 16)):
        randomness = ImageRandomness(0, ["a", "b"])
        measurement = Measurement.simulate(operator, noiser, x, randomness)
        results.append(method.restore(model, sampler, measurement, randomness))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=1e-4)


def test_gradients_through_recomputed_windows_are_those_of_the_whole():
    network = torch.nn.Conv2d(3, 6, 1).double()
    x = torch.randn(1, 3, 30, 40, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, 6, 30, 40, dtype=torch.float64)
    gradients = [torch.autograd.grad((model(x, T) * weights).sin().sum(), x)[0]
                 for model in (lambda x, t: network(x), TiledPrior(lambda x, t: network(x), 16))]
    torch.testing.assert_close(gradients[1], gradients[0])


def test_windows_that_disagree_leave_no_seam_on_a_smooth_gradient():
    """Windows of a ramp have means 10 apart; the change is spread over the overlap, in place of a step."""
    ramp = torch.linspace(-1, 1, 96).expand(1, 3, 32, 96)
    slope = 2 / 95
    jump = 20 * slope                                                   # between the means of neighbouring windows
    whole = offset(ramp, T).diff(dim=-1)
    blended = TiledPrior(offset, 32, 12)(ramp, T).diff(dim=-1)
    cut = TiledPrior(offset, 32, 0)(ramp, T).diff(dim=-1)
    torch.testing.assert_close(whole, torch.full_like(whole, slope))
    assert (cut - slope).abs().max() > 0.9 * jump                       # what a seam looks like
    assert (blended - slope).abs().max() <= 1.1 * jump * math.pi / 2 / 12
    assert blended.diff(dim=-1).abs().max() <= jump * (math.pi / 12) ** 2 / 2 * 1.2


class Smoother(AnalyticPrior):
    """A convolutional denoiser, with the zeros beyond the border that make every window wrong at its own border."""

    def forward(self, x_t, t):
        profile = torch.exp(-torch.arange(-6, 7) ** 2 / 8.0)
        kernel = (profile[:, None] * profile / profile.sum() ** 2).expand(3, 1, 13, 13)
        alpha_bar = self.schedule.at("alphas_cumprod", self.schedule.index_of(t), x_t)
        x0_hat = alpha_bar.sqrt() * conv2d(x_t, kernel, padding=6, groups=3) / (alpha_bar + 0.05 * (1 - alpha_bar))
        return (x_t - alpha_bar.sqrt() * x0_hat) / (1 - alpha_bar).sqrt()


def restored_ramp(tile: int, overlap: int | None) -> torch.Tensor:
    """The errors (4, 3, 32, 128) of a noisy smooth gradient that was restored in windows."""
    sampler = create_sampler(steps=1000, model_var_type="fixed_small", timestep_respacing=50)
    model = TiledPrior(Smoother(sampler.schedule, None), tile, overlap)
    y, x = torch.meshgrid(torch.linspace(-0.5, 0.5, 32), torch.linspace(-0.6, 0.9, 128), indexing="ij")
    truth = (x + 0.3 * y).expand(4, 3, 32, 128)
    randomness = ImageRandomness(0, [f"image {i}" for i in range(4)])
    measurement = Measurement.simulate(get_operator("noise"), get_noise("gaussian", sigma=0.05), truth, randomness)
    method = CONDITIONING_METHODS.build("ps", scale=3.0, likelihood={"name": "point", "rescale": False})
    return method.restore(model, sampler, measurement, randomness) - truth


def roughness(error: torch.Tensor, columns: list[int]) -> float:
    """RMS of the error's step from each of these columns to the next, averaged over channels and rows."""
    return float(error.mean(dim=(1, 2)).diff(dim=-1)[:, columns].square().mean().sqrt())


def test_a_restored_gradient_is_as_smooth_at_seams_as_elsewhere():
    inside = range(14, 113)                                             # the image's own border is no seam
    cut, blended, whole = restored_ramp(32, 0), restored_ramp(32, None), restored_ramp(128, None)
    hard = [31, 63, 95]
    assert roughness(cut, hard) > 10 * roughness(whole, hard)           # what a seam looks like
    starts = [start for start, _ in TiledPrior(local, 32).windows(128, torch.zeros(1))]
    borders = {start - 1 for start in starts[1:]} | {start + 31 for start in starts[:-1]}
    seams = [c for c in inside if any(abs(c - border) <= 1 for border in borders)]
    elsewhere = [c for c in inside if c not in seams]
    assert roughness(blended, seams) < 1.3 * roughness(blended, elsewhere)
    assert roughness(blended, seams) < 1.3 * roughness(whole, seams)
    assert (blended - whole)[..., 14:114].abs().max() < 0.03


@pytest.mark.parametrize("side, size", [(1, 8), (2, 9), (5, 8), (5, 32), (8, 8)])
def test_padding_is_reflection_as_often_as_it_takes(side, size):
    x = torch.randn(1, side)
    expected = np.pad(x.numpy(), ((0, 0), (0, size - side)), mode="reflect" if side > 1 else "edge")
    torch.testing.assert_close(reflect(x, 1, size), torch.from_numpy(expected))


def test_the_network_sees_multiples_and_the_caller_does_not():
    seen = []

    def network(x, t):
        seen.append(tuple(x.shape))
        return torch.cat([x, x], dim=1)

    x = torch.randn(2, 3, 33, 7)
    assert torch.equal(PaddedPrior(network, 32)(x, T)[:, :3], x)
    assert seen == [(2, 3, 64, 64)]


@pytest.mark.parametrize("tile, overlap", [(1, 0), (8, 8), (8, -1)])
def test_impossible_tiles_are_refused(tile, overlap):
    with pytest.raises(UserError, match="expected a tile of 2 or more"):
        TiledPrior(local, tile, overlap)


def test_tiles_from_the_command_line(run, workplace):
    options = ("--set", "data.image_size=48", "--limit", "1", "--set", "diffusion.timestep_respacing=1")
    assert run(*options, "--tile", "32")[0] == 0
    assert Image.open("results/super_resolution/dpps/recon/astronaut.png").size == (48, 48)
    assert "tile: 32" in Path("results/super_resolution/dpps/config.yaml").read_text()
    status, _, err = run(*options, "--tile", "40", "--save_dir", "b")
    assert status == 0, err
    status, _, err = run(*options, "--tile", "32", "--set", "data.image_size=49", "--set",
                         "measurement.operator={name: noise}", "--save_dir", "b")
    assert status == 0, err                         # a size that the network cannot take, of windows that it can
    status, _, err = run(*options, "--tile", "33", "--save_dir", "c")
    assert status == 2 and "--tile 33" in err and "multiples of 2, such as 32" in err
    assert run(*options, "--tile", "big")[0] == 2
