"""Samplers: a step as a distribution, the loop's contract, and what create_sampler accepts and refuses."""

import math

import pytest
import torch

from guided_diffusion.gaussian_diffusion import SAMPLERS, create_sampler
from tests.guided_steps import Loop
from util.errors import UserError
from util.seeding import ImageRandomness

IMAGES = (2, 3, 8, 8)


def randomness(count=2):
    return ImageRandomness(0, [f"image{i}" for i in range(count)])


def images(seed=0, **kwargs):
    return torch.randn(IMAGES, generator=torch.Generator().manual_seed(seed), **kwargs)


def linear_network(x_t, t):
    """A network of three channels with a known derivative."""
    return 0.3 * x_t + 0.1


def six_channels(x_t, t):
    return torch.cat([linear_network(x_t, t), 0.2 * x_t], dim=1)


def fixed(**config):
    return create_sampler(**{"model_var_type": "fixed_small", "timestep_respacing": "10", **config})


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("kind", ["epsilon", "start_x"])
def test_step_is_the_distribution_that_it_claims(sampler, kind):
    reverse = fixed(sampler=sampler, model_mean_type=kind, eta=0.5 if sampler == "ddim" else 0.0)
    for index in range(10):
        step = reverse.step(linear_network, images(), index, randomness())
        assert step.alpha_bar == reverse.schedule.alphas_cumprod[index]
        assert step.alpha_bar_prev == reverse.schedule.alphas_cumprod_prev[index]
        assert step.mean.shape == step.std.shape == step.eps.shape == step.x0_hat.shape == IMAGES
        assert (step.std == 0).all() if index == 0 else (step.std > 0).all()
        mean = step.x0_coef * step.x0_hat + step.x_t_coef * step.x_t
        torch.testing.assert_close(mean, step.mean, atol=2e-5, rtol=1e-5)
        noise = randomness().randn_like(step.mean)
        assert torch.equal(step.sample(), step.mean + step.std * noise)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("index", [0, 1, 5, 9])
def test_ddim_equation(eta, index):
    """Song et al., eq. 12, with eps recomputed from the clamped x0_hat."""
    sampler = fixed(sampler="ddim", eta=eta)
    x_t = images(dtype=torch.float64)
    step = sampler.step(linear_network, x_t, index, randomness())
    ab, prev = step.alpha_bar, step.alpha_bar_prev
    sigma = eta * math.sqrt((1 - prev) / (1 - ab)) * math.sqrt(1 - ab / prev)
    eps = (x_t - math.sqrt(ab) * step.x0_hat) / math.sqrt(1 - ab)
    expected = math.sqrt(prev) * step.x0_hat + math.sqrt(max(0, 1 - prev - sigma ** 2)) * eps
    torch.testing.assert_close(step.mean, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(step.std, torch.full_like(x_t, sigma))
    torch.testing.assert_close(step.eps, linear_network(x_t, None))


@pytest.mark.parametrize("index", [0, 1, 5, 9])
def test_renoising_keeps_nothing_but_the_clean_image(index):
    sampler, x_t = fixed(sampler="renoise"), images()
    step = sampler.step(linear_network, x_t, index, randomness())
    prev = step.alpha_bar_prev
    torch.testing.assert_close(step.mean, math.sqrt(prev) * step.x0_hat)
    torch.testing.assert_close(step.std, torch.full_like(x_t, math.sqrt(1 - prev)))
    assert (step.x0_coef, step.x_t_coef) == pytest.approx((math.sqrt(prev), 0), abs=1e-7)
    assert step.deterministic == (index == 0)


def test_a_file_for_ddim_with_eta_1_serves_ddpm():
    file = {"eta": 1.0, "timestep_respacing": "10"}
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    steps = [create_sampler(sampler="ddpm", **config).step(lambda x, t: torch.cat([x, x], 1), x, 4, None)
             for config in (file, {"timestep_respacing": "10"})]
    assert torch.equal(steps[0].mean, steps[1].mean) and torch.equal(steps[0].std, steps[1].std)


def test_ddim_with_eta_1_is_ddpm_with_the_small_variance():
    ddim, ddpm = fixed(sampler="ddim", eta=1.0), fixed(sampler="ddpm")
    for index in range(10):
        a, b = (s.step(linear_network, images(dtype=torch.float64), index, randomness()) for s in (ddim, ddpm))
        torch.testing.assert_close(a.mean, b.mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(a.std, b.std, rtol=1e-9, atol=1e-12)


def test_mean_of_a_network_that_predicts_it():
    """previous_x: the mean is the output itself; its x0_hat gives that mean where it is not clamped."""
    sampler = fixed(model_mean_type="previous_x", clip_denoised=False)
    step = sampler.step(linear_network, images(), 5, randomness())
    assert torch.equal(step.mean, linear_network(images(), None))
    torch.testing.assert_close(step.x0_coef * step.x0_hat + step.x_t_coef * step.x_t, step.mean, atol=1e-4, rtol=1e-4)


def test_gradient_goes_through_the_clamp():
    sampler = fixed()
    x_t = images().requires_grad_()
    step = sampler.step(linear_network, x_t, 3, randomness())
    grad, = torch.autograd.grad(step.x0_hat.sum(), x_t)
    ab = step.alpha_bar
    inside = step.x0_hat.abs() < 1
    slope = (1 - 0.3 * math.sqrt(1 - ab)) / math.sqrt(ab)
    assert inside.any() and not inside.all()
    torch.testing.assert_close(grad, slope * inside)
    assert not (step.mean.requires_grad or step.std.requires_grad or step.eps.requires_grad)


@pytest.mark.parametrize("needs_grad", [False, True])
def test_loop_contract(needs_grad):
    """Steps descend, the network sees the original timesteps, the callback sees every state, states carry no graph."""
    sampler, times, seen = fixed(), [], []

    def network(x_t, t):
        times.append(t)
        return linear_network(x_t, t)

    def conditioning(step):
        assert step.x0_hat.requires_grad == step.x_t.requires_grad == needs_grad
        assert not torch.is_grad_enabled()
        return step.sample(), torch.full((2,), float(step.index))

    x_start = images()
    final = Loop(x_start, conditioning, needs_grad).restore(
        network, sampler, None, randomness(), lambda step, x, distance: seen.append((step.index, x, distance.tolist())))
    assert [t.tolist() for t in times] == [[i, i] for i in range(999, -1, -111)]
    assert [(i, d) for i, _, d in seen] == [(i, [i, i]) for i in range(9, -1, -1)]
    assert torch.equal(seen[-1][1], final) and not final.requires_grad
    assert torch.equal(x_start, images()) and not x_start.requires_grad


@pytest.mark.parametrize("respacing", ["1", "ddim1", "2"])
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large", "learned_range", "learned"])
def test_very_short_processes(sampler, respacing, kind):
    reverse = create_sampler(sampler=sampler, model_var_type=kind, timestep_respacing=respacing)
    network = six_channels if reverse.learned_variance else linear_network
    x = Loop(images(), lambda s: (s.sample(), s.mean.flatten(1).norm(dim=1))).restore(
        network, reverse, None, randomness())
    assert x.isfinite().all() and x.abs().max() < 5


def test_q_sample():
    sampler, x0, noise = fixed(), images(), images(1)
    x_t = sampler.q_sample(x0, torch.tensor([2, 7]), noise)
    for i, index in enumerate([2, 7]):
        ab = sampler.schedule.alphas_cumprod[index]
        torch.testing.assert_close(x_t[i], math.sqrt(ab) * x0[i] + math.sqrt(1 - ab) * noise[i])
        torch.testing.assert_close(sampler.q_sample(x0, index, noise)[i], x_t[i])


@pytest.mark.parametrize("kind, fits", [("learned", 6), ("learned_range", 6), ("fixed_small", 3), ("fixed_large", 3)])
def test_learn_sigma_must_fit_the_variance_type(kind, fits):
    sampler = create_sampler(model_var_type=kind)
    sampler.check_model_channels(fits)
    with pytest.raises(UserError, match="learn_sigma"):
        sampler.check_model_channels(9 - fits)
    with pytest.raises(UserError, match="learn_sigma"):
        sampler.step(linear_network if fits == 6 else six_channels, images(), 5, randomness())


@pytest.mark.parametrize("respacing, steps", [("", 1000), (None, 1000), (250, 250), ("250", 250), ("ddim50", 50),
                                              ("10,15,20", 45), ([10, 15, 20], 45), ((10, 15), 25)])
def test_respacing_forms(respacing, steps):
    assert create_sampler(timestep_respacing=respacing).num_steps == steps


@pytest.mark.parametrize("config, message", [
    ({"sampler": "dppm"}, "did you mean 'ddpm'"),
    ({"steps": "1000"}, "steps is '1000', expected an integer"),
    ({"steps": 1000.5}, "steps"),
    ({"steps": 0}, "steps is 0"),
    ({"noise_schedule": "cos"}, "choose from cosine, linear"),
    ({"model_mean_type": "eps"}, "choose from epsilon, previous_x, start_x"),
    ({"model_var_type": "learned_rang"}, "did you mean 'learned_range'"),
    ({"clip_denoised": "yes"}, "clip_denoised is 'yes', expected true or false"),
    ({"timestep_respacing": 2000}, "2000 of the 1000"),
    ({"timestep_respacing": [10.5]}, "timestep_respacing"),
    ({"timestep_respacing": "ddim300"}, "exactly 300"),
    ({"sampler": "ddim", "eta": 1.5}, "eta is 1.5, expected a finite number, 0 to 1"),
    ({"sampler": "ddim", "eta": -0.1}, "eta is -0.1"),
    ({"sampler": "ddpm", "eta": 0.5}, "set sampler: ddim, or leave eta out"),
    ({"sampler": "renoise", "eta": 1}, "sampler 'renoise' takes no eta; set sampler: ddim, or leave eta out"),
    ({"sampler": "ddim", "eta": float("nan")}, "eta"),
])
def test_mistakes_in_a_diffusion_config(config, message):
    with pytest.raises(UserError, match=message):
        create_sampler(**config)
