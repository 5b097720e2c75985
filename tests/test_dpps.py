"""DPPS: its best candidates against brute force, their number, the aligned start, and what each ingredient does."""

import math

import pytest
import torch

from guided_diffusion.condition_methods import get_conditioning_method
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import LinearOperator, Measurement
from tests.guided_steps import NAMES, OFFICIAL, Wrapped, fresh, guidance, restore, single_step
from tests.helpers import OPERATOR_EXAMPLES, ReplayedRandomness
from util.seeding import ImageRandomness


def brute_force(step, measurement, scale, n, target):
    """The best of n candidates of every image by the definition, candidate by candidate."""
    mean = step.mean - scale * guidance(step, measurement)
    draws, A, y = fresh(step), measurement.operator, measurement.y
    candidates = [mean + step.std * draws.randn_like(mean) for _ in range(n)]
    if target == "eps":
        goal, shift = math.sqrt(step.alpha_bar_prev) * y, math.sqrt(1 - step.alpha_bar_prev) * step.eps
    else:
        goal, shift = step.x0_coef * y + step.x_t_coef * A(step.x_t.detach()), 0
    scores = torch.stack([(goal - A(x - shift)).flatten(1).norm(dim=1) for x in candidates])
    best = scores.argmin(0)
    return torch.stack([candidates[k][i] for i, k in enumerate(best.tolist())]), best


@pytest.mark.parametrize("target", ["eps", "mean"])
@pytest.mark.parametrize("chunk", [None, 1, 3, 100])
@pytest.mark.parametrize("operator", OPERATOR_EXAMPLES)
def test_dpps_keeps_the_best_candidate_of_each_image(operator, chunk, target):
    _, step, measurement = single_step(operator, index=2, names=NAMES)
    method = get_conditioning_method("dpps", scale=0.4, likelihood=OFFICIAL, max_candidates=20, adaptive=False,
                                     chunk=chunk, target=target)
    x, _ = method.conditioning(step, measurement)
    expected, best = brute_force(step, measurement, 0.4, 20, target)
    assert len(set(best.tolist())) > 1
    torch.testing.assert_close(x, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("target", ["eps", "mean"])
def test_dpps_does_not_need_linearity(target):
    _, step, measurement = single_step(index=2)
    wrapped = Measurement(Wrapped(measurement.operator), measurement.noiser, measurement.y)
    method = get_conditioning_method("dpps", target=target)
    linear, _ = method.conditioning(step, measurement)
    _, step, _ = single_step(index=2)
    general, _ = method.conditioning(step, wrapped)
    torch.testing.assert_close(general, linear, atol=1e-9, rtol=1e-9)


def test_dpps_evaluates_candidates_without_a_graph():
    graphs = []

    class Watching(LinearOperator):
        name = "watching"

        def forward(self, x):
            graphs.append(torch.is_grad_enabled())
            return x[..., ::2, ::2]

    _, step, measurement = single_step("noise")
    watching = Watching().prepare(measurement.image_shape, ImageRandomness(0, NAMES[:len(step.x_t)]))
    watched = Measurement(watching, measurement.noiser, measurement.y[..., ::2, ::2])
    get_conditioning_method("dpps", adaptive=False, max_candidates=4).conditioning(step, watched)
    assert graphs == [True] + [False] * 5                        # distance; centre; four candidates


def test_dpps_number_of_candidates(golden):
    expected = golden("trajectory_common")["dpps_n_frequency_linear1000"]
    schedule = create_sampler().schedule
    _, step, _ = single_step()
    method = get_conditioning_method("dpps")
    ours = [method.num_candidates(step.__class__(**{**step.__dict__, "alpha_bar": float(ab)}))
            for ab in schedule.alphas_cumprod]
    assert ours == expected.tolist()
    assert sum(ours) == 16255


@pytest.mark.parametrize("params, count", [
    ({"adaptive": False}, 50), ({"adaptive": False, "max_candidates": 7}, 7), ({"max_candidates": 1}, 1),
    ({"proximal": False}, 1), ({"proximal": False, "adaptive": False}, 1), ({"max_candidates": 2}, 2)])
def test_dpps_fixed_numbers_of_candidates(params, count):
    for index in (1, 9):
        _, step, _ = single_step(index=index)
        assert get_conditioning_method("dpps", **params).num_candidates(step) == count


@pytest.mark.parametrize("params", [{"proximal": False}, {"max_candidates": 1}])
def test_dpps_without_its_ingredients_is_dps(params):
    dps, _ = restore("ps", "gaussian_blur", NAMES[:2])
    ablated, _ = restore("dpps", "gaussian_blur", NAMES[:2], aligned_init=False, **params)
    torch.testing.assert_close(ablated, dps, atol=1e-9, rtol=0)


@pytest.mark.parametrize("params", [{"aligned_init": False}, {"adaptive": False}, {"proximal": False}])
def test_every_ingredient_of_dpps_changes_the_result(params):
    whole, _ = restore("dpps", "super_resolution", NAMES[:2])
    ablated, _ = restore("dpps", "super_resolution", NAMES[:2], **params)
    assert (whole - ablated).abs().max() > 1e-3


@pytest.mark.parametrize("aligned", [True, False])
def test_dpps_start(aligned):
    sampler, step, measurement = single_step()
    method = get_conditioning_method("dpps", aligned_init=aligned)
    start = method.start(sampler, measurement, ImageRandomness(11, NAMES[:2]))
    noise, ab = fresh(step).randn_like(start), sampler.schedule.alphas_cumprod[-1]
    expected = math.sqrt(ab) * measurement.initial_guess() + math.sqrt(1 - ab) * noise
    torch.testing.assert_close(start, expected if aligned else noise)
    assert ((start - noise).abs().max() > 1e-4).item() == aligned


@pytest.mark.parametrize("diffusion", [{"index": 0}, {"index": 0, "sampler": "ddim", "eta": 1.0},
                                       {"index": 5, "sampler": "ddim"}])
def test_a_step_of_dpps_without_noise_draws_nothing(diffusion):
    _, step, measurement = single_step(**diffusion)
    step = step.__class__(**{**step.__dict__, "randomness": ReplayedRandomness([])})
    x, _ = get_conditioning_method("dpps", scale=0.4, likelihood=OFFICIAL).conditioning(step, measurement)
    torch.testing.assert_close(x, step.mean - 0.4 * guidance(step, measurement), atol=1e-9, rtol=1e-9)
