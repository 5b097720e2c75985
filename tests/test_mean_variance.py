"""Mean and variance types against the golden numbers; dynamic thresholding against its equation."""

import numpy as np
import pytest
import torch

from guided_diffusion.posterior_mean_variance import MEAN_PROCESSORS, VAR_PROCESSORS, dynamic_threshold
from guided_diffusion.schedule import Schedule, get_named_beta_schedule

SCHEDULES = {"linear1000": Schedule(get_named_beta_schedule("linear", 1000), np.arange(1000), 1000),
             "cosine10of1000": Schedule.create("cosine", 1000, "10")}


def inputs(arrays, schedule):
    output = torch.from_numpy(arrays["model_output"])
    t = torch.from_numpy(arrays["t" if schedule == "linear1000" else f"t_{schedule}"])
    return torch.from_numpy(arrays["x_t"]), t, output[:, :3], output[:, 3:]


def close(ours, theirs):
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-6 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("kind", sorted(set(MEAN_PROCESSORS) - {"v_prediction"}))      # the official code has no such
def test_mean_and_x0_hat(golden, kind, clip, schedule):
    arrays = golden("mean_var")
    x_t, t, output, _ = inputs(arrays, schedule)
    processor = MEAN_PROCESSORS[kind](SCHEDULES[schedule], False, clip)
    x0_hat = processor.x0_hat(x_t, t, output)
    key = f"{schedule}.{kind}.clip{clip:d}.dyn0"
    if clip:
        np.testing.assert_allclose(x0_hat.numpy(), arrays[f"{key}.xstart"], atol=2e-5)
    else:
        close(x0_hat, arrays[f"{key}.xstart"])
    close(processor.mean(x_t, t, output, x0_hat), arrays[f"{key}.mean"])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", sorted(VAR_PROCESSORS))
def test_log_variance(golden, kind, schedule):
    arrays = golden("mean_var")
    x_t, t, _, var_output = inputs(arrays, schedule)
    ours = VAR_PROCESSORS[kind](SCHEDULES[schedule]).log_variance(t, var_output, x_t).expand_as(x_t)
    assert ours.isfinite().all()
    used = np.isfinite(arrays[f"{schedule}.{kind}.log_variance"])
    assert used.all() or kind == "fixed_small" and not used[0].any() and used[1:].all()
    np.testing.assert_allclose(ours.numpy()[used], arrays[f"{schedule}.{kind}.log_variance"][used], atol=1e-5)
    np.testing.assert_allclose(ours.exp().numpy()[used], arrays[f"{schedule}.{kind}.variance"][used], rtol=1e-5)


@pytest.mark.parametrize("kind", sorted(MEAN_PROCESSORS))
@pytest.mark.parametrize("index", [0, 4, 9])
def test_number_equals_tensor_of_indices(golden, kind, index):
    x_t, _, output, _ = inputs(golden("mean_var"), "cosine10of1000")
    processor, t = MEAN_PROCESSORS[kind](SCHEDULES["cosine10of1000"]), torch.full((4,), index)
    x0_hat = processor.x0_hat(x_t, index, output)
    torch.testing.assert_close(x0_hat, processor.x0_hat(x_t, t, output), atol=1e-3, rtol=0)
    torch.testing.assert_close(processor.eps(x_t, index, output), processor.eps(x_t, t, output), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", sorted(MEAN_PROCESSORS))
def test_mean_types_agree_on_eps(kind):
    """Outputs of all types that stand for the same noise give that noise, even where x0_hat saturates."""
    schedule, index = Schedule.create("linear", 1000, "10"), 4
    x_t, eps = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    ab = schedule.alphas_cumprod[index]
    x0 = (x_t - (1 - ab) ** 0.5 * eps) / ab ** 0.5
    mean = schedule.posterior_mean_coef1[index] * x0 + schedule.posterior_mean_coef2[index] * x_t
    processor = MEAN_PROCESSORS[kind](schedule)
    velocity = ab ** 0.5 * eps - (1 - ab) ** 0.5 * x0
    output = {"epsilon": eps, "start_x": x0, "previous_x": mean, "v_prediction": velocity}[kind]
    assert x0.abs().max() > 1
    torch.testing.assert_close(processor.eps(x_t, index, output), eps)
    torch.testing.assert_close(processor.x0_hat(x_t, index, output), x0.clamp(-1, 1))


def test_dynamic_threshold_divides_by_the_quantile():
    """s = the 0.95 quantile of |x0|, by linear interpolation 2 + 0.85 * 2 = 3.7 for the first image."""
    images = torch.tensor([[0.1, 0.2, 2.0, -4.0], [0.1, -0.2, 0.3, 0.5]]).view(2, 1, 2, 2)
    expected = torch.tensor([[0.1 / 3.7, 0.2 / 3.7, 2 / 3.7, -1.0], [0.1, -0.2, 0.3, 0.5]]).view(2, 1, 2, 2)
    torch.testing.assert_close(dynamic_threshold(images), expected)
    torch.testing.assert_close(dynamic_threshold(images[:1]), expected[:1])


def test_dynamic_threshold_takes_images_of_any_size():
    """Quantiles as torch's, which takes 2^24 numbers at most, and of more than those."""
    x0 = 3 * torch.randn(2, 3, 31, 33, generator=torch.manual_seed(0))
    s = torch.quantile(x0.abs().flatten(1), 0.95, dim=1).view(2, 1, 1, 1)
    torch.testing.assert_close(dynamic_threshold(x0), x0.clamp(-s, s) / s)
    large = torch.full((2 ** 24 + 1,), 2.0).view(1, 1, -1, 1)
    assert (dynamic_threshold(large) == 1).all()


@pytest.mark.parametrize("kind", sorted(MEAN_PROCESSORS))
def test_dynamic_threshold_is_switched_on(kind):
    schedule = Schedule.create("linear", 1000, "10")
    x_t, output = 3 * torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    plain = MEAN_PROCESSORS[kind](schedule, False, False).x0_hat(x_t, 3, output)
    dynamic = MEAN_PROCESSORS[kind](schedule, True, False).x0_hat(x_t, 3, output)
    torch.testing.assert_close(dynamic, dynamic_threshold(plain))
    assert plain.abs().max() > 1 >= dynamic.abs().max()
