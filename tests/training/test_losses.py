"""The loss that trains a prior, against closed forms."""

import math

import pytest
import torch

from guided_diffusion.schedule import Schedule
from guided_diffusion.training.losses import HybridLoss, coarse_errors, discretised_nll, loss_weights, random_steps
from util.img_utils import PIXEL_STEP


def test_loss_shows_the_network_what_the_sampler_shows_it():
    seen, images = [], torch.zeros(3, 3, 4, 4)

    def network(x_t, t):
        seen.append(t.tolist())
        return torch.zeros(3, 6, 4, 4)

    for rescale in (False, True):
        loss = HybridLoss(Schedule.create("linear", 500, rescale_timesteps=rescale), vlb_weight=1e-3)
        loss(network, images, torch.tensor([0, 250, 499]), images)
    assert seen == [[0, 250, 499], [0, 500, 998]]


def test_loss_of_a_network_that_knows_the_noise():
    """With eps exact and v = -1 the variance is beta_tilde, so every KL term is zero and only step 0 costs bits."""
    schedule = Schedule.create("linear", 1000)
    loss = HybridLoss(schedule, vlb_weight=1e-3)
    x0, noise = (torch.randn(4, 3, 8, 8, generator=torch.manual_seed(k)) for k in range(2))
    x0 = x0.clamp(-1, 1)

    def knows(x_t, index):
        return torch.cat([noise, -torch.ones_like(noise)], dim=1)

    total, simple = loss(knows, x0, torch.tensor([1, 10, 500, 999]), noise)
    assert simple == 0
    assert abs(total.item()) < 1e-5


def test_bound_equals_the_divergence_of_two_normals():
    """KL by torch.distributions, in bits, for a network with an error in the mean and a larger variance."""
    schedule = Schedule.create("linear", 1000)
    loss = HybridLoss(schedule, vlb_weight=1.0)
    x0, noise, eps, v = (torch.randn(2, 3, 4, 4, generator=torch.manual_seed(k), dtype=torch.float64) for k in range(4))
    index = torch.tensor([3, 600])
    total, simple = loss(lambda x_t, _: torch.cat([eps, v], dim=1), x0, index, noise)
    expected = 0.0
    for b, i in enumerate(index.tolist()):
        a, at = schedule.alphas_cumprod[i], lambda name, i=i: schedule.at(name, i, x0)
        x_t = math.sqrt(a) * x0[b] + math.sqrt(1 - a) * noise[b]
        estimate = (x_t - math.sqrt(1 - a) * eps[b]) / math.sqrt(a)
        fraction = (v[b] + 1) / 2
        log_variance = fraction * math.log(schedule.betas[i]) + (1 - fraction) * at("posterior_log_variance_clipped")
        c1, c2 = at("posterior_mean_coef1"), at("posterior_mean_coef2")
        truth = torch.distributions.Normal(c1 * x0[b] + c2 * x_t, math.sqrt(schedule.posterior_variance[i]))
        model = torch.distributions.Normal(c1 * estimate + c2 * x_t, (0.5 * log_variance).exp())
        expected += torch.distributions.kl_divergence(truth, model).mean().item() / math.log(2) / 2
    assert simple.item() == pytest.approx((eps - noise).square().mean().item())
    assert (total - simple).item() == pytest.approx(1000 * expected, rel=1e-6)


def test_bound_trains_the_variance_only():
    loss = HybridLoss(Schedule.create("linear", 1000), vlb_weight=1.0)
    x0, noise = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    output = torch.zeros(1, 6, 4, 4, requires_grad=True)
    total, _ = loss(lambda *_: output, x0, torch.tensor([300]), noise)
    gradient, = torch.autograd.grad(total, output)
    of_the_square = torch.full((3, 4, 4), -2.0 / 48)
    torch.testing.assert_close(gradient[0, :3], of_the_square)
    assert (gradient[0, 3:] != 0).all()


def test_probabilities_of_the_levels_sum_to_one():
    levels = -1 + PIXEL_STEP * torch.arange(256, dtype=torch.float64)
    for mean, std in ((0.1, 0.02), (-0.99, 0.1), (0.5, 1.0)):
        nll = discretised_nll(levels, torch.tensor(mean), torch.tensor(2 * math.log(std), dtype=torch.float64))
        assert nll.neg().exp().sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", ["none", "min_snr", "p2"])
def test_weights_of_the_timesteps(kind):
    schedule = Schedule.create("linear", 1000)
    weights = loss_weights(schedule, kind)
    assert weights.mean().item() == pytest.approx(1, abs=1e-5)
    t = [10, 300, 900]
    snr = [schedule.alphas_cumprod[i] / (1 - schedule.alphas_cumprod[i]) for i in t]
    expected = {"none": [1, 1, 1], "min_snr": [min(s, 5) / s for s in snr], "p2": [1 / (1 + s) for s in snr]}[kind]
    ratios = [weights[i].item() / weights[900].item() for i in t]
    assert ratios == pytest.approx([e / expected[2] for e in expected], rel=1e-5)


def test_weights_weigh_the_square_and_nothing_else():
    schedule = Schedule.create("linear", 1000)
    x0, noise = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    index = torch.tensor([10, 800])
    output = torch.zeros(2, 6, 4, 4)
    plain, mse = HybridLoss(schedule, vlb_weight=1e-3)(lambda *_: output, x0, index, noise)
    weighted, same = HybridLoss(schedule, vlb_weight=1e-3, loss_weight="p2")(lambda *_: output, x0, index, noise)
    assert mse == same == 1                                                 # whatever the weights
    expected = loss_weights(schedule, "p2")[index].mean() - 1
    assert (weighted - plain).item() == pytest.approx(expected.item(), abs=1e-5)


def test_coarse_errors_of_a_colour_and_of_noise():
    """An error that is the same everywhere counts s^2 times in squares of s x s, less where their SNR is high."""
    error, snr = torch.full((3, 3, 64, 64), 0.01), torch.tensor([0.0, 0.01, 4.0])
    expected = [sum((s * 0.01) ** 2 / (1 + s ** 2 * x / 4) for s in (4, 16, 64)) for x in snr.tolist()]
    assert coarse_errors(error, snr).tolist() == pytest.approx(expected, rel=1e-4)
    assert coarse_errors(error[:, :, :32, :16], snr)[0].item() == pytest.approx(0.04 ** 2 + 0.16 ** 2, rel=1e-4)
    noise = torch.randn(200, 3, 64, 64, generator=torch.manual_seed(0))
    assert coarse_errors(noise, torch.zeros(200)).mean().item() == pytest.approx(3, abs=0.15)     # 600 of the largest
    checked = torch.arange(64)[:, None] + torch.arange(64) & 1                                  # what no mean shows
    assert coarse_errors((2.0 * checked - 1).expand(1, 3, -1, -1), torch.zeros(1)).item() == 0


def test_coarse_errors_are_added_by_their_weight():
    schedule = Schedule.create("linear", 1000)
    x0, index = torch.zeros(1, 3, 4, 4), torch.tensor([900])
    output = torch.zeros(1, 6, 4, 4)
    plain, coarse = (HybridLoss(schedule, 0.0, coarse_weight=w)(lambda *_: output, x0, index, torch.ones_like(x0))[0]
                     for w in (0.0, 0.5))
    snr = schedule.alphas_cumprod[900] / (1 - schedule.alphas_cumprod[900])
    assert (coarse - plain).item() == pytest.approx(0.5 * 16 / (1 + 4 * snr), rel=1e-5)


@pytest.mark.parametrize("power", [0.5, 1, 1.0, 2, 3.0])
def test_timesteps_follow_a_power_of_a_uniform_number(power):
    """P(t < k) = (k / T)^(1 / power), and every timestep is one of the process."""
    steps = random_steps(50, power, 40_000, torch.Generator().manual_seed(1))
    assert steps.dtype == torch.int64 and steps.min() == 0 and steps.max() == 49
    share = torch.bincount(steps, minlength=50).cumsum(0) / len(steps)
    assert (share - (torch.arange(1, 51) / 50) ** (1 / power)).abs().max() < 0.01
