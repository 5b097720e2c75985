"""DnCNN: Zhang et al., "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image Denoising", TIP 2017."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from util.checkpoint import read_state_dict, verify
from util.config.config import find_file
from util.errors import UserError

LAYER = re.compile(r"\w+\.(?P<index>\d+)\.(?P<key>weight|bias|running_mean|running_var|num_batches_tracked)")


@dataclass(frozen=True)
class Release:
    """What the names in a file of weights say of the network beyond its tensors."""

    epsilon: float                                  # of the batch normalisations
    padding: str                                    # beyond the border of every layer's input


RELEASES = {"scico": Release(1e-5, "circular"), "dncnn": Release(1e-5, "zeros"), "model": Release(1e-4, "zeros")}


class DnCNN(nn.Module):
    """D(v) = v - R(v), R a chain of 3 x 3 convolutions with ReLUs between them.

    A network of one channel is applied to every channel of an image by itself. One of two channels is told the noise's
    standard deviation by the second.

    Args:
        convolutions: weight (out, in, 3, 3) and bias (out,) of each.
        padding: "zeros" beyond the border, or "circular", as if the image were periodic.
    """

    def __init__(self, convolutions: list[tuple[Tensor, Tensor]], padding: str):
        super().__init__()
        self.channels = len(convolutions[-1][1])
        self.layers = nn.Sequential()
        for weight, bias in convolutions:
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, padding_mode=padding)
            conv.load_state_dict({"weight": weight, "bias": bias})
            self.layers.extend([conv, nn.ReLU()])
        del self.layers[-1]
        if self.layers[0].in_channels != self.channels:
            raise ValueError("an output of other channels than the input")

    @property
    def told_sigma(self) -> bool:
        """Whether it is told the noise level; otherwise it knows its own."""
        return self.channels == 2

    def forward(self, v: Tensor, sigma: float | None = None) -> Tensor:
        """Noisy images (B, C, H, W) on [0, 1] -> denoised ones, not clipped.

        Args:
            sigma: standard deviation of the noise on [0, 1], for a network that is told it.
        """
        images = v.flatten(0, 1)[:, None] if self.channels < 3 else v                       # (B C, 1, H, W)
        if self.told_sigma:
            images = torch.cat([images, torch.full_like(images, sigma)], dim=1)
        return v - self.layers(images)[:, :self.channels - self.told_sigma].reshape(v.shape)


def load_dncnn(variant: str = "17M", path: str | None = None) -> DnCNN:
    """A trained DnCNN, frozen.

    The file may hold any chain of 3 x 3 convolutions under the names of the usual PyTorch releases, `model.0.weight`
    (KAIR) or `dncnn.0.weight`, with batch normalisations or with them merged into the convolutions.

    Args:
        variant: a network of scico's: 6 or 17 layers, trained for noise of 0.06 (L), 0.1 (M) or 0.2 (H) on [0, 1], or
            told its sigma (N). 17M, which the DPS paper used, is shipped.
        path: another file, from the working directory or the repository.

    Raises:
        UserError: the file is missing, damaged, or no DnCNN.
    """
    remedy = f"convert it from scico's wheel: python -m util.flax_weights WHEEL --variant {variant}"
    file = find_file(path or f"models/dncnn{variant}.pt", "checkpoint",
                     "give the state dict of a DnCNN" if path else remedy)
    found = read_state_dict(file)
    verify(file)
    try:
        release = RELEASES[next(iter(found)).partition(".")[0]]
        network = DnCNN(merged(found, release.epsilon), release.padding)
    except (KeyError, IndexError, ValueError, RuntimeError):
        raise UserError(f"checkpoint {file} is no DnCNN (it begins with {', '.join(list(found)[:3])}), expected 3 x 3 "
                        "convolutions model.0.weight, model.2.weight, ... or dncnn.0.weight, dncnn.2.weight, ..."
                        ) from None
    if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
        raise UserError(f"checkpoint {file} holds NaN or infinity; download it again")
    return network.eval().requires_grad_(False)


def merged(state: Mapping[str, Tensor], epsilon: float) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of every convolution, with the batch normalisation that follows it, if one does.

    Normalising w * v + b to mean m and variance s^2, then g (.) + h, is the convolution g/s w * v + g/s (b - m) + h.

    Args:
        state: `prefix.index.key` -> tensor, of convolutions and batch normalisations.
        epsilon: part of s^2.

    Raises:
        ValueError, KeyError, IndexError: a name or a layer that is none of a DnCNN's.
    """
    layers: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in state.items():
        match = LAYER.fullmatch(name)
        if match is None:
            raise ValueError(name)
        layers[int(match["index"])][match["key"]] = tensor.double()
    convolutions: list[tuple[Tensor, Tensor]] = []
    for _, layer in sorted(layers.items()):
        weight = layer["weight"]
        bias = layer.get("bias", weight.new_zeros(len(weight)))
        if weight.dim() == 1:
            before, offset = convolutions.pop()
            gain = weight / (layer["running_var"] + epsilon).sqrt()
            weight, bias = gain.view(-1, 1, 1, 1) * before, gain * (offset - layer["running_mean"]) + bias
        convolutions.append((weight, bias))
    return convolutions
