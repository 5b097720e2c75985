"""A wider network that begins where a narrower one ended, after Chen et al. (2016), "Net2Net: Accelerating Learning via
Knowledge Transfer", section 2.4."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from guided_diffusion.unet import UNetModel
from guided_diffusion.unet_blocks import AttentionBlock, Downsample, ResBlock, TimestepSequential, Upsample
from util.checkpoint import is_weights
from util.errors import UserError

UNEVEN = 0.4                                        # of the shares of copies: with equal ones they would learn the same


def widened(weights: Mapping[str, Tensor], model: UNetModel) -> Mapping[str, Tensor]:
    """The state dict of a UNet that differs from `model` in narrower levels -> one of `model`; another as it is.

    Channels are repeated, each beside its copies, and what reads copies shares its weight among them, by random parts.
    So both compute nearly the same: groups of normalisation are cut elsewhere where one level grows more than another.
    Levels with attention, as the last always is, keep their width.

    Raises:
        UserError: a block of `model` hands on what that of `weights` transforms, as two levels have one width.
    """
    own = model.state_dict()
    if _trunk(weights) != _trunk(own) or all(weights[name].shape == own[name].shape for name in _trunk(own)):
        return weights
    try:
        return _Widening(weights, model).new
    except _Different:
        return weights


def _trunk(weights: Mapping[str, Tensor]) -> set[str]:
    """Names of the weights, without the convolutions that only blocks have whose width changes."""
    return {name for name, tensor in weights.items()
            if isinstance(tensor, Tensor) and is_weights(tensor) and "skip_connection" not in str(name)}


class _Different(Exception):
    """The weights are not of a narrower network."""


class _Widening:
    """Goes through a network in the order of its computation. `sources` (C,) are the channels of the narrower one that
    those of an image are copies of."""

    def __init__(self, weights: Mapping[str, Tensor], model: UNetModel):
        self.weights, self.new = weights, {}
        self.names = {module: name for name, module in model.named_modules()}
        self.generator = torch.Generator().manual_seed(0)
        self._keep(model.time_embed)
        if model.class_cond:
            self._keep(model.label_emb)
        sources, skips = torch.arange(3 * model.patch_size ** 2), []
        for block in model.input_blocks:
            sources = self._go(block, sources)
            skips.append(sources)
        sources = self._go(model.middle_block, sources)
        for block in model.output_blocks:
            sources = self._go(block, torch.cat([sources, skips.pop() + _count(sources)]))
        norm, _, last = model.out
        self._norm(norm, sources)
        self._convolution(last, sources, torch.arange(last.out_channels))

    def _go(self, module: nn.Module, sources: Tensor) -> Tensor:
        """Fill in `module`, whose input has `sources`, and return those of its output."""
        match module:
            case TimestepSequential():
                for layer in module:
                    sources = self._go(layer, sources)
            case ResBlock():
                return self._block(module, sources)
            case AttentionBlock():
                self._keep(module)                  # heads are not repeated: such a level keeps its width
            case Downsample(op=nn.Conv2d() as convolution) | Upsample(conv=convolution):
                self._convolution(convolution, sources, sources)
            case nn.Conv2d():
                targets = self._repeated(module)
                self._convolution(module, sources, targets)
                return targets
        return sources

    def _block(self, block: ResBlock, sources: Tensor) -> Tensor:
        norm, _, convolution = block.in_layers
        targets = self._repeated(convolution)
        self._norm(norm, sources)
        self._convolution(convolution, sources, targets)
        embedding, old = block.emb_layers[1], _count(targets)
        self._rows(embedding, torch.cat([targets, targets + old]) if block.scale_shift else targets)
        norm, *_, convolution = block.out_layers
        self._norm(norm, targets)
        self._convolution(convolution, targets, targets)
        name = self.names[block.skip_connection]
        if isinstance(block.skip_connection, nn.Conv2d):
            if f"{name}.weight" not in self.weights:                        # it handed its input on
                self.weights = {**self.weights, f"{name}.weight": torch.eye(old)[:, :, None, None],
                                f"{name}.bias": torch.zeros(old)}
            self._convolution(block.skip_connection, sources, targets)
        elif f"{name}.weight" in self.weights:
            raise UserError(f"--init holds {name}.weight, but there the network of model_config has one width before "
                            "and after; make the widths of those levels (channel_mult) differ")
        return targets

    def _old(self, module: nn.Module, part: str, dims: int) -> Tensor:
        tensor = self.weights.get(f"{self.names[module]}.{part}")
        if not isinstance(tensor, Tensor) or not is_weights(tensor) or tensor.dim() != dims:
            raise _Different
        return tensor.float()

    def _repeated(self, convolution: nn.Conv2d) -> Tensor:
        """The sources of its output: as many of each channel, and beside one another, as the width has room for."""
        new = convolution.out_channels
        return torch.arange(new) * len(self._old(convolution, "weight", 4)) // new

    def _keep(self, module: nn.Module) -> None:
        prefix = f"{self.names[module]}."
        self.new |= {name: tensor for name, tensor in self.weights.items() if name.startswith(prefix)}

    def _rows(self, module: nn.Module, targets: Tensor, weight: Tensor | None = None) -> None:
        """Repeat the outputs of a layer, whose weights may be given."""
        name = self.names[module]
        weight = self._old(module, "weight", module.weight.dim()) if weight is None else weight
        bias = self._old(module, "bias", 1)
        if not len(weight) == len(bias) == _count(targets):
            raise _Different
        self.new |= {f"{name}.weight": weight[targets], f"{name}.bias": bias[targets]}

    def _norm(self, norm: nn.GroupNorm, sources: Tensor) -> None:
        self._rows(norm, sources)

    def _convolution(self, convolution: nn.Conv2d, sources: Tensor, targets: Tensor) -> None:
        weight = self._old(convolution, "weight", 4)
        if weight.shape[1] != _count(sources):
            raise _Different
        parts = 1 + UNEVEN * (2 * torch.rand(len(sources), generator=self.generator) - 1)
        parts /= torch.zeros(weight.shape[1]).index_add(0, sources, parts)[sources]
        self._rows(convolution, targets, weight[:, sources] * parts[:, None, None])


def _count(sources: Tensor) -> int:
    return int(sources.max()) + 1
