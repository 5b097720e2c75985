"""Distributions of images whose diffusion is known in closed form: Gaussians, see `gaussians`, and mixtures.

Here x_t = sqrt(ab) x_0 + sqrt(1 - ab) n with ab = alpha_bar, a number or (B, 1, 1, 1). Parameters are float64, and the
functions compute in the dtype and on the device of what they are given.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from util.errors import UserError
from util.seeding import ImageRandomness

LARGEST_DENSE = 4096                                # values of an image, for matrices of all pairs of them
Spectral = Callable[[Tensor], Tensor]               # eigenvalues (1, ...) -> numbers that broadcast to (B, ...)


class Distribution(nn.Module, ABC):
    """p(x_0) of images (B, C, H, W), and what follows for x_t."""

    def sample(self, like: Tensor, randomness: ImageRandomness) -> Tensor:
        """Draw images in the shape, dtype and device of `like` (B, C, H, W)."""
        return self.drawn(randomness.randn_like(like), randomness.rand_like(like.flatten(1)[:, :1]))

    def drawn(self, z: Tensor, u: Tensor) -> Tensor:
        """Images (B, C, H, W) from z, white, and u (B, 1), uniform on [0, 1): the transition from pure noise."""
        return self.transition(torch.zeros_like(z), 0.0, 1.0, 0.0, 0.0, z, u)

    @abstractmethod
    def log_density(self, x_t: Tensor, alpha_bar: float | Tensor = 1.0) -> Tensor:
        """log p_t(x_t), (B, C, H, W) -> (B,); with alpha_bar = 1 that of the images themselves."""

    @abstractmethod
    def x0_mean(self, x_t: Tensor, alpha_bar: float | Tensor) -> Tensor:
        """E[x_0 | x_t], (B, C, H, W)."""

    @abstractmethod
    def x0_variance(self, x_t: Tensor, alpha_bar: float | Tensor) -> Tensor:
        """The variance of each value of x_0 given x_t, broadcasts to (B, C, H, W)."""

    @abstractmethod
    def transition(self, x_t: Tensor, alpha_bar: float, x0_coef: float, x_t_coef: float, variance: float, z: Tensor,
                   u: Tensor) -> Tensor:
        """x_{t-1} given x_t without any approximation, (B, C, H, W), from z, white, and u (B, 1), uniform on [0, 1).

        p(x_{t-1} | x_t) is N(x0_coef x_0 + x_t_coef x_t, variance I) averaged over p(x_0 | x_t).
        """

    @abstractmethod
    def score(self, x_t: Tensor, alpha_bar: float | Tensor = 1.0) -> Tensor:
        """grad log p_t(x_t) = (sqrt(ab) E[x_0 | x_t] - x_t) / (1 - ab), (B, C, H, W)."""


class Gaussian(Distribution):
    """N(mean, C) with C = Q diag(eigenvalues) Q^T; a subclass knows Q. `mean` broadcasts to (C, H, W)."""

    def __init__(self, mean: Tensor | float):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float64))
        require_finite(self.mean, "mean")

    @abstractmethod
    def apply_spectral(self, f: Spectral, x: Tensor) -> Tensor:
        """Q diag(f(eigenvalues)) Q^T x, (B, C, H, W)."""

    @abstractmethod
    def diagonal(self, f: Spectral, like: Tensor) -> Tensor:
        """The diagonal of Q diag(f(eigenvalues)) Q^T, broadcasts to `like` (B, C, H, W)."""

    @abstractmethod
    def trace(self, f: Spectral, like: Tensor) -> Tensor:
        """The sum of f over all eigenvalues, (1,) or (B,), for images like `like` (B, C, H, W)."""

    @abstractmethod
    def with_eigenvalues(self, f: Spectral, mean: Tensor) -> "Gaussian":
        """The Gaussian of the same eigenvectors, the eigenvalues f(eigenvalues) and another mean (C, H, W)."""

    def covariance(self, shape: tuple[int, int, int]) -> Tensor:
        """C as a matrix (n, n) for images of `shape` (C, H, W), float64; UserError where it is too large."""
        n = require_dense(shape)
        basis = torch.eye(n, dtype=torch.float64, device=self.mean.device).view(n, *shape)
        return self.apply_spectral(lambda e: e, basis).flatten(1)

    def score(self, x_t: Tensor, alpha_bar: float | Tensor = 1.0) -> Tensor:
        variance = self._marginal(alpha_bar)
        return -self.apply_spectral(lambda e: 1 / variance(e), x_t - alpha_bar ** 0.5 * self.mean.to(x_t))

    def log_density(self, x_t: Tensor, alpha_bar: float | Tensor = 1.0) -> Tensor:
        variance = self._marginal(alpha_bar)
        square = -(x_t - alpha_bar ** 0.5 * self.mean.to(x_t)) * self.score(x_t, alpha_bar)
        log_det = self.trace(lambda e: variance(e).log(), x_t)
        return -(square.flatten(1).sum(1) + log_det + math.log(2 * math.pi) * x_t[0].numel()) / 2

    def x0_mean(self, x_t: Tensor, alpha_bar: float | Tensor) -> Tensor:
        root, variance = alpha_bar ** 0.5, self._marginal(alpha_bar)
        mean = self.mean.to(x_t)
        return mean + self.apply_spectral(lambda e: root * e / variance(e), x_t - root * mean)

    def x0_variance(self, x_t: Tensor, alpha_bar: float | Tensor) -> Tensor:
        return self.diagonal(self._conditional(alpha_bar), x_t)

    def transition(self, x_t: Tensor, alpha_bar: float, x0_coef: float, x_t_coef: float, variance: float, z: Tensor,
                   u: Tensor) -> Tensor:
        spread = self._conditional(alpha_bar)
        noise = self.apply_spectral(lambda e: (variance + x0_coef ** 2 * spread(e)).sqrt(), z)
        return x0_coef * self.x0_mean(x_t, alpha_bar) + x_t_coef * x_t + noise

    @staticmethod
    def _marginal(alpha_bar: float | Tensor) -> Spectral:
        """The eigenvalues of the covariance of x_t."""
        return lambda e: alpha_bar * e + 1 - alpha_bar

    @staticmethod
    def _conditional(alpha_bar: float | Tensor) -> Spectral:
        """The eigenvalues of the covariance of x_0 given x_t."""
        return lambda e: e * (1 - alpha_bar) / (alpha_bar * e + 1 - alpha_bar)


class GaussianMixture(Distribution):
    """sum_k weight_k N(mean_k, C_k).

    Args:
        components: K Gaussians.
        weights: K numbers, positive, of sum one.
    """

    def __init__(self, components: Sequence[Gaussian], weights: Sequence[float] | Tensor):
        super().__init__()
        weights = torch.as_tensor(weights, dtype=torch.float64)
        if len(weights) != len(components):
            raise UserError(f"a mixture of {len(components)} components has {len(weights)} weights; give one for each")
        if weights.min() <= 0 or abs(weights.sum().item() - 1) > 1e-6:
            raise UserError(f"the weights of a mixture are {weights.tolist()!r:.80}, of sum {weights.sum():g}; "
                            "expected positive numbers of sum 1")
        self.components = nn.ModuleList(components)
        self.register_buffer("weights", weights)

    def log_joint(self, x_t: Tensor, alpha_bar: float | Tensor = 1.0) -> Tensor:
        """log weight_k + log p_t(x_t | k), (B, C, H, W) -> (B, K)."""
        parts = [component.log_density(x_t, alpha_bar) for component in self.components]
        return torch.stack(parts, dim=1) + self.weights.log().to(x_t)

    def responsibilities(self, x_t: Tensor, alpha_bar: float | Tensor = 1.0) -> Tensor:
        """The probability of each component given x_t, (B, K)."""
        return torch.softmax(self.log_joint(x_t, alpha_bar), dim=1)

    def log_density(self, x_t: Tensor, alpha_bar: float | Tensor = 1.0) -> Tensor:
        return torch.logsumexp(self.log_joint(x_t, alpha_bar), dim=1)

    def score(self, x_t: Tensor, alpha_bar: float | Tensor = 1.0) -> Tensor:
        return self._average(x_t, alpha_bar, lambda component: component.score(x_t, alpha_bar))

    def x0_mean(self, x_t: Tensor, alpha_bar: float | Tensor) -> Tensor:
        return self._average(x_t, alpha_bar, lambda component: component.x0_mean(x_t, alpha_bar))

    def x0_variance(self, x_t: Tensor, alpha_bar: float | Tensor) -> Tensor:
        square = self._average(x_t, alpha_bar, lambda component: (
            component.x0_variance(x_t, alpha_bar) + component.x0_mean(x_t, alpha_bar) ** 2))
        return (square - self.x0_mean(x_t, alpha_bar) ** 2).clamp_min(0)

    def _average(self, x_t: Tensor, alpha_bar: float | Tensor, value: Callable[[Gaussian], Tensor]) -> Tensor:
        """The mean of value(component) over the components given x_t, (B, C, H, W)."""
        shares = self.responsibilities(x_t, alpha_bar)[..., None, None, None]                   # (B, K, 1, 1, 1)
        return sum(shares[:, k] * value(component) for k, component in enumerate(self.components))

    def transition(self, x_t: Tensor, alpha_bar: float, x0_coef: float, x_t_coef: float, variance: float, z: Tensor,
                   u: Tensor) -> Tensor:
        chosen = self._choose(self.responsibilities(x_t, alpha_bar), u)
        return self._pick(chosen, lambda component: component.transition(
            x_t, alpha_bar, x0_coef, x_t_coef, variance, z, u))

    @staticmethod
    def _choose(shares: Tensor, u: Tensor) -> Tensor:
        """A component for each image, with probabilities (B, K), by uniform numbers (B, 1): (B,)."""
        return (u > shares.cumsum(1)).sum(1).clamp_max(shares.shape[1] - 1)

    def _pick(self, chosen: Tensor, value: Callable[[Gaussian], Tensor]) -> Tensor:
        """value(component) of each image's own component, (B, C, H, W)."""
        values = torch.stack([value(component) for component in self.components])               # (K, B, C, H, W)
        return values[chosen, torch.arange(len(chosen), device=chosen.device)]


def require_finite(values: Tensor, what: str) -> None:
    """UserError unless all of some parameters are finite."""
    if not values.isfinite().all():
        raise UserError(f"a Gaussian prior's {what} has values that are infinite or no numbers; expected finite ones")


def require_positive(variances: Tensor, what: str, floor: float = 0.0) -> None:
    """UserError unless all of some variances are finite and above `floor`."""
    require_finite(variances, what)
    least = variances.min()
    if not least > floor:
        raise UserError(f"a Gaussian prior's {what} has {least.item():g} as its smallest value, so it is not positive "
                        "definite; expected positive variances")


def require_dense(shape: tuple[int, int, int]) -> int:
    """The values n of an image of `shape` (C, H, W); UserError if matrices (n, n) are too large to be made."""
    n = math.prod(shape)
    if n > LARGEST_DENSE:
        raise UserError(f"a covariance of images of {'x'.join(map(str, shape))} is a matrix of {n}x{n}, which takes "
                        f"{8 * n ** 2 / 2 ** 30:.1f} GiB, and several are needed; at most {LARGEST_DENSE} values are "
                        "decomposed so: choose smaller images")
    return n
