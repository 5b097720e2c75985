"""The exact priors: Tweedie by autograd, unconditional samples in distribution, and methods on a known posterior."""

import math

import pytest
import torch

from guided_diffusion.condition_methods import get_conditioning_method
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.priors.analytic import AnalyticPrior
from guided_diffusion.priors.distributions import GaussianMixture
from guided_diffusion.priors.gaussians import DiagonalGaussian, StationaryGaussian
from tests.guided_steps import Loop
from util.seeding import ImageRandomness

SIZE = 8


def coloured_spectrum(size=SIZE, strength=0.3, fall=100):
    """Variance falling with frequency, as in photographs; symmetric."""
    f = torch.fft.fftfreq(size)
    return strength / (1 + fall * (f[:, None] ** 2 + f[None, :] ** 2))


def isotropic_mixture(means, std, weights):
    return GaussianMixture([DiagonalGaussian(mean, std ** 2) for mean in means], weights / weights.sum())


def sampler(**config):
    return create_sampler(**{"model_var_type": "fixed_small", "clip_denoised": False, "timestep_respacing": "50",
                             **config})


def unconditional(reverse, prior, batch, shape=(3, SIZE, SIZE)):
    randomness = ImageRandomness(0, [str(i) for i in range(batch)])
    x_start = randomness.randn_like(torch.empty(batch, *shape))
    return Loop(x_start, lambda step: (step.sample(), torch.zeros(batch))).restore(prior, reverse, None, randomness)


@pytest.mark.parametrize("index", [0, 7, 30, 49])
def test_gaussian_prior_is_the_score(index):
    """eps = -sqrt(1 - alpha_bar) grad log p_t, with p_t from the dense covariance of the same process."""
    reverse, spectrum = sampler(), coloured_spectrum()
    prior = AnalyticPrior(reverse.schedule, StationaryGaussian(spectrum, mean=0.2))
    basis = torch.fft.fft2(torch.eye(SIZE ** 2, dtype=torch.complex128).view(-1, SIZE, SIZE), norm="ortho").flatten(1)
    covariance = (basis.mH @ (spectrum.flatten()[:, None] * basis)).real
    ab = float(reverse.schedule.alphas_cumprod[index])
    marginal = torch.distributions.MultivariateNormal(
        torch.full((SIZE ** 2,), math.sqrt(ab) * prior.distribution.mean.item(), dtype=torch.float64),
        ab * covariance + (1 - ab) * torch.eye(SIZE ** 2, dtype=torch.float64))
    x_t = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64, requires_grad=True)
    score, = torch.autograd.grad(marginal.log_prob(x_t.flatten(2)).sum(), x_t)
    eps = prior(x_t.detach(), reverse.schedule.model_timestep(index, x_t))
    torch.testing.assert_close(eps, -math.sqrt(1 - ab) * score, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("index", [0, 7, 30, 49])
def test_mixture_prior_is_the_score(index):
    reverse = sampler()
    means, weights = 0.3 * torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.tensor([1., 2., 5.]).double()
    prior = AnalyticPrior(reverse.schedule, isotropic_mixture(means, 0.2, weights))
    ab = float(reverse.schedule.alphas_cumprod[index])
    x_t = (math.sqrt(ab) * means[:2] + math.sqrt(1 - ab) * torch.randn_like(means[:2])).requires_grad_()
    components = torch.distributions.Normal(math.sqrt(ab) * means.flatten(1), math.sqrt(ab * 0.2 ** 2 + 1 - ab))
    log_p = torch.logsumexp(components.log_prob(x_t.flatten(1)[:, None]).sum(2) + weights.log(), dim=1)
    score, = torch.autograd.grad(log_p.sum(), x_t)
    eps = prior(x_t.detach(), reverse.schedule.model_timestep(index, x_t))
    torch.testing.assert_close(eps, -math.sqrt(1 - ab) * score, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("rescale", [False, True])
def test_white_unit_prior(rescale):
    """N(0, I): the exact prediction is sqrt(1 - alpha_bar) x_t, at every step and kind of timestep."""
    reverse = sampler(steps=400, noise_schedule="cosine", rescale_timesteps=rescale, timestep_respacing="7,3")
    prior, x_t = AnalyticPrior(reverse.schedule, StationaryGaussian(1.0)), torch.randn(2, 3, SIZE, SIZE)
    for index, ab in enumerate(reverse.schedule.alphas_cumprod):
        eps = prior(x_t, reverse.schedule.model_timestep(index, x_t))
        torch.testing.assert_close(eps, math.sqrt(1 - ab) * x_t, atol=1e-5, rtol=1e-5)


def chain_variance(reverse, spectrum):
    """The variance of every mode that the sampler ends with, by the scalar recursion of its (linear) steps."""
    s, variance = reverse.schedule, 1.0
    prior = AnalyticPrior(s, StationaryGaussian(0.25), learn_sigma=True)
    for i in reversed(range(reverse.num_steps)):
        ab, (x0_coef, x_t_coef) = s.alphas_cumprod[i], reverse.mean_coefficients(i)
        gain = x0_coef * math.sqrt(ab) * spectrum / (ab * spectrum + 1 - ab) + x_t_coef
        network = prior if reverse.learned_variance else lambda x_t, t: torch.zeros_like(x_t)
        std = reverse.step(network, torch.zeros(1, 3, 1, 1), i, ImageRandomness(0, ["x"])).std.flatten()[0].item()
        variance = gain ** 2 * variance + std ** 2
    return variance


@pytest.mark.parametrize("kind, ratio", [("learned_range", 1.0), ("fixed_small", 0.42), ("fixed_large", 1.44)])
def test_variance_of_ten_ancestral_steps(kind, ratio):
    """White prior of variance 1/4: exact with the exact step variance, too narrow or too wide with fixed ones."""
    reverse = sampler(model_var_type=kind, timestep_respacing="10")
    prior = AnalyticPrior(reverse.schedule, StationaryGaussian(0.25), learn_sigma=reverse.learned_variance)
    x = unconditional(reverse, prior, batch=200)
    assert chain_variance(reverse, 0.25) / 0.25 == pytest.approx(ratio, abs=0.01)
    assert x.var().item() / 0.25 == pytest.approx(ratio, abs=0.04)
    assert abs(x.mean().item()) < 0.02


@pytest.mark.parametrize("name, eta, share", [("ddpm", 0.0, 1), ("ddim", 0.0, 1), ("ddim", 0.5, 1),
                                              ("renoise", 0.0, 0.5)])
def test_coloured_prior_is_sampled_with_its_spectrum(name, eta, share):
    reverse = sampler(sampler=name, eta=eta, timestep_respacing="200")
    prior, spectrum = AnalyticPrior(reverse.schedule, StationaryGaussian(coloured_spectrum(), 0.1)), coloured_spectrum()
    x = unconditional(reverse, prior, batch=300, shape=(1, SIZE, SIZE))
    power = torch.fft.fft2(x - 0.1, norm="ortho").abs().square().mean(dim=(0, 1))
    expected = chain_variance(reverse, spectrum)
    assert (power / expected).mean().item() == pytest.approx(1, abs=0.03)
    torch.testing.assert_close(power, expected, rtol=0.35, atol=0)
    torch.testing.assert_close(expected, share * spectrum, rtol=0.3, atol=0)
    assert x.mean().item() == pytest.approx(0.1, abs=0.02)


def test_renoising_leaves_half_the_variance():
    """White prior of variance S: S^2 / (2 S + (1 - ab) / ab) is the fixed point of a step, S / 2 where noise ends."""
    reverse = sampler(sampler="renoise", timestep_respacing="")
    for variance in (0.1, 0.25, 1.0):
        assert chain_variance(reverse, variance) == pytest.approx(variance / 2, rel=0.03)


def test_mixture_prior_is_sampled_with_its_weights():
    reverse = sampler(timestep_respacing="100")
    means = torch.stack([torch.full((1, 4, 4), 0.6), torch.full((1, 4, 4), -0.6)])
    prior = AnalyticPrior(reverse.schedule, isotropic_mixture(means, 0.1, torch.tensor([3.0, 1.0])))
    x = unconditional(reverse, prior, batch=400, shape=(1, 4, 4)).flatten(1).mean(1)
    assert ((x.abs() - 0.6).abs() < 0.2).all()
    assert (x > 0).float().mean().item() == pytest.approx(0.75, abs=0.1)


def posterior_task(batch=4, size=32, sigma=0.05):
    """Images of the coloured prior, their super-resolution measurements, and what sampling needs."""
    reverse, spectrum = sampler(timestep_respacing="100"), coloured_spectrum(size, strength=10, fall=2000)
    prior = AnalyticPrior(reverse.schedule, StationaryGaussian(spectrum))
    names = [str(i) for i in range(batch)]
    white = ImageRandomness(5, names).randn_like(torch.empty(batch, 3, size, size))
    x = torch.fft.ifft2(spectrum.sqrt() * torch.fft.fft2(white)).real
    randomness = ImageRandomness(1, names)
    operator = get_operator("super_resolution", scale_factor=4)
    measurement = Measurement.simulate(operator, get_noise("gaussian", sigma=sigma), x, randomness)
    return reverse, prior, x, measurement, randomness


def rmse_and_distance(method, **params):
    reverse, prior, truth, measurement, randomness = posterior_task()
    x = get_conditioning_method(method, **params).restore(prior, reverse, measurement, randomness)
    return (x - truth).square().mean().sqrt().item(), measurement.distance(x).mean().item()


def test_guidance_reaches_the_measurement():
    """Every method that looks at y comes closer to y, and to the truth, than the unconditional sampler."""
    rmse, distance = rmse_and_distance("vanilla")
    for method, params in [("ps", {"scale": 2.0}), ("ps+", {"scale": 2.0}), ("mcg", {"scale": 2.0}),
                           ("projection", {}), ("dpps", {"scale": 2.0})]:
        conditioned = rmse_and_distance(method, **params)
        assert conditioned[0] < 0.75 * rmse and conditioned[1] < 0.5 * distance, method


def test_the_residual_at_a_scale_does_not_depend_on_the_respacing():
    def residual(respacing):
        _, _, _, measurement, randomness = posterior_task(batch=6, size=16)
        reverse = sampler(timestep_respacing=respacing, model_var_type="learned_range")
        spectrum = coloured_spectrum(16, strength=10, fall=2000)
        prior = AnalyticPrior(reverse.schedule, StationaryGaussian(spectrum), learn_sigma=True)
        x = get_conditioning_method("ps", scale=0.05).restore(prior, reverse, measurement, randomness)
        return measurement.distance(x).mean().item()

    few = {respacing: residual(respacing) for respacing in ("100", "60,20,10,5,5", "5,5,10,20,60")}
    assert few == pytest.approx(dict.fromkeys(few, residual("400")), rel=0.1)


def test_proximal_selection_lowers_the_residual_at_equal_scale():
    assert rmse_and_distance("dpps", scale=0.2)[1] < 0.9 * rmse_and_distance("ps", scale=0.2)[1]
