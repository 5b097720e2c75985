"""Parameters that are tuned at one size and noise, at another: mean chi-square of restorations with an exact prior."""

import functools

import pytest
import torch

from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.priors.analytic import AnalyticPrior
from guided_diffusion.priors.gaussians import StationaryGaussian
from guided_diffusion.restoration.catalogue import METHODS
from util.seeding import ImageRandomness

NAMES = ["anna", "ben", "cleo"]
SOLVERS = {
    "ps": {"likelihood": "gaussian"}, "dpps": {"likelihood": "stationary"}, "daps": {"ode_steps": 3},
    "pnp_dm": {"iterations": 10}, "sitcom": {"iterations": 4}, "diffpir": {}, "pigdm": {}, "tmpd": {}, "dsg": {},
    "fast_dips": {}, "red_diff": {}, "dcps": {}, "ddnm": {}, "ddrm": {}, "dmps": {}}


@functools.cache
def chi_square(solver: str, size: int, sigma: float) -> float:
    """Of three draws from a stationary Gaussian, half of whose pixels are missing."""
    f = torch.fft.fftfreq(size, dtype=torch.float64)
    spectrum = 0.2 / (0.05 + 40 * (f[:, None] ** 2 + f ** 2))
    white = ImageRandomness(2, NAMES).randn_like(torch.empty(3, 3, size, size, dtype=torch.float64))
    x = torch.fft.ifft2(spectrum.sqrt() * torch.fft.fft2(white)).real
    half = get_operator("inpainting", mask_opt={"mask_type": "random", "mask_prob_range": [0.5, 0.5]})
    measurement = Measurement.simulate(half, get_noise("gaussian", sigma=sigma), x, ImageRandomness(0, NAMES))
    process = create_sampler(sampler="renoise", model_var_type="fixed_small", timestep_respacing="20",
                             clip_denoised=False)
    restored = METHODS.build(solver, **SOLVERS[solver]).restore(
        AnalyticPrior(process.schedule, StationaryGaussian(spectrum)), process, measurement, ImageRandomness(4, NAMES))
    return measurement.chi_square(restored).mean().item()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_parameter_serves_other_sizes(solver):
    assert chi_square(solver, 32, 0.05) == pytest.approx(chi_square(solver, 16, 0.05), rel=0.15)


@pytest.mark.parametrize("solver", ["fast_dips", "daps"])
@pytest.mark.parametrize("sigma", [0.02, 0.2])
def test_what_is_in_units_of_the_noise_serves_other_noise(solver, sigma):
    assert 0.9 < chi_square(solver, 16, sigma) < 1.9
