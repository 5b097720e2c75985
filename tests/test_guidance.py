"""The guidance of a Gaussian p(x0 | x_t): closed-form posterior means, the exact step length, what is refused."""

import re
from dataclasses import replace

import pytest
import torch
from torch.autograd.functional import jvp

from guided_diffusion.condition_methods import get_conditioning_method, likelihoods
from guided_diffusion.condition_methods.base import grad_and_value
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.measurements.data_steps import linearised
from guided_diffusion.priors.analytic import AnalyticPrior
from guided_diffusion.priors.gaussians import StationaryGaussian
from tests.guided_steps import LINEAR, NAMES, NONLINEAR, SIZE, measure, one_layer, photographs, restore, tiny_unet
from tests.helpers import NOISE_EXAMPLES
from util.errors import UserError
from util.seeding import ImageRandomness

GUIDED = ["ps", "dpps"]
SINGLE_DRAW = {"ps": {}, "dpps": {"max_candidates": 1}}
NOISY = sorted(NOISE_EXAMPLES.keys() - {"clean"})
SAMPLERS = [("ddpm", 0.0), ("ddim", 1.0), ("ddim", 0.0), ("renoise", 0.0)]


def coloured_spectrum() -> torch.Tensor:
    """Variances of Fourier modes that fall with the frequency, as those of photographs do, (SIZE, SIZE)."""
    f = torch.fft.fftfreq(SIZE, dtype=torch.float64)
    return 1 / (0.05 + 40 * (f[:, None] ** 2 + f ** 2))


def step_of(spectrum, index=6, names=NAMES[:2]):
    """A reverse step of the Gaussian prior with that spectrum, from a noisy photograph; x0_hat is not clamped."""
    sampler = create_sampler(sampler="ddim", eta=1.0, model_var_type="fixed_small", timestep_respacing="10",
                             clip_denoised=False)
    prior = AnalyticPrior(sampler.schedule, StationaryGaussian(spectrum))
    x_t = sampler.q_sample(photographs(names), index, ImageRandomness(5, names).randn_like(photographs(names)))
    with torch.enable_grad():
        return sampler.step(prior, x_t.requires_grad_(), index, ImageRandomness(11, names))


def moves(step, measurement, method="ps", likelihood="gaussian", **params):
    """How much the measurement moves x0_hat, read off x_{t-1}."""
    x, distance = get_conditioning_method(method, likelihood=likelihood, **SINGLE_DRAW[method], **params).conditioning(
        step, measurement)
    torch.testing.assert_close(distance, measurement.distance(step.x0_hat.detach()))
    free = step.mean + step.std * ImageRandomness(11, step.randomness.names).randn_like(step.mean)
    return (x - free) / step.x0_coef


def dense(measurement, x) -> torch.Tensor:
    """The matrices of J, the derivative of A at x (or A, if it is linear), (B, m, n)."""
    _, forward, _ = linearised(measurement.operator, x)
    basis = torch.eye(x[0].numel(), dtype=torch.float64).view(-1, 1, *x.shape[1:])
    return torch.stack([forward(u.expand(x.shape)).flatten(1) for u in basis], dim=2)


@pytest.mark.parametrize("method, noise, operator", [
    *(("ps", "gaussian", operator) for operator in (*LINEAR, "hdr", "phase_retrieval")),
    ("dpps", "gaussian", "super_resolution"),
    *(("ps", noise, "super_resolution") for noise in sorted({*NOISY} - {"gaussian", "speckle"}))])      # too stiff
def test_white_images_move_to_the_exact_posterior_mean(method, noise, operator, monkeypatch):
    """x0 ~ N(0, I) makes C = (1 - ab) I: E[x0 | x_t, y] = x0_hat + C A^T (A C A^T + V)^-1 (y - A x0_hat).

    With the derivative for A, where that is not linear.
    """
    monkeypatch.setattr(likelihoods, "ITERATIONS", 1000)
    measurement, _ = measure(operator, NAMES[:2], noise)
    step = step_of(1.0)
    a, v = dense(measurement, step.x0_hat.detach()), measurement.noiser.variance(measurement.y).flatten(1)
    residual = (measurement.y - measurement.operator(step.x0_hat.detach())).flatten(1)
    c = 1 - step.alpha_bar
    expected = c * a.mT @ torch.linalg.solve(c * a @ a.mT + torch.diag_embed(v), residual[..., None])
    found = moves(step, measurement, method)
    torch.testing.assert_close(found.flatten(1), expected[..., 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method, noise, operator", [
    *(("ps", "gaussian", operator) for operator in (*LINEAR, "hdr", "phase_retrieval")),
    ("dpps", "poisson", "super_resolution")])
def test_stationary_images_move_to_the_exact_posterior_mean(method, noise, operator, monkeypatch):
    """x0 ~ N(0, F^H S F), S = 1 / (1 + (f / corner)^2): C A^T (A C A^T + V)^-1 (y - A x0_hat) by dense algebra."""
    monkeypatch.setattr(likelihoods, "ITERATIONS", 1000)
    measurement, _ = measure(operator, NAMES[:2], noise)
    f = torch.fft.fftfreq(SIZE, dtype=torch.float64)
    spectrum = 1 / (1 + (f[:, None] ** 2 + f ** 2) / 0.1 ** 2)
    step = step_of(spectrum)
    step = replace(step, x0_hat=step.x0_hat.detach())                       # no gradient is asked for
    s2 = (1 - step.alpha_bar) / step.alpha_bar
    basis = torch.eye(3 * SIZE ** 2, dtype=torch.float64).view(-1, 3, SIZE, SIZE)
    c = torch.fft.ifft2(spectrum * s2 / (spectrum + s2) * torch.fft.fft2(basis)).real.flatten(1)
    a, v = dense(measurement, step.x0_hat.detach()), measurement.noiser.variance(measurement.y).flatten(1)
    residual = (measurement.y - measurement.operator(step.x0_hat)).flatten(1)
    expected = c @ a.mT @ torch.linalg.solve(a @ c @ a.mT + torch.diag_embed(v), residual[..., None])
    found = moves(step, measurement, method, {"name": "stationary", "corner": 0.1})
    torch.testing.assert_close(found.flatten(1), expected[..., 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", GUIDED)
@pytest.mark.parametrize("likelihood, wanted", [
    ("stationary", [False] * 4), ({"name": "stationary", "gradients": [0, 2]}, [False, True, False, True]),
    ({"name": "stationary", "gradients": list(range(9))}, [True] * 4), ("gaussian", [True] * 4),
    ("point", [True] * 4)])
def test_the_network_builds_a_graph_where_the_likelihood_asks_for_one(method, likelihood, wanted):
    def network(x, t):
        asked.append(torch.is_grad_enabled() and x.requires_grad)
        return tiny_unet()(x, t)

    asked = []
    restore(method, "super_resolution", NAMES[:1], network=lambda: network, likelihood=likelihood)
    assert asked == wanted


def test_steps_of_stationary_with_a_gradient_are_those_of_gaussian():
    """All four of them; or one alone, and then it matters which."""
    def found(likelihood):
        return restore("ps", "super_resolution", NAMES[:2], likelihood=likelihood)[0]

    whole = found("gaussian")
    assert torch.equal(found({"name": "stationary", "gradients": [3, 1, 0, 2]}), whole)
    others = [found({"name": "stationary", "gradients": gradients}) for gradients in ([], [0], [1])]
    assert not any(map(torch.equal, [*others, others[0], others[1]], [*others[1:], whole, whole, whole]))


@pytest.mark.parametrize("operator", [*LINEAR, *NONLINEAR])
@pytest.mark.parametrize("noise", ["gaussian", "poisson"])
def test_the_length_is_exact_along_the_gradient(noise, operator):
    """f(delta) = |y - A x0_hat - J delta|_V^2 + delta^T C^-1 delta is smallest at delta among its multiples."""
    measurement, _ = measure(operator, NAMES[:2], noise)
    spectrum = coloured_spectrum()
    step = step_of(spectrum)
    ab = step.alpha_bar
    covariance = spectrum * (1 - ab) / (ab * spectrum + 1 - ab)             # of every mode
    variance = measurement.noiser.variance(measurement.y)

    def objective(delta):
        prediction, image = jvp(measurement.operator, step.x0_hat.detach(), delta)
        residual = measurement.y - prediction - image
        modes = torch.fft.fft2(delta, norm="ortho").abs() ** 2 / covariance
        return (residual ** 2 / variance).flatten(1).sum(1) + modes.flatten(1).sum(1)

    delta = moves(step, measurement)
    best, none = objective(delta), objective(torch.zeros_like(delta))
    assert (best < none).all()
    for factor in (0.9, 1.1):
        curvature = (objective(factor * delta) - best) / 0.01               # that of a parabola with its vertex at 1
        torch.testing.assert_close(curvature, none - best, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moves(step_of(spectrum), measurement, scale=1.5), 1.5 * delta)


def test_it_is_a_gradient_through_the_network():
    measurement, _ = measure("inpainting", NAMES[:2])
    step = step_of(coloured_spectrum())
    delta = moves(step, measurement)
    again = step_of(coloured_spectrum())                                    # inpainting: A A^T = A, V = sigma^2
    gradient, _ = grad_and_value(again, lambda x0: -0.5 * measurement.distance(x0) ** 2)
    cosine = torch.nn.functional.cosine_similarity(delta.flatten(1), gradient.flatten(1))
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


@pytest.mark.parametrize("method, operator, likelihood", [
    ("dpps", "inpainting", "gaussian"), *(("ps", operator, "gaussian") for operator in LINEAR[::2]),
    ("dpps", "inpainting", "stationary"), ("ps", "super_resolution", "stationary")])
def test_batch_equals_single_runs_in_any_order(method, operator, likelihood, monkeypatch):
    if likelihood == "stationary":                  # 16 iterations leave 1e-3 of the move, which rounding decides
        monkeypatch.setattr(likelihoods, "ITERATIONS", 200)
    options = {"sampler": create_sampler(timestep_respacing="2"), "network": one_layer, "likelihood": likelihood}
    batch, distances = restore(method, operator, NAMES, **options)
    assert batch.isfinite().all() and (batch[0] - batch[1]).abs().max() > 0.1
    shuffled, _ = restore(method, operator, [NAMES[2], NAMES[0]], **options)
    torch.testing.assert_close(shuffled, batch[[2, 0]], atol=1e-6, rtol=0)
    alone, distance = restore(method, operator, [NAMES[1]], **options)
    torch.testing.assert_close(alone, batch[1:2], atol=1e-6, rtol=0)
    torch.testing.assert_close(distance[:, 0], distances[:, 1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("operator, sampler, eta, steps, low, high", [
    *((operator, *SAMPLERS[i % len(SAMPLERS)], 50, 0.3, 1.6) for i, operator in enumerate(LINEAR)),
    *(("super_resolution", *sampler, 10, 0.3, 8) for sampler in SAMPLERS)])
def test_restorations_agree_with_their_measurements_without_any_tuning(operator, sampler, eta, steps, low, high):
    reverse = create_sampler(sampler=sampler, eta=eta, model_var_type="fixed_small", timestep_respacing=str(steps),
                             clip_denoised=False)
    spectrum = 0.2 * coloured_spectrum()
    white = ImageRandomness(2, NAMES).randn_like(photographs(NAMES))
    x = torch.fft.ifft2(spectrum.sqrt() * torch.fft.fft2(white)).real                   # a draw from the prior
    measurement, randomness = measure(operator, NAMES)
    measurement = Measurement.simulate(measurement.operator, measurement.noiser, x, randomness)
    restored = get_conditioning_method("ps", likelihood="gaussian").restore(
        AnalyticPrior(reverse.schedule, StationaryGaussian(spectrum)), reverse, measurement, randomness)
    chi_square = measurement.chi_square(restored)
    assert ((low < chi_square) & (chi_square < high)).all(), chi_square


def test_samples_are_those_of_the_posterior():
    """White images, denoising: the posterior has mean s y / (s + v) and variance s v / (s + v), s = 1, v = sigma^2."""
    sampler = create_sampler(sampler="ddim", eta=1.0, model_var_type="fixed_small", timestep_respacing="150",
                             clip_denoised=False)
    names = [str(i) for i in range(64)]
    randomness = ImageRandomness(0, names)
    measurement = Measurement.simulate(get_operator("noise"), get_noise("gaussian", sigma=0.5),
                                       torch.ones(64, 3, 8, 8, dtype=torch.float64), randomness)
    x = get_conditioning_method("ps", likelihood="gaussian").restore(
        AnalyticPrior(sampler.schedule, StationaryGaussian(1.0)), sampler, measurement, randomness)
    deviation = x - measurement.y / 1.25
    assert deviation.mean().abs() < 4 * (0.2 / x.numel()) ** 0.5
    assert deviation.var().item() == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("sigma", [1e-15, 1e-6, 1e-3, 100.0, 1e6])
def test_weak_and_strong_noise_in_single_precision(sigma):
    """White images, denoising: E[x0 | x_t, y] = x0_hat + c / (c + sigma^2) (y - x0_hat), c = 1 - ab."""
    measurement, _ = measure("noise", NAMES[:2], sigma=sigma)
    measurement = Measurement(measurement.operator, measurement.noiser, measurement.y.float())
    step = step_of(1.0)
    x_t = step.x_t.detach().float().requires_grad_()
    x0_hat = step.alpha_bar ** 0.5 * x_t                                    # of N(0, I)
    step = replace(step, x_t=x_t, x0_hat=x0_hat, mean=step.mean.float(), std=step.std.float())
    c = 1 - step.alpha_bar
    expected = c / (c + sigma ** 2) * (measurement.y - x0_hat.detach())
    torch.testing.assert_close(moves(step, measurement), expected, rtol=1e-3, atol=1e-5)


def test_agreement_moves_nothing():
    measurement, _ = measure("super_resolution", NAMES[:2])
    step = step_of(1.0)
    exact = Measurement(measurement.operator, measurement.noiser, measurement.operator(step.x0_hat.detach()))
    assert (moves(step, exact) == 0).all()


@pytest.mark.parametrize("method", GUIDED)
@pytest.mark.parametrize("params, message", [
    ({"likelihood": "gausian"},
     "unknown likelihood 'gausian'; did you mean 'gaussian'? choose from gaussian, point, stationary"),
    ({"likelihood": {"power": 2}},
     "likelihood {'power': 2} has no name; expected {name: ...}, one of gaussian, point, stationary"),
    ({"likelihood": 3}, "likelihood is 3, expected a string or a mapping, one of gaussian, point, stationary"),
    ({"likelihood": {"name": "stationary", "corner": 0}}, "likelihood 'stationary': corner is 0, expected"),
    ({"likelihood": {"name": "stationary", "gradients": -1}}, "likelihood 'stationary': gradients is -1, expected"),
    ({"likelihood": "gaussian", "scale": -1}, "scale is -1, expected a finite number, 0 or more"),
    ({"likelihood": {"name": "gaussian", "power": 2}}, "likelihood 'gaussian': unknown key 'power'; it takes no param"),
])
def test_mistakes_are_named(method, params, message):
    with pytest.raises(UserError, match=re.escape(message)):
        get_conditioning_method(method, **params)


@pytest.mark.parametrize("method, likelihood", [*((method, "gaussian") for method in GUIDED), ("ps", "stationary")])
def test_it_needs_a_noise_variance(method, likelihood):
    gaussian = get_conditioning_method(method, likelihood=likelihood)
    operator = get_operator("noise")
    for noise in NOISY:
        gaussian.check(operator, get_noise(noise, **NOISE_EXAMPLES[noise]))
    gaussian.check(operator)
    with pytest.raises(UserError, match=f"{likelihood} weighs y by its noise variance, but noise 'clean' has no"):
        gaussian.check(operator, get_noise("clean"))
    get_conditioning_method(method).check(operator, get_noise("clean"))
