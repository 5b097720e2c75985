"""Every conditioning method: batches, noise models and samplers, perfect agreement, what is refused."""

import pytest
import torch

from guided_diffusion.condition_methods import CONDITIONING_METHODS, Identity, get_conditioning_method
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from tests.guided_steps import METHODS, NAMES, SIZE, Wrapped, one_layer, restore, single_step, tiny_unet
from tests.helpers import NOISE_EXAMPLES, OPERATOR_EXAMPLES
from util.errors import UserError


def serves(method, operator, noise="gaussian"):
    return CONDITIONING_METHODS[method].serves(get_operator(operator, **OPERATOR_EXAMPLES[operator]),
                                               get_noise(noise, **NOISE_EXAMPLES[noise]))


PAIRS = [(method, operator) for method in METHODS for operator in OPERATOR_EXAMPLES if serves(method, operator)]
ALL = {name: CONDITIONING_METHODS[name] for name in CONDITIONING_METHODS}
CASES = [(get_operator(operator, **params), get_noise(noise, **noise_params))
         for operator, params in OPERATOR_EXAMPLES.items() for noise, noise_params in NOISE_EXAMPLES.items()]


def named(name, thing):
    """As the registry would name it."""
    thing.name = name
    return thing


@pytest.mark.parametrize(("method", "operator", "network"), [
    *((method, operator, one_layer) for method, operator in PAIRS),
    *((method, "super_resolution", tiny_unet) for method in METHODS if serves(method, "super_resolution"))])
def test_batch_equals_single_runs_in_any_order(method, operator, network):
    sampler = create_sampler(timestep_respacing="2")
    batch, distances = restore(method, operator, NAMES, sampler, network=network)
    assert batch.shape == (3, 3, SIZE, SIZE) and batch.isfinite().all() and distances.shape == (2, 3)
    assert (batch[0] - batch[1]).abs().max() > 0.1
    shuffled, _ = restore(method, operator, [NAMES[2], NAMES[0]], sampler, network=network)
    torch.testing.assert_close(shuffled, batch[[2, 0]], atol=1e-6, rtol=0)
    alone, distance = restore(method, operator, [NAMES[1]], sampler, network=network)
    torch.testing.assert_close(alone, batch[1:2], atol=1e-6, rtol=0)
    torch.testing.assert_close(distance[:, 0], distances[:, 1], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("method", "noise"), [
    (method, noise) for method in METHODS for noise in NOISE_EXAMPLES
    if serves(method, "super_resolution", noise)])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_every_noise_model_and_sampler(method, noise, sampler):
    reverse = create_sampler(sampler=sampler, timestep_respacing="2", eta=0.3 if sampler == "ddim" else 0.0)
    x, distances = restore(method, "super_resolution", NAMES[:2], reverse, noise, one_layer)
    assert x.isfinite().all() and distances.isfinite().all() and (distances > 0).all()


@pytest.mark.parametrize("method", [name for name in METHODS if CONDITIONING_METHODS[name].needs_grad
                                    and serves(name, "noise", "clean")])
def test_perfect_agreement_gives_no_nan(method):
    _, step, measurement = single_step("noise", noise="clean")
    exact = Measurement(measurement.operator, measurement.noiser, step.x0_hat.detach().clone())
    x, distance = get_conditioning_method(method).conditioning(step, exact)
    assert x.isfinite().all() and distance.isfinite().all()


@pytest.mark.parametrize("method", [name for name in METHODS if CONDITIONING_METHODS[name].needs_linear])
def test_methods_that_need_a_linear_operator_say_so(method):
    square = named("square", Wrapped(get_operator("noise")))
    with pytest.raises(UserError, match=f"'{method}' needs .*linear.*, found 'square'; methods that serve 'square': "
                                        ".*dpps, .*ps, "):
        get_conditioning_method(method).check(square)


@pytest.mark.parametrize("operator", ["fourier", "compressed_sensing"])
def test_tmpd_refuses_weights_of_both_signs(operator):
    """Row sums in which they cancel bound nothing."""
    with pytest.raises(UserError, match=f"'tmpd' needs .*pictures.*, found '{operator}'; methods that serve .*pigdm"):
        get_conditioning_method("tmpd").check(get_operator(operator, **OPERATOR_EXAMPLES[operator]))


def test_what_serves_the_noise_is_named(monkeypatch):
    """A method for Gaussian noise alone states that once, and is left out of the lists of others."""
    class GaussianOnly(Identity):
        needs = "gaussian noise"

        @classmethod
        def serves(cls, operator, noiser=None):
            return noiser is None or noiser.name == "gaussian"

    monkeypatch.setitem(CONDITIONING_METHODS._classes, "gaussian_only", named("gaussian_only", GaussianOnly))
    method, operator = get_conditioning_method("gaussian_only"), get_operator("noise")
    method.check(operator)
    method.check(operator, get_noise("gaussian", sigma=0.1))
    with pytest.raises(UserError, match="'gaussian_only' needs gaussian noise, found 'noise' with noise 'clean'; "
                                        "methods that serve 'noise' with noise 'clean': .*dpps, ") as refusal:
        method.check(operator, get_noise("clean"))
    assert str(refusal.value).count("gaussian_only") == 1
    with pytest.raises(UserError, match="methods that serve 'hdr': .*gaussian_only, "):
        get_conditioning_method("mcg").check(get_operator("hdr"), get_noise("gaussian", sigma=0.1))


@pytest.mark.parametrize("method, params, message", [
    ("ps", {"scale": -1}, "scale is -1, expected a finite number, 0 or more"),
    ("mcg", {"scale": -0.5}, "scale is -0.5"),
    ("ps+", {"scale": -0.5}, "scale is -0.5"),
    ("dpps", {"scale": -0.5}, "scale is -0.5"),
    ("ps", {"scael": 9}, "did you mean 'scale'"),
    ("ps", {"scale": "0.3"}, "scale is '0.3', expected a finite number"),
    ("ps+", {"num_sampling": 0}, "num_sampling is 0, expected an integer, 1 or more"),
    ("ps+", {"perturbation": -0.1}, "perturbation is -0.1"),
    ("dpps", {"max_candidates": 0}, "max_candidates is 0, expected an integer, 1 or more"),
    ("dpps", {"chunk": 0}, "chunk is 0"),
    ("dpps", {"target": "y"}, "target is 'y', expected one of 'eps', 'mean'"),
    ("vanilla", {"scale": 1.0}, "takes no parameters"),
    ("dpss", {}, "did you mean 'dpps'"),
    ("dsg", {"weight": 1.5}, "weight is 1.5, expected a finite number, 0 to 1"),
    ("dsg", {"interval": 0}, "interval is 0, expected an integer, 1 or more"),
    ("dmps", {"scale": -1}, "scale is -1, expected a finite number, 0 or more"),
    ("pigdm", {"weight": "best"}, "weight is 'best', expected one of 'bayes', 'paper', 'release'"),
    ("diffpir", {"lam": 0}, "lam is 0, expected a finite number, more than 0"),
    ("fast_dips", {"rounds": 0}, "rounds is 0, expected an integer, 1 or more"),
])
def test_mistakes_in_parameters(method, params, message):
    with pytest.raises(UserError, match=message):
        get_conditioning_method(method, **params)


@pytest.mark.parametrize("name", ALL)
def test_a_refusal_names_what_was_found_and_what_serves_it(name):
    """The operator, the noise where another would do, and methods that take both; every operator with every noise."""
    method = get_conditioning_method(name)
    for operator, noiser in CASES:
        if method.serves(operator, noiser):
            continue
        with pytest.raises(UserError) as refusal:
            method.check(operator, noiser)
        found, _, serving = str(refusal.value).partition("; methods that serve ")
        task, _, names = serving.rpartition(": ")
        assert task == f"'{operator.name}'" + f" with noise '{noiser.name}'" * method.serves(operator)
        assert found == f"conditioning method '{name}' needs {method.needs}, found {task}"
        assert names and all(ALL[other].serves(operator, noiser) for other in names.split(", "))
