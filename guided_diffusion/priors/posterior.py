"""The exact posterior p(x_0 | y) of a Gaussian or a mixture under a linear operator and white Gaussian noise.

It is a distribution of the same kind, so what is known of a prior at every noise level is known of it, too: the mean
and the score of p(x_t | y), its transitions, its samples.
"""

import math

import torch
from torch import Tensor

from guided_diffusion.measurements import LinearOperator, Measurement
from guided_diffusion.measurements.denoise import DenoiseOperator
from guided_diffusion.priors.distributions import (
    Distribution,
    FullGaussian,
    Gaussian,
    GaussianMixture,
    StationaryGaussian,
    require_dense,
)
from util.seeding import ImageRandomness


def posterior(prior: Distribution, measurement: Measurement) -> Distribution:
    """p(x_0 | y) of a measurement y (1, ...) of one image by a linear operator with white Gaussian noise.

    For denoising of a stationary prior it is stationary, too, whatever the size; otherwise its covariance is a matrix.
    The posterior of a mixture has the posteriors of its components, with weights in proportion to
    weight_k N(y; A mean_k, A C_k A^T + sigma^2 I).

    Raises:
        UserError: the image is too large for a matrix.
    """
    if isinstance(prior, Gaussian):
        return _conditioned(prior, measurement)[0]
    parts = [_conditioned(component, measurement) for component in prior.components]
    log_joint = torch.stack([evidence for _, evidence in parts]) + prior.weights.log()
    weights = torch.softmax(log_joint, dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    return GaussianMixture([component for component, _ in parts], weights / weights.sum())


def _conditioned(prior: Gaussian, measurement: Measurement) -> tuple[Gaussian, Tensor]:
    """The posterior of one Gaussian, and log N(y; A mean, A C A^T + sigma^2 I)."""
    operator, sigma, y = measurement.operator, measurement.noiser.white_sigma, measurement.y.double()
    mean = prior.mean.expand(measurement.image_shape[1:])
    if isinstance(prior, StationaryGaussian) and isinstance(operator, DenoiseOperator):
        spectrum = prior.spectrum
        gain = StationaryGaussian(spectrum / (spectrum + sigma ** 2)).apply_spectral(lambda e: e, y - mean)[0]
        marginal = StationaryGaussian(spectrum + sigma ** 2, mean)
        rest = StationaryGaussian(spectrum * sigma ** 2 / (spectrum + sigma ** 2), mean + gain)
        return rest, marginal.log_density(y)[0]
    covariance, matrix = prior.covariance(measurement.image_shape[1:]), matrix_of(operator, y.device)
    product = matrix @ covariance                                                               # A C, (m, n)
    factor = torch.linalg.cholesky(product @ matrix.mT + sigma ** 2 * torch.eye(len(matrix)).to(matrix))
    whitened = torch.linalg.solve_triangular(factor, product, upper=False)
    residual = torch.linalg.solve_triangular(factor, y.flatten()[:, None] - matrix @ mean.reshape(-1, 1), upper=False)
    evidence = -(residual.square().sum() + math.log(2 * math.pi) * len(matrix)) / 2 - factor.diagonal().log().sum()
    moved = mean + (whitened.mT @ residual).view(mean.shape)
    return FullGaussian(moved, covariance - whitened.mT @ whitened), evidence


def matrix_of(operator: LinearOperator, device: torch.device) -> Tensor:
    """A of an operator that is prepared for one image, as a matrix (m, n) in float64; UserError where it is too large.
    """
    shape = operator.image_shape
    basis = torch.eye(require_dense(shape[1:]), dtype=torch.float64, device=device).view(-1, *shape)
    return torch.cat([operator.forward_many(part).flatten(1) for part in basis.split(256)]).mT


def of_one(measurement: Measurement, b: int) -> Measurement:
    """Entry b of a measurement, alone."""
    drawn = {name: values[b:b + 1] for name, values in measurement.operator.drawn().items()}
    return Measurement.stored(measurement.operator, measurement.noiser, measurement.y[b:b + 1],
                              (1, *measurement.image_shape[1:]), drawn, ImageRandomness(0, [str(b)]))
