"""FPS-SMC and MCGdiff: posteriors that are known, for one coefficient and for several modes, and what is resampled."""

import math

import pytest
import torch

from guided_diffusion.condition_methods import get_conditioning_method
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.posterior_benchmark.cases import PLANE, Problem, arena, prior_of
from guided_diffusion.priors.analytic import AnalyticPrior
from guided_diffusion.priors.gaussians import StationaryGaussian
from guided_diffusion.solvers.particles import resampled
from util.errors import UserError
from util.seeding import ImageRandomness


def process(respacing, **config):
    return create_sampler(model_var_type="fixed_small", clip_denoised=False, timestep_respacing=respacing, **config)


def chains(method, count, sampler, sigma=0.5, **params):
    """One value that is N(0, 1), measured as 0.8, `count` times: the last particles, (count,)."""
    randomness = ImageRandomness(0, [str(i) for i in range(count)])
    y = torch.full((count, 1, 1, 1), 0.8)
    measurement = Measurement.simulate(get_operator("noise"), get_noise("gaussian", sigma=sigma), y, randomness)
    measurement = Measurement(measurement.operator, measurement.noiser, y)
    prior = AnalyticPrior(sampler.schedule, StationaryGaussian(1.0))
    return get_conditioning_method(method, **params).restore(prior, sampler, measurement, randomness).flatten()


@pytest.mark.parametrize("method, params", [("fps_smc", {"particles": 8}), ("mcgdiff", {"particles": 8})])
def test_particles_approach_the_posterior(method, params):
    """Mean 0.64 and variance 0.2, within the error of 300 chains."""
    x = chains(method, 300, process(60), **params)
    assert x.mean().item() == pytest.approx(0.64, abs=0.08)
    assert x.var().item() == pytest.approx(0.2, rel=0.25)


@pytest.mark.parametrize("method, betas, sigma", [
    ("fps_smc", [0.5], 0.5), ("fps_smc", [0.1, 0.9], 1.0), ("mcgdiff", [0.1, 0.9], 1.0),
    ("mcgdiff", [0.6] + [0.05] * 4, 1.0)])
def test_many_particles_have_the_posterior_of_their_own_few_steps(method, betas, sigma):
    """Means and variances of x_T ~ N(0, 1) and of what the transitions make of it, given what the weights count in the
    end: y of x_0 for fps_smc, o of x_t for mcgdiff, t the last level above tau. x0_hat = sqrt(ab) x."""
    sampler = process("", noise_schedule=betas, steps=len(betas))
    schedule, tau, kappa = sampler.schedule, 1 / (1 + sigma ** 2), 1e-4
    variance, covariance, seen = 1.0, 1.0, None                                 # of x, and with what is seen
    for i in reversed(range(len(betas))):
        ab, ab_next = schedule.alphas_cumprod[i], schedule.alphas_cumprod_prev[i]
        if method == "mcgdiff" and ab <= tau < ab_next:
            q = ab / tau
            seen, covariance = (math.sqrt(q * tau) * 0.8, variance + 1 - (1 - kappa) * q), variance
        c1, c2 = sampler.mean_coefficients(i)
        p = c1 * math.sqrt(ab) + c2
        variance, covariance = p ** 2 * variance + schedule.posterior_variance[i], p * covariance
    value, spread = seen or (0.8, variance + sigma ** 2)
    covariance = covariance if seen else variance
    x = chains(method, 300, sampler, sigma, particles=64)
    expected = covariance / spread * value, variance - covariance ** 2 / spread
    assert x.mean().item() == pytest.approx(expected[0], abs=4 * math.sqrt(expected[1] / 300))
    assert x.var().item() == pytest.approx(expected[1], rel=4 * math.sqrt(2 / 300))


def test_the_released_weights_count_the_measurement_at_every_step():
    assert chains("fps_smc", 200, process(60), particles=4, weights="released").var().item() < 0.1


@pytest.mark.parametrize("method", ["fps_smc", "mcgdiff"])
def test_modes_are_found_with_their_weights(method):
    """Three modes in the plane, the mean of the coordinates measured: weights of the posterior's components."""
    place = arena(Problem(PLANE, "colorization", 0.3), images=1, samples=120, seed=1)
    sampler = process(40)
    prior = AnalyticPrior(sampler.schedule, prior_of(PLANE)[0])
    x = get_conditioning_method(method, particles=8).restore(prior, sampler, place.measurement, place.randomness())
    posterior = place.posteriors[0][0]
    shares = posterior.responsibilities(x.double()).mean(dim=0)
    assert 0.1 < posterior.weights.max() < 0.95
    torch.testing.assert_close(shares, posterior.weights, rtol=0, atol=0.15)


def test_resampling_keeps_shares():
    """Systematic: every particle as often as its weight says, rounded up or down; images by themselves."""
    weights = torch.tensor([[0.5, 0.1], [0.25, 0.7], [0.25, 0.2]])
    x = torch.arange(3.0).view(3, 1, 1, 1, 1).expand(3, 2, 1, 1, 1).repeat(4, 1, 1, 1, 1)
    log_weights = (weights / 4).repeat(4, 1).log()
    y = resampled(x, log_weights, ImageRandomness(0, ["a", "b"]))
    counts = torch.stack([(y == k).sum(dim=(0, 2, 3, 4)) for k in range(3)])
    assert ((counts - 12 * weights).abs() < 4).all() and counts.sum() == 24


@pytest.mark.parametrize("method", ["fps_smc", "mcgdiff"])
def test_refusals(method):
    gaussian = get_noise("gaussian", sigma=1.0)
    get_conditioning_method(method).check(get_operator("super_resolution", scale_factor=4), gaussian)
    for operator, noise in ((get_operator("motion_blur", kernel_size=5, intensity=0.5), gaussian),
                            (get_operator("noise"), get_noise("clean")), (get_operator("noise"), get_noise("poisson"))):
        with pytest.raises(UserError, match="closed singular value decomposition, and gaussian noise, found"):
            get_conditioning_method(method).check(operator, noise)
    with pytest.raises(UserError, match="particles is 0, expected an integer, 1 or more"):
        get_conditioning_method(method, particles=0)
