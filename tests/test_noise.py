"""Noise models: statistics, per-image streams, distances and their gradients."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from guided_diffusion.measurements import NOISES, Measurement, get_noise, get_operator
from util.errors import UserError
from util.seeding import ImageRandomness

PARAMS = {"clean": {}, "gaussian": {"sigma": 0.1}, "poisson": {"rate": 0.5}}
NAMES = ["a", "b", "c"]
every_noise = pytest.mark.parametrize("name", sorted(NOISES))


def randomness(names: list[str] = NAMES, seed: int = 0) -> ImageRandomness:
    return ImageRandomness(seed, names, purpose="noise")


def uniform(*shape: int, seed: int = 0) -> Tensor:
    """Values in [-1, 1)."""
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


def test_every_registered_noise_has_parameters_here():
    assert set(PARAMS) == set(NOISES)


@every_noise
def test_batch_equals_singles_in_any_order(name):
    noise, y = get_noise(name, **PARAMS[name]), uniform(3, 3, 8, 8)
    batch = noise(y, randomness())
    assert batch.dtype == torch.float32 and batch.shape == y.shape
    for i, image in enumerate(NAMES):
        assert torch.equal(noise(y[i:i + 1], randomness([image]))[0], batch[i])
    assert torch.equal(noise(y.flip(0), randomness(NAMES[::-1])), batch.flip(0))
    if name != "clean":
        assert not torch.equal(noise(y, randomness(seed=1)), batch)


@every_noise
def test_distance_is_per_image(name):
    noise, y, prediction = get_noise(name, **PARAMS[name]), uniform(3, 3, 8, 8), uniform(3, 3, 8, 8, seed=1)
    batch = noise.distance(y, prediction)
    assert batch.shape == (3,)
    singles = [noise.distance(y[i:i + 1], prediction[i:i + 1]) for i in range(3)]
    torch.testing.assert_close(batch, torch.cat(singles))


@every_noise
def test_distance_has_a_finite_gradient_everywhere(name):
    """At a zero residual the gradient is zero; a measurement of exactly zero divides nothing by zero."""
    noise = get_noise(name, **PARAMS[name])
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
    noise, y, prediction = get_noise(name, **PARAMS[name]), uniform(3, 3, 8, 8), uniform(3, 3, 8, 8, seed=1)
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


def test_gaussian_of_sigma_zero_is_clean():
    y, noise = uniform(3, 3, 8, 8), get_noise("gaussian", sigma=0)
    assert torch.equal(noise(y, randomness()), y) and noise.variance(y) is None


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


@pytest.mark.parametrize("case", ["sr4", "gblur"])
def test_poisson_distance_is_the_official_arithmetic_at_rate_one(golden, case):
    """mean over entries of ||y - A x|| / |y|: no entry of a measurement at rate 1 reaches the lower bound on |y|."""
    arrays = golden(f"trajectory_dps_ps_{case}_poisson_ddpm")
    if case == "sr4":
        operator = get_operator("super_resolution", scale_factor=4)
    else:
        operator = get_operator("gaussian_blur", kernel_size=9, intensity=1.0)
    operator.prepare((1, 3, 32, 32), ImageRandomness(0, ["a"]))
    truth = torch.from_numpy(golden("trajectory_common")["x_true"])
    torch.testing.assert_close(operator(truth), torch.from_numpy(arrays["measurement_clean"]), rtol=0, atol=5e-6)
    measurement = Measurement(operator, get_noise("poisson"), torch.from_numpy(arrays["measurement"]).float())
    distances = [measurement.distance(torch.from_numpy(x0_hat)).item() for x0_hat in arrays["x0_hat"]]
    np.testing.assert_allclose(distances, arrays["distances"], rtol=1e-4)


def test_poisson_simulation_has_the_recorded_spread(golden):
    """The recorded measurements lie as far from their clean ones as the stated variance says."""
    for case in ("sr4", "gblur"):
        arrays = golden(f"trajectory_dps_ps_{case}_poisson_ddpm")
        clean, y = torch.from_numpy(arrays["measurement_clean"]), torch.from_numpy(arrays["measurement"]).float()
        chi_square = ((y - clean) ** 2 / get_noise("poisson").variance(clean)).mean().item()
        assert abs(chi_square - 1) < 4 * math.sqrt(2 / y.numel())


@every_noise
def test_the_truth_agrees_with_its_measurement(name):
    operator = get_operator("gaussian_blur", kernel_size=9, intensity=1.0)
    x = 0.8 * uniform(3, 3, 32, 32)
    measurement = Measurement.simulate(operator, get_noise(name, **PARAMS[name]), x, ImageRandomness(0, NAMES))
    chi_square = measurement.chi_square(x)
    if name == "clean":
        assert chi_square.isnan().all()
    else:
        assert ((chi_square - 1).abs() < 4 * math.sqrt(2 / (3 * 32 * 32))).all()
    assert torch.equal(measurement.lift(), operator.lift(measurement.y))


@pytest.mark.parametrize(("name", "params", "message"), [
    ("gaussian", {"sigma": -0.1}, "sigma is -0.1"), ("gaussian", {"sigm": 0.1}, "did you mean 'sigma'"),
    ("gaussian", {}, "missing"), ("poisson", {"rate": 0.0}, "positive"), ("poisson", {"rate": "1"}, "finite number"),
    ("poison", {}, "did you mean 'poisson'"), ("gaussian", {"sigma": float("nan")}, "finite number")])
def test_bad_inputs_are_named(name, params, message):
    with pytest.raises(UserError, match=message):
        get_noise(name, **params)
