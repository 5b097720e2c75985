"""From a model configuration to the network: its checkpoint, its precision, and what fits images to it."""

from collections.abc import Mapping

import torch
from torch import nn

from guided_diffusion.priors.tiling import PaddedPrior, TiledPrior
from guided_diffusion.unet import create_model
from util.command import DEFAULT_PRECISION
from util.config.config import find_file
from util.config.registry import check_arguments
from util.errors import UserError
from util.fetch import command_for

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}      # of --precision; the others are float32


def find_checkpoint(model: Mapping[str, object]) -> str:
    """The path of the network's checkpoint; UserError if none is named or there is no such file."""
    path, remedy = model.get("model_path"), "models/README.md says where each checkpoint comes from"
    if not path:
        raise UserError(f"model config: model_path is missing; {remedy}")
    if fetching := command_for(path):
        remedy = f"'{fetching}', or --fetch here, gets it; {remedy}"
    return str(find_file(path, "checkpoint", remedy))


def autocast_dtype(model: Mapping[str, object], precision: str) -> torch.dtype | None:
    """What the network computes in, None for float32: use_fp16 of its config counts unless --precision says otherwise.

    Args:
        precision: of `util.command.PRECISIONS`.
    """
    use_fp16 = precision == DEFAULT_PRECISION and model.get("use_fp16", False)
    return torch.float16 if use_fp16 else DTYPES.get(precision)


def load_prior(model: Mapping[str, object], image_size: int | None, tile: int | None, precision: str,
               device: torch.device) -> nn.Module:
    """The network with its checkpoint, frozen, on `device`: model(x_t, t).

    Args:
        model: the values of `--model_config`, parameters of `create_model`.
        image_size: side of all images; None for images of any size, which are padded where the network needs it.
        tile: restore larger images in windows of this side.
        precision: of `util.command.PRECISIONS`. TF32 is switched on or off for the whole process.

    Raises:
        UserError: the network or its checkpoint is wrong, or images or tiles do not fit the network.
    """
    check_arguments(create_model, dict(model), "model config")
    network = create_model(**{**model, "model_path": find_checkpoint(model)})
    network.autocast_dtype = autocast_dtype(model, precision)
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    prior = network.eval().requires_grad_(False).to(device)
    if tile is not None and tile % network.multiple:
        raise UserError(f"--tile {tile}: the network takes multiples of {network.multiple}, such as "
                        f"{max(1, round(tile / network.multiple)) * network.multiple}")
    if image_size is not None:
        side = min(image_size, tile or image_size)
        network.check_image_size(side, side)
    else:
        prior = PaddedPrior(prior, network.multiple)
    return prior if tile is None else TiledPrior(prior, tile)
