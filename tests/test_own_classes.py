"""What is said to those who write an operator, a noise model, a method, a solver or a prior with a mistake in it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from guided_diffusion.condition_methods.base import ConditioningMethod, grad_and_value
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import OPERATORS, LinearOperator, Measurement, Noise, Operator, get_noise
from guided_diffusion.measurements.trial import check_measurement
from guided_diffusion.method import CONDITIONING_METHODS, Method
from guided_diffusion.solvers.base import Iteration, Solver
from guided_diffusion.unet import create_model
from tests.command_line import MODEL
from tests.helpers import NAMES, NOISE_EXAMPLES, OPERATOR_EXAMPLES, normal
from util.config.registry import Registry
from util.errors import UserError
from util.seeding import ImageRandomness


def own(base: type, **members: object):
    """An instance of a class of the user's."""
    return type("Own", (base,), {"name": "mine", **members})()


def measured(operator: Operator, noise: Noise, size: int = 8) -> Measurement:
    images = normal(2, 3, size, size, dtype=torch.float32).clamp(-1, 1)
    return Measurement.simulate(operator, noise, images, ImageRandomness(0, NAMES[:2]))


def shrunk(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([0.1 * x, 0 * x], 1)


def restored(method: Method, operator: Operator | None = None, prior: Callable = shrunk) -> Tensor:
    operator = operator or own(Operator, forward=lambda self, x: x.tanh())
    measurement = measured(operator, get_noise("gaussian", sigma=0.1))
    return method.restore(prior, create_sampler(timestep_respacing="2"), measurement, ImageRandomness(0, NAMES[:2]))


def halved(self, x):
    x *= 0.5
    return x


def downsampled(self, x):
    return x[..., ::2]


def enlarged(self, y):
    return 3 * y.repeat_interleave(2, -1)


OPERATORS_WITH_MISTAKES = {
    "numpy": (Operator, {"forward": lambda self, x: x.numpy()}, "gives a ndarray as measurements; return a tensor"),
    "nothing": (Operator, {"forward": lambda self, x: None}, "gives None as measurements"),
    "in place": (Operator, {"forward": halved}, "changes its input in place"),
    "nan": (Operator, {"forward": lambda self, x: (x - 1).sqrt()}, "gives NaN or infinity"),
    "square": (LinearOperator, {"forward": lambda self, x: x ** 2}, "no linear one.*subclass Operator"),
    "affine": (LinearOperator, {"forward": lambda self, x: (x + 1) / 2}, "no linear one"),
    "clipped": (LinearOperator, {"forward": lambda self, x: x.clamp(-1, 1)}, "no linear one"),
    "random": (LinearOperator, {"forward": lambda self, x: x + 0.1 * torch.randn_like(x)}, "into draw"),
    "no adjoint": (LinearOperator, {"forward": downsampled, "transpose": enlarged}, "not the adjoint of forward"),
    "shape": (LinearOperator, {"forward": downsampled, "transpose": lambda self, y: y}, r"expected .* \[2, 3, 8, 8\]"),
    "detached": (LinearOperator, {"forward": lambda self, x: x.detach()}, "not the adjoint of forward"),
    "by numpy": (LinearOperator, {"forward": lambda self, x: torch.from_numpy(x.numpy().copy())},
                 "no adjoint can be derived"),
    "lift": (Operator, {"forward": downsampled, "lift": downsampled}, r"lift gives .*expected \[2, 3, 8, 8\]"),
}


@pytest.mark.parametrize(("base", "members", "message"), OPERATORS_WITH_MISTAKES.values(), ids=OPERATORS_WITH_MISTAKES)
def test_operators(base, members, message):
    with pytest.raises(UserError, match=message):
        check_measurement(measured(own(base, **members), get_noise("clean")))


def test_an_operator_whose_init_forgets_that_of_its_base():
    with pytest.raises(UserError, match=r"has to begin with super\(\).__init__\(\)"):
        own(LinearOperator, __init__=lambda self: None, forward=downsampled).to("cpu")


@pytest.mark.parametrize("name", OPERATOR_EXAMPLES)
def test_operators_without_mistakes_pass(name):
    check_measurement(measured(OPERATORS.build(name, **OPERATOR_EXAMPLES[name]), get_noise("clean"), 16))
    check_measurement(measured(own(LinearOperator, forward=lambda self, x: 0 * x), get_noise("clean")))


def louder(self, y, randomness):
    y += randomness.randn_like(y)
    return y


@pytest.mark.parametrize("name", NOISE_EXAMPLES)
@pytest.mark.parametrize("operator", ["super_resolution", "phase_retrieval", "fourier"])
def test_noises_without_mistakes_pass(name, operator):
    noise, operator = get_noise(name, **NOISE_EXAMPLES[name]), OPERATORS.build(operator, **OPERATOR_EXAMPLES[operator])
    if operator.pictures or not noise.of_pictures:
        check_measurement(measured(operator, noise, 16))


NOISES_WITH_MISTAKES = {
    "in place": ({"forward": louder}, "noise 'mine' changes its input in place"),
    "float64": ({"forward": lambda self, y, randomness: y.double()}, "torch.float64 of a tensor .*torch.float32"),
    "shape": ({"forward": lambda self, y, randomness: y[0]}, r"of shape \[3, 8, 8\]"),
    "nan": ({"forward": lambda self, y, randomness: y.log()}, "gives NaN or infinity"),
    "a number": ({"variance": lambda self, prediction: 0.01}, "variance gives a float, expected one number for each"),
    "one for all": ({"variance": lambda self, prediction: prediction.new_ones(1)}, r"of shape \[1\].*such as"),
    "negative": ({"variance": lambda self, prediction: prediction}, "variance gives numbers that are negative"),
    "square": ({"expected_square": lambda self, prediction: prediction.mean()}, "expected_square gives a tensor"),
    "of the batch": ({"distance": lambda self, y, prediction: (y - prediction).norm()}, "one number per image"),
    "of pixels": ({"distance": lambda self, y, prediction: (y - prediction) ** 2}, "one number per image"),
}


@pytest.mark.parametrize(("members", "message"), NOISES_WITH_MISTAKES.values(), ids=NOISES_WITH_MISTAKES)
def test_noises(members, message):
    noise = own(Noise, **{"forward": lambda self, y, randomness: y + 0, **members})
    with pytest.raises(UserError, match=message):
        measurement = measured(own(LinearOperator, forward=lambda self, x: x), noise)
        check_measurement(measurement)
        measurement.distance(measurement.y)


def guided(self, step, measurement):
    gradient, distance = grad_and_value(step, measurement.distance)
    return step.sample() - gradient, distance


def graph_cut(self, step, measurement):
    distance = measurement.distance(step.x0_hat)
    return step.sample() - torch.autograd.grad(distance.sum(), step.x_t)[0], distance


def conditioning(result, needs_grad: bool = True) -> tuple[type, dict]:
    return ConditioningMethod, {"conditioning": result, "needs_grad": needs_grad}


def solver(*results) -> tuple[type, dict]:
    return Solver, {"iterates": lambda self, *_: iter(results)}


IMAGES = torch.zeros(2, 3, 8, 8)
METHODS_WITH_MISTAKES = {
    "no needs_grad": (*conditioning(guided, needs_grad=False), "set needs_grad = True"),
    "no enable_grad": (*conditioning(graph_cut), r"within torch.enable_grad\(\)"),
    "no pair": (*conditioning(lambda self, step, measurement: step.mean), "return x, distance"),
    "exchanged": (*conditioning(lambda self, *given: guided(self, *given)[::-1]), "as the next state"),
    "float64": (*conditioning(lambda self, step, _: (step.mean.double(), torch.zeros(2))), "float64 as the next state"),
    "sum": (*conditioning(lambda self, step, _: (step.mean, torch.zeros(()))), r"one number per image, \[2\]"),
    "no state": (*solver(IMAGES), "expected what happened and the state"),
    "another shape": (*solver((Iteration(0, IMAGES), IMAGES[:1])), r"\[1, 3, 8, 8\].* as the next state"),
    "nothing": (*solver(), "yields nothing"),
}


@pytest.mark.parametrize(("base", "members", "message"), METHODS_WITH_MISTAKES.values(), ids=METHODS_WITH_MISTAKES)
def test_methods(base, members, message):
    with pytest.raises(UserError, match=message):
        restored(own(base, **members))


def test_an_operator_without_gradients_under_a_method_that_takes_them():
    operator = own(Operator, forward=lambda self, x: x.detach() + 0)
    with pytest.raises(UserError, match="the operator's forward is made of differentiable"):
        restored(CONDITIONING_METHODS.build("ps"), operator)


PRIORS_WITH_MISTAKES = {
    "detached": (lambda x, t: torch.cat([x, x], 1).detach(), "no gradient with respect to x_t"),
    "float64": (lambda x, t: torch.cat([x, x], 1).double(), "of torch.float64 for images"),
    "size": (lambda x, t: torch.cat([x, x], 1)[..., ::2], r"gives \[2, 6, 8, 4\]"),
    "tuple": (lambda x, t: (x, x), "gives a tuple"),
}


@pytest.mark.parametrize(("prior", "message"), PRIORS_WITH_MISTAKES.values(), ids=PRIORS_WITH_MISTAKES)
def test_priors(prior, message):
    with pytest.raises(UserError, match=message):
        restored(CONDITIONING_METHODS.build("ps"), prior=prior)


def test_a_measurement_of_another_dtype_than_the_network():
    measurement = measured(own(LinearOperator, forward=lambda self, x: x), get_noise("clean"))
    double = Measurement(measurement.operator, measurement.noiser, measurement.y.double())
    with pytest.raises(UserError, match=r"torch.float32, found torch.float64.* y.to\(torch.float32\)"):
        CONDITIONING_METHODS.build("ps").restore(create_model(**MODEL), create_sampler(timestep_respacing="2"), double,
                                                 ImageRandomness(0, NAMES[:2]))


def test_what_cannot_be_registered():
    registry = Registry("operator", Operator)
    with pytest.raises(UserError, match="Own is no subclass of Operator"):
        registry.register("mine")(type("Own", (), {}))
    registry.register("mine")(type("Own", (Operator,), {}))
    with pytest.raises(UserError, match="'mine': .*forward; write it"):
        registry.build("mine")
