"""Conditioning methods at work on small measurements: whole restorations, and one step that can be followed by hand."""

import functools
import math

import torch
from torch import nn

from guided_diffusion.condition_methods import CONDITIONING_METHODS, ConditioningMethod, get_conditioning_method
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import LinearOperator, Measurement, Operator, get_noise, get_operator
from guided_diffusion.unet import create_model
from tests.helpers import NOISE_EXAMPLES, OPERATOR_EXAMPLES, fill_network
from util.seeding import ImageRandomness

SIZE = 16
NAMES = ["anna", "ben", "cleo"]
LINEAR = [name for name, params in OPERATOR_EXAMPLES.items()
          if isinstance(get_operator(name, **params), LinearOperator)]
NONLINEAR = [name for name in OPERATOR_EXAMPLES if name not in LINEAR]
OFFICIAL = {"name": "point", "rescale": False}      # the authors' code: steps do not grow where they are fewer
METHODS = [name for name in CONDITIONING_METHODS if issubclass(CONDITIONING_METHODS[name], ConditioningMethod)]


@functools.cache
def tiny_unet():
    return fill_network(create_model(
        image_size=SIZE, num_channels=32, num_res_blocks=1, channel_mult="1,2", attention_resolutions="8", num_heads=2,
        learn_sigma=True, use_scale_shift_norm=True), salt=50000).double()


class OneLayer(nn.Module):
    """model(x_t, t) -> (B, 6, H, W): colours and neighbours mix, nonlinearly, at a cost that hundreds of tests can
    bear."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x, t):
        return torch.tanh(self.layer(x) + 1e-3 * t.to(x).view(-1, 1, 1, 1))


@functools.cache
def one_layer():
    return fill_network(OneLayer(), salt=50000).double()


def photographs(names):
    """One smooth image per name, in [-1, 1], float64, so that rounding hides nothing: (B, 3, SIZE, SIZE)."""
    noise = ImageRandomness(7, names).randn_like(torch.empty(len(names), 3, 4, 4, dtype=torch.float64))
    return torch.nn.functional.interpolate(noise, size=SIZE, mode="bicubic").clamp(-1, 1)


def measure(operator, names, noise="gaussian", **params):
    randomness = ImageRandomness(3, names)
    example = get_operator(operator, **OPERATOR_EXAMPLES[operator])
    noiser = get_noise(noise, **(params or ({"sigma": 0.05} if noise == "gaussian" else NOISE_EXAMPLES[noise])))
    return Measurement.simulate(example, noiser, photographs(names), randomness), randomness


def restore(method, operator, names, sampler=None, noise="gaussian", network=tiny_unet, **params):
    measurement, randomness = measure(operator, names, noise)
    distances = []
    x = get_conditioning_method(method, **params).restore(
        network(), sampler or create_sampler(timestep_respacing="4"), measurement, randomness,
        callback=lambda step, x, distance: distances.append(distance))
    return x, torch.stack(distances)


def single_step(operator="super_resolution", index=5, noise="gaussian", names=NAMES[:2], **diffusion):
    """A step of the eps network 0.3 x_t + 0.1, from a known state: sampler, step, measurement."""
    measurement, randomness = measure(operator, names, noise)
    sampler = create_sampler(model_var_type="fixed_small", timestep_respacing="10", **diffusion)
    x_t = sampler.q_sample(photographs(names), index, randomness.randn_like(photographs(names)))
    step = sampler.step(lambda x, t: 0.3 * x + 0.1, x_t.requires_grad_(), index, ImageRandomness(11, names))
    return sampler, step, measurement


def fresh(step):
    """The draws that the step will make, from the same streams."""
    return ImageRandomness(11, step.randomness.names)


def guidance(step, measurement):
    """The gradient of each image's norm, written out for the linear network: slope * J^T(A x0 - y) / norm where
    x0 is not clamped, with J the Jacobian of A at x0, A itself where it is linear."""
    operator = measurement.operator
    prediction, jacobian_transpose = torch.func.vjp(operator, step.x0_hat.detach())
    residual = prediction - measurement.y
    adjoint = operator.transpose(residual) if isinstance(operator, LinearOperator) else jacobian_transpose(residual)[0]
    norm = residual.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    slope = (1 - 0.3 * math.sqrt(1 - step.alpha_bar)) / math.sqrt(step.alpha_bar)
    return slope * (step.x0_hat.detach().abs() < 1).double() * adjoint / norm


class Loop(ConditioningMethod):
    """The ancestral loop from a given state, with a function step -> (x_{t-1}, distance)."""

    def __init__(self, x_start, function, needs_grad=False):
        self.x_start, self.function, self.needs_grad = x_start, function, needs_grad

    def start(self, sampler, measurement, randomness):
        return self.x_start

    def conditioning(self, step, measurement):
        return self.function(step)


class Wrapped(Operator):
    """Another operator, not known to be linear."""

    name = "wrapped"

    def __init__(self, operator):
        super().__init__()
        self.operator, self.image_shape = operator, operator.image_shape

    def forward(self, x):
        return self.operator(x)
