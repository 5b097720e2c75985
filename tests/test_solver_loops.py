"""Every method with a loop of its own and a prior: batches, noise models, what is reported, what is refused."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.restoration.catalogue import METHODS
from guided_diffusion.solvers import Solver
from guided_diffusion.solvers.noise_levels import descent, flow, level_below, sigmas
from tests.guided_steps import METHODS as GUIDED
from tests.guided_steps import NAMES, SIZE, Wrapped, measure, photographs, restore
from tests.helpers import NOISE_EXAMPLES, OPERATOR_EXAMPLES
from util.config.registry import annotations, fits
from util.errors import UserError
from util.seeding import ImageRandomness

SHORT = {"daps": {"ode_steps": 2, "langevin_steps": 2}, "pnp_dm": {"iterations": 3, "langevin_steps": 2},
         "sitcom": {"iterations": 2}}                           # everything else takes the sampler's steps
SOLVERS = [name for name in METHODS if issubclass(METHODS[name], Solver) and METHODS.build(name).needs_prior
           and not METHODS[name].needs_exact_prior]


def serves(solver, operator, noise="gaussian"):
    return METHODS[solver].serves(get_operator(operator, **OPERATOR_EXAMPLES[operator]),
                                  get_noise(noise, **NOISE_EXAMPLES[noise]))


class Network(nn.Module):
    """Colours and neighbours mix, nonlinearly: model(x_t, t) -> (B, 6, H, W)."""

    def forward(self, x, t):
        eps = torch.tanh(x + 0.2 * x.roll(1, -1) - 0.1 * x.roll(1, 1) + 1e-4 * t.view(-1, 1, 1, 1))
        return torch.cat([eps, 0.1 * eps], dim=1)


@pytest.mark.parametrize(("solver", "operator"), [
    (solver, operator) for solver in SOLVERS for operator in OPERATOR_EXAMPLES if serves(solver, operator)])
def test_batch_equals_single_runs(solver, operator):
    options = {"sampler": create_sampler(timestep_respacing="2"), "network": Network, **SHORT.get(solver, {})}
    batch, distances = restore(solver, operator, NAMES[:2], **options)
    assert batch.shape == (2, 3, SIZE, SIZE) and batch.isfinite().all() and not batch.requires_grad
    assert (batch[0] - batch[1]).abs().max() > 0.1
    alone, distance = restore(solver, operator, [NAMES[1]], **options)
    torch.testing.assert_close(alone, batch[1:], atol=1e-6, rtol=0)
    torch.testing.assert_close(distance[:, 0], distances[:, 1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("solver", "noise"), [
    (solver, noise) for solver in SOLVERS for noise in NOISE_EXAMPLES if serves(solver, "super_resolution", noise)])
def test_every_noise_model(solver, noise):
    x, distances = restore(solver, "super_resolution", NAMES[:1], noise=noise, network=Network, **SHORT.get(solver, {}))
    assert x.isfinite().all() and distances.isfinite().all()


NUMBERS = [(method, key, value) for method in {*SOLVERS, *GUIDED} for key, hint in annotations(METHODS[method]).items()
           for value in (1e-150, 1e150) if key != "return" and fits(value, hint)]


@pytest.mark.parametrize(("method", "key", "value"), sorted(NUMBERS))
def test_no_number_is_too_large_or_small_for_single_precision(method, key, value):
    """It may diverge, which the command line reports, but raises nothing."""
    measurement, randomness = measure("super_resolution", NAMES[:1])
    measurement = Measurement(measurement.operator.float(), measurement.noiser, measurement.y.float())
    params = {**SHORT.get(method, {}), key: value, **({"lr": 1e-4} if key == "tau" else {})}
    METHODS.build(method, **params).restore(Network(), create_sampler(timestep_respacing="2"), measurement, randomness)


EVALUATIONS = {                                                 # of 4 levels, by hand
    "red_diff": 4, "ddrm": 4,
    "daps": 2 + 2 + 1 + 1,                                      # of level 1 the grid's second point is nearest to it
    "pnp_dm": 3 + 1 + 1,                                        # levels up to rho = 10, 0.3 and 0.1
    "sitcom": 4 * (2 + 1), "fps_smc": 5 * 4, "mcgdiff": 64 * 4,
    "dcps": (5 + 1 + 0) + (5 + 1 + 0) + (5 + 1 + 0) + 1,        # of a block: Langevin steps, one transition; the end
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_reported(solver):
    """num_steps calls, the last of index 0 with the result; evaluations of the network are what the docstring says."""
    measurement, randomness = measure("super_resolution", NAMES[:1])
    method, network = METHODS.build(solver, **SHORT.get(solver, {})), Network()
    sampler = create_sampler(timestep_respacing="4")
    calls, evaluations = [], []
    network.register_forward_pre_hook(lambda module, inputs: evaluations.append(len(inputs[0])))
    x = method.restore(network, sampler, measurement, randomness, lambda *call: calls.append(call))
    assert [step.index for step, _, _ in calls] == list(reversed(range(method.num_steps(sampler))))
    assert all(step.x0_hat.shape == x.shape and not step.x0_hat.requires_grad for step, _, _ in calls)
    torch.testing.assert_close(calls[-1][1], x)
    torch.testing.assert_close(calls[-1][2], measurement.distance(x))
    most = method.num_evaluations(sampler)
    assert 4 <= len(evaluations) <= most if solver == "sitcom" else len(evaluations) == most
    if solver in EVALUATIONS:
        assert most == EVALUATIONS[solver]


def test_what_dcps_cannot_serve_is_refused():
    square = Wrapped(get_operator("noise"))
    square.name = "square"
    with pytest.raises(UserError, match="'dcps' needs a linear operator, found 'square'; methods that serve .*daps"):
        METHODS.build("dcps").check(square)


@pytest.mark.parametrize("solver, params, message", [
    ("daps", {"ode_steps": 0}, "ode_steps is 0, expected an integer, 1 to 10000"),
    ("dcps", {"blocks": 2 ** 31 - 1}, "blocks is 2147483647, expected an integer, 1 to 10000"),
    ("daps", {"step": 2.5}, "step is 2.5, expected a finite number, more than 0 and less than 2"),
    ("daps", {"tau": 0}, "tau is 0"),
    ("daps", {"tau": 0.01}, "tau is 0.01 without lr, whose steps it is for; give lr as well"),
    ("dcps", {"blocks": 0}, "blocks is 0"),
    ("pnp_dm", {"iterations": 0}, "iterations is 0"),
    ("pnp_dm", {"decay": 1.5}, "decay is 1.5"),
    ("red_diff", {"lr": 0}, "lr is 0"),
    ("red_diff", {"lam": -1}, "lam is -1"),
    ("sitcom", {"margin": 0}, "margin is 0"),
    ("sitcom", {"lamda": 1}, "unknown key 'lamda'"),
])
def test_mistakes_in_parameters(solver, params, message):
    with pytest.raises(UserError, match=message):
        METHODS.build(solver, **params)


@pytest.mark.parametrize("method, params, process, message", [
    ("dsg", {}, {"sampler": "ddim"}, "guides every interval-th step that has noise; set sampler: ddpm"),
    ("dsg", {}, {"sampler": "ddim", "eta": 0.5}, None),
    ("dsg", {}, {}, None),
    ("dsg", {"interval": 4}, {}, "'dsg' would guide none of 4 steps of sampler 'ddpm'"),
    ("dsg", {"interval": 3}, {}, None),
    ("dsg", {}, {"timestep_respacing": "1"}, "none of 1 step"),
    ("ilvr", {"range_t": 1.0}, {}, "'ilvr' would guide none of 4 steps.*range_t at the end of the process; lower it"),
    ("ilvr", {"range_t": 0.9}, {}, None),
    ("dcps", {}, {"timestep_respacing": "1"}, "'dcps' would guide none of 1 step.*all but the last; take more"),
    ("dcps", {}, {"timestep_respacing": "2"}, None),
    ("dmps", {}, {"sampler": "renoise"}, "'dmps' corrects x_t.*set sampler: ddpm, and 50 steps or more"),
    ("dmps", {}, {}, None),
    ("ddrm", {"steps": 1}, {}, "steps: 1 begins at t = 0, where images are nearly clean"),
    ("ddnm", {"steps": 1}, {}, "steps: 1 begins at t = 0, where images are nearly clean"),
    ("ddrm", {"steps": 2}, {}, None),
    ("dpps", {"likelihood": {"name": "stationary", "gradients": [7, 4]}}, {},
     r"gradients are those of steps \[4, 7\], but there are only 0 \(the last\) to 3"),
    ("ps", {"likelihood": {"name": "stationary", "gradients": [3, 4]}}, {}, None),
])
def test_a_process_that_leaves_the_measurement_out_or_does_not_suit_is_refused(method, params, process, message):
    """A step of dsg without noise is on a sphere of radius 0; the last one has none."""
    chosen, sampler = METHODS.build(method, **params), create_sampler(**{"timestep_respacing": "4", **process})
    with nullcontext() if message is None else pytest.raises(UserError, match=message):
        chosen.check_process(sampler)


# ---- noise levels ----------------------------------------------------------------------------------------------------

def test_levels_of_the_grid():
    """Karras et al. (2022), eq. 5 with power 7 from 100 to 0.1: 100, 57.5, ... as the nearest of 1000 levels."""
    schedule = create_sampler().schedule
    sigma = sigmas(schedule)
    top = level_below(schedule, 100.0)
    assert sigma[top] <= 100 < sigma[top + 1]
    path = descent(schedule, top, 5)
    points = [(sigma[top] ** (1 / 7) + i / 5 * (sigma[0] ** (1 / 7) - sigma[top] ** (1 / 7))) ** 7 for i in range(5)]
    assert path == [int(abs(sigma ** (1 / 7) - point ** (1 / 7)).argmin()) for point in points]
    assert descent(schedule, 2, 5) == [2, 1, 0] and descent(schedule, 0, 5) == [0]
    assert level_below(schedule, 1e-6) == 0 and level_below(schedule, 1e6) == 999


def test_the_flow_carries_a_gaussian_to_its_variance():
    """The exact flow of N(0, S I) scales u by sqrt(S / (S + sigma^2)); many Euler steps do so to their error."""
    sampler = create_sampler(clip_denoised=False, model_var_type="fixed_small")
    s = torch.from_numpy(sampler.schedule.sqrt_one_minus_alphas_cumprod)
    ab = torch.from_numpy(sampler.schedule.alphas_cumprod)

    def prior(x_t, t):
        return s[t].view(-1, 1, 1, 1) / (0.25 * ab[t] + 1 - ab[t]).view(-1, 1, 1, 1) * x_t

    u, index = photographs(NAMES[:1]), level_below(sampler.schedule, 3.0)
    sigma = sigmas(sampler.schedule)[index]
    for steps, error in [(400, 0.01), (20, 0.1)]:
        end = flow(prior, sampler, u, index, steps, ImageRandomness(0, NAMES[:1]))
        torch.testing.assert_close(end, (0.25 / (0.25 + sigma ** 2)) ** 0.5 * u, atol=error, rtol=error)


def test_sitcom_leaves_an_image_that_agrees_as_it_is():
    """eps = 0: x0_hat = v / sqrt(ab). The first image is off by half a sigma, chi-square 1/4, the second by ten."""
    sampler = create_sampler(model_var_type="fixed_small", timestep_respacing="4", clip_denoised=False)
    x_t, randomness = torch.ones(2, 3, 8, 8), ImageRandomness(0, ["a", "b"])
    x0 = x_t / sampler.schedule.sqrt_alphas_cumprod[1]
    operator = get_operator("noise").prepare((2, 3, 8, 8), randomness)
    y = x0 + torch.tensor([0.05, 1.0]).view(2, 1, 1, 1)
    measurement = Measurement(operator, get_noise("gaussian", sigma=0.1), y.float())
    step = METHODS.build("sitcom").consistent(lambda x, t: 0 * x, sampler, measurement, x_t, 1,
                                              randomness)
    torch.testing.assert_close(step.x0_hat[0], x0[0].float())
    assert (step.x0_hat[1] - x0[1]).abs().min() > 0.1
