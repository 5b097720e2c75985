"""Small layers of the network: group normalisation in channels_last, beside torch's own."""

import pytest
import torch
from torch import Tensor

from guided_diffusion.nn import GroupNorm, Standardise


def value_and_gradients(layer: GroupNorm, x: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    """layer(x), and the gradients of <weights, layer(x)> by x and by the layer's parameters."""
    x = x.requires_grad_()
    y = layer(x)
    return y, *torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])


@pytest.mark.parametrize("shape", [(1, 64, 8, 8), (3, 96, 5, 7)])
def test_group_norm_in_channels_last_is_that_of_torch(shape, monkeypatch):
    torch.manual_seed(0)
    layer = GroupNorm(32, shape[1]).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x, weights = 3 + 2 * torch.randn(2, *shape, dtype=torch.float64)
    expected = value_and_gradients(layer, x.clone(), weights)
    calls = []
    apply = Standardise.apply
    monkeypatch.setattr(Standardise, "apply", lambda *args: calls.append(args) or apply(*args))
    x, weights = (values.contiguous(memory_format=torch.channels_last) for values in (x, weights))
    found = value_and_gradients(layer, x, weights)
    assert len(calls) == 1
    assert found[1].is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("x", [
    torch.randn(2, 64, 8, 8),
    torch.randn(2, 64, 16),
    torch.randn(2, 64, 1, 1),
    torch.randn(1, 16, 64).transpose(1, 2).view(1, 64, 4, 4),               # after attention
])
def test_group_norm_takes_other_layouts(x):
    layer = GroupNorm(32, 64)
    torch.testing.assert_close(layer(x.requires_grad_()), torch.nn.functional.group_norm(x, 32))
