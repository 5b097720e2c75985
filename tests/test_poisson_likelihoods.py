"""Likelihoods of Poisson noise: the recorded arithmetic, gradients by hand, scipy's densities."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from guided_diffusion.measurements import Measurement, get_noise, get_operator
from tests.noise_cases import grad, randomness, uniform
from util.seeding import ImageRandomness


@pytest.mark.parametrize("case", ["sr4", "gblur"])
def test_poisson_distance_is_the_official_arithmetic_at_rate_one(golden, case):
    """mean over entries of ||y - A x|| / |y|: no entry of a measurement at rate 1 reaches the lower bound on |y|."""
    arrays = golden(f"trajectory_dps_ps_{case}_poisson_ddpm")
    if case == "sr4":
        operator = get_operator("super_resolution", scale_factor=4)
    else:
        operator = get_operator("gaussian_blur", kernel_size=9, intensity=1.0)
    operator = operator.prepare((1, 3, 32, 32), ImageRandomness(0, ["a"]))
    truth = torch.from_numpy(golden("trajectory_common")["x_true"])
    torch.testing.assert_close(operator(truth), torch.from_numpy(arrays["measurement_clean"]), rtol=0, atol=5e-6)
    measurement = Measurement(operator, get_noise("poisson"), torch.from_numpy(arrays["measurement"]).float())
    distances = [measurement.distance(torch.from_numpy(x0_hat)).item() for x0_hat in arrays["x0_hat"]]
    np.testing.assert_allclose(distances, arrays["distances"], rtol=1e-4)


def likelihood_gradient(likelihood: str, y: Tensor, prediction: Tensor, rate: float) -> Tensor:
    """d distance / d prediction by hand: (da/dprediction) times the derivative with respect to the counts a."""
    half_peak = 255 * rate / 2
    counts, a = half_peak * (y + 1), half_peak * (prediction + 1)
    m = a.clamp_min(1)                              # below one count the slope is that at one
    return half_peak * {
        "shot": (a - counts) / counts.clamp_min(1),
        "gaussian": 1 / (2 * m) + 1 / 2 - counts ** 2 / (2 * m ** 2),
        "direct": 1 - counts / m,
    }[likelihood]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1))


@pytest.mark.parametrize("rate", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("likelihood", ["shot", "gaussian", "direct"])
def test_likelihood_gradients_by_hand(likelihood, rate):
    """Also where the prediction is darker than one count, or outside [-1, 1]."""
    noise = get_noise("poisson", rate=rate, likelihood=likelihood)
    y = noise(uniform(3, 3, 8, 8), randomness()).double()[..., :3, :3]
    for prediction in (uniform(3, 3, 3, 3, seed=1).double(), 1.4 * uniform(3, 3, 3, 3, seed=2).double()):
        torch.testing.assert_close(grad(noise, y, prediction), likelihood_gradient(likelihood, y, prediction, rate))
        dark = prediction.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda p, y=y: noise.distance(y, p), dark, atol=0.1, rtol=1e-3)


def test_likelihoods_are_those_of_scipy():
    y, prediction = (torch.tensor([[0.2, -0.5, 0.9]], dtype=torch.float64) for _ in range(2))
    prediction = prediction - 0.1
    counts, a = (np.rint(127.5 * (y.numpy() + 1)), 127.5 * (prediction.numpy() + 1))
    y = torch.from_numpy(counts / 127.5 - 1)
    expected = {"direct": -stats.poisson.logpmf(counts, a), "gaussian": -stats.norm.logpdf(counts, a, np.sqrt(a)),
                "shot": -stats.norm.logpdf(counts, a, np.sqrt(counts)) - np.log(2 * np.pi * counts) / 2}
    for likelihood, terms in expected.items():
        distance = get_noise("poisson", likelihood=likelihood).distance(y, prediction)
        torch.testing.assert_close(distance, torch.from_numpy(terms.sum(1)))


def test_official_is_parallel_to_least_squares_and_shot_is_not():
    official, ls, shot = (get_noise("poisson", likelihood=name) for name in ("official", "ls", "shot"))
    y, prediction = official(uniform(3, 3, 8, 8), randomness()), uniform(3, 3, 8, 8, seed=1)
    torch.testing.assert_close(cosine(grad(official, y, prediction), grad(ls, y, prediction)), torch.ones(3))
    assert (cosine(grad(shot, y, prediction), grad(ls, y, prediction)) < 0.99).all()
    torch.testing.assert_close(ls.distance(y, prediction), get_noise("clean").distance(y, prediction))
    assert torch.equal(get_noise("poisson").distance(y, prediction), official.distance(y, prediction))


@pytest.mark.parametrize("likelihood", ["shot", "gaussian", "direct", "ls", "official"])
def test_every_likelihood_is_finite_and_pulls_towards_the_measurement(likelihood):
    """Black and white measurements, predictions outside [-1, 1]: a step against the gradient is a step towards y."""
    noise = get_noise("poisson", likelihood=likelihood)
    for y, prediction, sign in ((-1.0, 0.5, 1), (-1.0, -0.9, 1), (1.0, -1.0, -1), (1.0, -1.3, -1), (0.0, 1.2, 1)):
        gradient = grad(noise, torch.full((1, 3, 2, 2), y), torch.full((1, 3, 2, 2), prediction))
        assert gradient.isfinite().all() and (gradient.sign() == sign).all()
