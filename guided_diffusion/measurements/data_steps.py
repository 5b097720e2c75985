"""What a measurement says of an image that is N(z, r^2 I) without it: the data steps that methods share.

With V = diag(variance(measurement)) the posterior of such an image is, for a linear A, the Gaussian
N(proximal(z), (A^T V^-1 A + I / r^2)^-1); for any A its negative logarithm is, up to a constant, the objective

    J(x) = (y - A x)^T V^-1 (y - A x) / 2 + ||x - z||^2 / (2 r^2).
"""

import math

import torch
from torch import Tensor

from guided_diffusion.measurements.base import LinearOperator, Operator
from guided_diffusion.measurements.conjugate_gradients import (
    LinearMap,
    column,
    damped_inverse,
    dot,
    largest_eigenvalue,
)
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.measurements.svd import on
from util.seeding import ImageRandomness

LEAST_SIGMA = 1e-3                                  # an eighth of a grey level of 255
ITERATIONS = {torch.float32: 100, torch.float64: 1000}      # of conjugate gradients
UNASKED = 25                                        # iterations during which the host need not wait for the device
HALVINGS = 8                                        # of a step that goes too far


def variance(measurement: Measurement) -> Tensor:
    """The noise variance of every entry of y, in its shape; where it depends on the image, what y itself suggests.

    At least LEAST_SIGMA^2, which also stands for no noise; DiffPIR has the same number, of images on [0, 1].
    """
    found = measurement.noiser.variance(measurement.y)
    return torch.full_like(measurement.y, LEAST_SIGMA ** 2) if found is None else found.clamp_min(LEAST_SIGMA ** 2)


def whitening(v: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(least / V) in the shape of V (B, ...), and least (B,), the smallest variance of each image: a unit of V with
    which nothing overflows where noise is weak."""
    least = v.flatten(1).amin(1)
    return (column(least, v) / v).sqrt(), least


def chi_square(measurement: Measurement, residual: Tensor) -> Tensor:
    """||residual||_V^2 / m over the m observed entries of y, (B, ...) -> (B,): 1 or so for what noise makes of them."""
    observed = measurement.operator.informative(measurement.y)
    return dot(observed * residual, residual / variance(measurement)) / observed.flatten(1).sum(1).clamp_min(1)


def correction(measurement: Measurement, residual: Tensor, r2: float, iterations: int | None = None) -> Tensor:
    """r^2 A^T (r^2 A A^T + V)^-1 residual of a linear A, (B, ...) -> (B, C, H, W).

    With A = U S V^T and white noise of sigma, by r^2 s / (r^2 s^2 + sigma^2); otherwise by conjugate gradients.

    Args:
        residual: y - A z for the move from z to the proximal map.
        r2: r^2.
        iterations: at most; up to `UNASKED` of them never wait for the device.
    """
    operator: LinearOperator = measurement.operator
    sigma = measurement.noiser.white_sigma
    if sigma is not None and operator.has_svd:
        svd = operator.svd()
        s = on(svd.singular, residual)
        return svd.v(r2 * s / (r2 * s ** 2 + max(sigma, LEAST_SIGMA) ** 2) * svd.ut(residual))
    weight, least = whitening(variance(measurement))
    return damped_inverse(lambda x: weight * operator(x), lambda w: operator.transpose(weight * w), weight * residual,
                          (least / r2).sqrt(), iterations or ITERATIONS[residual.dtype])[0]


def proximal(measurement: Measurement, z: Tensor, r2: float, iterations: int | None = None) -> Tensor:
    """argmin_x J(x) of a linear A: z (B, C, H, W) -> z + r^2 A^T (r^2 A A^T + V)^-1 (y - A z)."""
    return z + correction(measurement, measurement.y - measurement.operator(z), r2, iterations)


def conditional_sample(measurement: Measurement, z: Tensor, r2: float, randomness: ImageRandomness) -> Tensor:
    """Draw x ~ N(z, r^2 I) given y, of a linear A: exactly, z (B, C, H, W) -> the same shape.

    The proximal map of z + r n and y + V^(1/2) n' (Papandreou & Yuille, 2010, "perturb and optimise").
    """
    z = z + math.sqrt(r2) * randomness.randn_like(z)
    y = measurement.y + variance(measurement).sqrt() * randomness.randn_like(measurement.y)
    return z + correction(measurement, y - measurement.operator(z), r2)


def likelihood_gradient(operator: Operator, x: Tensor, y: Tensor, variance: Tensor) -> Tensor:
    """J_A(x)^T V^-1 (y - A x), the gradient of log N(y; A x, V), (B, C, H, W)."""
    if isinstance(operator, LinearOperator):
        return operator.transpose((y - operator(x)) / variance)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(-((y - operator(x)) ** 2 / (2 * variance)).sum(), x)[0]


def linearised(operator: Operator, x: Tensor) -> tuple[Tensor, LinearMap, LinearMap]:
    """A x of x (B, C, H, W), and its derivative J there: u -> J u and w -> J^T w. For a linear A these are A and A^T.

    J u is the gradient of <J^T v, u> with respect to v.
    """
    if isinstance(operator, LinearOperator):
        return operator(x), operator, operator.transpose
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        prediction = operator(x)
        v = torch.zeros_like(prediction, requires_grad=True)
        pulled, = torch.autograd.grad(prediction, x, v, create_graph=True)

    def forward(u: Tensor) -> Tensor:
        return torch.autograd.grad(pulled, v, u, retain_graph=True)[0]

    def transpose(w: Tensor) -> Tensor:
        return torch.autograd.grad(prediction, x, w, retain_graph=True)[0]

    return prediction.detach(), forward, transpose


def curvature(operator: Operator, x: Tensor, variance: Tensor) -> Tensor:
    """The largest eigenvalue of J_A^T V^-1 J_A at x (B, C, H, W) for each image, (B,), from below."""
    _, forward, transpose = linearised(operator, x)
    return largest_eigenvalue(lambda u: transpose(forward(u) / variance), x.shape, x)


def descend(operator: Operator, x: Tensor, y: Tensor, variance: Tensor, z: Tensor, r2: float, steps: int) -> Tensor:
    """Gradient steps on J(x), any A: x (B, C, H, W) -> the same shape.

    The length of a step is the exact one for a linear A, ||g||^2 / (||J_A g||_V^2 + ||g||^2 / r^2); for another it is
    halved up to 8 times, and left out in the end, for images whose objective it would not lower.
    """
    def objective(x: Tensor) -> Tensor:
        residual = y - operator(x)
        return dot(residual, residual / variance) / 2 + dot(x - z, x - z) / (2 * r2)

    tiny = torch.finfo(x.dtype).tiny
    for _ in range(steps):
        prediction, forward, transpose = linearised(operator, x)
        gradient = (x - z) / r2 - transpose((y - prediction) / variance)
        image = forward(gradient)
        square = dot(gradient, gradient)
        length = square / (dot(image, image / variance) + square / r2).clamp_min(tiny)
        if not isinstance(operator, LinearOperator):
            before = objective(x)
            for halving in range(HALVINGS + 1):
                worse = objective(x - column(length, x) * gradient) > before
                if not worse.any():
                    break
                length = torch.where(worse, length / 2 if halving < HALVINGS else 0, length)
            if not length.any():
                break
        x = x - column(length, x) * gradient
    return x


def conditional_langevin(measurement: Measurement, z: Tensor, r2: float, steps: int, step: float,
                         randomness: ImageRandomness, tau: float | None = None, lr: float | None = None) -> Tensor:
    """`steps` of Langevin dynamics on exp(-J(x)) from x = z (B, C, H, W), any A: x <- x - h grad J(x) + sqrt(2 h) n.

    Args:
        step: h = step / (L + 1 / r^2), L the largest eigenvalue of J_A^T V^-1 J_A at z or at a draw of N(z, r^2 I), as
            z itself may be where A has no slope (mid-grey for phase retrieval). At 1 the stiffest direction lands where
            J is least, at 2 it overshoots by as much as it was off; its variance is too large by 1 / (1 - step / 2).
        tau: a standard deviation in place of V; None for V.
        lr: h itself in place of the rule; None for that.
    """
    operator, y = measurement.operator, measurement.y
    v = variance(measurement) if tau is None else y.new_tensor(tau ** 2).expand_as(y)
    if lr is None:
        elsewhere = z + math.sqrt(r2) * randomness.randn_like(z)
        stiffest = torch.maximum(curvature(operator, z, v), curvature(operator, elsewhere, v))
        h = column(step / (stiffest + 1 / r2), z)
    else:
        h = z.new_tensor(lr)
    x = z
    for _ in range(steps):
        drift = likelihood_gradient(operator, x, y, v) + (z - x) / r2
        x = x + h * drift + (2 * h).sqrt() * randomness.randn_like(x)
    return x


def conditional_draw(measurement: Measurement, z: Tensor, r2: float, steps: int, step: float,
                     randomness: ImageRandomness) -> Tensor:
    """Draw x ~ N(z, r^2 I) given y, (B, C, H, W): `conditional_sample` if A is linear, else `conditional_langevin`."""
    if isinstance(measurement.operator, LinearOperator):
        return conditional_sample(measurement, z, r2, randomness)
    return conditional_langevin(measurement, z, r2, steps, step, randomness)
