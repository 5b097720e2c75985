"""Random crops of photographs: a function of seed and number, and what they show."""


import pytest
import torch

from data.random_crops import RandomCrops, jitter_colours
from util.img_utils import save_image


def test_crops_are_a_function_of_seed_and_number(photographs):
    def crops(seed):
        return RandomCrops(str(photographs), 8, (0.3, 1.0), seed, cached={})

    first = [crops(0)[n] for n in range(20)]
    assert all(torch.equal(a, crops(0)[n]) for n, a in enumerate(first))
    assert all(x.shape == (3, 8, 8) and x.abs().max() <= 1 for x in first)
    assert not any(torch.equal(first[0], other) for other in first[1:])
    assert not torch.equal(first[0], crops(1)[0])


def test_crops_larger_than_the_photograph_take_what_there_is(photographs):
    assert RandomCrops(str(photographs), 64, (1.0, 1.0), 0, cached=None)[0].shape == (3, 64, 64)


@pytest.fixture
def ramps(tmp_path):
    """A folder with one photograph of 48 x 32 whose red grows by 2 / 47 a pixel to the right, green downwards."""
    right, down = torch.linspace(-1, 1, 48).expand(32, 48), torch.linspace(-1, 1, 32)[:, None].expand(32, 48)
    save_image(tmp_path / "ramps" / "0.png", torch.stack([right, down, torch.zeros(32, 48)]))
    return str(tmp_path / "ramps")


@pytest.mark.parametrize("crop", [16, 32])
def test_zooms_show_the_same_share_whatever_the_pixels(ramps, crop):
    """Of the ramps a crop of the shorter side / zoom shows 2 * 31 / 47 / zoom in x and 2 / zoom in y, at its pixels'
    centres."""
    crops = RandomCrops(ramps, crop, (1.0, 1.0), 0, None, zooms=(1.0, 2.0))
    for x in (crops[n] for n in range(8)):
        wide, high = (x[0, :, -2] - x[0, :, 1]).abs().mean(), (x[1, -2] - x[1, 1]).mean()
        assert wide / high == pytest.approx(31 / 47, rel=0.05)
        assert 0.5 <= high / (2 * (crop - 3) / crop * 32 / 31) <= 1.05


def test_a_zoom_of_one_of_a_square_shows_all_of_it(tmp_path):
    image = torch.rand(3, 16, 16, generator=torch.manual_seed(0)).mul(255).round() / 127.5 - 1
    save_image(tmp_path / "0.png", image)
    crops = RandomCrops(str(tmp_path), 16, (0.3, 0.3), 0, None, zooms=(1.0, 1.0))
    for x in (crops[n] for n in range(4)):
        assert any((x - shown).abs().max() < 1e-6 for shown in (image, image.flip(2)))


def test_colours_vary_about_those_of_the_photograph(ramps):
    plain = RandomCrops(ramps, 8, (0.5, 1.0), 0, None)
    varied = RandomCrops(ramps, 8, (0.5, 1.0), 0, None, colour_jitter=0.2)
    pairs = [(plain[n], varied[n]) for n in range(40)]
    assert all(b.abs().max() <= 1 and not torch.equal(a, b) for a, b in pairs)
    brighter = sum((b.mean() > a.mean()).item() for a, b in pairs)
    assert 8 < brighter < 32
    assert torch.equal(varied[3], varied[3])


@pytest.mark.parametrize("brightness, contrast, saturation", [(1.2, 1.0, 1.0), (1.0, 0.8, 1.0), (1.0, 1.0, 0.5)])
def test_jitter_against_its_definition(brightness, contrast, saturation):
    x = torch.rand(3, 5, 5, generator=torch.manual_seed(0)) - 0.5                   # nothing is clipped
    unit = (x + 1) / 2
    grey = (unit * torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(0)
    changed = unit * brightness
    changed = changed + (contrast - 1) * (changed - grey.mean() * brightness)
    changed = changed + (saturation - 1) * (changed - grey)
    torch.testing.assert_close(jitter_colours(x, brightness, contrast, saturation), 2 * changed - 1)
