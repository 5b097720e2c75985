"""ER, HIO and OSS: one iteration by its equations, recovery, restarts, batches, what is refused."""

import math

import pytest
import torch

from data.dataloader import get_dataset
from guided_diffusion.condition_methods import get_conditioning_method
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.solvers.phase_retrieval import Constraints, agreeing, window
from tests.helpers import OPERATOR_EXAMPLES, normal
from util.errors import UserError
from util.seeding import ImageRandomness

METHODS = ("er", "hio", "oss")


def photograph(*size):
    dataset = get_dataset("skimage", images=["astronaut"], image_size=max(size))
    return dataset[0][None, :, :size[0], :size[1]]


def measure(x, names, sigma=None, oversample=4.0):
    operator = get_operator("phase_retrieval", oversample=oversample, signal_range=[0, 1])
    noiser = get_noise("gaussian", sigma=sigma) if sigma else get_noise("clean")
    return Measurement.simulate(operator, noiser, x.expand(len(names), -1, -1, -1), ImageRandomness(0, names))


def restore(name, measurement, names, callback=None, **params):
    method = get_conditioning_method(name, **params)
    method.check(measurement.operator, measurement.noiser)
    return method.restore(None, None, measurement, ImageRandomness(1, names), callback)


def psnr(measurement, x, truth):
    """Of each image, the best of its equivalents: (B,)."""
    errors = [((image - truth) / 2).square().flatten(1).mean(1) for image in measurement.operator.ambiguities(x)]
    return -10 * torch.stack(errors).amin(0).log10()


def problem(size=(8, 7), padded=(12, 10)):
    """Constraints from magnitudes with noise (not symmetric), a start, and the magnitudes at all frequencies."""
    y, g = normal(2, 3, *padded).abs(), normal(1, 2, 3, *padded, seed=1)
    support = torch.zeros(padded, dtype=torch.bool)
    support[:size[0], :size[1]] = True
    mean = (y + y.flip(-2, -1).roll((1, 1), (-2, -1))) / 2
    return Constraints(mean[..., :padded[1] // 2 + 1], support), g, y


def projected_by_hand(g, y):
    spectrum = torch.fft.fft2(g, norm="ortho")
    return torch.fft.ifft2(y * spectrum / spectrum.abs(), norm="ortho").real


@pytest.mark.parametrize("padded", [(12, 10), (11, 9)])
def test_an_iteration_by_its_equations(padded):
    constraints, g, y = problem(padded=padded)
    new = projected_by_hand(g, y)
    torch.testing.assert_close(constraints.project(g)[0], new)
    inside = constraints.support.expand_as(new) & (new >= 0)
    er, hio, oss = (next(get_conditioning_method(name).states(constraints, g)) for name in METHODS)
    torch.testing.assert_close(er, new * inside)
    torch.testing.assert_close(hio, torch.where(inside, new, g - 0.9 * new))
    rows, columns = (torch.fft.fftfreq(side, 1 / side, dtype=torch.float64) / side for side in padded)
    weight = torch.exp(-(rows[:, None] ** 2 + columns ** 2) / 2)                        # alpha = P and Q
    smoothed = torch.fft.ifft2(weight * torch.fft.fft2(hio)).real
    torch.testing.assert_close(oss, torch.where(constraints.support, hio, smoothed))


def test_the_window_narrows_about_frequency_zero():
    first, last = (window((40, 30), progress, torch.zeros(1, dtype=torch.float64)) for progress in (0, 1))
    assert first[0, 0] == last[0, 0] == 1
    assert first[20, 15] == pytest.approx(math.exp(-0.25))
    torch.testing.assert_close(first[1], first[-1])
    assert last[2, 0] == pytest.approx(math.exp(-0.5)) and last[10, 0] < 1e-5          # alpha = 2


def test_error_reduction_reduces_the_error():
    """The distance from the set of the magnitudes never grows (Fienup, 1982)."""
    constraints, g, _ = problem()
    states, misfits = get_conditioning_method("er").states(constraints, g), []
    for _ in range(30):
        misfits.append(constraints.misfit(next(states)))
    differences = torch.stack(misfits).diff(dim=0)
    assert (differences <= 1e-12).all() and (differences < -1e-6).any()


def test_oss_begins_each_stage_at_the_best_state_of_the_last_one():
    constraints, g, _ = problem()
    states = get_conditioning_method("oss", iterations=50).states(constraints, g)
    first = [g, *(next(states) for _ in range(5))]
    best = torch.stack([constraints.misfit(state) for state in first[:5]]).argmin(0)
    chosen = torch.stack(first).gather(0, best[None, ..., None, None].expand(1, *g.shape))[0]
    expected = next(get_conditioning_method("hio").states(constraints, chosen))
    torch.testing.assert_close(next(states) * constraints.support, expected * constraints.support)


def test_hio_recovers_an_image_up_to_its_turn():
    """Of 20 seeds at 32 x 32 with 4 restarts, all or nearly all; here three at 16 x 16."""
    names, truth = ["a", "b", "c"], photograph(16, 16)
    measurement = measure(truth, names)
    heard = []
    x = restore("hio", measurement, names, lambda step, x, distance: heard.append((step.index, distance)),
                iterations=600, restarts=2)
    assert (psnr(measurement, x, truth) > 30).sum() >= 2
    assert [index for index, _ in heard] == list(reversed(range(100)))
    misfits = torch.stack([distance for _, distance in heard])
    assert (misfits[1:] < 1.1 * misfits[:-1]).all()         # the best so far; cut at white it may be a little worse
    assert (misfits[-1] < misfits[0] / 10).any()
    er = restore("er", measurement, names, iterations=600, restarts=2)
    assert (psnr(measurement, er, truth) < psnr(measurement, x, truth)).all()


def test_with_noise_oss_agrees_better_than_hio():
    names, truth = ["a", "b", "c"], photograph(16, 16)
    measurement = measure(truth, names, sigma=0.05)
    hio, oss = (measurement.distance(restore(name, measurement, names, iterations=300, restarts=1))
                for name in ("hio", "oss"))
    assert (oss < hio).all()


@pytest.mark.parametrize("name", METHODS)
def test_more_restarts_agree_no_worse(name):
    measurement = measure(photograph(12, 15), ["a"], sigma=0.05)
    one, four = (measurement.distance(restore(name, measurement, ["a"], iterations=20, restarts=n)) for n in (1, 4))
    assert four < one


@pytest.mark.parametrize("name", METHODS)
def test_batch_equals_single_runs(name):
    names, truth = ["a", "b"], photograph(13, 16)
    batch = restore(name, measure(truth, names, 0.05), names, iterations=20, restarts=2)
    alone = restore(name, measure(truth, names[1:], 0.05), names[1:], iterations=20, restarts=2)
    assert batch.shape == (2, 3, 13, 16) and batch.dtype == torch.float32 and batch.abs().max() <= 1
    torch.testing.assert_close(batch[1:], alone, atol=1e-3, rtol=0)
    assert (batch[0] - batch[1]).abs().max() > 0.1


def test_channels_are_turned_to_agree():
    x = photograph(16, 16)
    mixed = torch.stack([x[:, 0], x[:, 1].flip(-2, -1), x[:, 2]], dim=1)
    assert torch.equal(agreeing(mixed), x)
    assert torch.equal(agreeing(x.flip(-2, -1)), x.flip(-2, -1))


def test_black_images_and_single_iterations_are_no_trouble():
    measurement = measure(-torch.ones(1, 3, 8, 8), ["a"])
    for name in METHODS:
        x = restore(name, measurement, ["a"], iterations=1, restarts=1)
        torch.testing.assert_close(x, -torch.ones_like(x))


@pytest.mark.parametrize("name", METHODS)
def test_other_measurements_are_refused(name):
    method = get_conditioning_method(name)
    with pytest.raises(UserError, match=f"'{name}' needs phase_retrieval with signal_range: .0, 1., where images are "
                                        "not negative, found 'phase_retrieval'; methods that .*dpps, .*ps, "):
        method.check(get_operator("phase_retrieval"))
    for operator in set(OPERATOR_EXAMPLES) - {"phase_retrieval"}:
        assert not method.serves(get_operator(operator, **OPERATOR_EXAMPLES[operator]))
    with pytest.raises(UserError, match="methods that serve 'phase_retrieval': .*er, .*hio, .*oss, "):
        get_conditioning_method("mcg").check(get_operator("phase_retrieval", signal_range=[0, 1]))
