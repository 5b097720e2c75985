"""Conditioning methods: their equations on processes that can be followed by hand, batches, parameters, ablations."""

import functools
import math

import pytest
import torch
from torch import nn

from guided_diffusion.condition_methods import CONDITIONING_METHODS, ConditioningMethod, get_conditioning_method
from guided_diffusion.condition_methods.base import diffused_measurement, grad_and_value
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import LinearOperator, Measurement, Operator, get_noise, get_operator
from guided_diffusion.unet import create_model
from tests.helpers import NOISE_EXAMPLES, OPERATOR_EXAMPLES, ReplayedRandomness, fill_network
from util.errors import UserError
from util.seeding import ImageRandomness

SIZE = 16
LINEAR = [name for name, params in OPERATOR_EXAMPLES.items()
          if isinstance(get_operator(name, **params), LinearOperator)]
METHODS = [name for name in CONDITIONING_METHODS if issubclass(CONDITIONING_METHODS[name], ConditioningMethod)]
PAIRS = [(method, operator) for method in METHODS for operator in OPERATOR_EXAMPLES
         if operator in LINEAR or not CONDITIONING_METHODS[method].needs_linear]
NAMES = ["anna", "ben", "cleo"]


@functools.cache
def tiny_unet():
    return fill_network(create_model(
        image_size=SIZE, num_channels=32, num_res_blocks=1, channel_mult="1,2", attention_resolutions="8", num_heads=2,
        learn_sigma=True, use_scale_shift_norm=True), salt=50000).double()


class OneLayer(nn.Module):
    """model(x_t, t) -> (B, 6, H, W): colours and neighbours mix, nonlinearly, at a cost that hundreds of tests can
    bear."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x, t):
        return torch.tanh(self.layer(x) + 1e-3 * t.to(x).view(-1, 1, 1, 1))


@functools.cache
def one_layer():
    return fill_network(OneLayer(), salt=50000).double()


def photographs(names):
    """One smooth image per name, in [-1, 1], float64, so that rounding hides nothing: (B, 3, SIZE, SIZE)."""
    noise = ImageRandomness(7, names).randn_like(torch.empty(len(names), 3, 4, 4, dtype=torch.float64))
    return torch.nn.functional.interpolate(noise, size=SIZE, mode="bicubic").clamp(-1, 1)


def measure(operator, names, noise="gaussian", **params):
    randomness = ImageRandomness(3, names)
    example = get_operator(operator, **OPERATOR_EXAMPLES[operator])
    noiser = get_noise(noise, **(params or ({"sigma": 0.05} if noise == "gaussian" else NOISE_EXAMPLES[noise])))
    return Measurement.simulate(example, noiser, photographs(names), randomness), randomness


def restore(method, operator, names, sampler=None, noise="gaussian", network=tiny_unet, **params):
    measurement, randomness = measure(operator, names, noise)
    distances = []
    x = get_conditioning_method(method, **params).restore(
        network(), sampler or create_sampler(timestep_respacing="4"), measurement, randomness,
        callback=lambda step, x, distance: distances.append(distance))
    return x, torch.stack(distances)


@pytest.mark.parametrize(("method", "operator", "network"), [
    *((method, operator, one_layer) for method, operator in PAIRS),
    *((method, "super_resolution", tiny_unet) for method in METHODS)])
def test_batch_equals_single_runs_in_any_order(method, operator, network):
    batch, distances = restore(method, operator, NAMES, network=network)
    assert batch.shape == (3, 3, SIZE, SIZE) and batch.isfinite().all() and distances.shape == (4, 3)
    assert (batch[0] - batch[1]).abs().max() > 0.1
    shuffled, _ = restore(method, operator, [NAMES[2], NAMES[0]], network=network)
    torch.testing.assert_close(shuffled, batch[[2, 0]], atol=1e-6, rtol=0)
    for i, name in [(0, NAMES[0]), (1, NAMES[1])]:
        alone, distance = restore(method, operator, [name], network=network)
        torch.testing.assert_close(alone, batch[i:i + 1], atol=1e-6, rtol=0)
        torch.testing.assert_close(distance[:, 0], distances[:, i], atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("noise", NOISE_EXAMPLES)
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_every_noise_model_and_sampler(method, noise, sampler):
    reverse = create_sampler(sampler=sampler, timestep_respacing="4", eta=0.3 if sampler == "ddim" else 0.0)
    x, distances = restore(method, "super_resolution", NAMES[:2], reverse, noise, one_layer)
    assert x.isfinite().all() and distances.isfinite().all() and (distances > 0).all()


# ---- one step by hand ----------------------------------------------------------------------------------------------

def single_step(operator="super_resolution", index=5, noise="gaussian", names=NAMES[:2], **diffusion):
    """A step of the eps network 0.3 x_t + 0.1, from a known state: sampler, step, measurement."""
    measurement, randomness = measure(operator, names, noise)
    sampler = create_sampler(model_var_type="fixed_small", timestep_respacing="10", **diffusion)
    x_t = sampler.q_sample(photographs(names), index, randomness.randn_like(photographs(names)))
    step = sampler.step(lambda x, t: 0.3 * x + 0.1, x_t.requires_grad_(), index, ImageRandomness(11, names))
    return sampler, step, measurement


def fresh(step):
    """The draws that the step will make, from the same streams."""
    return ImageRandomness(11, step.randomness.names)


def guidance(step, measurement):
    """The gradient of each image's norm, written out for the linear network: slope * J^T(A x0 - y) / norm where
    x0 is not clamped, with J the Jacobian of A at x0, A itself where it is linear."""
    operator = measurement.operator
    prediction, jacobian_transpose = torch.func.vjp(operator, step.x0_hat.detach())
    residual = prediction - measurement.y
    adjoint = operator.transpose(residual) if isinstance(operator, LinearOperator) else jacobian_transpose(residual)[0]
    norm = residual.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    slope = (1 - 0.3 * math.sqrt(1 - step.alpha_bar)) / math.sqrt(step.alpha_bar)
    return slope * (step.x0_hat.detach().abs() < 1).double() * adjoint / norm


@pytest.mark.parametrize("operator", OPERATOR_EXAMPLES)
def test_dps_equation(operator):
    _, step, measurement = single_step(operator)
    x, distance = get_conditioning_method("ps", scale=0.7, rescale=False).conditioning(step, measurement)
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
        kept = A.observed(y_t)
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


@pytest.mark.parametrize("method", [name for name in METHODS if CONDITIONING_METHODS[name].needs_grad])
def test_perfect_agreement_gives_no_nan(method):
    _, step, measurement = single_step("noise", noise="clean")
    exact = Measurement(measurement.operator, measurement.noiser, step.x0_hat.detach().clone())
    x, distance = get_conditioning_method(method).conditioning(step, exact)
    assert x.isfinite().all() and distance.isfinite().all()


# ---- ps+ -------------------------------------------------------------------------------------------------------------

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


# ---- dpps ------------------------------------------------------------------------------------------------------------

class Wrapped(Operator):
    """Another operator, not known to be linear."""

    def __init__(self, operator):
        super().__init__()
        self.operator = operator

    def forward(self, x):
        return self.operator(x)


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
    method = get_conditioning_method("dpps", scale=0.4, rescale=False, max_candidates=20, adaptive=False, chunk=chunk,
                                     target=target)
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
        def forward(self, x):
            graphs.append(torch.is_grad_enabled())
            return x[..., ::2, ::2]

    _, step, measurement = single_step("noise")
    watched = Measurement(Watching(), measurement.noiser, measurement.y[..., ::2, ::2])
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
    x, _ = get_conditioning_method("dpps", scale=0.4, rescale=False).conditioning(step, measurement)
    torch.testing.assert_close(x, step.mean - 0.4 * guidance(step, measurement), atol=1e-9, rtol=1e-9)


# ---- what is refused, and what must not happen -----------------------------------------------------------------------

@pytest.mark.parametrize("method", METHODS)
def test_methods_that_need_a_linear_operator_say_so(method):
    cls = CONDITIONING_METHODS[method]
    assert cls.needs_linear == (method in ("mcg", "projection"))
    nonlinear = Wrapped(get_operator("noise"))
    nonlinear.name = "square"
    if cls.needs_linear:
        with pytest.raises(UserError, match=f"'{method}' needs a linear operator, found 'square'"):
            cls().check(nonlinear)
    else:
        cls().check(nonlinear)
    cls().check(get_operator("noise"))


@pytest.mark.parametrize("method, params, message", [
    ("ps", {"scale": -1}, "scale is -1, expected 0 or more"),
    ("mcg", {"scale": -0.5}, "scale is -0.5"),
    ("ps+", {"scale": -0.5}, "scale is -0.5"),
    ("dpps", {"scale": -0.5}, "scale is -0.5"),
    ("ps", {"scael": 9}, "did you mean 'scale'"),
    ("ps", {"scale": "0.3"}, "scale is '0.3', expected a finite number"),
    ("ps+", {"num_sampling": 0}, "num_sampling is 0, expected 1 or more"),
    ("ps+", {"perturbation": -0.1}, "perturbation is -0.1"),
    ("dpps", {"max_candidates": 0}, "max_candidates is 0, expected 1 or more"),
    ("dpps", {"chunk": 0}, "chunk is 0"),
    ("dpps", {"target": "y"}, "target is 'y', expected one of 'eps', 'mean'"),
    ("vanilla", {"scale": 1.0}, "takes no parameters"),
    ("dpss", {}, "did you mean 'dpps'"),
])
def test_mistakes_in_parameters(method, params, message):
    with pytest.raises(UserError, match=message):
        get_conditioning_method(method, **params)


class MetaRandomness:
    """Draws without values, on a device that has none."""

    def randn_like(self, x):
        return torch.empty_like(x)

    rand_like = randn_like


class Decimation(LinearOperator):
    """A keeps every second pixel per axis; A^+ puts them back."""

    def forward(self, x):
        return x[..., ::2, ::2]

    def pinv(self, y):
        x = y.new_zeros(*y.shape[:-2], 2 * y.shape[-2], 2 * y.shape[-1])
        x[..., ::2, ::2] = y
        return x

    initial_guess = pinv


@pytest.mark.parametrize("method", METHODS)
def test_the_loop_never_waits_for_a_value(method):
    """On the meta device every read of a value by the host (item, float, a truth value) raises."""
    operator = Decimation()
    operator.image_shape = (2, 3, 8, 8)
    measurement = Measurement(operator, get_noise("gaussian", sigma=0.1), torch.empty(2, 3, 4, 4, device="meta"))
    x = get_conditioning_method(method).restore(
        lambda x_t, t: torch.cat([0.3 * x_t, 0.1 * x_t + t.view(-1, 1, 1, 1)], dim=1),
        create_sampler(timestep_respacing="5"), measurement, MetaRandomness())
    assert x.is_meta and x.shape == (2, 3, 8, 8)
