"""Methods with an exact stationary prior: every Fourier mode follows the closed-form recursion of the method's update.

In the basis of the singular vectors of `fourier` (real, and that of the prior's covariance) a coefficient x of variance
S in the prior has x0_hat = g x, g = sqrt(ab) S / (ab S + 1 - ab), its Jacobian g, and eps = e x with e = sqrt(1 - ab) /
(ab S + 1 - ab); y has s x + noise of it, s in {0, sqrt(1/2), 1}. What couples the coefficients are norms over all of
them, which are their root mean squares for many coefficients. So an update is x' = p x + q y + c z, coefficient by
coefficient, and mean' = p mean + q y, variance' = p^2 variance + c^2.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.priors.analytic import AnalyticPrior, gaussian
from guided_diffusion.restoration.catalogue import METHODS
from util.seeding import ImageRandomness

SIZE, COUNT, STEPS, SIGMA = 32, 64, 20, 0.3
N, SCALE, ETA, PERTURBATION, K = 10, 0.05, 0.7, 6.0, 2


@dataclass
class State:
    """Mean and variance of all coefficients before a step, and what the step knows; float64 arrays."""

    mean: np.ndarray
    variance: np.ndarray
    y: np.ndarray                                   # U^T y
    s: np.ndarray
    outside: float                                  # |y|^2 outside of the range of A
    power: np.ndarray                               # S
    ab: float
    ab_prev: float
    x0_coef: float
    x_t_coef: float
    std: float
    stride: int

    @property
    def g(self) -> np.ndarray:
        return math.sqrt(self.ab) * self.power / (self.ab * self.power + 1 - self.ab)

    @property
    def prior(self) -> np.ndarray:
        return self.x0_coef * self.g + self.x_t_coef

    def square(self, of_y: np.ndarray, of_x: np.ndarray) -> np.ndarray:
        """E (of_y y - of_x x)^2."""
        return (of_y * self.y - of_x * self.mean) ** 2 + of_x ** 2 * self.variance

    def residual(self, more: float = 0.0) -> float:
        """||y - A x0_hat||."""
        return math.sqrt(self.square(np.ones_like(self.s), self.s * self.g).sum() + self.outside + more)


def ps(t: State) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-grad ||r|| = g s r / ||r||, r = y - s g x."""
    k = SCALE * t.stride * t.g * t.s / t.residual()
    return t.prior - k * t.s * t.g, k, np.full_like(t.s, t.std)


def ps_squared(t: State):
    k = 2 * 2e-3 * t.stride * t.g * t.s
    return t.prior - k * t.s * t.g, k, np.full_like(t.s, t.std)


def ps_plus(t: State):
    """r_k = r - s perturbation v_k with v_k of variance 1/12: a longer residual, and noise from the mean of K draws."""
    k = 4 * SCALE * t.stride * t.g * t.s / t.residual(PERTURBATION ** 2 / 12 * (t.s ** 2).sum())
    return t.prior - k * t.s * t.g, k, np.sqrt(t.std ** 2 + (k * t.s * PERTURBATION) ** 2 / (12 * K))


def projected(t: State):
    """sqrt(ab) y / s + sqrt(1 - ab) n / s: where A is small, the noise of y is large. The gradient of mcg is gone."""
    seen = t.s > 0
    inverse = np.where(seen, 1 / np.where(seen, t.s, 1), 0)
    return (np.where(seen, 0, t.prior), math.sqrt(t.ab) * inverse,
            np.where(seen, math.sqrt(1 - t.ab) * inverse, t.std))


def dpps(t: State):
    """Selection alone, the best of N noises, f = sum (o - s std z)^2, o = sqrt(ab') y - s (mean - sqrt(1 - ab') eps).

    For many coefficients f is normal with variance F^2 = sum 4 (o s std)^2 + 2 (s std)^4, and the least of N is E_N
    deviations below the mean, E_N the expected largest of N normal numbers. So z has the mean -E_N Cov(z, f) / F =
    2 E_N o s std / F there. Its variance changes by less.
    """
    p, q, c = t.prior, 0, np.full_like(t.s, t.std)
    if not t.std:
        return p, q, c
    e = math.sqrt(1 - t.ab) / (t.ab * t.power + 1 - t.ab)
    of_y, of_x = math.sqrt(t.ab_prev), t.s * (p - math.sqrt(1 - t.ab_prev) * e)       # o = of_y y - of_x x
    f = math.sqrt((4 * t.square(of_y, of_x) * (t.s * t.std) ** 2 + 2 * (t.s * t.std) ** 4).sum())
    k = 2 * normal_maximum(N) * t.s * t.std ** 2 / f
    return p - k * of_x, k * of_y, c


def normal_maximum(n: int) -> float:
    """The mean of the largest of n normal numbers: the integral of x n phi(x) Phi(x)^(n - 1)."""
    x = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    density = n * torch.exp(-x ** 2 / 2) / math.sqrt(2 * math.pi) * torch.special.ndtr(x) ** (n - 1)
    return torch.trapezoid(x * density, x).item()


def ddnm(t: State):
    """Of v = x' / sqrt(ab'): y / s with its noise filled up to tau', or what of y fits; the prior where s = 0."""
    tau, eps = math.sqrt((1 - t.ab_prev) / t.ab_prev), (1 - math.sqrt(t.ab) * t.g) / math.sqrt(1 - t.ab)
    seen, keep = t.s > 0, math.sqrt(1 - ETA ** 2) * tau
    s = np.where(seen, t.s, 1)
    clear, weight = seen & (s * tau > SIGMA), keep * s / SIGMA
    p = np.where(clear, 0, np.where(seen, (1 - weight) * t.g, t.g + keep * eps))
    q = np.where(clear, 1 / s, np.where(seen, weight / s, 0))
    c = np.where(clear, np.sqrt(np.maximum(tau ** 2 - (SIGMA / s) ** 2, 0)), ETA * tau)
    return tuple(math.sqrt(t.ab_prev) * part for part in (p, q, c))


CASES = {
    "ps": (ps, {"scale": SCALE}),
    "ps, squared": (ps_squared, {"scale": 2e-3, "likelihood": {"name": "point", "power": 2}}),
    "ps+": (ps_plus, {"scale": 4 * SCALE, "perturbation": PERTURBATION, "num_sampling": K, "centred": True}),
    "mcg": (projected, {"scale": SCALE}),
    "projection": (projected, {}),
    "dpps": (dpps, {"scale": 0.0, "max_candidates": N, "adaptive": False, "aligned_init": False}),
    "ddnm": (ddnm, {"eta": ETA}),
}


@pytest.fixture(scope="module")
def task():
    """An image of the 1/f prior, its Fourier measurement COUNT times over, and the process."""
    prior, names = gaussian(image_size=SIZE, std=0.5), ["image"] * COUNT
    x = prior.sample(torch.zeros(1, 3, SIZE, SIZE), ImageRandomness(0, ["image"]))
    measurement = Measurement.simulate(get_operator("fourier", sampling="random", acceleration=1.6), get_noise(
        "gaussian", sigma=SIGMA), x.expand(COUNT, -1, -1, -1), ImageRandomness(1, names, range(COUNT)))
    reverse = create_sampler("ddim", eta=1.0, clip_denoised=False, model_var_type="fixed_small",
                             timestep_respacing=STEPS)
    return prior, Measurement(measurement.operator, measurement.noiser, measurement.y[:1].expand_as(measurement.y)), \
        reverse


@pytest.mark.parametrize("case", CASES)
def test_every_mode_follows_the_recursion(task, case):
    prior, measurement, reverse = task
    update, params = CASES[case]
    x = METHODS.build(case.partition(",")[0], **params).restore(
        AnalyticPrior(reverse.schedule, prior), reverse, measurement, ImageRandomness(2, ["a"] * COUNT, range(COUNT)))
    svd, schedule = measurement.operator.svd(), reverse.schedule
    y = svd.ut(measurement.y)[0].double()
    s, power = svd.singular[0].expand_as(y), torch.fft.fftshift(prior.spectrum).expand_as(y)
    arrays = [values.numpy() for values in (y, s, power)]
    outside = measurement.y[0].double().square().sum().item() - y.square().sum().item()
    mean, variance = np.zeros_like(arrays[0]), np.ones_like(arrays[0])
    for i in reversed(range(STEPS)):
        state = State(mean, variance, *arrays[:2], outside, arrays[2], schedule.alphas_cumprod[i],
                      schedule.alphas_cumprod_prev[i], *reverse.mean_coefficients(i), reverse.sigma(i),
                      schedule.stride(i))
        p, q, c = update(state)
        mean, variance = p * mean + q * arrays[0], p ** 2 * variance + c ** 2
    mean, std = torch.from_numpy(mean), torch.from_numpy(variance).sqrt()
    check((svd.vt(x.double()) - mean) / std, mean / std, s, power)


def check(u: Tensor, mean: Tensor, s: Tensor, power: Tensor) -> None:
    """Standardised coefficients u (COUNT, C, H, W) have the mean 0 and the variance 1, within 4 standard errors: all of
    them, those of each s, and the halves of larger and smaller S; `mean` is what was taken off."""
    everything = torch.ones_like(s, dtype=torch.bool)
    for band in (everything, *(s == gain for gain in s.unique()), power > power.median(), power <= power.median()):
        part, weight = u[:, band], mean[band]
        along = (part * weight).sum().item() / (COUNT * weight.square().sum().clamp_min(1e-9).item()) ** 0.5
        assert abs(along) < 4, "mean"
        assert abs(part.square().mean().item() - 1) * math.sqrt(part.numel() / 2) < 4, "variance"
