"""Noise models: statistics, per-image streams, distances and their gradients."""

import math

import pytest
import torch
from scipy.stats import poisson

from guided_diffusion.measurements import NOISES, Measurement, get_noise, get_operator
from tests.helpers import NOISE_EXAMPLES
from tests.noise_cases import NAMES, grad, randomness, uniform
from util.errors import UserError
from util.seeding import ImageRandomness

DETERMINISTIC = ("clean", "quantization")
every_noise = pytest.mark.parametrize("name", sorted(NOISES))


def test_every_registered_noise_has_parameters_here():
    assert set(NOISE_EXAMPLES) == set(NOISES)


@every_noise
def test_batch_equals_singles_in_any_order(name):
    noise, y = get_noise(name, **NOISE_EXAMPLES[name]), uniform(3, 3, 8, 8)
    batch = noise(y, randomness())
    assert batch.dtype == torch.float32 and batch.shape == y.shape
    for i, image in enumerate(NAMES):
        assert torch.equal(noise(y[i:i + 1], randomness([image]))[0], batch[i])
    assert torch.equal(noise(y.flip(0), randomness(NAMES[::-1])), batch.flip(0))
    assert torch.equal(noise(y, randomness(seed=1)), batch) == (name in DETERMINISTIC)


@every_noise
def test_distance_is_per_image(name):
    noise, y, prediction = get_noise(name, **NOISE_EXAMPLES[name]), uniform(3, 3, 8, 8), uniform(3, 3, 8, 8, seed=1)
    batch = noise.distance(y, prediction)
    assert batch.shape == (3,)
    singles = [noise.distance(y[i:i + 1], prediction[i:i + 1]) for i in range(3)]
    torch.testing.assert_close(batch, torch.cat(singles))


@every_noise
def test_distance_has_a_finite_gradient_everywhere(name):
    """At a zero residual the gradient is zero; a measurement of exactly zero divides nothing by zero."""
    noise = get_noise(name, **NOISE_EXAMPLES[name])
    for y in (uniform(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)):
        prediction = y.clone().requires_grad_()
        distance = noise.distance(y, prediction)
        distance.sum().backward()
        assert torch.equal(distance, torch.zeros(2)) and torch.equal(prediction.grad, torch.zeros_like(y))
        moved = (y + 0.1).requires_grad_()
        noise.distance(y, moved).sum().backward()
        assert moved.grad.isfinite().all() and (moved.grad != 0).all()


@pytest.mark.parametrize("name", ["clean", "gaussian"])
def test_distance_is_the_euclidean_norm(name):
    noise, y, prediction = get_noise(name, **NOISE_EXAMPLES[name]), uniform(3, 3, 8, 8), uniform(3, 3, 8, 8, seed=1)
    torch.testing.assert_close(noise.distance(y, prediction)[1], ((y[1] - prediction[1]) ** 2).sum().sqrt())


def test_clean_changes_nothing():
    y = uniform(3, 3, 8, 8)
    noise = get_noise("clean")
    assert torch.equal(noise(y, randomness()), y) and noise.variance(y) is None


def test_gaussian_statistics():
    y, noise = uniform(3, 3, 64, 64), get_noise("gaussian", sigma=0.05)
    added = noise(y, randomness()) - y
    n = added[0].numel()
    for image in added:
        assert abs(image.mean()) < 4 * 0.05 / math.sqrt(n)
        assert abs(image.std() / 0.05 - 1) < 4 / math.sqrt(2 * n)
    assert torch.equal(noise.variance(y), torch.full_like(y, 0.05 ** 2))


def test_sigma_on_the_unit_range_is_twice_as_much_on_ours():
    y = uniform(3, 3, 8, 8)
    for name, params in (("gaussian", {}), ("poisson_gaussian", {"rate": 1e9})):
        ours, papers = (get_noise(name, sigma=0.05, range=scale, **params) for scale in ([-1, 1], [0, 1]))
        torch.testing.assert_close(papers(y, randomness()) - y, 2 * (ours(y, randomness()) - y), rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(papers.variance(y), torch.full_like(y, 0.01), rtol=1e-4, atol=0)
    default = get_noise("gaussian", sigma=0.05)
    assert torch.equal(default(y, randomness()), get_noise("gaussian", sigma=0.05, range=[-1, 1])(y, randomness()))


@pytest.mark.parametrize("rate", [0.3, 1.0, 4.0])
def test_poisson_statistics(rate):
    """The mean is the clean value and the variance is the one stated, away from the clipped ends."""
    noise = get_noise("poisson", rate=rate)
    for value in (-0.6, 0.0, 0.3):
        clean = torch.full((3, 3, 64, 64), value)
        noisy, variance = noise(clean, randomness()), noise.variance(clean)[0, 0, 0, 0].item()
        n = noisy.numel()
        assert abs(noisy.mean() - value) < 4 * math.sqrt(variance / n)
        assert abs(noisy.var() / variance - 1) < 4 * math.sqrt(3 / n)
        assert math.isclose(variance, 2 * (value + 1) / (255 * rate), rel_tol=1e-6)


def test_poisson_values_are_counts_within_the_range():
    noise = get_noise("poisson", rate=2.0)
    y = noise(torch.linspace(-1.5, 1.5, 3 * 3 * 32 * 32).view(3, 3, 32, 32), randomness())
    counts = (y.double() + 1) / 2 * 510
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-3)
    assert y.min() == -1 and y.max() == 1
    assert (noise.variance(torch.full((1, 1, 1, 1), -1.0)) == 4 / 510 ** 2).all()


def test_poisson_simulation_has_the_recorded_spread(golden):
    """The recorded measurements lie as far from their clean ones as the stated variance says."""
    for case in ("sr4", "gblur"):
        arrays = golden(f"trajectory_dps_ps_{case}_poisson_ddpm")
        clean, y = torch.from_numpy(arrays["measurement_clean"]), torch.from_numpy(arrays["measurement"]).float()
        chi_square = ((y - clean) ** 2 / get_noise("poisson").variance(clean)).mean().item()
        assert abs(chi_square - 1) < 4 * math.sqrt(2 / y.numel())


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.0123, 1.0, 7.3, 1e15])
def test_expected_square_of_clipped_counts(rate):
    """Against the sum over all counts; of very many the fluctuation is Gaussian, and half of it clipped at white."""
    noise = get_noise("poisson", rate=rate)
    prediction = torch.tensor([[-1.0, -0.99, 0.3, 0.999, 1.0]], dtype=torch.float64)
    means = 255 * rate * (prediction + 1) / 2
    if rate < 1e3:
        counts = torch.arange(5000, dtype=torch.float64)[:, None]
        chances = torch.from_numpy(poisson.pmf(counts.numpy(), means.numpy()))
        expected = (chances * ((2 * counts / (255 * rate) - 1).clamp(max=1) - prediction) ** 2).sum(0, keepdim=True)
    else:
        expected = 4 * means / (255 * rate) ** 2 * torch.tensor([1, 1, 1, 1, 0.5])
    torch.testing.assert_close(noise.expected_square(prediction), expected, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("rate", [0.001, 0.01, 1.0])
def test_the_truth_of_few_photons_has_chi_square_one(rate):
    """A night sky with lamps, where counts are mostly none or clipped."""
    x = torch.full((3, 3, 64, 64), -0.99)
    x[..., 20:40] = 0.99
    noise = get_noise("poisson", rate=rate)
    measurement = Measurement.simulate(get_operator("noise"), noise, x, ImageRandomness(0, NAMES))
    squares = (measurement.y - x) ** 2
    spread = squares.flatten(1).std(dim=1) / squares.flatten(1).mean(dim=1) / math.sqrt(3 * 64 * 64)
    assert ((measurement.chi_square(x) - 1).abs() < 4 * spread).all()


# The other models

def test_poisson_gaussian_statistics():
    noise = get_noise("poisson_gaussian", rate=0.5, sigma=0.05)
    for value in (-1.0, -0.6, 0.3, 1.0):
        clean = torch.full((3, 3, 64, 64), value)
        noisy, n = noise(clean, randomness()), 3 * 3 * 64 * 64
        variance = noise.variance(clean)[0, 0, 0, 0].item()
        assert math.isclose(variance, 2 * (value + 1) / 127.5 + 0.0025, rel_tol=1e-5)
        assert abs(noisy.mean() - value) < 4 * math.sqrt(variance / n) and abs(noisy.var() / variance - 1) < 0.05


def test_speckle_statistics():
    noise = get_noise("speckle", sigma=0.2)
    for value in (-0.9, 0.0, 1.0):
        clean = torch.full((3, 3, 64, 64), value)
        noisy, n = noise(clean, randomness()), 3 * 3 * 64 * 64
        std = 0.2 * (value + 1)
        assert abs(noisy.mean() - value) < 4 * std / math.sqrt(n)
        assert abs(noisy.std() / std - 1) < 4 / math.sqrt(2 * n)
        torch.testing.assert_close(noise.variance(clean), torch.full_like(clean, std ** 2))
    black = torch.full((1, 3, 4, 4), -1.0)
    assert torch.equal(noise(black, randomness(["a"])), black) and (noise.variance(black) > 0).all()


def test_salt_and_pepper_statistics():
    noise, clean = get_noise("salt_and_pepper", fraction=0.2), 0.5 * uniform(3, 3, 64, 64)
    noisy, n = noise(clean, randomness()), 3 * 3 * 64 * 64
    for value in (-1, 1):
        assert abs((noisy == value).float().mean() - 0.1) < 4 * math.sqrt(0.09 / n)
    kept = noisy.abs() < 1
    assert torch.equal(noisy[kept], clean[kept])
    assert (get_noise("salt_and_pepper", fraction=1)(clean, randomness()).abs() == 1).all()


@pytest.mark.parametrize("params, step", [({"bits": 1}, 2.0), ({"bits": 2}, 2 / 3), ({"levels": 5}, 0.5),
                                          ({"bits": 8}, 2 / 255)])
def test_quantization_takes_the_nearest_level(params, step):
    noise, clean = get_noise("quantization", **params), 1.3 * uniform(3, 3, 32, 32)
    y = noise(clean, randomness())
    torch.testing.assert_close(((y + 1) / step), ((y + 1) / step).round(), rtol=0, atol=1e-4)
    assert y.min() == -1 and y.max() == 1 and ((y - clean.clamp(-1, 1)).abs() <= step / 2 + 1e-5).all()
    assert torch.equal(noise(y, randomness()), y)
    torch.testing.assert_close(noise.distance(y, clean.clamp(-1, 1)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(noise.variance(y), torch.full_like(y, step ** 2 / 12))


def test_eight_bit_pictures_survive_eight_bits():
    levels = torch.arange(256.0).expand(1, 1, 1, -1) / 127.5 - 1
    torch.testing.assert_close(get_noise("quantization", bits=8)(levels, randomness(["a"])), levels)


@pytest.mark.parametrize(("name", "weight"), [
    ("poisson_gaussian", lambda y: 1 / (2 * (y.clamp(-1, 1) + 1) / 127.5 + 0.0025)),
    ("speckle", lambda y: 1 / (y + 1).clamp_min(0.2) ** 2)])
def test_weighted_distances_and_their_gradients(name, weight):
    """d = sqrt(sum w r^2) with weights of mean one; its gradient is w r / d."""
    noise = get_noise(name, **NOISE_EXAMPLES[name])
    y, prediction = noise(uniform(3, 3, 8, 8), randomness()).double(), uniform(3, 3, 8, 8, seed=1).double()
    w = weight(y)
    w = w / w.mean((1, 2, 3), keepdim=True)
    d = (w * (y - prediction) ** 2).sum((1, 2, 3)).sqrt()
    torch.testing.assert_close(noise.distance(y, prediction), d)
    torch.testing.assert_close(grad(noise, y, prediction), w * (prediction - y) / d.view(-1, 1, 1, 1))


def test_robust_distances_and_their_gradients():
    y, prediction = uniform(3, 3, 8, 8).double(), uniform(3, 3, 8, 8, seed=1).double()
    salt, coarse = get_noise("salt_and_pepper", fraction=0.1), get_noise("quantization", levels=5)
    residual = prediction - y
    torch.testing.assert_close(salt.distance(y, prediction), residual.abs().sum((1, 2, 3)) / math.sqrt(192))
    torch.testing.assert_close(grad(salt, y, prediction), residual.sign() / math.sqrt(192))
    beyond = residual.sign() * (residual.abs() - 0.25).clamp_min(0)
    d = beyond.flatten(1).norm(dim=1)
    torch.testing.assert_close(coarse.distance(y, prediction), d)
    torch.testing.assert_close(grad(coarse, y, prediction), beyond / d.view(-1, 1, 1, 1))


@every_noise
def test_the_truth_agrees_with_its_measurement(name):
    operator = get_operator("gaussian_blur", kernel_size=9, intensity=1.0)
    x = 0.8 * uniform(3, 3, 32, 32)
    measurement = Measurement.simulate(operator, get_noise(name, **NOISE_EXAMPLES[name]), x, ImageRandomness(0, NAMES))
    chi_square = measurement.chi_square(x)
    if name == "clean":
        assert chi_square.isnan().all()
    else:
        spread = 1 / NOISE_EXAMPLES[name]["fraction"] if name == "salt_and_pepper" else 2   # >= Var(r^2 / variance)
        assert ((chi_square - 1).abs() < 4 * math.sqrt(spread / (3 * 32 * 32))).all()
    assert torch.equal(measurement.lift(), measurement.operator.lift(measurement.y))


@pytest.mark.parametrize(("name", "params", "message"), [
    ("gaussian", {"sigma": -0.1}, "sigma is -0.1"), ("gaussian", {"sigm": 0.1}, "did you mean 'sigma'"),
    ("gaussian", {"sigma": 0}, "sigma is 0, expected a finite number, 1e-15 to 1e\\+15; .* use noise: {name: clean}"),
    ("gaussian", {"sigma": 0.1, "range": [0, 255]}, "range is \\[0, 255\\], expected \\[-1, 1\\] or \\[0, 1\\]"),
    ("gaussian", {"sigma": 0.1, "range": "[0, 1]"}, "range is"), ("speckle", {"sigma": 0.0}, "name: clean"),
    ("poisson_gaussian", {"rate": 1, "sigma": 0}, "name: clean"), ("poisson_gaussian", {"rate": 0, "sigma": 1}, "rate"),
    ("salt_and_pepper", {"fraction": 0}, "more than 0"), ("salt_and_pepper", {"fraction": 1.1}, "at most 1"),
    ("quantization", {}, "expected one of the two"), ("quantization", {"bits": 2, "levels": 4}, "one of the two"),
    ("quantization", {"bits": 0}, "1 to 16"), ("quantization", {"levels": 1}, "2 to 65536 or null"),
    ("poisson", {"likelihood": "shoot"}, "'shot'"),
    ("gaussian", {"sigma": 1e-30}, "sigma is 1e-30, expected a finite number, 1e-15 to 1e\\+15"),
    ("poisson", {"rate": 1e17}, "rate is 1e\\+17, expected a finite number, 1e-15 to 1e\\+15"),
    ("poisson_gaussian", {"rate": 1e-40, "sigma": 0.1}, "rate is 1e-40, expected a finite number, 1e-15"),
    ("gaussian", {}, "missing"), ("poisson", {"rate": 0.0}, "1e-15"), ("poisson", {"rate": "1"}, "finite number"),
    ("poison", {}, "did you mean 'poisson'"), ("gaussian", {"sigma": float("nan")}, "finite number")])
def test_bad_inputs_are_named(name, params, message):
    with pytest.raises(UserError, match=message):
        get_noise(name, **params)
