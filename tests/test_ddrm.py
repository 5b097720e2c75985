"""DDRM and DDNM: the runs of DDRM's released code, its equations and DDNM's at one coefficient, and what is refused."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from guided_diffusion.condition_methods import get_conditioning_method
from guided_diffusion.condition_methods.ilvr import low_pass
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.priors.analytic import AnalyticPrior
from guided_diffusion.priors.gaussians import StationaryGaussian
from guided_diffusion.solvers.ddnm import itinerary
from guided_diffusion.solvers.ddrm import levels
from tests.guided_steps import fresh, measure, restore, single_step
from tests.helpers import NAMES, NOISE_EXAMPLES, OPERATOR_EXAMPLES, ReplayedRandomness, relative
from util.errors import UserError
from util.resizer import resize
from util.seeding import ImageRandomness

SIDE, CHANNELS = 32, 3
SIGMA = {"run_sr4": 0.1, "run_inp": 0.1, "run_deno": 0.5, "run_sr_bicubic4": 0.1, "run_sr4_clean": 0.0}
OPERATORS = {"sr4": ("sr_average", {"scale_factor": 4}), "sr_bicubic4": ("super_resolution", {"scale_factor": 4}),
             "deno": ("noise", {}), "inp": ("inpainting", {"mask_opt": {"mask_type": "random",
                                                                       "mask_prob_range": [0.5, 0.5]}})}


class Released:
    """The released code's basis, in which its noise was recorded, and its order of measurements.

    Vectors run through the pixels, with the channels innermost: (B, n).
    """

    def __init__(self, name: str, arrays: dict[str, np.ndarray]):
        part = {key.partition(".")[2]: torch.from_numpy(value) for key, value in arrays.items()
                if key.startswith(f"{name}.")}
        self.name, self.singular = name, torch.zeros(SIDE ** 2 * CHANNELS, dtype=torch.float64)
        self.singular[:len(part["singulars"])] = part["singulars"]
        self.count = len(part["singulars"])
        self.small, self.perm = part.get("V_small", torch.empty(0)).double(), part.get("_perm")
        missing = torch.from_numpy(arrays["inp_missing_pixel_index"])
        self.mask = torch.ones(SIDE ** 2).index_fill(0, missing, 0.0).view(1, 1, SIDE, SIDE)
        removed = torch.cat([CHANNELS * missing + c for c in range(CHANNELS)])
        kept = torch.ones(len(self.singular)).index_fill(0, removed, 0.0).nonzero().flatten()
        self.order = torch.cat([kept, removed])

    def v(self, vector: Tensor) -> Tensor:
        """V: (1, n) -> (1, C, H, W)."""
        if self.name == "deno":
            return vector.view(1, CHANNELS, SIDE, SIDE)
        if self.name == "inp":
            pixels = torch.zeros_like(vector).index_copy(1, self.order, vector)
            return pixels.view(1, SIDE, SIDE, CHANNELS).permute(0, 3, 1, 2)
        if self.name == "sr4":                      # patches of 16: first the means, then what is left of each
            rest = vector[:, self.count:].view(CHANNELS, 64, 15)
            patches = torch.cat([vector[:, :self.count].view(CHANNELS, 64, 1), rest], dim=2) @ self.small.mT
            return patches.view(1, CHANNELS, 8, 8, 4, 4).transpose(3, 4).reshape(1, CHANNELS, SIDE, SIDE)
        first = len(self.perm)
        rows = vector.view(SIDE ** 2, CHANNELS)
        pixels = torch.cat([torch.zeros_like(rows[:first]).index_copy(0, self.perm.long(), rows[:first]), rows[first:]])
        return self.small @ pixels.mT.view(1, CHANNELS, SIDE, SIDE) @ self.small.mT

    def measurement(self, y: Tensor) -> Tensor:
        """Its measurement (1, m), as ours."""
        if self.name == "inp":
            return self.v(torch.cat([y, y.new_zeros(1, len(self.singular) - y.shape[1])], dim=1))
        side = math.isqrt(y.shape[1] // CHANNELS)
        return y.view(1, CHANNELS, side, side)

    def noise(self, draws: list[Tensor], tau: float, sigma: float) -> Tensor:
        """The three draws of a step, each for its kind of coefficient, as an image."""
        n = draws[0].clone()
        vague, clear = self.singular * tau < sigma, self.singular * tau > sigma
        vague[self.count:] = False
        n[:, vague], n[:, clear] = draws[1], draws[2][:, clear[:self.count]]
        return self.v(n)


@pytest.mark.parametrize("run", SIGMA)
def test_the_runs_of_the_released_code(run, golden):
    arrays, sigma = golden("ddrm"), SIGMA[run]
    name = run.removeprefix("run_").removesuffix("_clean")
    released = Released(name, arrays)
    recorded = {key.partition(".")[2]: torch.from_numpy(value).double() for key, value in arrays.items()
                if key.startswith(f"{run}.")}
    sampler = create_sampler(model_var_type="fixed_small", clip_denoised=False)
    used = levels(sampler, 10)
    assert used == list(range(900, -1, -100))
    taus = [math.sqrt((1 - ab) / ab) for ab in [*sampler.schedule.alphas_cumprod[used[1:]], 1.0]]
    draws = [recorded[f"noise_{i:03d}"] for i in range(30)]
    noises = [released.noise(draws[3 * k:3 * k + 3], tau, sigma) for k, tau in enumerate(taus)]

    kind, params = OPERATORS[name]
    operator = get_operator(kind, **params)
    names = ["photograph"]
    start = released.v(recorded["x_init_noise"].flatten(1))
    measurement = Measurement.simulate(operator, get_noise("gaussian", sigma=sigma) if sigma else get_noise("clean"),
                                       start, ImageRandomness(0, names))
    if name == "inp":
        measurement.operator.restore_drawn({"mask": released.mask})
    y = released.measurement(recorded["y"])
    measurement = Measurement(measurement.operator, measurement.noiser, y)
    states, predictions = [], []

    def note(step, x, distance):
        states.append(x)
        predictions.append(step.x0_hat)

    get_conditioning_method("ddrm", steps=10).restore(
        lambda x, t: 0.3 * x + 0.1 * torch.sin(x), sampler, measurement,
        ReplayedRandomness([start, *noises]), note)
    rounding = 2e-4 if name == "sr_bicubic4" else 0                 # of its kernel, which it has in float32
    torch.testing.assert_close(torch.cat(states), recorded["xs"][1:], atol=1e-4 + rounding, rtol=0)
    torch.testing.assert_close(torch.cat(predictions), recorded["x0"], atol=2e-4 + rounding, rtol=0)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_released_basis_is_read_as_it_is_meant(name, golden):
    arrays = golden("ddrm")
    image = torch.from_numpy(arrays["x"][:1]).double()
    coefficients = torch.from_numpy(arrays[f"{name}.Vt_x"][:1]).double()
    torch.testing.assert_close(Released(name, arrays).v(coefficients), image, atol=1e-5, rtol=0)


def white_task(sigma: float, count: int, **diffusion):
    """Denoising of `count` pixels that are N(0, 1): sampler, prior, measurement, streams."""
    sampler = create_sampler(model_var_type="fixed_small", clip_denoised=False, **diffusion)
    prior, randomness = AnalyticPrior(sampler.schedule, StationaryGaussian(1.0)), ImageRandomness(0, ["x"])
    y = torch.full((1, 1, 1, count), 0.8, dtype=torch.float64)
    measurement = Measurement.simulate(get_operator("noise"), get_noise("gaussian", sigma=sigma), y, randomness)
    return sampler, prior, Measurement(measurement.operator, measurement.noiser, y), randomness


@pytest.mark.parametrize("eta, eta_b, sigma", [(0.85, 1.0, 0.5), (1.0, 1.0, 0.5), (0.5, 0.7, 0.1)])
def test_mean_and_variance_on_a_gaussian_prior(eta, eta_b, sigma):
    """By the scalar recursion of the update, with p = ab u the prior's posterior mean of x_0 given u = x / sqrt(ab)."""
    sampler, prior, measurement, randomness = white_task(sigma, 20_000)
    ab = [float(sampler.schedule.alphas_cumprod[i]) for i in levels(sampler, 200)] + [1.0]
    tau = [math.sqrt((1 - a) / a) for a in ab]
    y = 0.8
    mean = y / tau[0] / math.sqrt(ab[0])                            # of u = x / sqrt(ab), x = v / tau
    variance = (tau[0] ** 2 - sigma ** 2) / tau[0] ** 2 / ab[0]
    for a, t in zip(ab, tau[1:], strict=False):
        if t > sigma:
            mean = (1 - eta_b) * a * mean + eta_b * y
            variance = ((1 - eta_b) * a) ** 2 * variance + t ** 2 - (eta_b * sigma) ** 2
        else:
            pull = math.sqrt(1 - eta ** 2) * t / sigma
            mean = (1 - pull) * a * mean + pull * y
            variance = ((1 - pull) * a) ** 2 * variance + (eta * t) ** 2
    x = get_conditioning_method("ddrm", steps=200, eta=eta, eta_b=eta_b).restore(
        prior, sampler, measurement, randomness)
    assert x.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / x.numel()))
    assert x.var().item() == pytest.approx(variance, rel=0.05)


def test_the_update_of_ddnm_with_noise():
    """Each coefficient, at every step, by the equations of DDNM+: lambda, and the noise that is missing."""
    measurement, randomness = measure("gaussian_blur", NAMES[:1])
    sampler = create_sampler(model_var_type="fixed_small", clip_denoised=False, timestep_respacing="20")
    steps, seen = [], []
    get_conditioning_method("ddnm", eta=0.6).restore(
        lambda x, t: 0.3 * x, sampler, measurement, randomness, lambda step, x, distance: steps.append((step, x)))
    streams = ImageRandomness(randomness.seed, randomness.names)
    streams.randn_like(steps[0][1])                                 # the start
    svd, sigma, eta = measurement.operator.svd(), 0.05, 0.6
    for step, x in steps:
        ab, z = float(sampler.schedule.alphas_cumprod_prev[step.index]), streams.randn_like(x)
        a, sig, s = math.sqrt(ab), math.sqrt(1 - ab), svd.singular.expand_as(x)
        fits = sig > a * sigma / s
        weight = torch.where(fits, 1, s * sig * math.sqrt(1 - eta ** 2) / (a * sigma))
        corrected = svd.vt(step.x0_hat) - weight * (svd.vt(step.x0_hat) - svd.ut(measurement.y) / s)
        missing = torch.where(fits, (sig ** 2 - (a * sigma / s) ** 2).clamp_min(0).sqrt(), eta * sig)
        torch.testing.assert_close(svd.vt(x), a * corrected + missing * svd.vt(z), atol=1e-9, rtol=0)
        seen.append(fits.double().mean().item())
    assert max(seen) == 1 and min(seen) == 0 and any(0 < share < 1 for share in seen)


@pytest.mark.parametrize("operator", ["super_resolution", "inpainting", "motion_blur", "composite"])
def test_ddnm_without_noise_ends_at_the_measurement(operator):
    measurement, randomness = measure(operator, NAMES[:2], "clean")
    sampler = create_sampler(model_var_type="fixed_small", timestep_respacing="3")
    x = get_conditioning_method("ddnm", travel_length=1, travel_repeat=2).restore(
        lambda x, t: 0.3 * x, sampler, measurement, randomness)
    assert relative(measurement.operator(x), measurement.y) < 1e-8


def test_time_travel():
    assert itinerary(4, 1, 1) == [3, 2, 1, 0, -1]
    assert itinerary(4, 1, 2) == [3, 2, 3, 2, 1, 2, 1, 0, 1, 0, -1]
    assert itinerary(5, 2, 2) == [4, 3, 2, 4, 3, 2, 1, 0, 2, 1, 0, -1]
    sampler = create_sampler(timestep_respacing="5")
    assert get_conditioning_method("ddnm", travel_length=2, travel_repeat=2).num_steps(sampler) == 9
    assert get_conditioning_method("ddnm").num_steps(sampler) == 5


@pytest.mark.parametrize("method", ["ddrm", "ddnm", "ilvr"])
@pytest.mark.parametrize("operator", ["gaussian_blur", "compressed_sensing"])
def test_batch_equals_single_runs(method, operator):
    params = {"travel_repeat": 2} if method == "ddnm" else {}
    together, distances = restore(method, operator, NAMES[:2], **params)
    alone = torch.cat([restore(method, operator, [name], **params)[0] for name in NAMES[:2]])
    torch.testing.assert_close(together, alone, atol=1e-9, rtol=0)
    assert together.isfinite().all() and distances.isfinite().all()


def test_ilvr_is_the_low_pass_projection():
    """A = I: x' - phi(x') + phi(y_t); factor 1: `projection`; the last fifth is left alone."""
    x = measure("noise", NAMES[:1])[0].y
    phi = low_pass(16, 4) @ x @ low_pass(16, 4).mT
    torch.testing.assert_close(phi, resize(resize(x, scale=1 / 4), scale=4))
    _, step, measurement = single_step("noise")
    drawn = fresh(step)
    sample = step.mean + step.std * drawn.randn_like(step.mean)
    y_t = math.sqrt(step.alpha_bar) * measurement.y + math.sqrt(1 - step.alpha_bar) * drawn.randn_like(step.mean)
    x, _ = get_conditioning_method("ilvr").conditioning(step, measurement)
    matrix = low_pass(16, 4)
    torch.testing.assert_close(x, sample + matrix @ (y_t - sample) @ matrix.mT)


@pytest.mark.parametrize("method, operator, noise, words", [
    ("ddrm", "motion_blur", "gaussian", "needs .*singular value decomposition.*serve 'motion_blur': .*dpps"),
    ("ddrm", "phase_retrieval", "gaussian", "found 'phase_retrieval'; methods that serve"),
    ("ddrm", "inpainting", "poisson", "gaussian or clean, found 'inpainting' with noise 'poisson'; methods"),
    ("ddnm", "motion_blur", "gaussian", "without noise, or .* found 'motion_blur' with noise 'gaussian'; methods"),
    ("ddnm", "jpeg", "clean", "linear operator.*found 'jpeg'"),
    ("ilvr", "hdr", "clean", "linear operator, found 'hdr'")])
def test_what_cannot_be_served_is_refused_before_the_prior_is_loaded(method, operator, noise, words):
    with pytest.raises(UserError, match=words):
        get_conditioning_method(method).check(get_operator(operator, **OPERATOR_EXAMPLES[operator]),
                                              get_noise(noise, **NOISE_EXAMPLES[noise]))
