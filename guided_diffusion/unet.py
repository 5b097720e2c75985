"""The ADM UNet (Dhariwal & Nichol, 2021, "Diffusion Models Beat GANs on Image Synthesis"), under the parameter names of
the published checkpoints, and `create_model`, which builds it from a model config and loads a checkpoint strictly."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guided_diffusion.nn import Conv2d, Network, normalization, timestep_embedding, zero_module
from guided_diffusion.unet_blocks import AttentionBlock, Downsample, ResBlock, TimestepSequential, Upsample
from util.checkpoint import load_state_dict
from util.config.registry import Bounds, check_arguments
from util.errors import UserError

NUM_CLASSES = 1000
LARGEST = 2 ** 13
Size = Annotated[int, Bounds(least=1, most=LARGEST)]
Depth = Annotated[int, Bounds(least=1, most=100)]
Heads = Size | Literal[-1]                          # -1: not set
DEFAULT_CHANNEL_MULT = {                            # image size -> width of each level over num_channels
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}


class UNetModel(Network):
    """Predicted noise, and variance channels when `out_channels` is 6, of noisy images.

    Args:
        image_size: side of the images it was trained on; it runs on any multiple of 2^(levels - 1).
        model_channels: width of the first level.
        out_channels: 3, or 6 with a learned variance.
        num_res_blocks: residual blocks per level on the way down (one more on the way up).
        attention_levels: downsampling factors at which attention blocks stand (the middle always has one).
        channel_mult: width of each level over `model_channels`.
        class_cond: embed a class label (0..999).
        class_label: the label used when the call gives none.
        patch_size: side p of the patches whose pixels are the channels of one place (Luhman & Luhman, 2022, "Improving
            Diffusion Model Efficiency Through Patching"): the first level works at 1/p of the resolution.
        autocast_dtype: run the network, and it alone, in this precision; the output is float32 all the same.
        Others: see `create_model`.
    """

    def __init__(self, image_size: int, model_channels: int, out_channels: int, num_res_blocks: int,
                 attention_levels: Sequence[int], channel_mult: Sequence[float], dropout: float = 0.0,
                 class_cond: bool = False, class_label: int | None = None, use_checkpoint: bool = False,
                 num_heads: int = 1, num_head_channels: int = -1, num_heads_upsample: int = -1,
                 use_scale_shift_norm: bool = False, resblock_updown: bool = False,
                 use_new_attention_order: bool = False, patch_size: int = 1,
                 min_channels_per_group: int = 1, autocast_dtype: torch.dtype | None = None):
        super().__init__()
        self.patch_size = patch_size
        self.image_size, self.model_channels, self.out_channels = image_size, model_channels, out_channels
        self.class_cond, self.class_label, self.autocast_dtype = class_cond, class_label, autocast_dtype
        self.levels = len(channel_mult)
        emb_channels = 4 * model_channels
        widths = [int(mult * model_channels) for mult in channel_mult]
        block = partial(ResBlock, emb_channels=emb_channels, dropout=dropout, scale_shift=use_scale_shift_norm,
                        use_checkpoint=use_checkpoint, min_group=min_channels_per_group)
        attend = partial(AttentionBlock, num_heads=num_heads, num_head_channels=num_head_channels,
                         new_order=use_new_attention_order, use_checkpoint=use_checkpoint,
                         min_group=min_channels_per_group)
        attend_up = attend if num_heads_upsample == -1 else partial(attend, num_heads=num_heads_upsample)

        def resample(channels: int, direction: str) -> nn.Module:
            if resblock_updown:
                return block(channels, channels, resample=direction)
            return {"up": Upsample, "down": Downsample}[direction](channels, use_conv=True)

        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels))
        if class_cond:
            self.label_emb = nn.Embedding(NUM_CLASSES, emb_channels)

        channels = widths[0]
        self.input_blocks = nn.ModuleList([TimestepSequential(Conv2d(3 * patch_size ** 2, channels, 3, padding=1))])
        skips = [channels]
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                layers = [block(channels, width)]
                channels = width
                if patch_size * 2 ** level in attention_levels:
                    layers.append(attend(channels))
                self.input_blocks.append(TimestepSequential(*layers))
                skips.append(channels)
            if level < self.levels - 1:
                self.input_blocks.append(TimestepSequential(resample(channels, "down")))
                skips.append(channels)

        self.middle_block = TimestepSequential(block(channels, channels), attend(channels), block(channels, channels))

        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for i in range(num_res_blocks + 1):
                layers = [block(channels + skips.pop(), width)]
                channels = width
                if patch_size * 2 ** level in attention_levels:
                    layers.append(attend_up(channels))
                if level > 0 and i == num_res_blocks:
                    layers.append(resample(channels, "up"))
                self.output_blocks.append(TimestepSequential(*layers))

        self.out = nn.Sequential(
            normalization(channels, min_channels_per_group), nn.SiLU(), zero_module(
                Conv2d(channels, out_channels * patch_size ** 2, 3, padding=1)))

    @property
    def multiple(self) -> int:
        """What the sides of images are multiples of, so that they survive the patches and all the halvings."""
        return self.patch_size * 2 ** (self.levels - 1)

    def _forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None) -> Tensor:
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(x.dtype))
        if self.class_cond:
            emb = emb + self.label_emb(self._labels(y, x))
        h = F.pixel_unshuffle(x, self.patch_size) if self.patch_size > 1 else x
        skips = []
        for module in self.input_blocks:
            h = module(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for module in self.output_blocks:
            h = module(torch.cat([h, skips.pop()], dim=1), emb)
        norm, _, convolution = self.out
        h = convolution(norm.silu(h))
        return F.pixel_shuffle(h, self.patch_size) if self.patch_size > 1 else h

    def _labels(self, y: Tensor | None, x: Tensor) -> Tensor:
        if y is not None:
            return y
        if self.class_label is None:
            raise UserError("this network is class-conditional and was given no label; "
                            "set class_label (0 to 999) in the model config")
        return torch.full((len(x),), self.class_label, device=x.device)


def create_model(
        image_size: Size, num_channels: Size, num_res_blocks: Depth, channel_mult: str | Sequence[float] = "",
        learn_sigma: bool = False, class_cond: bool = False, use_checkpoint: bool = False,
        attention_resolutions: str | int | Sequence[int] = "16", num_heads: Size = 1, num_head_channels: Heads = -1,
        num_heads_upsample: Heads = -1, use_scale_shift_norm: bool = False,
        dropout: Annotated[float, Bounds(least=0, below=1)] = 0.0, resblock_updown: bool = False,
        use_fp16: bool = False, use_new_attention_order: bool = False,
        patch_size: Annotated[int, Bounds(least=1, most=64)] = 1,
        min_channels_per_group: Literal[1, 2, 4, 8, 16, 32] = 1, model_path: str | None = "",
        class_label: Annotated[int, Bounds(least=0, below=NUM_CLASSES)] | None = None) -> UNetModel:
    """Build the network that a model config describes, in evaluation mode, and load its checkpoint.

    Its weights, and so what flows through it, are in channels_last, in which convolutions take less time.

    Args:
        image_size: side of the training images; with `channel_mult` empty it also chooses the level widths (64, 128,
            256 and 512).
        num_channels: width of the first level.
        num_res_blocks: residual blocks per level.
        channel_mult: "1,2,4" or a list: width of each level over `num_channels`, fractions allowed.
        learn_sigma: predict variance channels as well (6 outputs instead of 3).
        class_cond, class_label: label embedding, and the label (0..999) to restore with.
        use_checkpoint: recompute activations in the backward pass; saves memory, costs time.
        attention_resolutions: 16, "32,16,8" or a list: image sides at which attention stands, besides the middle. A
            side r stands for the level whose images are image_size // r times smaller, if there is one.
        num_heads, num_head_channels, num_heads_upsample: attention heads; -1 means "not set".
        use_scale_shift_norm: embedding scales and shifts the normalisation instead of being added.
        dropout: active in training only.
        resblock_updown: change resolution by residual blocks instead of convolutions.
        use_fp16: run the network under float16 autocast; weights and output stay float32.
        use_new_attention_order: channel order of the qkv layer, see `AttentionBlock`.
        patch_size: side of the patches whose pixels are the channels of one place, see `UNetModel`; 1 for the
            published checkpoints.
        min_channels_per_group: group normalisation has 32 groups as the published checkpoints, but no group of fewer
            channels (EDM: 4). With 32 channels and one in each group a network cannot see the mean of an image, nor
            that of its noise, and colours of whole images are off.
        model_path: checkpoint to load; empty for a new network (training, tests).

    Raises:
        UserError: an option of the wrong type or an impossible combination; a checkpoint that is missing, unreadable,
            unsafe, or made for other options. The network never keeps random weights after a failed load.
    """
    options = dict(locals())
    check_arguments(create_model, options, where="model config")
    if not channel_mult:
        if image_size not in DEFAULT_CHANNEL_MULT:
            raise UserError(f"model config: no default channel_mult for image_size {image_size} (there is one for "
                            f"{', '.join(map(str, sorted(DEFAULT_CHANNEL_MULT)))}); set channel_mult")
        channel_mult = DEFAULT_CHANNEL_MULT[image_size]
    channel_mult = _numbers("channel_mult", channel_mult, float)
    if not channel_mult:
        raise UserError("model config: channel_mult names no level, expected numbers separated by commas")
    resolutions = _numbers("attention_resolutions", attention_resolutions, int)
    _check_options(options, channel_mult)
    model = UNetModel(
        image_size=image_size, model_channels=num_channels, out_channels=6 if learn_sigma else 3,
        num_res_blocks=num_res_blocks, attention_levels=[image_size // side for side in resolutions],
        channel_mult=channel_mult, dropout=dropout, class_cond=class_cond, class_label=class_label,
        use_checkpoint=use_checkpoint, num_heads=num_heads, num_head_channels=num_head_channels,
        num_heads_upsample=num_heads_upsample, use_scale_shift_norm=use_scale_shift_norm,
        resblock_updown=resblock_updown, use_new_attention_order=use_new_attention_order, patch_size=patch_size,
        min_channels_per_group=min_channels_per_group, autocast_dtype=torch.float16 if use_fp16 else None)
    if model_path:
        load_state_dict(model, Path(model_path))
    return model.eval().to(memory_format=torch.channels_last)


def _numbers(key: str, value: str | float | Sequence[float], kind: type) -> tuple:
    """"16,8", 16 or [16, 8] -> (16, 8)."""
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    try:
        numbers = tuple(kind(item) for item in items if str(item).strip())
    except ValueError:
        raise UserError(f"model config: {key} is {value!r}, expected numbers separated by commas") from None
    if not all(0 < number <= LARGEST for number in numbers):
        raise UserError(f"model config: {key} is {value!r}, expected positive numbers of at most {LARGEST}")
    return numbers


def _check_options(options: dict, channel_mult: tuple[float, ...]) -> None:
    for mult in channel_mult:
        width = int(mult * options["num_channels"])
        if width % 32 or not width:
            raise UserError(f"model config: channel_mult {mult} x num_channels {options['num_channels']} = {width} "
                            "channels, expected a multiple of 32 (group normalisation has 32 groups)")
    if options["class_label"] is not None and not options["class_cond"]:
        raise UserError("model config: class_label is given but class_cond is false; remove one or set the other")
