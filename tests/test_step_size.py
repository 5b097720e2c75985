"""Step sizes of DPS's appendix C: schedules, the squared norm of equation 16, and the settings of table 5."""

import re
from dataclasses import replace

import pytest
import torch

from guided_diffusion.condition_methods import get_conditioning_method
from guided_diffusion.condition_methods.base import grad_and_value
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import NOISES, Measurement, get_noise, get_operator
from util.errors import UserError
from util.seeding import ImageRandomness

NAMES = ["a", "b"]
METHODS = {"ps": {}, "dpps": {"proximal": False, "aligned_init": False}}
every_method = pytest.mark.parametrize("method", METHODS)


def method_of(name: str, scale: float = 1.0, **likelihood):
    """A method with `scale` and the parameters of its point likelihood."""
    return get_conditioning_method(name, scale=scale, likelihood={"name": "point", **likelihood}, **METHODS[name])


def image() -> torch.Tensor:
    return 0.5 * torch.sin(torch.arange(2 * 3 * 64, dtype=torch.float64)).view(2, 3, 8, 8)


def measure(noise="gaussian", operator="super_resolution", **params) -> Measurement:
    options = {"super_resolution": {"scale_factor": 2},
               "inpainting": {"mask_opt": {"mask_type": "random", "mask_prob_range": [0.4, 0.6]}}}[operator]
    params = params or ({"sigma": 0.1} if noise == "gaussian" else {})
    return Measurement.simulate(get_operator(operator, **options), get_noise(noise, **params), image(),
                                ImageRandomness(0, NAMES))


def step_at(index: int, respacing: str = "1000", sampler: str = "ddpm"):
    reverse = create_sampler(sampler=sampler, model_var_type="fixed_small", timestep_respacing=respacing)
    x_t = reverse.q_sample(image(), index, torch.cos(image() * 50)).requires_grad_()
    with torch.enable_grad():
        return reverse.step(lambda x, t: 0.3 * x, x_t, index, ImageRandomness(1, NAMES))


def guidance(method: str, index: int, measurement: Measurement, respacing: str = "1000", **params) -> torch.Tensor:
    """What the method subtracts from the unconditional sample."""
    step = step_at(index, respacing)
    x, _ = method_of(method, **params).conditioning(step, measurement)
    free = step.mean + step.std * ImageRandomness(1, NAMES).randn_like(step.mean)
    return free - x


def gradient(index: int, measurement: Measurement, power: float, respacing: str = "1000") -> torch.Tensor:
    return grad_and_value(step_at(index, respacing), lambda x0: measurement.distance(x0) ** power)[0]


def column(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, 1, 1, 1)


@every_method
def test_defaults_are_the_released_step(method):
    measurement = measure()
    torch.testing.assert_close(guidance(method, 400, measurement, scale=0.7),
                               0.7 * gradient(400, measurement, 1), atol=1e-12, rtol=1e-9)


@every_method
@pytest.mark.parametrize("index, linear, exponential", [
    (999, 1.0, 1.0), (998, 0.999, 0.99), (499, 0.5, 0.99 ** 500), (1, 0.002, 0.99 ** 998), (0, 0.001, 0.99 ** 999)])
def test_schedules_decay_towards_the_clean_image(method, index, linear, exponential):
    measurement = measure()
    whole = gradient(index, measurement, 1)
    for schedule, factor in (("constant", 1.0), ("linear", linear), ("exponential", exponential)):
        torch.testing.assert_close(guidance(method, index, measurement, scale=0.3, schedule=schedule),
                                   0.3 * factor * whole, atol=1e-12, rtol=1e-6)


@pytest.mark.parametrize("schedule, last", [("linear", 1 / 1000), ("exponential", 0.9 ** 999)])
@pytest.mark.parametrize("respacing", ["10", "ddim10", "5,5", "6,1,1,1,1"])
def test_fewer_steps_go_as_far_at_the_same_level(schedule, last, respacing):
    timesteps = create_sampler(timestep_respacing=respacing).schedule.timesteps
    measurement, level = measure(), -1
    schedule = {"name": "exponential", "gamma": 0.9} if schedule == "exponential" else schedule
    for index, t in enumerate(timesteps.tolist()):
        few, whole = (guidance("ps", *step, schedule=schedule) for step in ((index, measurement, respacing),
                                                                            (t, measurement)))
        torch.testing.assert_close(few, whole * (t - level), atol=1e-12, rtol=1e-6)
        level = t
    torch.testing.assert_close(guidance("ps", 0, measurement, respacing, schedule=schedule),
                               last * gradient(0, measurement, 1, respacing), atol=1e-15, rtol=1e-6)


@every_method
def test_power_two_is_the_squared_norm_of_equation_16(method):
    measurement = measure()
    torch.testing.assert_close(guidance(method, 300, measurement, scale=0.2, power=2),
                               0.2 * gradient(300, measurement, 2), atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(                                         # rho = 1/sigma^2
        guidance(method, 300, measurement, scale=1.0, power=2.0, schedule="inverse_variance"),
        gradient(300, measurement, 2) / 0.1 ** 2, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("method", ["ps", "ps+", "mcg", "dpps"])
@pytest.mark.parametrize("respacing, index, factor", [
    ("1000", 4, 1), ("ddim250", 4, 4), ("ddim10", 4, 100), ("10", 4, 111), ("10", 0, 1),
    ("150,50,25,13,12", 1, 1), ("150,50,25,13,12", 180, 4), ("150,50,25,13,12", 249, 18)])
def test_scale_transfers_from_the_full_process_to_few_steps(method, respacing, index, factor):
    def state(scale, **rescale):
        params = rescale if method in ("ps+", "mcg") else {"likelihood": {"name": "point", **rescale}}
        measurement = measure()
        measurement.operator.project = lambda x, y: x                   # leaves of mcg what its gradient does
        return get_conditioning_method(method, scale=scale, **params).conditioning(step_at(index, respacing),
                                                                                   measurement)

    x, distance = state(0.3)
    official = state(0.3 * factor, rescale=False)
    torch.testing.assert_close((x, distance), official, atol=1e-9, rtol=1e-9)
    assert factor == 1 or (x - state(0.3, rescale=False)[0]).abs().max() > 1e-6


def test_the_papers_step_is_twice_the_codes():
    """zeta_i = zeta' / ||y - A(x0_hat)|| on the squared norm equals scale = 2 zeta' on the norm."""
    measurement = measure()
    norm = measurement.distance(step_at(300).x0_hat).detach()
    paper = 0.4 / column(norm) * gradient(300, measurement, 2)
    torch.testing.assert_close(guidance("ps", 300, measurement, scale=0.8), paper, atol=1e-12, rtol=1e-9)


def test_a_root_makes_a_norm_of_the_shot_likelihood():
    measurement = measure("poisson", likelihood="shot")
    counts = [127.5 * (values + 1) for values in (measurement.y, measurement.operator(step_at(300).x0_hat.detach()))]
    shot = ((counts[0] - counts[1]) ** 2 / (2 * counts[0].clamp_min(1))).flatten(1).sum(1)
    expected = 0.3 * gradient(300, measurement, 1) / column(2 * shot.sqrt())
    torch.testing.assert_close(guidance("ps", 300, measurement, scale=0.3, power=0.5), expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("noise, params", [("gaussian", {"sigma": 0.1, "range": [0, 1]}), ("poisson", {"rate": 0.5})])
@pytest.mark.parametrize("operator", ["super_resolution", "inpainting"])
def test_inverse_variance_of_the_observed_entries_of_each_image(noise, params, operator):
    measurement = measure(noise, operator, **params)
    seen = measurement.operator.informative(measurement.y).bool()
    variance = measurement.noiser.variance(measurement.y)
    factor = column(torch.stack([1 / v[m].mean() for v, m in zip(variance, seen, strict=True)]))
    assert noise == "poisson" or factor[0].item() == pytest.approx(1 / 0.2 ** 2)
    found = guidance("ps", 300, measurement, scale=1e-3, schedule="inverse_variance")
    torch.testing.assert_close(found, 1e-3 * factor * gradient(300, measurement, 1), atol=1e-12, rtol=1e-9)


def test_inverse_variance_follows_nothing_where_nothing_is_observed():
    measurement = measure(operator="inpainting")
    assert guidance("ps", 300, measurement, schedule="inverse_variance").abs().max() > 0
    measurement.operator.mask = torch.zeros_like(measurement.operator.mask)
    assert guidance("ps", 300, measurement, schedule="inverse_variance").abs().max() == 0


@every_method
@pytest.mark.parametrize("params", [{"power": 2}, {"power": 0.5}, {"schedule": "inverse_variance", "power": 2}])
def test_each_image_has_its_own_step_and_agreement_gives_none(method, params):
    measurement = measure()
    far = torch.cat([measurement.y[:1], measurement.y[1:] + 3])
    moved = Measurement(measurement.operator, measurement.noiser, far)
    both, alone = (guidance(method, 300, m, **params) for m in (moved, measurement))
    torch.testing.assert_close(both[0], alone[0])
    assert (both[1] - alone[1]).abs().max() > 1e-3
    exact = Measurement(measurement.operator, measurement.noiser, measurement.operator(step_at(300).x0_hat.detach()))
    assert guidance(method, 300, exact, **params).abs().max() < 1e-9


@every_method
@pytest.mark.parametrize("noise", list(NOISES))
def test_inverse_variance_needs_a_noise_variance(method, noise):
    options = {"gaussian": {"sigma": 0.1}, "poisson_gaussian": {"rate": 1.0, "sigma": 0.1}, "speckle": {"sigma": 0.1},
               "salt_and_pepper": {"fraction": 0.1}, "quantization": {"bits": 4}}
    noiser = get_noise(noise, **options.get(noise, {}))
    operator = get_operator("noise")
    get_conditioning_method(method).check(operator, noiser)
    inverse = method_of(method, schedule="inverse_variance")
    if noise == "clean":
        with pytest.raises(UserError, match="inverse_variance divides by the noise variance, but noise 'clean' has"):
            inverse.check(operator, noiser)
    else:
        inverse.check(operator, noiser)


@every_method
@pytest.mark.parametrize("params, message", [
    ({"schedule": "linaer"}, "unknown step size schedule 'linaer'; did you mean 'linear'? choose from constant, expon"),
    ({"power": 0}, "likelihood 'point': power is 0, expected a finite number, more than 0"),
    ({"power": -1}, "power is -1"), ({"gamma": 0.5}, "unknown key 'gamma'; it stands in schedule: {name: expon"),
    ({"schedule": {"name": "exponential", "gamma": 0.0}}, "gamma is 0.0, expected a finite number, more than 0 and at"),
    ({"schedule": {"name": "exponential", "gamma": 1.5}}, "gamma is 1.5"),
    ({"scale": -0.5}, "scale is -0.5, expected a finite number, 0 or more"),
])
def test_mistakes_are_named(method, params, message):
    with pytest.raises(UserError, match=re.escape(message)):
        method_of(method, **params)


@every_method
@pytest.mark.parametrize("key, place", [
    ("schedule", "{name: point, schedule: ...}"), ("power", "{name: point, power: ...}"),
    ("rescale", "{name: point, rescale: ...}"), ("gamma", "{name: point, schedule: {name: exponential, gamma: ...}}")])
def test_parameters_of_the_likelihood_are_sent_there(method, key, place):
    with pytest.raises(UserError, match=re.escape(f"unknown key '{key}'; it stands in likelihood: {place}")):
        get_conditioning_method(method, **{key: 1})


TABLE_5 = {                                         # paper's initial zeta' -> params; scale = 2 zeta' on the norm
    "constant 1.0": {"scale": 2.0},
    "1/sigma^2": {"scale": 1.0, "schedule": "inverse_variance"},
    "linear 0.3": {"scale": 0.6, "schedule": "linear"},
    "linear 1.0": {"scale": 2.0, "schedule": "linear"},
    "exponential 0.3": {"scale": 0.6, "schedule": {"name": "exponential", "gamma": 0.99}},
    "exponential 1.0": {"scale": 2.0, "schedule": {"name": "exponential", "gamma": 0.99}},
}


@pytest.mark.parametrize("params", TABLE_5.values(), ids=TABLE_5)
def test_the_total_guidance_of_table_5(params):
    """The sum of the 1000 factors: 1000, 500.5 or 100 times the scale, and 1 / sigma^2 a step."""
    method, measurement, step = method_of("ps", **params), measure(), step_at(0)
    sizes = [method.scale * method.likelihood.schedule(replace(step, timestep=t), measurement) for t in range(1000)]
    total = {"constant": 1000.0, "linear": 500.5, "exponential": (1 - 0.99 ** 1000) / 0.01,
             "inverse_variance": torch.full((2, 1, 1, 1), 1000 / 0.1 ** 2)}[method.likelihood.schedule.name]
    assert sum(sizes) == pytest.approx(params["scale"] * total)
