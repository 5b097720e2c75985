"""The equations of DPS, of the projection and MCG, and of ps+, at one step that is followed by hand."""

import math

import pytest
import torch

from guided_diffusion.condition_methods import get_conditioning_method
from guided_diffusion.condition_methods.base import diffused_measurement, grad_and_value
from guided_diffusion.measurements import Measurement
from tests.guided_steps import LINEAR, OFFICIAL, fresh, guidance, single_step
from tests.helpers import OPERATOR_EXAMPLES, ReplayedRandomness


@pytest.mark.parametrize("operator", OPERATOR_EXAMPLES)
def test_dps_equation(operator):
    _, step, measurement = single_step(operator)
    x, distance = get_conditioning_method("ps", scale=0.7, likelihood=OFFICIAL).conditioning(step, measurement)
    expected = step.mean + step.std * fresh(step).randn_like(x) - 0.7 * guidance(step, measurement)
    torch.testing.assert_close(x, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(distance, (measurement.y - measurement.operator(step.x0_hat)).flatten(1).norm(dim=1))
    assert guidance(step, measurement).abs().max() > 0.01


@pytest.mark.parametrize("operator", LINEAR)
@pytest.mark.parametrize("method, scale", [("projection", 0.0), ("mcg", 0.7)])
def test_projection_equations(method, scale, operator):
    """x' - scale grad - A^+(A(x' - scale grad) - y_t), with the true pseudo-inverse."""
    _, step, measurement = single_step(operator)
    conditioned = get_conditioning_method(method, **({"scale": scale, "rescale": False} if scale else {}))
    x, _ = conditioned.conditioning(step, measurement)
    draws = fresh(step)
    before = step.mean + step.std * draws.randn_like(step.mean) - scale * guidance(step, measurement)
    y_t = math.sqrt(step.alpha_bar) * measurement.y + math.sqrt(1 - step.alpha_bar) * draws.randn_like(measurement.y)
    A = measurement.operator
    expected = before - A.pinv(A(before) - y_t)
    torch.testing.assert_close(x, expected, atol=1e-6, rtol=1e-6)
    if operator in ("noise", "super_resolution", "inpainting"):
        kept = A.informative(y_t)
        torch.testing.assert_close(kept * A(x), kept * y_t, atol=1e-9, rtol=0)


def test_diffused_measurement_has_the_noise_level_of_x_t():
    _, step, measurement = single_step()
    noise = torch.ones_like(measurement.y)
    step = step.__class__(**{**step.__dict__, "randomness": ReplayedRandomness([noise])})
    expected = math.sqrt(step.alpha_bar) * measurement.y + math.sqrt(1 - step.alpha_bar)
    torch.testing.assert_close(diffused_measurement(step, measurement.y), expected)


def test_guidance_of_each_image_is_its_own():
    """The step of an image does not depend on how far the others of its batch are from their measurements."""
    _, step, measurement = single_step()
    grad, distance = grad_and_value(step, measurement.distance)
    far = Measurement(measurement.operator, measurement.noiser, measurement.y + torch.tensor([0., 9.]).view(2, 1, 1, 1))
    _, step, _ = single_step()
    grad_far, distance_far = grad_and_value(step, far.distance)
    torch.testing.assert_close(grad_far[0], grad[0])
    assert distance_far[0] == distance[0] and distance_far[1] > 2 * distance[1]


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("noise", ["gaussian", "poisson"])
def test_ps_plus_averages_the_noise_models_distance(centred, noise):
    _, step, measurement = single_step(noise=noise)
    method = get_conditioning_method("ps+", num_sampling=3, perturbation=0.2, centred=centred)
    _, distance = method.conditioning(step, measurement)
    draws = fresh(step)
    shifted = [step.x0_hat + 0.2 * (draws.rand_like(step.x0_hat) - 0.5 * centred) for _ in range(3)]
    torch.testing.assert_close(distance, sum(measurement.distance(x) for x in shifted) / 3)


def test_ps_plus_without_perturbation_is_ps():
    _, step, measurement = single_step()
    plus = grad_and_value(step, measurement.distance)[0]
    _, step, _ = single_step()
    method = get_conditioning_method("ps+", num_sampling=2, perturbation=0.0, rescale=False)
    draw = torch.zeros_like(step.mean)
    quiet = step.__class__(**{**step.__dict__, "randomness": ReplayedRandomness([draw], [draw, draw])})
    x, _ = method.conditioning(quiet, measurement)
    torch.testing.assert_close(x, step.mean - plus, atol=1e-9, rtol=0)
