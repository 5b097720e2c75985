"""Likelihoods of a single value against numerical integration: the Jensen gap of DPS, and Poisson noise.

The value is x0 with x0 | x_t ~ N(m, v): v = (1 - ab) S / (ab S + 1 - ab) for the prior N(0, S), and m = x0_hat = g x_t
with g = sqrt(ab) S / (ab S + 1 - ab). Many copies of it, each an image, are a batch.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from guided_diffusion.condition_methods import get_conditioning_method
from guided_diffusion.condition_methods.likelihoods import LIKELIHOODS
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.priors.analytic import AnalyticPrior
from guided_diffusion.priors.distributions import GaussianMixture
from guided_diffusion.priors.gaussians import DiagonalGaussian, StationaryGaussian
from util.seeding import ImageRandomness

S = 0.25                                            # variance of the prior


def normal_density(x, mean, variance):
    return np.exp(-(x - mean) ** 2 / (2 * variance)) / np.sqrt(2 * math.pi * variance)


def measured(noise, y):
    """Values y (n,), each the measurement of an image of one pixel."""
    y = torch.as_tensor(y, dtype=torch.float64).view(-1, 1, 1, 1)
    return Measurement(get_operator("noise").prepare(tuple(y.shape), streams(len(y))), noise, y)


def streams(count):
    return ImageRandomness(0, [str(i) for i in range(count)])


def step_at(index, x_t, prior):
    """The step that `prior`, a distribution, makes from x_t (n, 1, 1, 1), with the graph from x0_hat to it."""
    reverse = create_sampler(model_var_type="fixed_small", clip_denoised=False, timestep_respacing="20")
    return reverse.step(AnalyticPrior(reverse.schedule, prior), x_t.requires_grad_(), index, streams(len(x_t)))


# ---- the Jensen gap (DPS, theorem 1) ---------------------------------------------------------------------------------

V = 0.25                                            # of x0 given x_t
GRID = np.linspace(-6, 6, 24_001)                   # of x0 - m, 12 deviations


def gap(sigma):
    """max over y of |E f(x0) - f(E x0)|, f(x) = N(y; x, sigma^2), by integration; m = 0.

    E f(x0) = N(y; m, sigma^2 + v), so that the gap at y = m is (1 / sigma - 1 / sqrt(sigma^2 + v)) / sqrt(2 pi).
    """
    def at(y):
        expected = np.trapezoid(normal_density(y, GRID, sigma ** 2) * normal_density(GRID, 0, V), GRID)
        return abs(expected - normal_density(y, 0, sigma ** 2))

    assert at(0) == pytest.approx((1 / sigma - 1 / math.sqrt(sigma ** 2 + V)) / math.sqrt(2 * math.pi), rel=1e-6)
    return max(at(y) for y in np.linspace(0, 3, 13))


def test_the_jensen_gap_falls_with_the_noise():
    gaps = [gap(sigma) for sigma in (0.02, 0.05, 0.2, 0.5, 1.0, 2.0)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[1] == pytest.approx(7.18, abs=0.01)


@pytest.mark.parametrize("sigma, holds", [(0.05, False), (0.2, False), (0.5, False), (1.0, True), (2.0, True)])
def test_the_printed_bound_fails_for_little_noise_and_the_corrected_one_holds(sigma, holds):
    """|E f(x) - f(E x)| <= L E|x - E x| with L = max |f'|. f' = -(x - y) f / sigma^2 is largest at |x - y| = sigma,
    where it is exp(-1/2) / (sqrt(2 pi) sigma^2), and E|x - E x| = sqrt(2 v / pi). Eq. 14 has exp(-1 / (2 sigma^2)) /
    (sqrt(2 pi) sigma) for L (one dimension, |grad A| = 1), which vanishes with sigma while the gap grows."""
    m1 = math.sqrt(2 * V / math.pi)
    assert np.trapezoid(np.abs(GRID) * normal_density(GRID, 0, V), GRID) == pytest.approx(m1, rel=1e-6)
    largest_slope = np.abs(np.gradient(normal_density(GRID, 0, sigma ** 2), GRID)).max()
    corrected = math.exp(-1 / 2) / (math.sqrt(2 * math.pi) * sigma ** 2) * m1
    assert corrected == pytest.approx(largest_slope * m1, rel=1e-3)
    printed = math.exp(-1 / (2 * sigma ** 2)) / (math.sqrt(2 * math.pi) * sigma) * m1
    assert gap(sigma) < corrected
    assert (gap(sigma) <= printed) == holds


@pytest.mark.parametrize("sigma", [0.05, 0.5, 2.0])
def test_the_guidance_of_dps_is_too_strong_by_the_spread_of_x0(sigma):
    """The point likelihood has g (y - m) / sigma^2, 1 + v / sigma^2 times the score g (y - m) / (sigma^2 + v)."""
    for index in (3, 10, 19):
        x_t = torch.linspace(-1, 1, 5, dtype=torch.float64).view(-1, 1, 1, 1)
        step, noise = step_at(index, x_t, StationaryGaussian(S)), get_noise("gaussian", sigma=sigma)
        point = LIKELIHOODS.build("point", power=2.0, rescale=False)            # -grad of the squared norm
        found = point.guidance(step, measured(noise, torch.full((5,), 0.7)))[0] / (2 * sigma ** 2)
        v = (1 - step.alpha_bar) * S / (step.alpha_bar * S + 1 - step.alpha_bar)
        torch.testing.assert_close(found / score_of(step, lambda x0: stats.norm.logpdf(0.7, x0, sigma)),
                                   torch.full_like(found, 1 + v / sigma ** 2), rtol=1e-4, atol=0)


def score_of(step, log_likelihood):
    """d/dx_t log of the integral of p(y | x0) p(x0 | x_t), (n, 1, 1, 1): g / v times E[x0 - m | x_t, y]."""
    scores = []
    v = (1 - step.alpha_bar) * S / (step.alpha_bar * S + 1 - step.alpha_bar)
    for m in step.x0_hat.detach().flatten().tolist():
        x0 = m + math.sqrt(v) * np.linspace(-10, 10, 20_001)
        weight = np.exp((log := log_likelihood(x0) - (x0 - m) ** 2 / (2 * v)) - log.max())
        scores.append((weight * (x0 - m)).sum() / weight.sum())
    return math.sqrt(step.alpha_bar) / (1 - step.alpha_bar) * torch.tensor(scores).view(-1, 1, 1, 1)     # g/v of it


def test_the_gap_of_two_modes():
    """Between two modes x0_hat is where no x0 is: p(y | x0_hat) is a thousand times too small or too large."""
    modes = GaussianMixture([DiagonalGaussian(torch.full((1, 1, 1), m), 1e-4) for m in (-0.8, 0.8)], [0.5, 0.5])
    step = step_at(15, torch.zeros(1, 1, 1, 1, dtype=torch.float64), modes)
    at_mode, between = (0.5 * normal_density(y, 0.8, 0.1 ** 2 + 1e-4) + 0.5 * normal_density(y, -0.8, 0.1 ** 2 + 1e-4)
                        for y in (0.8, 0.0))
    distances = [measured(get_noise("gaussian", sigma=0.1), [y]).distance(step.x0_hat).item() for y in (0.8, 0.0)]
    point = [normal_density(d, 0, 0.1 ** 2) for d in distances]
    assert point[0] < 1e-3 * at_mode and point[1] > 1e3 * between


# ---- Poisson noise ---------------------------------------------------------------------------------------------------

def counts_of(values, rate):
    return 255 * rate * (values + 1) / 2


def guided(likelihood, index, rate=1.0):
    """-grad d(y, x0_hat) of `ps`, the step, and y as a count: two deviations above x0_hat's, of about 115."""
    step = step_at(index, torch.tensor([[[[-0.1]]]], dtype=torch.float64), StationaryGaussian(S))
    a = counts_of(step.x0_hat.item(), rate)
    y, noise = round(a + 2 * math.sqrt(a)), get_noise("poisson", rate=rate, likelihood=likelihood)
    guidance, _ = LIKELIHOODS.build("point", rescale=False).guidance(step, measured(noise, [2 * y / (255 * rate) - 1]))
    return guidance.item(), step, y, a


@pytest.mark.parametrize("likelihood, slope", [
    ("direct", lambda y, a: y / a - 1), ("shot", lambda y, a: (y - a) / y),
    ("gaussian", lambda y, a: ((y / a) ** 2 - 1 - 1 / a) / 2)])
def test_the_guidance_of_poisson_likelihoods_where_little_noise_is_left(likelihood, slope):
    """p(x0 | x_t) is narrow, so that the score of p(y | x_t), by Poisson's probabilities integrated, is y / a - 1 per
    count, a that of x0_hat. This is `direct`; `shot` divides by y in place of a, and is a / y = 0.85 of it."""
    guidance, step, y, a = guided(likelihood, 0)
    exact = score_of(step, lambda x0: stats.poisson.logpmf(y, counts_of(x0, 1.0))).item()
    assert guidance / exact == pytest.approx(slope(y, a) / (y / a - 1), rel=0.02)


@pytest.mark.parametrize("index", [1, 4, 10])
def test_the_guidance_of_shot_noise_where_more_is_left(index):
    """Against the integral of N(y; a, y): too strong by 1 + v / V, V = 4 y / peak^2, as with Gaussian noise."""
    guidance, step, y, _ = guided("shot", index)
    v = (1 - step.alpha_bar) * S / (step.alpha_bar * S + 1 - step.alpha_bar)
    exact = score_of(step, lambda x0: stats.norm.logpdf(y, counts_of(x0, 1.0), math.sqrt(y))).item()
    assert guidance / exact == pytest.approx(1 + v * 255 ** 2 / (4 * y), rel=1e-5)


@pytest.mark.parametrize("rate, shift", [(1.0, 0.1), (0.1, 0.2)])
def test_samples_under_poisson_noise(rate, shift):
    """`ps` with the Gaussian likelihood, V what the counts suggest, against the integrated posterior of the prior
    N(0, S) under Poisson's probabilities.

    The mean is within `shift` deviations of it: a Gaussian's fit to so many counts. The deviation is between those with
    too much noise in a step (beta_tilde + c1^2 Var(x0 | x_t) for learned_range, where y is forgotten) and with too
    little (beta_tilde for fixed_small); the right one has Var(x0 | x_t, y).
    """
    counts, size = round(150 * rate), (1, 3, 32, 32)
    x0 = np.linspace(-1, 3, 100_001)
    log = stats.poisson.logpmf(counts, np.clip(counts_of(x0, rate), 1e-12, None)) - x0 ** 2 / (2 * S)
    weight = np.exp(log - log.max()) / np.exp(log - log.max()).sum()
    mean = (weight * x0).sum()
    std = math.sqrt((weight * (x0 - mean) ** 2).sum())
    y = torch.full(size, 2 * counts / (255 * rate) - 1, dtype=torch.float64)
    measurement = Measurement(get_operator("noise").prepare(size, streams(1)), get_noise("poisson", rate=rate), y)
    found = []
    for variance in ("fixed_small", "learned_range"):
        reverse = create_sampler(model_var_type=variance, clip_denoised=False, timestep_respacing="50,20,10,10,10")
        prior = AnalyticPrior(reverse.schedule, StationaryGaussian(S), learn_sigma=reverse.learned_variance)
        x = get_conditioning_method("ps", likelihood="gaussian").restore(prior, reverse, measurement, streams(1))
        assert abs(x.mean().item() - mean) < shift * std
        found.append(x.std().item() / std)
    assert 0.88 < found[0] < 1 < found[1] < 1.07
