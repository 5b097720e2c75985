"""Schedules and respacing against the golden numbers, and the identities between coefficients."""

import json

import numpy as np
import pytest
import torch

from guided_diffusion.schedule import Schedule, get_named_beta_schedule, space_timesteps
from tests.conftest import golden_path
from util.errors import UserError

REQUESTS = json.loads(golden_path("schedule.json").read_text())
IMPOSSIBLE = {15: "300", 22: "20", 26: "1001"}      # request id -> the number that the error must name
COEFFICIENTS = ["alphas_cumprod", "alphas_cumprod_prev", "posterior_variance", "posterior_log_variance_clipped",
                "posterior_mean_coef1", "posterior_mean_coef2", "sqrt_recip_alphas_cumprod",
                "sqrt_recipm1_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"]


@pytest.mark.parametrize("name, steps", [("linear", 1000), ("linear", 300), ("linear", 100), ("cosine", 1000),
                                         ("cosine", 50)])
def test_betas(golden, name, steps):
    betas = get_named_beta_schedule(name, steps)
    assert betas.dtype == np.float64
    np.testing.assert_allclose(betas, golden("schedule")[f"{name}{steps}_betas"], rtol=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("coefficient", COEFFICIENTS)
def test_coefficients(golden, name, coefficient):
    schedule = Schedule(get_named_beta_schedule(name, 1000), np.arange(1000), 1000)
    values = getattr(schedule, coefficient)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, golden("schedule")[f"{name}1000_{coefficient}"], rtol=1e-12)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: f"{r['num_timesteps']}-{r['section_counts']}")
def test_respacing(golden, request_):
    number, steps, counts = request_["id"], request_["num_timesteps"], request_["section_counts"]
    if number in IMPOSSIBLE:
        with pytest.raises(UserError, match=IMPOSSIBLE[number]):
            space_timesteps(steps, counts)
        return
    expected = golden("schedule")
    np.testing.assert_array_equal(space_timesteps(steps, counts), expected[f"map_{number:02d}"])
    for name in ("linear", "cosine"):
        schedule = Schedule.create(name, steps, counts)
        np.testing.assert_array_equal(schedule.timesteps, expected[f"map_{number:02d}"])
        if schedule.num_steps > 1:
            np.testing.assert_allclose(schedule.betas, expected[f"betas_{name}_{number:02d}"], rtol=1e-12)


@pytest.mark.parametrize("everything", ["", None, "1000", 1000, [1000], "ddim1000"])
def test_all_steps(everything):
    np.testing.assert_array_equal(space_timesteps(1000, everything), np.arange(1000))


def test_alpha_bar_is_kept_by_respacing():
    whole, short = Schedule.create("cosine", 1000), Schedule.create("cosine", 1000, "20,5,3")
    np.testing.assert_allclose(short.alphas_cumprod, whole.alphas_cumprod[short.timesteps], rtol=1e-9)


@pytest.mark.parametrize("counts", ["1", [1], "ddim1"])
def test_single_retained_step(counts):
    schedule = Schedule.create("linear", 1000, counts)
    assert schedule.num_steps == 1
    for coefficient in [*COEFFICIENTS, "log_betas", "log_betas_clipped"]:
        assert np.isfinite(getattr(schedule, coefficient)).all(), coefficient
    assert schedule.posterior_mean_coef1[0] == pytest.approx(1)
    assert schedule.posterior_mean_coef2[0] == 0


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("counts", ["", "50", "ddim25", "2"])
def test_posterior_is_consistent_with_the_forward_process(name, counts):
    """Marginalising q(x_{t-1} | x_t, x_0) over q(x_t | x_0) gives q(x_{t-1} | x_0): in its mean and its variance."""
    s = Schedule.create(name, 1000, counts)
    mean = s.posterior_mean_coef1 + s.posterior_mean_coef2 * s.sqrt_alphas_cumprod
    variance = s.posterior_variance + s.posterior_mean_coef2 ** 2 * (1 - s.alphas_cumprod)
    np.testing.assert_allclose(mean, np.sqrt(s.alphas_cumprod_prev), rtol=1e-9)
    np.testing.assert_allclose(variance, 1 - s.alphas_cumprod_prev, rtol=1e-9, atol=1e-12)


def test_coefficients_by_number_and_by_tensor():
    schedule, images = Schedule.create("linear", 1000, "10"), torch.zeros(3, 3, 4, 4)
    gathered = schedule.at("sqrt_alphas_cumprod", torch.tensor([0, 9, 4]), images)
    assert gathered.shape == (3, 1, 1, 1) and gathered.dtype == torch.float32
    for row, index in zip(gathered, [0, 9, 4], strict=True):
        assert row.item() == pytest.approx(schedule.at("sqrt_alphas_cumprod", index, images), rel=1e-6)


def test_timesteps_shown_to_the_network():
    images = torch.zeros(2, 3, 4, 4)
    t = Schedule.create("linear", 1000, "10").model_timestep(3, images)
    assert t.dtype == torch.int64 and t.tolist() == [333, 333]
    t = Schedule.create("cosine", 500, "ddim10", rescale_timesteps=True).model_timestep(3, images)
    assert t.dtype == torch.float32 and t.tolist() == [300.0, 300.0]
    t = Schedule.create("cosine", 500, rescale_timesteps=True).model_timestep(torch.tensor([499, 0]), images)
    assert t.dtype == torch.float32 and t.tolist() == [998.0, 0.0]


@pytest.mark.parametrize("counts", [
    "many", "10,x", "ddim", "ddim10,10", "1,000", "-5", 0, "0", [], [-1, 5], "ddim0", "ddim-3"])
def test_unreadable_requests(counts):
    with pytest.raises(UserError, match="timestep_respacing"):
        space_timesteps(1000, counts)


def test_impossible_stride_names_the_nearest_possible():
    with pytest.raises(UserError, match="250 or 334"):
        space_timesteps(1000, "ddim300")


@pytest.mark.parametrize("name, steps, found", [("linaer", 1000, "did you mean 'linear'"), ("linear", 0, "steps is 0"),
                                                ("linear", 20, "steps is 20"), ("cosine", -1, "steps is -1")])
def test_impossible_schedules(name, steps, found):
    with pytest.raises(UserError, match=found):
        get_named_beta_schedule(name, steps)


@pytest.mark.parametrize("name, steps", [("linear", 21), ("cosine", 1), ("cosine", 2)])
def test_shortest_schedules_are_finite(name, steps):
    schedule = Schedule.create(name, steps)
    assert all(np.isfinite(getattr(schedule, c)).all() for c in [*COEFFICIENTS, "log_betas"])
