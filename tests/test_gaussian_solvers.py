"""Solvers with an exact white Gaussian prior: mean and variance follow the recursion of each method's own update.

With x_0 ~ N(0, S I) the x0_hat of the network is g x_t, g = sqrt(ab) S / (ab S + 1 - ab), its Jacobian g. The operator
keeps a pixel (gain a = 1) or loses it (a = 0), so that an update is an affine map of numbers, x' = p x + q y + c z with
a normal z, and mean and variance of a pixel follow mean' = p mean + q y and variance' = p^2 variance + c^2.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.priors.analytic import AnalyticPrior
from guided_diffusion.priors.distributions import StationaryGaussian
from guided_diffusion.restoration.catalogue import METHODS
from util.seeding import ImageRandomness

S, SIGMA, Y = 0.25, 0.2, 0.9                                    # variance of the prior, noise, every observed pixel
V = SIGMA ** 2
NAMES = [str(i) for i in range(6)]


@dataclass
class Level:
    """What an update knows of its noise level."""

    ab: float
    ab_prev: float
    x0_coef: float
    x_t_coef: float
    std: float

    @property
    def g(self) -> float:
        return math.sqrt(self.ab) * S / (self.ab * S + 1 - self.ab)

    @property
    def s2(self) -> float:
        return (1 - self.ab) / self.ab

    def prior(self):
        """p, q, c of a step of the prior."""
        return np.array([self.x0_coef * self.g + self.x_t_coef, 0, self.std])


def diffpir(t, a, lam=1.75, zeta=0.3):
    w = a * t.s2 / lam / (t.s2 / lam + V)                                   # x_0 = (1 - w) g x_t + w y
    x0 = np.array([(1 - w) * t.g, w, 0])
    eps = (np.array([1, 0, 0]) - math.sqrt(t.ab) * x0) / math.sqrt(1 - t.ab)
    new = np.array([0, 0, 1])
    return math.sqrt(t.ab_prev) * x0 + math.sqrt(1 - t.ab_prev) * (math.sqrt(1 - zeta) * eps + math.sqrt(zeta) * new)


def dmps(t, a, scale=1.75):
    w = a * t.s2 / (t.s2 + V)                                               # of y - x_t / sqrt(ab)
    return t.prior() + scale * t.x0_coef * w * np.array([-1 / math.sqrt(t.ab), 1, 0])


def dmps_at_the_sample(t, a):
    w = a * 1.75 * t.x0_coef * t.s2 / (t.s2 + V)
    return (1 - w / math.sqrt(t.ab)) * t.prior() + np.array([0, w, 0])


def pigdm(t, a, weight=None):
    r2 = 1 - t.ab
    w = a * r2 / (r2 + V)
    weight = t.x0_coef / math.sqrt(t.ab) if weight is None else weight(t)
    return t.prior() + weight * t.g * w * np.array([-t.g, 1, 0])


def tmpd(t, a):
    c = a * t.g + V * math.sqrt(t.ab) / (1 - t.ab)
    return t.prior() + t.x0_coef * a * t.g / c * np.array([-t.g, 1, 0])


ANCESTRAL = {
    "diffpir": ({}, diffpir),
    "diffpir_other": ({"lam": 4.0, "zeta": 0.8}, lambda t, a: diffpir(t, a, 4.0, 0.8)),
    "dmps": ({}, dmps),
    "dmps_at_the_sample": ({"at": "sample"}, dmps_at_the_sample),
    "pigdm": ({}, pigdm),
    "pigdm_paper": ({"weight": "paper"}, lambda t, a: pigdm(t, a, lambda t: math.sqrt(t.ab))),
    "pigdm_release": ({"weight": "release"}, lambda t, a: pigdm(t, a, lambda t: math.sqrt(t.ab * t.ab_prev))),
    "tmpd": ({}, tmpd),
}


def process(respacing="30", **config):
    return create_sampler(**{"sampler": "ddim", "eta": 1.0, "clip_denoised": False, "model_var_type": "fixed_small",
                             "timestep_respacing": respacing, **config})


def task(size=24, names=NAMES):
    """Half of the pixels are kept, and all of them are Y."""
    operator = get_operator("inpainting", mask_opt={"mask_type": "random", "mask_prob_range": [0.5, 0.5]})
    grey, noiser = torch.full((len(names), 3, size, size), Y, dtype=torch.float64), get_noise("gaussian", sigma=SIGMA)
    measurement = Measurement.simulate(operator, noiser, grey, ImageRandomness(0, names))
    operator = measurement.operator
    return Measurement(operator, noiser, operator(grey))


def restore(name, reverse, measurement, **params):
    prior = AnalyticPrior(reverse.schedule, StationaryGaussian(S), learn_sigma=reverse.learned_variance)
    randomness = ImageRandomness(4, [str(i) for i in range(len(measurement.y))])
    return METHODS.build(name, **params).restore(prior, reverse, measurement, randomness)


def check(x, measurement, expected):
    """Mean and variance of kept and lost pixels are those of expected(a); within 4 standard errors."""
    kept = measurement.operator(torch.ones_like(x)) > 0
    for a, pixels in [(1, x[kept]), (0, x[~kept])]:
        mean, variance = expected(a)
        n = pixels.numel()
        assert pixels.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / n) + 1e-6), f"mean, gain {a}"
        assert pixels.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / n) + 1e-6), f"variance, gain {a}"


def level(reverse, i):
    s = reverse.schedule
    std = float(np.sqrt(s.posterior_variance[i]))                           # of ddim with eta = 1
    return Level(s.alphas_cumprod[i], s.alphas_cumprod_prev[i], *reverse.mean_coefficients(i), std)


@pytest.mark.parametrize("case", ANCESTRAL)
def test_methods_of_the_ancestral_loop(case):
    params, update = ANCESTRAL[case]
    reverse, measurement = process(), task()

    def expected(a):
        ab = reverse.schedule.alphas_cumprod[-1]
        mean, variance = 0.0, 1.0
        if case.startswith("diffpir"):                                      # from the noisy lifted measurement
            mean, variance = math.sqrt(ab) * a * Y, 1 - ab
        for i in reversed(range(reverse.num_steps)):
            p, q, c = update(level(reverse, i), a)
            mean, variance = p * mean + q * Y, p ** 2 * variance + c ** 2
        return mean, variance

    check(restore(case.partition("_")[0], reverse, measurement, **params), measurement, expected)


@pytest.mark.parametrize("i", [0, 7, 29])
def test_the_move_of_tmpd_is_exact_for_a_white_prior(i):
    """x_0 given x_t has the variance C = S (1 - ab) / (ab S + 1 - ab), so that y moves its mean by C / (C + V)."""
    t = level(process(), i)
    c = S * (1 - t.ab) / (t.ab * S + 1 - t.ab)
    np.testing.assert_allclose(tmpd(t, 1) - t.prior(), t.x0_coef * c / (c + V) * np.array([-t.g, 1, 0]))
