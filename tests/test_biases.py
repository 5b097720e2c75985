"""What DPPS adds to DPS, as posterior samplers on an exact prior: the shift by its selection, its start, its spread."""

import math

import pytest
import torch

from guided_diffusion.condition_methods import get_conditioning_method
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.posterior_benchmark.cases import Entrant, Problem, arena, draw
from guided_diffusion.priors.analytic import AnalyticPrior
from guided_diffusion.priors.gaussians import StationaryGaussian
from util.seeding import ImageRandomness


@pytest.mark.parametrize("n, expected", [(2, 0.5642), (10, 1.5388), (50, 2.2491)])
def test_selection_shifts_the_mean_by_an_order_statistic(n, expected):
    """Far from y the residual falls along one direction only, so the chosen z has there the largest of n normals."""
    count = 600
    randomness = ImageRandomness(0, [str(i) for i in range(count)])
    y = torch.full((count, 1, 3, 3), 1e4, dtype=torch.float64)
    measurement = Measurement.simulate(get_operator("noise"), get_noise("gaussian", sigma=0.1), y, randomness)
    sampler = create_sampler(model_var_type="fixed_small", clip_denoised=False, timestep_respacing="10")
    prior = AnalyticPrior(sampler.schedule, StationaryGaussian(1.0))
    step = sampler.step(prior, torch.zeros_like(y), 5, ImageRandomness(1, randomness.names))
    z = get_conditioning_method("dpps", max_candidates=n, adaptive=False).select(step.mean, step, measurement)
    along = z.flatten(1).sum(1) / 3                                         # the direction (1, ..., 1) / 3
    assert along.mean().item() == pytest.approx(expected, abs=4 * along.std().item() / math.sqrt(count))
    across = z[:, 0, 0, 0] - z[:, 0, 2, 2]
    assert across.mean().abs().item() < 0.25 and across.var().item() == pytest.approx(2, rel=0.25)


@pytest.fixture(scope="module")
def place():
    """One image of the 1/f prior, its super-resolution measurement, 24 samples."""
    return arena(Problem("gaussian", "super_resolution", 0.05), images=1, samples=24, seed=0)


def samples(place, text):
    return draw(Entrant.parse(text, 20), place, "ddpm")[0]


def test_the_aligned_start_moves_a_unimodal_posterior_by_less_than_the_monte_carlo_error(place):
    text = "dpps:likelihood=gaussian,max_candidates=1,aligned_init="
    plain, aligned = (samples(place, text + start) for start in ("false", "true"))
    shift = (aligned.mean(0) - plain.mean(0)).square().mean().sqrt()
    error = (plain.var(0).mean() / len(plain)).sqrt()
    assert 0 < shift < error


def test_selection_lowers_residual_and_variance_at_equal_scale(place):
    plain, selected = (samples(place, f"{method}:likelihood=gaussian") for method in ("ps", "dpps"))
    assert place.measurement.chi_square(selected).mean() < place.measurement.chi_square(plain).mean()
    assert selected.var(0).sum() < plain.var(0).sum()
