"""From a model configuration to the network: its checkpoint, its precision, and what fits images to it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from guided_diffusion.gaussian_diffusion import Sampler, create_sampler
from guided_diffusion.nn import Network
from guided_diffusion.priors.analytic import PRIORS, AnalyticPrior, files_read
from guided_diffusion.priors.diffusers import DiffusersFolder
from guided_diffusion.priors.edm import EDM
from guided_diffusion.priors.tiling import PaddedPrior, TiledPrior
from guided_diffusion.schedule import get_named_beta_schedule
from guided_diffusion.unet import create_model
from util.checkpoint import WHERE_TO_GET
from util.command import DEFAULT_PRECISION
from util.config.registry import check_arguments
from util.errors import UserError, did_you_mean
from util.fetch import find_weights

FORMATS = {"adm": create_model, "diffusers": DiffusersFolder, "edm": EDM}     # format of the model config
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}      # of --precision; the others are float32


def model_builder(model: Mapping[str, object]) -> Callable:
    """What takes the other values of a model configuration: what `prior` names in `PRIORS`, or `format` in `FORMATS`.

    Raises:
        UserError: there is no such prior or format.
    """
    if "prior" in model:
        return PRIORS[model["prior"]]
    name = model.get("format", "adm")
    if name not in FORMATS:
        raise UserError(f"model config: unknown format '{name}'; {did_you_mean(name, FORMATS)}")
    return FORMATS[name]


def _values(model: Mapping[str, object]) -> dict[str, object]:
    """The values of a model configuration but for what chooses its builder."""
    return {key: value for key, value in model.items() if key != ("prior" if "prior" in model else "format")}


def foreign(model: Mapping[str, object]) -> DiffusersFolder | EDM | None:
    """The prior of another format than ours, None for the others; UserError if its values are wrong."""
    if model_builder(model) not in (DiffusersFolder, EDM):
        return None
    check_model(model)
    return model_builder(model)(**_values(model))


def check_model(model: Mapping[str, object]) -> None:
    """UserError unless the values of a model configuration are those that its network or exact prior takes."""
    check_arguments(model_builder(model), _values(model), "model config")


def usual_size(model: Mapping[str, object]) -> int:
    """The side of the images that the prior is for."""
    other = foreign(model)
    return model["image_size"] if other is None else other.side()


def learned_variance(model: Mapping[str, object]) -> bool:
    """Whether the network has variance channels."""
    other = foreign(model)
    return model.get("learn_sigma", False) if other is None else other.learn_sigma()


def prior_files(model: Mapping[str, object]) -> dict[str, Sequence[Path]]:
    """What decides the predictions besides the checkpoint, by name: a file, or the images that a prior is fitted to."""
    if "prior" in model:
        return files_read(model)
    other = foreign(model)
    return {} if other is None else {name: [file] for name, file in other.files().items() if file != other.checkpoint()}


def create_process(model: Mapping[str, object], diffusion: Mapping[str, object]) -> Sampler:
    """The sampler of a diffusion config, whose gaps are filled by what the files of the prior say.

    Raises:
        UserError: the diffusion config is wrong, contradicts the prior, or has noise levels that the prior lacks.
    """
    check_arguments(create_sampler, dict(diffusion), "diffusion config")
    other = foreign(model)
    if other is None:
        return create_sampler(**diffusion)
    sampler = create_sampler(**complete_process(other.process(diffusion), diffusion))
    if isinstance(other, EDM):
        other.check_levels(sampler.schedule)
    return sampler


def complete_process(brought: Mapping[str, object], diffusion: Mapping[str, object]) -> dict[str, object]:
    """A diffusion config with the parameters that a prior has brought; UserError if it contradicts them.

    The variance type is free, as no mean depends on it.
    """
    complete = {**brought, **diffusion}
    for key in [key for key in brought if key in diffusion and key != "model_var_type"]:
        if key == "noise_schedule":
            agrees = np.allclose(get_named_beta_schedule(diffusion[key], brought["steps"]), brought[key], rtol=1e-4)
        else:
            agrees = diffusion[key] == brought[key]
        if not agrees:
            own = "of other betas" if key == "noise_schedule" else brought[key]
            raise UserError(f"diffusion config: {key} is {diffusion[key]!r:.60}, but the prior's is {own}; leave it "
                            "out, as configs/prior_diffusion_config.yaml does, and the prior's counts")
    return complete


def find_checkpoint(model: Mapping[str, object]) -> str | None:
    """The path of the network's checkpoint, None for an exact prior; UserError if none is named or it is not there."""
    if "prior" in model:
        return None
    if (other := foreign(model)) is not None:
        return str(other.checkpoint())
    if not (path := model.get("model_path")):
        raise UserError(f"model config: model_path is missing; {WHERE_TO_GET}")
    return str(find_weights(path))


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
        sampler: the process that will call it, see `create_process`; of an exact prior it also decides whether there
            are variance channels. None for that of an empty diffusion config.

    Raises:
        UserError: the network or its checkpoint is wrong, or images or tiles do not fit the network.
    """
    check_model(model)
    if "prior" in model:
        return _exact_prior(model, image_size, tile, sampler or create_sampler()).to(device)
    network = _network(model, sampler)
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


def _network(model: Mapping[str, object], sampler: Sampler | None) -> Network:
    other = foreign(model)
    if other is None:
        return create_model(**{**_values(model), "model_path": find_checkpoint(model)})
    sampler = sampler or create_process(model, {})
    network = other.load(sampler.schedule)
    network.process = other.process({})
    return network


def _exact_prior(model: Mapping[str, object], image_size: int | None, tile: int | None,
                 sampler: Sampler) -> AnalyticPrior:
    if tile is not None:
        raise UserError(f"--tile {tile}: an exact prior takes images whole; leave --tile out")
    params = _values(model)
    distribution = PRIORS.build(model["prior"], **params)
    prior = AnalyticPrior(sampler.schedule, distribution, sampler.learned_variance, params["image_size"])
    if image_size is not None:
        prior.check_size((1, 3, image_size, image_size))
    return prior
