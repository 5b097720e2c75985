"""The settings of a run for a reader: what a configuration may name; what one has become, and each value's origin."""

import inspect
import textwrap
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping

import guided_diffusion.condition_methods
import guided_diffusion.solvers
from data.dataloader import DATASETS
from guided_diffusion.condition_methods.likelihoods import LIKELIHOODS
from guided_diffusion.condition_methods.step_size import SCHEDULES
from guided_diffusion.gaussian_diffusion import SAMPLERS, create_sampler
from guided_diffusion.measurements import NOISES, OPERATORS
from guided_diffusion.priors.analytic import PRIORS
from guided_diffusion.priors.diffusers import DiffusersFolder
from guided_diffusion.priors.edm import EDM
from guided_diffusion.priors.edm_networks import NETWORKS
from guided_diffusion.priors.load import model_builder
from guided_diffusion.unet import create_model
from util.config.config import Config, Key, leaves
from util.config.registry import REQUIRED, Registry, annotations, check_arguments, defaults, describe
from util.config.yaml_text import flow

WIDTH = 110                                         # columns of the list
FURTHEST_COMMENT = 60                               # column in which comments stand, unless a value needs more
OPTIONS = ("seed", "num_samples", "precision", "tile", "load_measurements")         # those that decide results
METHODS = guided_diffusion.condition_methods.CONDITIONING_METHODS       # the solvers are in it, too


def list_choices() -> str:
    """Everything that a configuration may name, with parameters and defaults."""
    samplers = "samplers (diffusion.sampler)"
    return catalogue({
        "operators (measurement.operator)": OPERATORS, "noises (measurement.noise)": NOISES,
        "methods (conditioning.method; parameters in conditioning.params)": METHODS,
        "likelihoods (likelihood of a method; a name, or {name: ..., parameters})": LIKELIHOODS,
        "step size schedules (schedule of a likelihood; a name, or {name: ..., parameters})": SCHEDULES,
        "datasets (data)": DATASETS, samplers: SAMPLERS, "reverse process (--diffusion_config)": create_sampler,
        "prior (--model_config)": create_model,
        "prior of format diffusers": DiffusersFolder, "prior of format edm": EDM,
        "networks of format edm (network of --model_config)": NETWORKS,
        "exact priors (prior of --model_config)": PRIORS}, names_only=[samplers])


def resolved_config(config: Config, args: Namespace) -> str:
    """The configuration as YAML, with the defaults of everything that is not set, and the origin of each value.

    Args:
        args: the command line, for the options that decide results.

    Raises:
        UserError: a section holds an unknown name or key, lacks one, or has a value of the wrong type.
    """
    tree = config.as_dict()
    measurement, conditioning = tree["measurement"], tree["conditioning"]
    for where, section, builder in (
            ("model", tree["model"], model_builder(config.model)), ("diffusion", tree["diffusion"], create_sampler),
            ("conditioning.params", conditioning["params"], METHODS[config.conditioning.name]),
            ("data", tree["data"], DATASETS[config.data.name]),
            ("measurement.operator", measurement["operator"], OPERATORS[config.operator.name]),
            ("measurement.noise", measurement["noise"], NOISES[config.noise.name])):
        names = {"name", "prior", "format"} - set(defaults(builder))
        check_arguments(builder, {key: value for key, value in section.items() if key not in names}, where)
        for name, default in defaults(builder).items():
            section.setdefault(name, list(default) if isinstance(default, tuple) else default)
    origins = config.origins | {(name,): f"--{name}" for name in OPTIONS}
    return annotated({**tree, **{name: vars(args)[name] for name in OPTIONS}}, origins)


def annotated(tree: dict[str, object], origins: Mapping[Key, str]) -> str:
    """A tree as YAML, a value per line, each with its origin, or "default", as a comment."""
    lines: list[tuple[str, str]] = []
    shown: Key = ()
    for key, value in leaves(tree).items():
        lines += [(f"{'  ' * depth}{flow(name)}:", "") for depth, name in enumerate(key[:-1])
                  if shown[:depth + 1] != key[:depth + 1]]
        comment = "".join(c if c.isprintable() else "?" for c in f"  # {origins.get(key, 'default')}")
        lines.append((f"{'  ' * (len(key) - 1)}{flow(key[-1])}: {flow(value)}", comment))
        shown = key[:-1]
    column = max(len(text) for text, _ in lines if len(text) <= FURTHEST_COMMENT)
    return "\n".join(f"{text:{column}}{comment}" if comment else text for text, comment in lines)


def catalogue(choices: Mapping[str, Registry | Callable], names_only: Collection[str] = ()) -> str:
    """What there is to choose from: names with a line of words each, and their parameters with types and defaults.

    Args:
        choices: title -> what is listed below it.
        names_only: titles whose parameters do not come from the configuration.
    """
    parts = []
    for title, choice in choices.items():
        entries = {name: choice[name] for name in choice} if isinstance(choice, Registry) else {"": choice}
        parts.append("\n".join([title, *(line for name, entry in entries.items()
                                         for line in _entry(name, entry, title not in names_only))]))
    return "\n\n".join(parts)


def _entry(name: str, function: Callable, parameters: bool) -> list[str]:
    """Name and first line of the docstring, then a line per parameter."""
    summary = (inspect.getdoc(function) or "").partition("\n")[0]
    hints = annotations(function)
    lines = [f"  {name}: {summary}" if name else f"  {summary}"]
    for key, default in defaults(function).items() if parameters else ():
        text = f"{key}: {describe(hints[key])}" if key in hints else key
        text += "; required" if default is REQUIRED else f"; default {flow(default)}"
        lines += textwrap.wrap(text, WIDTH, initial_indent="      ", subsequent_indent="          ")
    return lines
