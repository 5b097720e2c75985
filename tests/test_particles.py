"""FPS-SMC and MCGdiff: posteriors that are known, for one coefficient and for several modes, and what is resampled."""

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


def process(steps):
    return create_sampler(model_var_type="fixed_small", clip_denoised=False, timestep_respacing=steps)


def chains(method, count, steps, **params):
    """One value that is N(0, 1), measured with sigma 0.5 as 0.8, `count` times: the last particles, (count,)."""
    sampler, randomness = process(steps), ImageRandomness(0, [str(i) for i in range(count)])
    y = torch.full((count, 1, 1, 1), 0.8)
    measurement = Measurement.simulate(get_operator("noise"), get_noise("gaussian", sigma=0.5), y, randomness)
    measurement = Measurement(measurement.operator, measurement.noiser, y)
    prior = AnalyticPrior(sampler.schedule, StationaryGaussian(1.0))
    return get_conditioning_method(method, **params).restore(prior, sampler, measurement, randomness).flatten()


@pytest.mark.parametrize("method, params", [("fps_smc", {"particles": 8}), ("mcgdiff", {"particles": 8})])
def test_particles_approach_the_posterior(method, params):
    """Mean 0.64 and variance 0.2, within the error of 300 chains."""
    x = chains(method, 300, 60, **params)
    assert x.mean().item() == pytest.approx(0.64, abs=0.08)
    assert x.var().item() == pytest.approx(0.2, rel=0.25)


def test_the_released_weights_count_the_measurement_at_every_step():
    assert chains("fps_smc", 200, 60, particles=4, weights="released").var().item() < 0.1


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
