"""What keeps sampling fast: no step waits for the device, and a step keeps only what its gradient needs.

The loop runs on the meta device, where tensors have no values: whatever asks for one raises, and a copy between it and
the CPU, which would make a GPU and its host wait for each other, is seen by a dispatch mode.
"""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from guided_diffusion.condition_methods import CONDITIONING_METHODS, ConditioningMethod, get_conditioning_method
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import OPERATORS, LinearOperator, Measurement, get_noise, get_operator
from guided_diffusion.priors.tiling import PaddedPrior, TiledPrior
from guided_diffusion.unet import create_model
from guided_diffusion.unet_blocks import ResBlock
from tests.guided_steps import LINEAR
from tests.helpers import NOISE_EXAMPLES, OPERATOR_EXAMPLES
from util.seeding import ImageRandomness

SHAPE = (2, 3, 16, 16)
METHODS = [name for name in CONDITIONING_METHODS if issubclass(CONDITIONING_METHODS[name], ConditioningMethod)]
PROJECTING = [name for name in METHODS if CONDITIONING_METHODS[name].needs_linear]
SEARCHING = ("diffpir", "fast_dips")
CLOSED_FORMS = ("noise", "super_resolution", "inpainting", "colorization", "sr_average", "gaussian_blur",
                "compressed_sensing")               # of the pseudo-inverse


class Strict(TorchDispatchMode):
    """Raises where tensors go from one device to another."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [a for a in args if isinstance(a, Tensor) and a.dim()]
        if isinstance(out, Tensor) and any(t.device != out.device for t in tensors):
            raise RuntimeError(f"{function} takes {[t.device.type for t in tensors]} to {out.device.type}")
        return out


class NoValues:
    """ImageRandomness's interface, on the device of what asks."""

    def randn_like(self, x: Tensor) -> Tensor:
        return torch.empty_like(x)

    rand_like = randn_like


class Prior(nn.Conv2d):
    """The smallest network with variance channels."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return super().forward(x_t)


@pytest.fixture(scope="module")
def prior():
    return Prior(3, 6, 1, device="meta").requires_grad_(False)


def restore_on_meta(prior, method, operator_name: str, noise_name: str, sampler_options: dict) -> Tensor:
    operator = get_operator(operator_name, **OPERATOR_EXAMPLES[operator_name])
    measured = Measurement.simulate(operator, get_noise(noise_name, **NOISE_EXAMPLES[noise_name]), torch.zeros(SHAPE),
                                    ImageRandomness(0, ["a", "b"]))
    measurement = Measurement(measured.operator.to("meta"), measured.noiser, measured.y.to("meta"))
    sampler = create_sampler(timestep_respacing=2, **sampler_options)
    method.restore(prior, sampler, measurement, NoValues())         # what is kept goes to the device once
    with Strict():
        return method.restore(prior, sampler, measurement, NoValues())


@pytest.mark.parametrize("method, operator", [
    *(("dpps", operator) for operator in sorted(OPERATOR_EXAMPLES.keys() - {"gopro_blur"})),
    *((method, operator) for method in METHODS for operator in ("gaussian_blur", "inpainting", "hdr")
      if method != "dpps")])
def test_no_step_waits_for_the_device(prior, method, operator):
    if method in PROJECTING and operator not in CLOSED_FORMS:
        pytest.skip("the pseudo-inverse is iterative, or none exists")
    if method in SEARCHING and not issubclass(OPERATORS[operator], LinearOperator):
        pytest.skip("a line search asks whether it has found a descent")
    restored = restore_on_meta(prior, get_conditioning_method(method), operator, "gaussian", {})
    assert restored.shape == SHAPE


def test_drawn_paths_are_read_from_the_device_once(monkeypatch):
    operator = get_operator("gopro_blur", **OPERATOR_EXAMPLES["gopro_blur"])
    operator = operator.prepare(SHAPE, ImageRandomness(0, ["a", "b"]))
    first = operator(torch.zeros(SHAPE))
    shifts = operator.shifts
    monkeypatch.setattr(Tensor, "tolist", lambda self: pytest.fail("the paths are read again"))
    torch.testing.assert_close(operator(torch.zeros(SHAPE)), first)
    monkeypatch.undo()
    other = operator.prepare(SHAPE, ImageRandomness(1, ["a", "b"]))
    assert other.shifts is not shifts and other._shift_values() == other.shifts.tolist()
    assert operator._shift_values() == shifts.tolist()


@pytest.mark.parametrize("scale_shift", [True, False])
def test_the_network_does_not_wait_for_the_device(scale_shift):
    with torch.device("meta"):
        network = create_model(16, 32, 1, channel_mult="1,2", attention_resolutions="8", num_head_channels=32,
                               use_scale_shift_norm=scale_shift, resblock_updown=scale_shift, learn_sigma=True)
    network.requires_grad_(False)
    restore_on_meta(PaddedPrior(network, network.multiple), get_conditioning_method("ps"), "inpainting", "gaussian", {})


def test_tiles_do_not_wait_for_the_device(prior):
    tiled = TiledPrior(prior, tile=8)
    tiled(torch.zeros(SHAPE, device="meta"), torch.zeros(2, device="meta"))             # the windows' weights, once
    restore_on_meta(tiled, get_conditioning_method("ps"), "inpainting", "gaussian", {})


@pytest.mark.parametrize("noise", NOISE_EXAMPLES)
def test_no_noise_model_waits_for_the_device(prior, noise):
    restore_on_meta(prior, get_conditioning_method("ps"), "inpainting", noise, {})


@pytest.mark.parametrize("options", [
    {"sampler": "ddim", "eta": 0.5}, {"sampler": "renoise"}, {"model_var_type": "learned"}, {"rescale_timesteps": True},
    {"dynamic_threshold": True}, {"model_mean_type": "start_x"}])
def test_no_sampler_waits_for_the_device(prior, options):
    restore_on_meta(prior, get_conditioning_method("dpps"), "inpainting", "gaussian", options)


@pytest.mark.parametrize("schedule", ["linear", "exponential", "inverse_variance"])
def test_no_step_size_waits_for_the_device(prior, schedule):
    likelihood = {"name": "point", "schedule": schedule, "power": 2.0}
    restore_on_meta(prior, get_conditioning_method("ps", likelihood=likelihood), "inpainting", "gaussian", {})


@pytest.mark.parametrize("operator", LINEAR)
def test_no_gaussian_likelihood_waits_for_the_device(prior, operator):
    restore_on_meta(prior, get_conditioning_method("dpps", likelihood="gaussian"), operator, "poisson", {})


@pytest.mark.parametrize("wait", [
    lambda distance: distance.sum().item(),
    lambda distance: bool((distance > 0).all()),
    lambda distance: distance[distance > 0],
    lambda distance: distance.cpu(),
    lambda distance: torch.ones(2).to(distance.device),
])
def test_waiting_is_noticed(prior, wait):
    class Waiting(CONDITIONING_METHODS["vanilla"]):
        def conditioning(self, step, measurement):
            x, distance = super().conditioning(step, measurement)
            wait(distance)
            return x, distance

    with pytest.raises((RuntimeError, NotImplementedError)):
        restore_on_meta(prior, Waiting(), "inpainting", "gaussian", {})


def kept_bytes(model: nn.Module, shape: tuple[int, ...]) -> int:
    """What the gradient of the image keeps, besides the parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = torch.zeros(shape, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x, torch.zeros(shape[0]))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_32_images_of_the_ffhq_network_fit_80_gigabytes():
    """Activations grow with pixels; float32 ones, twice what a network in bf16 keeps, are measured at 64 x 64, with
    norm and activation one by one, as on a GPU."""
    model = create_model(256, 128, 1, learn_sigma=True, attention_resolutions=16, num_head_channels=64,
                         use_scale_shift_norm=True, resblock_updown=True).requires_grad_(False)
    model.to(memory_format=torch.contiguous_format)
    per_image = kept_bytes(model, (1, 3, 64, 64)) * 16
    assert 32 * per_image / 2 + 4 * sum(p.numel() for p in model.parameters()) < 20e9


@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_half_precision_is_not_widened_on_a_gpu(monkeypatch, resample):
    """On a pretended GPU, whose autocast has rules of its own: what the gradient keeps of images is in bf16."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    kept = []
    with FakeTensorMode(), torch.device("cuda"), torch.autocast("cuda", dtype=torch.bfloat16):
        block = ResBlock(64, 64, 16, dropout=0.0, scale_shift=True, resample=resample).requires_grad_(False)
        x = torch.empty(2, 64, 8, 8, dtype=torch.bfloat16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            out = block(x, torch.empty(2, 16))
    images = [tensor for tensor in kept if tensor.dim() == 4 and tensor.shape[0] == 2]
    assert len(images) >= 4
    assert {tensor.dtype for tensor in (*images, out)} == {torch.bfloat16}


@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_a_frozen_block_keeps_two_images(resample):
    """What its two norms made of them; the second of another size where the block changes it."""
    block = ResBlock(64, 64, 16, dropout=0.0, scale_shift=True, resample=resample).requires_grad_(False)
    block.to(memory_format=torch.channels_last)
    x = torch.zeros(1, 64, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        out = block(x, torch.zeros(1, 16))
    own = {parameter.data_ptr() for parameter in block.parameters()}
    images = [tensor for pointer, tensor in kept.items() if pointer not in own and tensor.numel() > 1000]
    assert [tensor.shape for tensor in images] == [x.shape, out.shape]


def test_frozen_parameters_keep_less():
    model = create_model(32, 32, 1, channel_mult="1,2", attention_resolutions="", num_head_channels=32,
                         use_scale_shift_norm=True)
    trained = kept_bytes(model.requires_grad_(True), (2, 3, 32, 32))
    frozen = kept_bytes(model.requires_grad_(False), (2, 3, 32, 32))
    assert frozen < 0.6 * trained
