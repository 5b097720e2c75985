"""Data steps against dense linear algebra in float64, for every operator of the registry."""

import pytest
import torch

from guided_diffusion.measurements import LinearOperator, Measurement, get_noise
from guided_diffusion.measurements.data_steps import (
    LEAST_SIGMA,
    chi_square,
    conditional_langevin,
    conditional_sample,
    correction,
    curvature,
    descend,
    likelihood_gradient,
    linearised,
    proximal,
    variance,
)
from tests.guided_steps import LINEAR, NONLINEAR, measure, photographs
from tests.helpers import ReplayedRandomness, normal
from tests.operator_cases import LAST_SIZE, prepared
from util.seeding import ImageRandomness

R2 = 0.7
NAMES = ["anna", "ben"]
NOISES = {"gaussian": {"sigma": 0.1}, "poisson_gaussian": {"rate": 0.5, "sigma": 0.05}}    # one V, or one per entry


def case(noise, name, params, size):
    """A measurement of two images, V, the matrices of A (B, m, n), and z."""
    operator: LinearOperator = prepared(name, params, size, NAMES, 3 if "colorization" in str((name, params)) else 1)
    batch, *shape = operator.image_shape
    x = normal(batch, *shape).clamp(-1, 1)
    noiser = get_noise(noise, **NOISES[noise])
    measurement = Measurement(operator, noiser, noiser(operator(x).clamp(-1, 1), ImageRandomness(2, NAMES)))
    basis = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).view(-1, 1, *shape)
    matrix = torch.stack([operator(column.expand(batch, *shape)).flatten(1) for column in basis], dim=2)
    return measurement, variance(measurement).flatten(1), matrix, 0.3 * x.flip(-1)


def minimum(matrix, v, y, z):
    """The solution of (A^T V^-1 A + I / r^2) x = A^T V^-1 y + z / r^2, (B, n)."""
    weighted = matrix.mT / v[:, None]
    hessian = weighted @ matrix + torch.eye(matrix.shape[2], dtype=torch.float64) / R2
    return torch.linalg.solve(hessian, (weighted @ y.flatten(1)[..., None])[..., 0] + z.flatten(1) / R2)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("name", "params", "size"), LAST_SIZE)
def test_proximal_map_and_exact_draw_of_every_linear_operator(noise, name, params, size):
    """The draw solves the system of perturbed y and z: its covariance is H^-1 (A^T V^-1 A + I / r^2) H^-1, so H^-1."""
    measurement, v, matrix, z = case(noise, name, params, size)
    operator, y = measurement.operator, measurement.y
    torch.testing.assert_close(proximal(measurement, z, R2).flatten(1), minimum(matrix, v, y, z), atol=1e-8, rtol=0)
    of_z, of_y = normal(*z.shape, seed=1), normal(*y.shape, seed=2)
    drawn = conditional_sample(measurement, z, R2, ReplayedRandomness([of_z, of_y]))
    expected = minimum(matrix, v, y + v.view_as(y).sqrt() * of_y, z + R2 ** 0.5 * of_z)
    torch.testing.assert_close(drawn.flatten(1), expected, atol=1e-8, rtol=0)
    gram = R2 * matrix @ matrix.mT + torch.diag_embed(v)
    move = R2 * (matrix.mT @ torch.linalg.solve(gram, of_y.flatten(1))[..., None])[..., 0]
    torch.testing.assert_close(correction(measurement, of_y, R2).flatten(1), move, atol=1e-8, rtol=0)
    top = torch.linalg.eigvalsh(matrix.mT / v[:, None] @ matrix)[:, -1]
    found = curvature(operator, z, v.view_as(y)) / top                          # from below: few power iterations
    assert found.max() <= 1 + 1e-9 and found.min() > 0.6 and found.mean() > 0.75


@pytest.mark.parametrize(("name", "params", "size"), LAST_SIZE)
def test_projection_of_every_linear_operator(name, params, size):
    measurement, _, matrix, z = case("gaussian", name, params, size)
    residual = (matrix @ z.flatten(1)[..., None]) - measurement.y.flatten(1)[..., None]
    move = (torch.linalg.pinv(matrix, rtol=1e-9) @ residual).view_as(z)
    torch.testing.assert_close(measurement.operator.project(z, measurement.y), z - move, atol=1e-8, rtol=0)


@pytest.mark.parametrize("operator", LINEAR)
def test_descent_reaches_the_proximal_map(operator):
    measurement, _ = measure(operator, NAMES, sigma=0.5)
    z = 0.3 * photographs(NAMES).flip(-1)
    exact = proximal(measurement, z, R2)
    errors = [(descend(measurement.operator, z, measurement.y, variance(measurement), z, R2, steps) - exact).norm()
              for steps in (0, 1, 40)]
    assert errors[2] < 1e-3 * errors[0] and errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("operator", NONLINEAR)
def test_descent_lowers_the_objective_of_every_nonlinear_operator(operator):
    measurement, _ = measure(operator, NAMES)
    z, v = 0.5 * photographs(NAMES).flip(-1), variance(measurement)

    def objective(x):
        return chi_square(measurement, measurement.y - measurement.operator(x)) * measurement.y[0].numel() / 2 + (
            (x - z) ** 2).flatten(1).sum(1) / (2 * R2)

    values = torch.stack([objective(descend(measurement.operator, z, measurement.y, v, z, R2, n)) for n in range(6)])
    assert (values.diff(dim=0) <= 1e-9 * values[0]).all()
    assert (values[5] < 0.9 * values[0]).all()


@pytest.mark.parametrize("operator", NONLINEAR)
def test_the_derivative_of_every_nonlinear_operator(operator):
    """J u by differences, J^T by <J u, w> = <u, J^T w>; the roundings of JPEG pass gradients, but not differences."""
    measurement, _ = measure(operator, NAMES)
    x, u = 0.8 * photographs(NAMES), normal(*measurement.image_shape, seed=1)
    prediction, forward, transpose = linearised(measurement.operator, x)
    torch.testing.assert_close(prediction, measurement.operator(x))
    image, w = forward(u), normal(*prediction.shape, seed=2)
    torch.testing.assert_close((image * w).flatten(1).sum(1), (u * transpose(w)).flatten(1).sum(1))
    assert not (prediction.requires_grad or image.requires_grad)
    if operator != "jpeg":
        ahead, behind = (measurement.operator(x + h * u) for h in (1e-6, -1e-6))
        assert (image - (ahead - behind) / 2e-6).norm() < 1e-6 * image.norm()


def test_the_gradient_of_the_likelihood():
    measurement, _ = measure("hdr", NAMES, "poisson_gaussian")
    x, v = photographs(NAMES).requires_grad_(), variance(measurement)
    log_likelihood = -((measurement.y - measurement.operator(x)) ** 2 / v).sum() / 2
    found = likelihood_gradient(measurement.operator, x.detach(), measurement.y, v)
    torch.testing.assert_close(found, torch.autograd.grad(log_likelihood, x)[0])


@pytest.mark.parametrize("given", [{}, {"tau": 0.3}, {"lr": 0.01}])
def test_langevin_dynamics_step_by_step(given):
    """A = I: x <- x + h ((y - x) / v + (z - x) / r^2) + sqrt(2 h) n with h = step / (1 / v + 1 / r^2)."""
    measurement, _ = measure("noise", NAMES, sigma=0.2)
    z, y = 0.3 * photographs(NAMES), measurement.y
    draws = [normal(*z.shape, seed=i) for i in range(3)]
    place = [] if "lr" in given else [z]                        # where else the curvature is taken
    v = given.get("tau", 0.2) ** 2
    h = given.get("lr", 0.4 / (1 / v + 1 / R2))
    x = z
    for n in draws:
        x = x + h * ((y - x) / v + (z - x) / R2) + (2 * h) ** 0.5 * n
    found = conditional_langevin(measurement, z, R2, 3, 0.4, ReplayedRandomness([*place, *draws]), **given)
    torch.testing.assert_close(found, x, atol=1e-9, rtol=0)


@pytest.mark.parametrize("operator", NONLINEAR)
def test_langevin_dynamics_from_mid_grey(operator):
    """Phase retrieval has no slope there: steps that go by r alone would overshoot, each 10,000 times."""
    measurement, _ = measure(operator, NAMES)
    z = torch.zeros(measurement.image_shape, dtype=torch.float64)
    assert conditional_langevin(measurement, z, 100.0, 10, 0.5, ImageRandomness(4, NAMES)).abs().max() < 100


def test_no_measurement_is_trusted_beyond_an_eighth_of_a_grey_level():
    for noise, params in [("clean", {}), ("gaussian", {"sigma": 1e-9})]:
        measurement, _ = measure("noise", NAMES)
        measurement = Measurement(measurement.operator, get_noise(noise, **params), measurement.y)
        torch.testing.assert_close(variance(measurement), torch.full_like(measurement.y, LEAST_SIGMA ** 2))


def test_chi_square_counts_what_was_observed():
    measurement, _ = measure("inpainting", NAMES, sigma=0.2)
    residual = torch.full_like(measurement.y, 0.4)
    torch.testing.assert_close(chi_square(measurement, residual), torch.full((2,), 4.0, dtype=torch.float64))
