"""Blur in linear light: the mean of frames along a path, per image, and its gradient."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from guided_diffusion.condition_methods import get_conditioning_method
from guided_diffusion.measurements import LinearOperator, get_noise, get_operator
from tests.helpers import NAMES, normal, randomness
from util.errors import UserError
from util.seeding import ImageRandomness


def gopro(shape: tuple[int, ...], names: list[str] = NAMES, seed: int = 0, **params):
    return get_operator("gopro_blur", **{"kernel_size": 9, **params}).prepare(shape, randomness(names, seed))


def by_hand(x: Tensor, shifts: np.ndarray, radius: int) -> Tensor:
    """The mean of frames in linear light by one convolution with bilinear weights, (C, H, W) -> (C, H, W)."""
    kernel = torch.zeros(2 * radius + 1, 2 * radius + 1, dtype=x.dtype)
    offsets = torch.arange(-radius, radius + 1)
    for down, right in shifts:
        rows, columns = ((1 - (offsets - s).abs()).clamp_min(0) for s in (down, right))
        kernel += rows[:, None] * columns / len(shifts)
    light = F.pad(((x + 1) / 2) ** 2.2, (radius,) * 4, mode="reflect")
    return 2 * F.conv2d(light[:, None], kernel[None, None])[:, 0] ** (1 / 2.2) - 1


@pytest.mark.parametrize("params", [{}, {"frames": 1}, {"frames": 5, "kernel_size": 4, "intensity": 1.0},
                                    {"frames": 40, "kernel_size": 23, "intensity": 0.0}])
@pytest.mark.parametrize("size", [(16, 16), (13, 21)])
def test_equation_56(params, size):
    operator = gopro((3, 3, *size), **params)
    x = 2 * torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    y = operator(x)
    for b in range(3):
        torch.testing.assert_close(y[b], by_hand(x[b], operator.shifts[b].numpy(), operator.radius))
    assert y.min() >= -1 and y.max() <= 1


def test_frames_lie_evenly_on_a_path_about_its_mean_within_the_square():
    for intensity in (0.0, 0.5, 1.0):
        names = [f"{i}.png" for i in range(40)]
        shifts = gopro((40, 3, 32, 32), names, kernel_size=15, frames=200, intensity=intensity).shifts
        assert shifts.shape == (40, 200, 2)
        assert shifts.abs().max() <= 7 + 1e-9
        assert shifts.mean(1).abs().max() < 1e-9 and shifts.std(1).amax(1).median() > 0.5
        steps = shifts.diff(dim=1).norm(dim=2)
        assert (steps.amax(1) / steps.median(1).values < 1.5).all()                     # shorter only round corners


@pytest.mark.parametrize("name", ["00323", "00565", "00638", "01053"])
def test_paths_that_touch_the_border_stay_within_it(name):
    """Scaled to the radius, they exceeded it in the last digit."""
    operator = get_operator("gopro_blur").prepare((1, 3, 32, 32), ImageRandomness(0, [name], purpose="operator"))
    assert operator.shifts.abs().max() == operator.radius
    assert operator(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)


def test_a_whole_step_moves_the_image():
    operator = gopro((1, 3, 16, 16), NAMES[:1], frames=1)
    x = 2 * torch.rand(1, 3, 16, 16, dtype=torch.float64) - 1
    torch.testing.assert_close(operator(x), x)                                          # one frame does not move
    operator.shifts = torch.tensor([[[4.0, -3.0]]], dtype=torch.float64)
    torch.testing.assert_close(operator(x)[..., :12, 3:], x[..., 4:, :13])


def test_grey_stays_grey_and_light_adds_up():
    operator = gopro((1, 3, 24, 24), NAMES[:1], frames=2)
    operator.shifts = torch.tensor([[[0.0, 2.0], [0.0, -2.0]]], dtype=torch.float64)
    for value in (-1.0, -0.3, 1.0):
        torch.testing.assert_close(operator(torch.full((1, 3, 24, 24), value)), torch.full((1, 3, 24, 24), value))
    x = -torch.ones(1, 3, 24, 24)
    x[..., 12] = 1                                                                      # a white line on black
    seen = operator(x)[..., 10]
    torch.testing.assert_close(seen, torch.full_like(seen, 2 * 0.5 ** (1 / 2.2) - 1))   # brighter than mid-grey 0


def test_the_path_belongs_to_the_image_and_is_kept():
    batch = gopro((3, 3, 16, 16))
    x = normal(3, 3, 16, 16, dtype=torch.float32)
    y = batch(x)
    assert torch.equal(y, batch(x))
    for b, name in enumerate(NAMES):
        single = gopro((1, 3, 16, 16), [name])
        assert torch.equal(single.shifts[0], batch.shifts[b])
        assert torch.equal(single(x[b:b + 1])[0], y[b])
    assert not torch.equal(batch.shifts[0], batch.shifts[1])
    assert not torch.equal(gopro((3, 3, 16, 16), seed=1).shifts, batch.shifts)
    candidates = normal(4, 3, 3, 16, 16, seed=1)
    torch.testing.assert_close(batch.forward_many(candidates), torch.stack([batch(c) for c in candidates]))


def test_gradient_check_in_linear_light():
    operator = gopro((2, 1, 7, 6), NAMES[:2], kernel_size=5, frames=3)
    x = 1.8 * torch.rand(2, 1, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.9
    assert torch.autograd.gradcheck(operator, x.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [-1.0, -1.5, -1 + 1e-7, 1.0, 3.0])
def test_the_gradient_is_finite_in_black_and_beyond_the_range(value, dtype):
    operator = gopro((1, 3, 16, 16), NAMES[:1])
    x = torch.full((1, 3, 16, 16), value, dtype=dtype)
    x[..., 8:, :] = 0.5
    x[..., 0, 0] = value + 1e-7
    x.requires_grad_()
    y = operator(x)
    loss = get_noise("gaussian", sigma=0.1).distance(torch.zeros_like(y), y)
    gradient, = torch.autograd.grad(loss.sum() + y.sum(), x)
    assert torch.isfinite(y).all() and torch.isfinite(gradient).all()
    assert gradient.abs().max() < 100


def test_it_is_nonlinear_by_type():
    operator = gopro((1, 3, 16, 16), NAMES[:1])
    assert not isinstance(operator, LinearOperator)
    with pytest.raises(UserError, match="needs a linear operator, found 'gopro_blur'"):
        get_conditioning_method("projection").check(operator)


@pytest.mark.parametrize("params, words", [
    ({"frames": 0}, "frames is 0, expected an integer, 1 or more"),
    ({"kernel_size": 2}, "kernel_size is 2, expected an integer, 3 or"),
    ({"intensity": 1.5}, "intensity is 1.5, expected a finite number, 0 to 1"),
    ({"frame": 3}, "did you mean 'frames'"),
    ({"kernel_size": 33}, "needs images larger than 16 pixels, found 16x16; use a kernel_size of at most 31"),
])
def test_bad_inputs_are_named(params, words):
    with pytest.raises(UserError, match=words):
        gopro((1, 3, 16, 16), NAMES[:1], **params)
