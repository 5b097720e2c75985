"""The exact posterior p(x_0 | y) of a Gaussian or a mixture under a linear operator and white Gaussian noise.

It is a distribution of the same kind, so what is known of a prior at every noise level is known of it, too: the mean
and the score of p(x_t | y), its transitions, its samples.
"""

import math

import torch
from torch import Tensor

from guided_diffusion.measurements import LinearOperator, Measurement
from guided_diffusion.measurements.denoise import DenoiseOperator
from guided_diffusion.measurements.fourier import FourierOperator
from guided_diffusion.measurements.inpainting import InpaintingOperator
from guided_diffusion.priors.distributions import Distribution, Gaussian, GaussianMixture, require_dense
from guided_diffusion.priors.gaussians import DiagonalGaussian, FullGaussian, StationaryGaussian
from util.seeding import ImageRandomness

# Operators whose A^T A is diagonal in the eigenvectors of a prior's covariance, and those priors.
DIAGONAL = ((DenoiseOperator, Gaussian), (InpaintingOperator, DiagonalGaussian), (FourierOperator, StationaryGaussian))


def check_posterior(prior: Distribution, operator: LinearOperator, shape: tuple[int, int, int]) -> None:
    """UserError if the posterior of images of `shape` (C, H, W) is a matrix that is too large, see `posterior`."""
    components = prior.components if isinstance(prior, GaussianMixture) else [prior]
    if not all(_is_diagonal(component, operator) for component in components):
        require_dense(shape)


def posterior(prior: Distribution, measurement: Measurement) -> Distribution:
    """p(x_0 | y) of a measurement y (1, ...) of one image by a linear operator with white Gaussian noise.

    Where A^T A is diagonal in the eigenvectors of the prior's covariance, they are those of the posterior's, too, and
    images may have any size: denoising; missing pixels, if pixels are independent; Fourier measurements of a stationary
    prior. Otherwise the covariance is a matrix. The posterior of a mixture has the posteriors of its components, with
    weights in proportion to weight_k N(y; A mean_k, A C_k A^T + sigma^2 I).

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
    operator, variance, y = measurement.operator, measurement.noiser.white_sigma ** 2, measurement.y.double()
    mean = prior.mean.expand(measurement.image_shape[1:])
    residual = y - operator(mean[None])
    if not _is_diagonal(prior, operator):
        return _conditioned_by_matrices(prior.covariance(mean.shape), mean, residual, operator, variance)
    w = _diagonal(operator)
    pulled = operator.transpose(residual)                                                       # A^T (y - A mean)
    shift = prior.apply_spectral(lambda e: e / (e * w + variance), pulled)
    square = (residual.square().sum() - (pulled * shift).sum()) / variance      # r^T (A C A^T + sigma^2 I)^-1 r
    log_det = prior.trace(lambda e: (1 + e * w / variance).log(), shift)[0]
    evidence = -(square + log_det + y.numel() * math.log(2 * math.pi * variance)) / 2
    return prior.with_eigenvalues(lambda e: e * variance / (e * w + variance), mean + shift[0]), evidence


def _is_diagonal(prior: Gaussian, operator: LinearOperator) -> bool:
    """Whether A^T A is diagonal in the eigenvectors of the prior's covariance."""
    return any(isinstance(operator, kind) and isinstance(prior, fitting) for kind, fitting in DIAGONAL)


def _diagonal(operator: DenoiseOperator | InpaintingOperator | FourierOperator) -> Tensor | float:
    """A^T A in those eigenvectors, broadcasts to (C, H, W)."""
    if isinstance(operator, DenoiseOperator):
        return 1.0
    if isinstance(operator, InpaintingOperator):
        return operator.mask[0].double()
    return torch.fft.ifftshift(operator.svd().singular[0] ** 2, dim=(-2, -1))


def _conditioned_by_matrices(covariance: Tensor, mean: Tensor, residual: Tensor, operator: LinearOperator,
                             variance: float) -> tuple[Gaussian, Tensor]:
    """As `_conditioned`, of the covariance (n, n), with residual = y - A mean."""
    matrix = matrix_of(operator, residual.device)
    product = matrix @ covariance                                                               # A C, (m, n)
    marginal = product @ matrix.mT + variance * torch.eye(len(matrix)).to(matrix)
    factor = torch.linalg.cholesky(marginal)
    whitened, r = (torch.linalg.solve_triangular(factor, right, upper=False) for right in (
        product, residual.reshape(-1, 1)))
    evidence = -(r.square().sum() + math.log(2 * math.pi) * len(matrix)) / 2 - factor.diagonal().log().sum()
    return FullGaussian.of(mean + (whitened.mT @ r).view(mean.shape), covariance - whitened.mT @ whitened), evidence


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
