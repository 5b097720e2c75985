"""Exact priors of every kind at every noise level, and exact posteriors, against matrices and numerical integration."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import sample_condition
from guided_diffusion.condition_methods import get_conditioning_method
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.priors.analytic import PRIORS, AnalyticPrior
from guided_diffusion.priors.distributions import Gaussian, GaussianMixture
from guided_diffusion.priors.gaussians import DiagonalGaussian, FullGaussian, LowRankGaussian, StationaryGaussian
from guided_diffusion.priors.posterior import matrix_of, posterior
from guided_diffusion.solvers.exact import posteriors
from tests.helpers import normal, picture
from util.errors import UserError
from util.seeding import ImageRandomness

SHAPE = (2, 4, 3)
N = math.prod(SHAPE)
CPU = torch.device("cpu")


def spectrum():
    f, g = torch.fft.fftfreq(4), torch.fft.fftfreq(3)
    return 0.2 / (1 + 40 * (f[:, None] ** 2 + g ** 2))


def matrix(seed):
    root = 0.3 * normal(N, N, seed=seed)
    return root @ root.mT / 2 + 0.01 * torch.eye(N, dtype=torch.float64)


GAUSSIANS = {
    "stationary": lambda: StationaryGaussian(spectrum(), 0.2),
    "white": lambda: StationaryGaussian(0.3),
    "low_rank": lambda: LowRankGaussian(normal(*SHAPE), torch.linalg.qr(normal(N, 5))[0].mT.reshape(5, *SHAPE),
                                        torch.tensor([2.0, 1.0, 0.5, 0.3, 0.2]), 0.01),
    "diagonal": lambda: DiagonalGaussian(normal(*SHAPE), normal(*SHAPE, seed=1).square() + 0.01),
    "full": lambda: FullGaussian.of(normal(*SHAPE), matrix(2)),
}
MIXTURES = {"mixture": lambda: GaussianMixture([GAUSSIANS[kind]() for kind in ("diagonal", "full", "low_rank")],
                                               [0.2, 0.5, 0.3])}


def dense(component: Gaussian, alpha_bar: float) -> torch.distributions.MultivariateNormal:
    """p_t of a Gaussian, by its matrix."""
    mean = component.mean.expand(SHAPE).flatten()
    return torch.distributions.MultivariateNormal(
        math.sqrt(alpha_bar) * mean, alpha_bar * component.covariance(SHAPE) + (1 - alpha_bar) * torch.eye(N).double())


def log_density(distribution, x, alpha_bar):
    if isinstance(distribution, Gaussian):
        return dense(distribution, alpha_bar).log_prob(x.flatten(1))
    parts = [dense(component, alpha_bar).log_prob(x.flatten(1)) for component in distribution.components]
    return torch.logsumexp(torch.stack(parts, 1) + distribution.weights.log(), dim=1)


@pytest.mark.parametrize("alpha_bar", [1e-3, 0.3, 0.999])
@pytest.mark.parametrize("kind", [*GAUSSIANS, *MIXTURES])
def test_density_score_mean_and_jacobian(kind, alpha_bar):
    """Against the dense Gaussians: log p_t, its gradient, Tweedie's mean, and the mean's own gradient."""
    distribution, x = (GAUSSIANS | MIXTURES)[kind](), normal(3, *SHAPE, seed=4).requires_grad_()
    expected = log_density(distribution, x, alpha_bar)
    score, = torch.autograd.grad(expected.sum(), x, create_graph=True)
    torch.testing.assert_close(distribution.log_density(x, alpha_bar), expected)
    torch.testing.assert_close(distribution.score(x, alpha_bar), score, rtol=1e-8, atol=1e-8)
    x0_mean = (x + (1 - alpha_bar) * score) / math.sqrt(alpha_bar)
    torch.testing.assert_close(distribution.x0_mean(x, alpha_bar), x0_mean, rtol=1e-8, atol=1e-8)
    pulled, = torch.autograd.grad(x0_mean[:, 1, 2, 0].sum(), x)             # Cov(x_0 | x_t) = (1 - ab) / sqrt(ab) J
    variance = distribution.x0_variance(x.detach(), alpha_bar).expand(3, *SHAPE)[:, 1, 2, 0]
    torch.testing.assert_close(variance, (1 - alpha_bar) / math.sqrt(alpha_bar) * pulled[:, 1, 2, 0], rtol=1e-6,
                               atol=1e-8)


@pytest.mark.parametrize("kind", [*GAUSSIANS, *MIXTURES])
def test_samples_have_mean_and_covariance(kind):
    distribution = (GAUSSIANS | MIXTURES)[kind]()
    x = distribution.sample(torch.zeros(4000, *SHAPE), ImageRandomness(0, [str(i) for i in range(4000)])).double()
    components = getattr(distribution, "components", [distribution])
    weights = getattr(distribution, "weights", torch.ones(1).double())
    means = torch.stack([component.mean.expand(SHAPE).flatten() for component in components])
    mean = weights @ means
    second = sum(w * (c.covariance(SHAPE) + torch.outer(m, m))
                 for w, c, m in zip(weights, components, means, strict=True))
    covariance = second - torch.outer(mean, mean)
    spread = covariance.diagonal().sqrt()
    assert ((x.flatten(1).mean(0) - mean).abs() < 5 * spread / math.sqrt(4000)).all()
    found = torch.cov(x.flatten(1).mT)
    assert ((found - covariance).abs() < 6 * torch.outer(spread, spread) / math.sqrt(2000)).all()


@pytest.mark.parametrize("kind", ["stationary", "mixture"])
def test_the_network_is_the_prediction_and_the_exact_variance(kind):
    """x0_hat within 1e-5 of the posterior mean; std of a step from the exact Var(x_{t-1} | x_t) of each value."""
    distribution = (GAUSSIANS | MIXTURES)[kind]()
    sampler = create_sampler(model_var_type="learned_range", clip_denoised=False, timestep_respacing="10")
    prior, x = AnalyticPrior(sampler.schedule, distribution, learn_sigma=True), normal(2, *SHAPE)
    for index in (1, 5, 9):
        step = sampler.step(prior, x, index, ImageRandomness(0, ["a", "b"]))
        ab = step.alpha_bar
        torch.testing.assert_close(step.x0_hat, distribution.x0_mean(x, ab), rtol=0, atol=1e-5)
        variance = sampler.schedule.posterior_variance[index] + step.x0_coef ** 2 * distribution.x0_variance(x, ab)
        torch.testing.assert_close(step.std, variance.sqrt().expand_as(x), rtol=1e-6, atol=0)


def measured(operator="inpainting", sigma=0.1, **params):
    x = normal(1, *SHAPE, seed=7)
    if operator == "inpainting":
        params = {"mask_opt": {"mask_type": "random", "mask_prob_range": [0.5, 0.5]}}
    return Measurement.simulate(get_operator(operator, **params), get_noise("gaussian", sigma=sigma), x,
                                ImageRandomness(0, ["a"]))


@pytest.mark.parametrize("operator", ["inpainting", "noise", "colorization", "fourier"])
@pytest.mark.parametrize("kind", [*GAUSSIANS, *MIXTURES])
def test_posteriors_satisfy_bayes(kind, operator):
    """log p(x | y) - log p(x) - log p(y | x) is the same for every x: densities that integrate to one."""
    prior = (GAUSSIANS | MIXTURES)[kind]()
    measurement = measured(operator)
    found, x = posterior(prior, measurement), normal(5, *SHAPE, seed=8)
    A = matrix_of(measurement.operator, CPU)
    residual = measurement.y.flatten() - x.flatten(1) @ A.mT
    likelihood = -(residual ** 2).sum(1) / (2 * 0.1 ** 2) - len(A) * math.log(0.1 * math.sqrt(2 * math.pi))
    evidence = prior.log_density(x) + likelihood - found.log_density(x)
    torch.testing.assert_close(evidence, evidence[:1].expand(5), rtol=1e-7, atol=1e-5)


def test_a_posterior_that_is_too_large_for_a_matrix():
    """It is refused with what a matrix takes; denoising needs none."""
    names, noise, x = ImageRandomness(0, ["a"]), get_noise("gaussian", sigma=0.1), torch.zeros(1, 3, 64, 64)
    prior = StationaryGaussian(0.3)
    assert isinstance(posterior(prior, Measurement.simulate(get_operator("noise"), noise, x, names)), Gaussian)
    with pytest.raises(UserError, match=r"3x64x64 is a matrix of 12288x12288, which takes 1\.1 GiB"):
        posterior(prior, Measurement.simulate(get_operator("super_resolution", scale_factor=4), noise, x, names))


def test_weights_of_a_mixture_by_integration_in_one_dimension():
    prior = GaussianMixture([DiagonalGaussian(torch.full((1, 1, 1), m), v) for m, v in ((-1.0, 0.04), (0.8, 0.25))],
                            [0.3, 0.7])
    y, sigma = 0.1, 0.5
    measurement = Measurement.simulate(get_operator("noise"), get_noise("gaussian", sigma=sigma),
                                       torch.zeros(1, 1, 1, 1).double(), ImageRandomness(0, ["a"]))
    measurement = Measurement(measurement.operator, measurement.noiser, torch.full((1, 1, 1, 1), y).double())
    found = posterior(prior, measurement)
    x = torch.linspace(-6, 6, 20001).double()
    shares = []
    for component, weight in zip(prior.components, prior.weights, strict=True):
        density = weight * component.log_density(x.view(-1, 1, 1, 1)).exp() * (-(y - x) ** 2 / (2 * sigma ** 2)).exp()
        shares.append(torch.trapezoid(density, x))
    torch.testing.assert_close(found.weights, torch.stack(shares) / sum(shares))


@pytest.mark.parametrize("kind, steps", [("stationary", "5"), ("mixture", "20")])
def test_exact_reaches_the_posterior_at_any_number_of_steps(kind, steps):
    """Covariance within the Monte-Carlo error, 3 % of its trace; shares of a mixture's components; chi-square."""
    prior, measurement = (GAUSSIANS | MIXTURES)[kind](), measured()
    names, count = ["a"] * 2000, 2000
    randomness = ImageRandomness(0, names, range(count))
    batch = Measurement.simulate(measurement.operator, measurement.noiser, torch.zeros(count, *SHAPE).double(),
                                 randomness)
    batch = Measurement(batch.operator, batch.noiser, measurement.y.expand(count, *SHAPE))
    sampler = create_sampler(model_var_type="learned_range", clip_denoised=False, timestep_respacing=steps)
    x = get_conditioning_method("exact").restore(
        AnalyticPrior(sampler.schedule, prior, learn_sigma=True), sampler, batch, randomness)
    truth = posterior(prior, Measurement(measured().operator, measurement.noiser, measurement.y))
    like = torch.zeros(20_000, *SHAPE).double()
    exact = truth.sample(like, ImageRandomness(1, [str(i) for i in range(len(like))]))
    ratio = x.flatten(1).var(0).sum() / exact.flatten(1).var(0).sum()
    assert ratio.item() == pytest.approx(1, abs=0.03)
    error = (x.mean(0) - exact.mean(0)).abs() / exact.std(0)
    assert error.max() < 5 / math.sqrt(count)
    assert batch.chi_square(x).mean().item() == pytest.approx(batch.chi_square(exact[:count]).mean().item(), rel=0.05)
    if kind == "mixture":
        shares = truth.responsibilities(x).mean(0)
        torch.testing.assert_close(shares, truth.weights, rtol=0, atol=0.03)


def test_entries_of_one_name_but_other_measurements_have_posteriors_of_their_own():
    prior, measurement = GAUSSIANS["stationary"](), measured()
    both = Measurement.simulate(measurement.operator, measurement.noiser, torch.zeros(2, *SHAPE).double(),
                                ImageRandomness(0, ["a", "a"], range(2)))
    both = Measurement(both.operator, both.noiser, torch.cat([measurement.y, -measurement.y]))
    (first, rows), (second, others) = posteriors(prior, both, ("a", "a"))
    assert (rows, others) == (slice(0, 1), slice(1, 2)) and not torch.equal(first.mean, second.mean)


@pytest.fixture
def folder(tmp_path):
    for k in range(6):
        picture(tmp_path / "images" / f"{k}.png", seed=k, size=(8, 8))
    return str(tmp_path / "images")


@pytest.mark.parametrize("name, params", [
    ("gaussian", {}), ("gaussian", {"folder": True}), ("gaussian_lowrank", {"folder": True, "components": 3}),
    ("gaussian_mixture", {"folder": True, "components": 2}),
    ("gaussian_mixture", {"folder": True, "components": 2, "covariance": "full", "weights": [0.9, 0.1]})])
def test_priors_of_the_configuration(name, params, folder):
    params = {**params, "folder": folder} if "folder" in params else params
    prior = PRIORS.build(name, image_size=8, **params)
    x = prior.sample(torch.zeros(200, 3, 8, 8), ImageRandomness(0, [str(i) for i in range(200)]))
    assert x.isfinite().all() and prior.log_density(x).isfinite().all()
    if params == {}:
        assert x.std().item() == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize("name, params, words", [
    ("gaussian_lowrank", {"folder": True, "components": 6}, "holds 6 images, expected 7 or more"),
    ("gaussian_lowrank", {"folder": True, "components": 5}, "not positive definite"),
    ("gaussian_mixture", {"folder": True, "components": 2, "weights": [0.5, 0.6]}, "of sum 1.1; expected positive"),
    ("gaussian_mixture", {"folder": True, "components": 2, "weights": [1.0]}, "2 components has 1 weights"),
    ("gaussian_mixture", {"folder": True, "covariance": "full", "image_size": 64}, "12288x12288.* 1.1 GiB.*smaller"),
    ("gaussian", {"spectrum": np.ones((3, 3))}, "is 3x3, expected 8x8"),
    ("gaussian", {"spectrum": np.ones((5, 8, 8))}, "is 5x8x8, expected 8x8"),
    ("gaussian", {"spectrum": np.eye(8)}, "has 0 as its smallest value, so it is not positive definite"),
    ("gaussian", {"spectrum": 1 + np.arange(8.0) * np.ones((8, 1))}, "other variances at f and -f"),
    ("gaussian", {"spectrum": np.where(np.eye(8)[0], np.inf, np.ones((8, 8)))}, "has values that are infinite"),
    ("gaussian", {"falloff": 1e9}, "spectrum has values that are infinite"),
    ("gaussian", {"std": 0.0}, "std is 0.0, expected"),
    ("gaussian", {"stdd": 0.1}, "unknown key 'stdd'; did you mean 'std'")])
def test_mistakes_are_told_in_a_sentence(name, params, words, folder, tmp_path):
    np.save(tmp_path / "spectrum.npy", params.get("spectrum", 0))
    places = {"folder": folder, "spectrum": str(tmp_path / "spectrum.npy")}
    params = {"image_size": 8} | {key: places.get(key, value) for key, value in params.items()}
    with pytest.raises(UserError, match=words):
        PRIORS.build(name, **params)


def test_exact_is_refused_for_a_network():
    sampler = create_sampler(timestep_respacing="2")
    with pytest.raises(UserError, match="known in closed form"):
        get_conditioning_method("exact").restore(lambda x, t: x, sampler, measured(), ImageRandomness(0, ["a"]))


@pytest.fixture
def run(workplace, capsys):
    def run(*more: str, prior: str = "prior: gaussian", method: str = "exact") -> tuple[int, str]:
        (workplace / "model.yaml").write_text(f"{prior}\nimage_size: 8\n")
        status = sample_condition.main([
            "--model_config", "model.yaml", "--diffusion_config", "configs/exact_diffusion_config.yaml",
            "--task_config", "configs/exact_config.yaml", "--limit", "1", "--set", "diffusion.timestep_respacing=4",
            "--set", f"conditioning={{method: {method}}}", *more])
        streams = capsys.readouterr()
        return status, streams.out + streams.err
    return run


def test_the_command_line(folder, run):
    """An exact prior in place of a network: any method, `exact`, resume; its mistakes end with 2 and a sentence."""
    for method in ("exact", "ps", "ddrm"):
        assert run(method=method)[0] == 0
    status, text = run()
    assert status == 0 and "1 finished before" in text
    for prior, more, words in [
            (f"prior: gaussian_lowrank\nfolder: {folder}\ncomponents: 6", [], "expected 7 or more"),
            (f"prior: gaussian_mixture\nfolder: {folder}\ncomponents: 2\nweights: [0.5, 0.6]", [], "of sum 1.1"),
            ("prior: gausian", [], "unknown prior 'gausian'; did you mean 'gaussian'"),
            ("prior: gaussian\nspectrum: missing.npy", [], "spectrum 'missing.npy' not found"),
            ("prior: gaussian", ["--tile", "8"], "takes images whole"),
            ("prior: gaussian", ["--set", "data.image_size=16"], "are 16x16, but the exact prior is for 8x8"),
            ("prior: gaussian", ["--set", "model.image_size=64"], "12288x12288, which takes 1.1 GiB"),
            ("prior: gaussian", ["--set", "measurement.noise={name: clean}"], "a linear operator and gaussian noise")]:
        status, text = run("--save_dir", "mistakes", *more, prior=prior)
        assert status == 2 and words in text and "Restoring" not in text, text


def test_other_images_or_variances_under_the_same_name_are_noticed(folder, run):
    def fitted(**prior: object) -> tuple[int, str]:
        return run(prior="\n".join(f"{key}: {value}" for key, value in prior.items()))

    np.save("power.npy", np.ones((8, 8)))
    for prior, change in [
            ({"prior": "gaussian", "spectrum": "power.npy"}, lambda: np.save("power.npy", np.full((8, 8), 2.0))),
            ({"prior": "gaussian_lowrank", "folder": folder, "components": 2},
             lambda: picture(Path(folder) / "5.png", seed=9, size=(8, 8)))]:
        (status, text), (again, _) = fitted(**prior), fitted(**prior)
        assert (status, again) == (0, 0), text
        change()
        status, text = fitted(**prior)
        assert status == 2 and "holds results of another configuration: files." in text, text
        shutil.rmtree("results")
