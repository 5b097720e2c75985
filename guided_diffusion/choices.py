"""What a configuration may name, and what a configuration has become, in words for a reader."""

from collections.abc import Mapping

import guided_diffusion.condition_methods
import guided_diffusion.solvers
from data.dataloader import DATASETS
from guided_diffusion.gaussian_diffusion import SAMPLERS, create_sampler
from guided_diffusion.measurements import NOISES, OPERATORS
from guided_diffusion.unet import create_model
from util.config import Config
from util.settings import catalogue, complete

METHODS = guided_diffusion.condition_methods.CONDITIONING_METHODS       # the solvers are in it, too


def list_choices() -> str:
    """Everything that a configuration may name, with parameters and defaults."""
    samplers = "samplers (diffusion.sampler)"
    return catalogue({
        "operators (measurement.operator)": OPERATORS, "noises (measurement.noise)": NOISES,
        "methods (conditioning.method; parameters in conditioning.params)": METHODS,
        "datasets (data)": DATASETS, samplers: SAMPLERS, "reverse process (--diffusion_config)": create_sampler,
        "prior (--model_config)": create_model}, names_only=[samplers])


def resolved_config(config: Config, options: Mapping[str, tuple[object, str]]) -> str:
    """The configuration as YAML, with defaults, and the origin of each value as a comment.

    Args:
        options: settings of the command line, name -> (value, origin).

    Raises:
        UserError: an unknown name or parameter, or a value of the wrong type.
    """
    return complete(config, {
        ("model",): create_model, ("diffusion",): create_sampler,
        ("conditioning", "params"): METHODS[config.conditioning.name],
        ("data",): DATASETS[config.data.name],
        ("measurement", "operator"): OPERATORS[config.operator.name],
        ("measurement", "noise"): NOISES[config.noise.name]}, options)
