"""Small layers of the network, beside torch's own: what they compute, its gradients, and what they keep for them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import guided_diffusion.frozen
from guided_diffusion.frozen import Halve, NormalisedSiLU
from guided_diffusion.nn import Conv2d, GroupNorm
from guided_diffusion.unet import create_model
from tests.helpers import normal


def value_and_gradients(function: Callable, inputs: list[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
    """function(*inputs), and the gradients of <weights, function(*inputs)>."""
    y = function(*inputs)
    return y, *torch.autograd.grad((y * weights).sum(), inputs)


def in_channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def kept_images(function: Callable, x: Tensor) -> int:
    """How many tensors as large as x the gradient of function(x) by x keeps."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        function(x)
    return sum(tensor.numel() >= x.numel() for tensor in kept.values())


@pytest.fixture
def fused(monkeypatch) -> list:
    """A list that grows with every use of `NormalisedSiLU`."""
    calls = []
    apply = NormalisedSiLU.apply
    monkeypatch.setattr(NormalisedSiLU, "apply", lambda *args: calls.append(args) or apply(*args))
    return calls


@pytest.mark.parametrize("piece", [2 ** 18, 1000])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("shape", [(1, 64, 8, 8), (3, 96, 5, 7)])
def test_norm_and_activation_are_those_of_torch(shape, shifted, piece, fused, monkeypatch):
    monkeypatch.setattr(guided_diffusion.frozen, "PIECE", piece)
    torch.manual_seed(0)
    batch, channels, *_ = shape
    layer = GroupNorm(32, channels).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x, weights = 3 + 2 * torch.randn(2, *shape, dtype=torch.float64)
    scale_and_shift = list(torch.randn(2, batch, channels, dtype=torch.float64)) if shifted else []
    inputs = [tensor.requires_grad_() for tensor in (in_channels_last(x), *scale_and_shift)]

    def expected(x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, *parameters: Tensor) -> Tensor:
        h = F.group_norm(x, 32, layer.weight, layer.bias, layer.eps)
        return F.silu(h if scale is None else h * (1 + scale[:, :, None, None]) + shift[:, :, None, None])

    found = value_and_gradients(lambda *args: layer.silu(*args[:len(inputs)]), [*inputs, *layer.parameters()], weights)
    assert len(fused) == 1
    assert all(image.is_contiguous(memory_format=torch.channels_last) for image in found[:2])
    for a, b in zip(found, value_and_gradients(
            lambda *args: expected(*args[:len(inputs)]), [*inputs, *layer.parameters()], weights), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("x", [
    normal(2, 64, 8, 8, dtype=torch.float32),
    normal(2, 64, 1, 1, dtype=torch.float32),
    normal(1, 16, 64, dtype=torch.float32).transpose(1, 2).view(1, 64, 4, 4),    # after attention
])
def test_norm_and_activation_take_other_layouts(x):
    layer = GroupNorm(32, 64)
    scale, shift = normal(2, len(x), 64, seed=1, dtype=torch.float32)
    normalised = F.group_norm(x, 32)
    torch.testing.assert_close(layer(x), normalised)
    torch.testing.assert_close(layer.silu(x), F.silu(normalised))
    torch.testing.assert_close(layer.silu(x, scale, shift),
                               F.silu(normalised * (1 + scale[:, :, None, None]) + shift[:, :, None, None]))
    torch.testing.assert_close(layer(x.flatten(2)), normalised.flatten(2))


def test_half_precision_rounds_single_values(fused):
    """In bfloat16 no group of channels is off as a whole, far from 0 either: its sums are in float32."""
    torch.manual_seed(0)
    layer = GroupNorm(32, 64)
    x = in_channels_last((5 + torch.randn(2, 64, 32, 32)).bfloat16()).requires_grad_()
    weights = torch.randn(2, 64, 32, 32).bfloat16()
    found = value_and_gradients(layer.silu, [x], weights)
    in_float = x.detach().float().requires_grad_()
    expected = value_and_gradients(lambda x: F.silu(F.group_norm(x, 32)), [in_float], weights)
    assert len(fused) == 1
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.bfloat16
        a, b = (values.reshape(64, -1).double() for values in (a, b))               # 64 groups of 2 channels
        assert (a - b).abs().mean() < 0.004 * b.abs().mean()
        assert ((a * b).sum(1) / (b * b).sum(1) - 1).abs().max() < 0.005


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("options", [{"kernel_size": 3, "padding": 1}, {"kernel_size": 1},
                                     {"kernel_size": 3, "padding": 1, "stride": 2}])
def test_a_frozen_convolution_is_that_of_torch_and_keeps_no_image(options, layout):
    torch.manual_seed(0)
    layer = Conv2d(8, 6, **options).to(memory_format=layout)
    x = torch.randn(2, 8, 10, 12).contiguous(memory_format=layout).requires_grad_()
    weights = torch.randn_like(layer(x))
    expected = value_and_gradients(super(Conv2d, layer).forward, [x], weights)
    trained = value_and_gradients(lambda x, *_: layer(x), [x, *layer.parameters()], weights)
    layer.requires_grad_(False)
    for a, b, c in zip(value_and_gradients(layer, [x], weights), expected, trained, strict=False):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)
    assert (kept_images(layer, x), kept_images(super(Conv2d, layer).forward, x)) == (0, 1)
    layer.bias.requires_grad_(True)
    torch.testing.assert_close(torch.autograd.grad((layer(x) * weights).sum(), layer.bias)[0], weights.sum((0, 2, 3)))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_halving_averages_and_keeps_no_image(layout):
    x = torch.randn(2, 8, 10, 12).contiguous(memory_format=layout).requires_grad_()
    weights = torch.randn(2, 8, 5, 6)
    for a, b in zip(value_and_gradients(Halve.apply, [x], weights),
                    value_and_gradients(lambda x: F.avg_pool2d(x, 2), [x], weights), strict=True):
        torch.testing.assert_close(a, b)
    assert kept_images(Halve.apply, x) == 0


@pytest.mark.parametrize("layer", [Conv2d(4, 6, 3, padding=1), Conv2d(4, 6, 3, stride=2, padding=1), Halve.apply])
def test_frozen_layers_have_all_derivatives(layer):
    """Forward mode, reverse mode, reverse mode twice, and several at once; all of a linear map."""
    if isinstance(layer, nn.Module):
        layer.requires_grad_(False)
    x, directions = torch.randn(2, 4, 8, 8), torch.randn(3, 2, 4, 8, 8)
    changes = torch.stack([layer(x + direction) - layer(x) for direction in directions])
    y, transpose = torch.func.vjp(layer, x)
    weights = torch.randn_like(y)
    products = (transpose(weights)[0] * directions[0]).sum(), (weights * changes[0]).sum()
    torch.testing.assert_close(*products, atol=1e-3, rtol=1e-4)
    for found in (torch.func.vmap(lambda direction: torch.func.jvp(layer, (x,), (direction,))[1])(directions),
                  torch.stack([torch.autograd.functional.jvp(layer, x, direction)[1] for direction in directions])):
        torch.testing.assert_close(found, changes, atol=1e-4, rtol=1e-4)


def test_a_frozen_network_works_with_torch_func():
    torch.manual_seed(0)
    network = create_model(16, 32, 1, channel_mult="1,2", attention_resolutions="8", num_head_channels=32,
                           use_scale_shift_norm=True, resblock_updown=True, learn_sigma=True).requires_grad_(False)
    for parameter in network.parameters():
        if not parameter.any():                     # the layers that begin at zero
            nn.init.normal_(parameter, std=0.1)
    x = torch.randn(2, 3, 16, 16)

    def predict(x: Tensor) -> Tensor:
        return network(x, torch.tensor([10, 500]))

    y, transpose = torch.func.vjp(predict, x)
    weights = torch.randn_like(y)
    gradient, = transpose(weights)
    expected, = torch.autograd.grad((predict(x.requires_grad_()) * weights).sum(), x)
    assert gradient.any()
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)
