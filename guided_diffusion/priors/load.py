"""From a model configuration to the network: its checkpoint, its precision, and what fits images to it."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from guided_diffusion.gaussian_diffusion import Sampler, create_sampler
from guided_diffusion.priors.analytic import PRIORS, AnalyticPrior
from guided_diffusion.priors.tiling import PaddedPrior, TiledPrior
from guided_diffusion.unet import create_model
from util.command import DEFAULT_PRECISION
from util.config.config import find_file
from util.config.registry import check_arguments
from util.errors import UserError
from util.fetch import command_for

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}      # of --precision; the others are float32


def model_builder(model: Mapping[str, object]) -> Callable:
    """What takes the other values of a model configuration: `create_model`, or what `prior` names in `PRIORS`."""
    return PRIORS[model["prior"]] if "prior" in model else create_model


def check_model(model: Mapping[str, object]) -> None:
    """UserError unless the values of a model configuration are those that its network or exact prior takes."""
    values = {key: value for key, value in model.items() if key != "prior"}
    check_arguments(model_builder(model), values, "model config")


def find_checkpoint(model: Mapping[str, object]) -> str | None:
    """The path of the network's checkpoint, None for an exact prior; UserError if none is named or it is not there."""
    if "prior" in model:
        return None
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
               device: torch.device, sampler: Sampler | None = None) -> nn.Module:
    """The network with its checkpoint, frozen, on `device`: model(x_t, t); or an exact prior.

    Args:
        model: the values of `--model_config`, parameters of `create_model` or, with `prior`, of `PRIORS`.
        image_size: side of all images; None for images of any size, which are padded where the network needs it.
        tile: restore larger images in windows of this side.
        precision: of `util.command.PRECISIONS`. TF32 is switched on or off for the whole process.
        sampler: the process that an exact prior is for, which has variance channels if that asks for them.

    Raises:
        UserError: the network or its checkpoint is wrong, or images or tiles do not fit the network.
    """
    check_model(model)
    if "prior" in model:
        return _exact_prior(model, tile, sampler or create_sampler()).to(device)
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


def _exact_prior(model: Mapping[str, object], tile: int | None, sampler: Sampler) -> AnalyticPrior:
    if tile is not None:
        raise UserError(f"--tile {tile}: an exact prior takes images whole; leave --tile out")
    params = {key: value for key, value in model.items() if key != "prior"}
    distribution = PRIORS.build(model["prior"], **params)
    return AnalyticPrior(sampler.schedule, distribution, sampler.learned_variance, params["image_size"])
