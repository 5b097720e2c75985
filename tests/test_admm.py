"""ADMM, with total variation and with a denoiser plugged in: golden numbers, batches, stopping, what is refused."""

import json

import pytest
import torch

from guided_diffusion.condition_methods import get_conditioning_method
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.solvers.admm_tv import differences, divergence
from tests.classical_golden import TASKS, as_images, golden_measurement
from tests.conftest import golden_path
from tests.guided_steps import LINEAR, NAMES, measure
from tests.helpers import normal
from util.errors import UserError
from util.seeding import ImageRandomness

LAM = 2.7e-2
QUICK = {"admm_tv": {"iterations": 4}, "pnp_admm": {"iterations": 2}}


def restore(measurement, name, prior=None, sampler=None, **params):
    """The restored images on [0, 1], and the indices that the callback heard."""
    method = get_conditioning_method(name, **params)
    method.check(measurement.operator, measurement.noiser)
    steps = []
    x = method.restore(prior, sampler, measurement, ImageRandomness(0, ["any"] * len(measurement.y)),
                       lambda step, x, distance: steps.append(step.index))
    assert len(steps) <= method.num_steps(sampler) and steps[-1] == 0
    return (x + 1) / 2, steps


# ---- total variation -------------------------------------------------------------------------------------------------

def objective(measurement, u):
    """Of images u on [0, 1], per channel: (B, 3)."""
    residual = measurement.operator.informative(measurement.y) * (measurement.operator(2 * u - 1) - measurement.y)
    return residual.square().flatten(2).sum(2) / 8 + LAM * differences(u).square().sum(2).sqrt().flatten(2).sum(2)


@pytest.mark.parametrize("task, relative, params", [
    ("inpaint", 1e-6, {"rho": 0.01}), ("sr_average4", 2e-6, {"rho": 0.01, "tolerance": 3e-5}),
    ("gblur", 1e-4, {"rho": 0.14, "iterations": 300})])
def test_the_golden_minima_are_reached(golden, tmp_path, task, relative, params):
    """Within 1e-6 with the defaults; where that takes seconds, nearly so (processors differ by 1e-7)."""
    arrays = golden("classical")
    measurement = golden_measurement(arrays, task, tmp_path)
    u, steps = restore(measurement, "admm_tv", **params)
    least = torch.tensor(json.loads(golden_path("classical.json").read_text())[f"tv_{task}"]["objective_per_channel"])
    assert (objective(measurement, u.double())[0] / least - 1).abs().max() < relative
    assert len(steps) < 1500                        # the residuals stop it
    if task != "sr_average4":                       # which has flat directions
        torch.testing.assert_close(u.double(), as_images(arrays[f"tv_{task}"]), atol=1e-3, rtol=0)


def test_a_heavy_weight_leaves_the_mean_and_a_light_one_the_measurement():
    names = NAMES[:1]
    measurement, _ = measure("noise", names)
    u = (measurement.y + 1) / 2
    flat, _ = restore(measurement, "admm_tv", lam=10.0, tolerance=1e-4)
    torch.testing.assert_close(flat, u.mean((2, 3), keepdim=True).expand_as(flat), atol=1e-4, rtol=0)
    same, _ = restore(measurement, "admm_tv", lam=1e-7, tolerance=1e-4)
    torch.testing.assert_close(same, u.clamp(0, 1), atol=1e-4, rtol=0)


def test_the_transpose_of_the_differences():
    x, z = normal(2, 3, 5, 7), normal(2, 3, 2, 5, 7, seed=1)
    torch.testing.assert_close((differences(x) * z).sum(), (x * divergence(z)).sum())


# ---- plug and play ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("task", TASKS)
def test_the_golden_runs_with_dncnn(golden, tmp_path, task):
    arrays = golden("classical")
    measurement = golden_measurement(arrays, task, tmp_path)
    expected = as_images(arrays[f"pnp_x_{task}"]).float()
    torch.testing.assert_close(restore(measurement, "pnp_admm")[0], expected, atol=2e-4, rtol=0)
    far, _ = restore(measurement, "pnp_admm", rho=0.3)
    assert (far - expected).abs().max() > 2e-3


def test_the_diffusion_network_takes_the_denoisers_place():
    """With a white Gaussian prior N(m, s^2) the network denoises exactly, and the fixed point is known."""
    sampler = create_sampler(model_var_type="fixed_small", clip_denoised=False)

    def prior(x_t, t):
        ab = float(sampler.schedule.alphas_cumprod[t[0]])
        return (1 - ab) ** 0.5 / (0.25 * ab + 1 - ab) * (x_t - ab ** 0.5 * 0.1)

    measurement, _ = measure("noise", NAMES[:2])
    measurement = Measurement(measurement.operator, measurement.noiser, 0.3 * measurement.y.float())
    level = (1 / sampler.schedule.alphas_cumprod - 1) ** 0.5
    sigma = level[abs(level - 0.2).argmin()]
    gain = 0.25 / (0.25 + sigma ** 2)
    # z = m + g (x + u - m) and x = z give u = (x - m) (1 - g) / g; x - y + rho u = 0
    weight = 0.2 * (1 - gain) / gain
    expected = (measurement.y + weight * 0.1) / (1 + weight)
    found, steps = restore(measurement, "pnp_admm", prior, sampler, denoiser="prior", sigma=0.1, iterations=60)
    torch.testing.assert_close(2 * found - 1, expected, atol=1e-3, rtol=0)
    assert len(steps) == 60
    assert get_conditioning_method("pnp_admm", denoiser="prior").needs_prior
    assert not get_conditioning_method("pnp_admm").needs_prior


# ---- both ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", QUICK)
@pytest.mark.parametrize("operator", LINEAR)
def test_batch_equals_single_runs(method, operator):
    batch, _ = restore(measure(operator, NAMES)[0], method, **QUICK[method])
    assert batch.isfinite().all() and batch.dtype == torch.float64
    alone, _ = restore(measure(operator, NAMES[1:2])[0], method, **QUICK[method])
    torch.testing.assert_close(alone, batch[1:2], atol=1e-6, rtol=0)


def test_images_stop_one_by_one():
    """An image that has converged stays as it is while others go on."""
    easy, hard = (torch.full((1, 3, 16, 16), 0.3), measure("noise", NAMES[:1])[0].y.float())
    operator, noiser = get_operator("noise"), get_noise("gaussian", sigma=0.05)
    together, alone = [], []
    for found, y in ((together, torch.cat([easy, hard])), (alone, easy)):
        prepared = operator.prepare(tuple(y.shape), ImageRandomness(0, ["x"] * len(y)))
        found.extend(restore(Measurement(prepared, noiser, y), "admm_tv", tolerance=1e-4))
    assert len(alone[1]) < len(together[1])
    assert torch.equal(together[0][:1], alone[0])


@pytest.mark.parametrize("method", QUICK)
def test_other_operators_are_refused(method):
    with pytest.raises(UserError, match=f"'{method}' needs a linear operator, found 'hdr'; methods that serve 'hdr'"):
        get_conditioning_method(method).check(get_operator("hdr"))


def test_missing_weights_are_a_mistake_before_anything_runs():
    method = get_conditioning_method("pnp_admm", weights="models/none.pt")
    with pytest.raises(UserError, match="models/none.pt not found"):
        method.check(get_operator("noise"))
    get_conditioning_method("pnp_admm", weights="models/none.pt", denoiser="prior").check(get_operator("noise"))
