"""Solvers with an exact white Gaussian prior: mean and variance follow the recursion of each method's own update.

With x_0 ~ N(0, S I) the x0_hat of the network is g x_t, g = sqrt(ab) S / (ab S + 1 - ab), its Jacobian g. The operator
keeps a pixel (gain a = 1) or loses it (a = 0), so that an update is an affine map of numbers, x' = p x + q y + c z with
a normal z, and mean and variance of a pixel follow mean' = p mean + q y and variance' = p^2 variance + c^2.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch

from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.priors.analytic import AnalyticPrior, gaussian
from guided_diffusion.priors.gaussians import StationaryGaussian
from guided_diffusion.restoration.catalogue import METHODS
from guided_diffusion.solvers.noise_levels import descent, level_below, sigmas
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


def gaussian_likelihood(t, a):
    variance = t.g * t.s2 * math.sqrt(t.ab)                                 # of x_0 given x_t: the exact move
    return t.prior() + t.x0_coef * a * variance / (variance + V) * np.array([-t.g, 1, 0])


def projection(t, a):
    return np.array([0, math.sqrt(t.ab), math.sqrt(1 - t.ab)]) if a else t.prior()


ANCESTRAL = {
    "diffpir": ({}, diffpir),
    "diffpir_other": ({"lam": 4.0, "zeta": 0.8}, lambda t, a: diffpir(t, a, 4.0, 0.8)),
    "dmps": ({}, dmps),
    "dmps_at_the_sample": ({"at": "sample"}, dmps_at_the_sample),
    "pigdm": ({}, pigdm),
    "pigdm_paper": ({"weight": "paper"}, lambda t, a: pigdm(t, a, lambda t: math.sqrt(t.ab))),
    "pigdm_release": ({"weight": "release"}, lambda t, a: pigdm(t, a, lambda t: math.sqrt(t.ab * t.ab_prev))),
    "tmpd": ({}, tmpd),
    "ps_gaussian": ({"likelihood": "gaussian"}, gaussian_likelihood),
    "projection": ({}, projection),
    "ilvr": ({"factor": 1}, projection),
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


def test_daps():
    """Euler's flow scales u by the product of its steps; the exact draw has the precision 1 / r^2 + a / V."""
    reverse, measurement = process("25"), task()
    levels = sigmas(reverse.schedule)

    def expected(a):
        mean, variance = 0.0, 0.0                                           # of x; there is none before the first level
        for i in reversed(range(reverse.num_steps)):
            path = descent(reverse.schedule, i, 3)
            gain = np.prod([1 - (1 - levels[j] / levels[k]) * (1 - S / (S + levels[k] ** 2))
                            for k, j in pairwise(path)])            # u' = x0_hat + s' / s (u - x0_hat)
            gain *= S / (S + levels[path[-1]] ** 2)
            r2 = (0.6 * levels[i]) ** 2
            narrow = 1 / (1 / r2 + a / V)
            mean = narrow * (gain * mean / r2 + a * Y / V)
            variance = (narrow / r2 * gain) ** 2 * (variance + levels[i] ** 2) + narrow
        return mean, variance

    check(restore("daps", reverse, measurement, ode_steps=3, spread=0.6), measurement, expected)


def test_daps_as_released():
    """Langevin steps x' = x + h ((x0_hat - x) / r^2 + a (y - x) / tau^2) + sqrt(2 h) n, h falling to a hundredth."""
    reverse, measurement = process("10"), task()
    levels, tau2 = sigmas(reverse.schedule), 0.1 ** 2

    def expected(a):
        mean, variance = 0.0, 0.0
        for i in reversed(range(reverse.num_steps)):
            gain, r2 = S / (S + levels[i] ** 2), levels[i] ** 2
            h = 2e-3 * (0.01 + 0.99 * (i + 1) / 10)
            mean, variance = gain * mean, gain ** 2 * (variance + levels[i] ** 2)
            start = mean
            factor, of_start, noise = 1.0, 0.0, 0.0
            for _ in range(4):
                shrink = 1 - h / r2 - a * h / tau2
                factor, of_start = shrink * factor, shrink * of_start + h / r2
                mean = shrink * mean + h / r2 * start + a * h / tau2 * Y
                noise = shrink ** 2 * noise + 2 * h
            variance = (factor + of_start) ** 2 * variance + noise
        return mean, variance

    x = restore("daps", reverse, measurement, ode_steps=1, spread=1.0, langevin_steps=4, lr=2e-3, tau=0.1)
    check(x, measurement, expected)


def test_pnp_dm_follows_its_recursion():
    """z = (V x + rho^2 y) / (V + rho^2) where y sees, and the chain of ddpm from the level where sigma_t = rho."""
    reverse, measurement = process("30", sampler="ddpm", model_var_type="fixed_small"), task()
    levels = sigmas(reverse.schedule)

    def expected(a):
        mean, variance = a * Y, 0.0
        for i in range(12):
            top = level_below(reverse.schedule, max(0.3, 10 * 0.9 ** (100 * i / 12)))
            rho2 = levels[top] ** 2
            narrow = 1 / (1 / rho2 + a / V)
            mean, variance = narrow * (mean / rho2 + a * Y / V), (narrow / rho2) ** 2 * variance + narrow
            scale = math.sqrt(reverse.schedule.alphas_cumprod[top])
            mean, variance = scale * mean, scale ** 2 * variance
            for j in reversed(range(top + 1)):
                p, _, c = level(reverse, j).prior()
                mean, variance = p * mean, p ** 2 * variance + c ** 2
        return mean, variance

    check(restore("pnp_dm", reverse, measurement, iterations=12, rho_min=0.3), measurement, expected)


@pytest.mark.parametrize("rho_min", [0.25, 0.1])
def test_pnp_dm_approaches_the_posterior(rho_min):
    """With the exact variance of every step, as iterations grow: that of noise V + rho_min^2, rho_min a level."""
    reverse, measurement = process("40", sampler="ddpm", model_var_type="learned_range"), task(20)
    noise = V + sigmas(reverse.schedule)[level_below(reverse.schedule, rho_min)] ** 2
    kept = measurement.operator(torch.ones(measurement.image_shape)) > 0

    def errors(iterations):
        x = restore("pnp_dm", reverse, measurement, iterations=iterations, rho_min=rho_min)[kept]
        return abs(x.mean().item() * (S + noise) / (S * Y) - 1), abs(x.var().item() * (S + noise) / (S * noise) - 1)

    few, many = errors(2), errors(50)
    assert few[0] > 0.2 and many[0] < 0.02 and many[1] < 0.06


# ---- methods whose update is no affine map: the same numbers, written out with the same draws ------------------------

def white_task(size=12, names=NAMES[:2]):
    """Pixels that are seen with noise as they are, y of variance 1, and the draws that a solver will make."""
    y = ImageRandomness(2, names).randn_like(torch.empty(len(names), 3, size, size, dtype=torch.float64))
    operator = get_operator("noise").prepare(tuple(y.shape), ImageRandomness(0, names))
    return Measurement(operator, get_noise("gaussian", sigma=SIGMA), y), y, ImageRandomness(4, ["0", "1"])


def norms(x):
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def adam(lr, beta2):
    """Kingma & Ba (2015), Algorithm 1: a function from gradients to moves."""
    m = v = k = 0

    def move(gradient):
        nonlocal m, v, k
        k += 1
        m, v = 0.9 * m + 0.1 * gradient, beta2 * v + (1 - beta2) * gradient ** 2
        return -lr * (m / (1 - 0.9 ** k)) / ((v / (1 - beta2 ** k)).sqrt() + 1e-8)
    return move


def test_fast_dips():
    """ADMM with noise whose variance differs between pixels, so that the dual turns the direction to the ball."""
    reverse = process("12")
    measurement, y, draws = white_task()
    noiser = get_noise("poisson_gaussian", rate=0.05, sigma=0.1)
    measurement = Measurement(measurement.operator, noiser, y)
    variance, x = noiser.variance(y), draws.randn_like(y)

    def ball(image):
        return y + (image - y) / ((image - y) ** 2 / variance).flatten(1).mean(1).clamp_min(1).sqrt().view(-1, 1, 1, 1)

    def dot(a, b):
        return (a * b).flatten(1).sum(1).view(-1, 1, 1, 1)

    for i in reversed(range(12)):
        t = level(reverse, i)
        image = x0_hat = t.g * x
        v, u = ball(x0_hat), 0
        for _ in range(3):
            for _ in range(2):
                g = (image - x0_hat) / t.s2 - 0.5 / variance * (v - u - image)
                image = image - dot(g, g) / (dot(g, 0.5 / variance * g) + dot(g, g) / t.s2) * g
            v = ball(image + u)
            u = u + image - v
        x = math.sqrt(t.ab_prev) * image + math.sqrt(1 - t.ab_prev) * draws.randn_like(y)
    torch.testing.assert_close(restore("fast_dips", reverse, measurement), x, atol=1e-5, rtol=0)


def test_dsg():
    reverse = process("12")
    measurement, y, draws = white_task()
    x = draws.randn_like(y)
    for i in reversed(range(12)):
        t = level(reverse, i)
        mean, d = (t.x0_coef * t.g + t.x_t_coef) * x, t.std * draws.randn_like(x)
        towards = y - t.g * x                                               # minus the gradient, up to a factor
        m = 0.7 * d + 0.3 * math.sqrt(x[0].numel()) * t.std * towards / norms(towards)
        x = mean + (math.sqrt(x[0].numel()) * t.std * m / norms(m) if t.std else 0)
    torch.testing.assert_close(restore("dsg", reverse, measurement, weight=0.3), x, atol=1e-9, rtol=0)


@pytest.mark.parametrize("posterior", [True, False])
def test_red_diff(posterior):
    """With share n / m = 1: the gradient w (eps - z) + mu - y, eps = sqrt(1 - ab) x_t / (ab S + 1 - ab)."""
    reverse = process("15")
    measurement, y, draws = white_task()
    mu, move = y, adam(0.1, 0.99)
    for i in reversed(range(15)):
        t = level(reverse, i)
        z, s = draws.randn_like(y), math.sqrt(t.s2)
        eps = math.sqrt(1 - t.ab) * (math.sqrt(t.ab) * mu + math.sqrt(1 - t.ab) * z) / (t.ab * S + 1 - t.ab)
        length = math.sqrt((i + 1) / 15) if posterior else 1
        mu = mu + length * move(max(0.25 * s, posterior * V / s) * (eps - z) + mu - y)
    found = restore("red_diff", reverse, measurement, posterior=posterior)
    torch.testing.assert_close(found, mu, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma", [0.02, 0.2])
def test_the_end_of_red_diff_is_the_posteriors_mean(sigma):
    """Without z (the mean over it) and with a small rate: mu -> y S / (S + sigma^2), whatever sigma."""
    reverse = process("200")
    measurement, y, _ = white_task()
    measurement = Measurement(measurement.operator, get_noise("gaussian", sigma=sigma), y.clamp(-1, 1))

    class Still(ImageRandomness):
        def randn_like(self, x):
            return torch.zeros_like(x)

    prior = AnalyticPrior(reverse.schedule, StationaryGaussian(S))
    x = METHODS.build("red_diff", lr=0.02).restore(prior, reverse, measurement, Still(0, ["0", "1"]))
    torch.testing.assert_close(x, measurement.y * S / (S + sigma ** 2), atol=0.02, rtol=0)


@pytest.mark.parametrize("sigma, most", [(0.02, 0.025), (0.2, 0.1)])
def test_red_diff_forgets_its_own_noise_in_many_steps(sigma, most):
    """As above with z: moves of one length end 0.03 and 0.24 from the mean, and farther with more steps."""
    reverse = process("200")
    measurement, y, _ = white_task()
    measurement = Measurement(measurement.operator, get_noise("gaussian", sigma=sigma), y.clamp(-1, 1))
    x = restore("red_diff", reverse, measurement)
    assert (x - measurement.y * S / (S + sigma ** 2)).square().mean().sqrt() < most


@pytest.mark.parametrize("proximity", [0.0, 0.5])
def test_sitcom(proximity):
    """x0_hat(v) = g v: the gradient 2 g (g v - y) + 2 proximity (v - x_t), until the residual is what noise makes."""
    reverse = process("6")
    measurement, y, draws = white_task()
    x, ended = draws.randn_like(y), []
    for i in reversed(range(6)):
        t = level(reverse, i)
        v, move = x, adam(0.1, 0.999)
        for k in range(8):
            active = ((t.g * v - y) ** 2 / V).flatten(1).mean(1).view(-1, 1, 1, 1) > 1
            if k == 7:
                break
            v = torch.where(active, v + move(2 * t.g * (t.g * v - y) + 2 * proximity * (v - x)), v)
        ended.append(bool(active.any()))
        x = math.sqrt(t.ab_prev) * t.g * v + math.sqrt(1 - t.ab_prev) * draws.randn_like(y)
    found = restore("sitcom", reverse, measurement, iterations=7, lr=0.1, proximity=proximity)
    torch.testing.assert_close(found, x, atol=1e-6, rtol=0)


def test_dcps():
    """g(x_t) = N(sqrt(ab_tau) y; m, V) with m = k x_t; all gradients written out."""
    reverse, n, fits = process("13"), 13, 2
    measurement, y, draws = white_task()
    s = reverse.schedule
    length = 1.5 * math.sqrt(y[0].numel() / (3 * 256 ** 2)) * 300 / n

    def pull(x, i, tau):
        ab, ab_tau = s.alphas_cumprod[i], s.alphas_cumprod[tau]
        ratio, g = ab / ab_tau, level(reverse, i).g
        k = (math.sqrt(ab_tau) * (1 - ratio) * g + math.sqrt(ratio) * (1 - ab_tau)) / (1 - ab)
        return k * (math.sqrt(ab_tau) * y - k * x) / V

    x = draws.randn_like(y)
    for first, tau in [(12, 6), (6, 0)]:
        ab = s.alphas_cumprod[first]
        for _ in range(3):
            score = pull(x, first, tau) - x / (ab * S + 1 - ab)
            h = 0.01 / (1 + 0.01 * norms(score))
            x = x + h * score + (2 * h).sqrt() * draws.randn_like(x)
        for i in range(first, tau, -1):
            t = level(reverse, i)
            mean = (t.x0_coef * t.g + t.x_t_coef) * x
            mu, rho = mean, torch.full_like(mean, math.log(t.std))
            for _ in range(fits):
                spread = rho.exp() * draws.randn_like(x)
                force = pull(mu + spread, i - 1, tau)
                of_mu = (mu - mean) / t.std ** 2 - force
                of_rho = rho.exp() ** 2 / t.std ** 2 - 1 - force * spread
                mu, rho = mu - length * of_mu / norms(of_mu), rho - length * of_rho / norms(of_rho)
            x = mu + rho.exp() * draws.randn_like(x)
    found = restore("dcps", reverse, measurement, blocks=2, langevin_steps=3, gamma=0.01)
    torch.testing.assert_close(found, level(reverse, 0).g * x, atol=1e-7, rtol=1e-7)


# ---- what transfers --------------------------------------------------------------------------------------------------

TRANSFER = {                                                                # steps, parameters
    "diffpir": (30, {}), "fast_dips": (30, {}), "pigdm": (30, {}), "tmpd": (30, {}), "daps": (30, {"ode_steps": 3}),
    "pnp_dm": (60, {"iterations": 20}), "sitcom": (20, {"iterations": 6, "lr": 0.04}),
}


@pytest.mark.parametrize("solver", TRANSFER)
def test_the_same_parameters_fit_other_noise_sizes_and_numbers_of_steps(solver):
    """Photograph-like images: the residual is about what noise makes, at a tenth of sigma too, where an absolute
    constant would leave a hundred times that."""
    usual, params = TRANSFER[solver]

    def chi_square(sigma, size, steps):
        names = NAMES[:2]
        reverse, distribution = process(str(steps)), gaussian(image_size=size, std=0.4)
        x = distribution.sample(torch.empty(2, 3, size, size), ImageRandomness(5, names))
        operator, noiser = get_operator("sr_average", scale_factor=2), get_noise("gaussian", sigma=sigma)
        measurement = Measurement.simulate(operator, noiser, x, ImageRandomness(1, names))
        prior, method = AnalyticPrior(reverse.schedule, distribution), METHODS.build(solver, **params)
        return measurement.chi_square(method.restore(prior, reverse, measurement, ImageRandomness(4, names))).mean()

    for sigma, size, steps in [(0.02, 16, usual), (0.2, 16, usual), (0.2, 24, usual // 2)]:
        assert 0.3 < chi_square(sigma, size, steps) < 3, (sigma, size, steps)
