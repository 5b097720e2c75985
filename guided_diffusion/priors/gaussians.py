"""Gaussian distributions of images, by what is known of their eigenvectors."""

import torch
from torch import Tensor

from guided_diffusion.priors.distributions import Gaussian, Spectral, require_finite, require_positive
from util.errors import UserError


class StationaryGaussian(Gaussian):
    """A stationary covariance, diagonal in the orthonormal 2-D Fourier basis, the channels independent.

    Args:
        spectrum: variance of every Fourier mode, (H, W) or (C, H, W), positive, symmetric under negation of the
            frequency; a number for white images of that pixel variance.
        mean: broadcasts to (C, H, W).
    """

    def __init__(self, spectrum: Tensor | float, mean: Tensor | float = 0.0):
        super().__init__(mean)
        self.register_buffer("spectrum", torch.as_tensor(spectrum, dtype=torch.float64))
        require_positive(self.spectrum, "spectrum")
        if self.spectrum.dim() > 1:
            negated = self.spectrum.flip(-2, -1).roll((1, 1), (-2, -1))
            rounding = 1e-12 * self.spectrum.max().item()
            if not torch.allclose(self.spectrum, negated, rtol=1e-6, atol=rounding):
                raise UserError("a Gaussian prior's spectrum has other variances at f and -f, so it is that of no real "
                                "images; expected a spectrum that is symmetric, in the order of numpy.fft.fftfreq")

    def apply_spectral(self, f: Spectral, x: Tensor) -> Tensor:
        return torch.fft.ifft2(f(self.spectrum.to(x)[None]) * torch.fft.fft2(x)).real

    def diagonal(self, f: Spectral, like: Tensor) -> Tensor:
        return self._values(f, like).mean(dim=(-2, -1), keepdim=True)

    def trace(self, f: Spectral, like: Tensor) -> Tensor:
        return self._values(f, like).flatten(1).sum(1)

    def with_eigenvalues(self, f: Spectral, mean: Tensor) -> Gaussian:
        return StationaryGaussian(f(self.spectrum), mean)

    def _values(self, f: Spectral, like: Tensor) -> Tensor:
        return f(self.spectrum.to(like).expand(like.shape[1:])[None])


class LowRankGaussian(Gaussian):
    """C = W diag(variances - residual) W^T + residual I: some directions, and white noise.

    Args:
        mean: (C, H, W).
        directions: W^T, orthonormal rows (r, C, H, W).
        variances: of the directions, (r,).
        residual: variance in every other direction, positive.
    """

    def __init__(self, mean: Tensor, directions: Tensor, variances: Tensor, residual: float):
        super().__init__(mean)
        self.register_buffer("directions", directions.double().flatten(1))                      # (r, n)
        self.register_buffer("variances", variances.double().view(1, -1, 1, 1))
        self.register_buffer("residual", torch.tensor(residual, dtype=torch.float64).view(1, 1, 1, 1))
        require_positive(torch.cat([self.variances.flatten(), self.residual.flatten()]), "variances")

    def apply_spectral(self, f: Spectral, x: Tensor) -> Tensor:
        rest, w = f(self.residual.to(x)), self.directions.to(x)
        inside = (f(self.variances.to(x)) - rest).flatten(1) * (x.flatten(1) @ w.mT)            # (B, r)
        return rest * x + (inside @ w).view_as(x)

    def diagonal(self, f: Spectral, like: Tensor) -> Tensor:
        rest = f(self.residual.to(like))
        inside = (f(self.variances.to(like)) - rest).flatten(1) @ self.directions.to(like) ** 2
        return rest + inside.view(-1, *like.shape[1:])

    def trace(self, f: Spectral, like: Tensor) -> Tensor:
        others = like[0].numel() - self.directions.shape[0]
        return f(self.variances.to(like)).flatten(1).sum(1) + others * f(self.residual.to(like)).flatten(1).sum(1)

    def with_eigenvalues(self, f: Spectral, mean: Tensor) -> Gaussian:
        directions = self.directions.view(-1, *self.mean.shape)
        return LowRankGaussian(mean, directions, f(self.variances).flatten(), f(self.residual).item())


class DiagonalGaussian(Gaussian):
    """Independent values.

    Args:
        mean: (C, H, W).
        variance: of each value, broadcasts to (C, H, W), positive.
    """

    def __init__(self, mean: Tensor, variance: Tensor | float):
        super().__init__(mean)
        self.register_buffer("variance", torch.as_tensor(variance, dtype=torch.float64))
        require_positive(self.variance, "variances")

    def apply_spectral(self, f: Spectral, x: Tensor) -> Tensor:
        return f(self.variance.to(x)[None]) * x

    def diagonal(self, f: Spectral, like: Tensor) -> Tensor:
        return f(self.variance.to(like).expand(like.shape[1:])[None])

    def trace(self, f: Spectral, like: Tensor) -> Tensor:
        return self.diagonal(f, like).flatten(1).sum(1)

    def with_eigenvalues(self, f: Spectral, mean: Tensor) -> Gaussian:
        return DiagonalGaussian(mean, f(self.variance))


class FullGaussian(Gaussian):
    """Any covariance, for images of a few thousand values.

    Args:
        mean: (C, H, W).
        eigenvalues, q: of the covariance, (n,) and (n, n) with n = C H W.
    """

    def __init__(self, mean: Tensor, eigenvalues: Tensor, q: Tensor):
        super().__init__(mean)
        self.register_buffer("eigenvalues", eigenvalues.view(1, -1, 1, 1))
        self.register_buffer("q", q)

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor) -> "FullGaussian":
        """From the covariance (n, n), symmetric and positive; what rounding makes negative counts as 0."""
        require_finite(covariance, "covariance")
        eigenvalues, q = torch.linalg.eigh(covariance.double())
        require_positive(eigenvalues, "covariance", -1e-9 * eigenvalues[-1].item())
        return cls(mean, eigenvalues.clamp_min(0), q)

    def apply_spectral(self, f: Spectral, x: Tensor) -> Tensor:
        q = self.q.to(x)
        return ((f(self.eigenvalues.to(x)).flatten(1) * (x.flatten(1) @ q)) @ q.mT).view_as(x)

    def diagonal(self, f: Spectral, like: Tensor) -> Tensor:
        return (f(self.eigenvalues.to(like)).flatten(1) @ self.q.to(like).mT ** 2).view(-1, *like.shape[1:])

    def trace(self, f: Spectral, like: Tensor) -> Tensor:
        return f(self.eigenvalues.to(like)).flatten(1).sum(1)

    def with_eigenvalues(self, f: Spectral, mean: Tensor) -> Gaussian:
        return FullGaussian(mean, f(self.eigenvalues).flatten(), self.q)
