"""From the configuration to the parts of a run: named things, the source of measurements, the network."""

import importlib.util
import os
import traceback
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import torch
from torch import nn

from data.dataloader import DATASETS, LARGEST_SIDE, Batch
from guided_diffusion.gaussian_diffusion import Sampler
from guided_diffusion.measurements import NOISES, OPERATORS, Measurement, Noise, Operator
from guided_diffusion.measurements.sources import Observed, Simulated, Source, Stored
from guided_diffusion.method import Method
from guided_diffusion.priors.load import (
    check_model,
    create_process,
    find_checkpoint,
    learned_variance,
    prior_files,
    usual_size,
)
from guided_diffusion.priors.posterior import check_posterior
from guided_diffusion.restoration.catalogue import METHODS
from util.checkpoint import fingerprint
from util.command import user_path
from util.config.config import REPOSITORY, Choice, Config, find_file
from util.config.registry import Registry, defaults
from util.errors import UserError
from util.fetch import fetch, known_weights
from util.logger import count, logger
from util.run.config_file import changed_settings
from util.run.measurements import MeasurementFolder
from util.run.team import Team
from util.seeding import ImageRandomness

PLUGIN = "plugin_"                                  # begins the names of the modules of plugins


@dataclass(frozen=True)
class Task:
    """Everything that a restoration needs besides the network."""

    source: Source
    operator: Operator
    noiser: Noise
    sampler: Sampler
    method: Method

    def measure(self, batch: Batch, device: torch.device, randomness: ImageRandomness) -> Measurement:
        """The measurements (B, ...) of a batch, on `device`; UserError where operator and batch do not fit."""
        return self.source.measure(self.operator, self.noiser, batch, device, randomness)

    def check_prior(self, prior: nn.Module) -> None:
        """UserError if the method needs the posterior under `prior` in closed form, and images are too large for it."""
        size = self.source.image_size
        if self.method.needs_exact_prior and size is not None:
            check_posterior(prior.distribution, self.operator, (3, size, size))


def build_task(config: Config, folder: MeasurementFolder | None = None, chosen: bool = False,
               limit: int | None = None) -> Task:
    """Build all but the network, and check that the parts fit each other and the network.

    Args:
        folder: measurements to restore in place of the task's.
        chosen: whether the command line names the images, so that they must be there.
        limit: how many images are asked for, the first ones; None for all.

    Raises:
        UserError: whatever is wrong in the configuration or the data.
    """
    sampler, noiser, method = build_parts(config)
    operator = build_named(config, OPERATORS, config.operator, "measurement.operator.name")
    method.check(operator, noiser)
    if method.needs_exact_prior and "prior" not in config.model:
        raise UserError(f"conditioning method '{method.name}' needs a prior that is known in closed form, found a "
                        "network; give one, such as --model_config configs/exact_gaussian_model_config.yaml")
    if method.needs_prior:
        find_checkpoint(config.model)
        if config.model.get("class_cond", False) and config.model.get("class_label") is None:
            raise UserError("model config: class_cond is true, but class_label is missing; set it to the class to "
                            "restore with (0 to 999)")
    source = build_source(config, folder, chosen, limit)
    source.check(operator, noiser)
    return Task(source, operator, noiser, sampler, method)


def build_parts(config: Config) -> tuple[Sampler, Noise, Method]:
    """The parts that read no weights: sampler, noise model and method. The network's parameters are checked.

    Raises:
        UserError: a name or a parameter is wrong.
    """
    check_model(config.model)
    sampler = create_process(config.model, config.diffusion)
    if "prior" not in config.model:                 # exact ones have the channels that the sampler asks for
        sampler.check_model_channels(6 if learned_variance(config.model) else 3)
    noiser = build_named(config, NOISES, config.noise, "measurement.noise.name")
    method = build_named(config, METHODS, config.conditioning, "conditioning.method")
    method.check_process(sampler)
    return sampler, noiser, method


def build_named(config: Config, registry: Registry, choice: Choice, path: str):
    """Build a named thing of the configuration.

    Args:
        path: where its name stands, such as "conditioning.method".

    Raises:
        UserError: there is no such thing, or its parameters are wrong.
    """
    try:
        return registry.build(choice.name, **choice.params)
    except UserError as error:
        section = path.rpartition(".")[0]
        if choice.name not in registry or not config.changed & {path, section}:
            raise
        strange, remedies = choice.params.keys() - defaults(registry[choice.name]), []
        if path in config.changed and choice.params:     # the name alone: all its parameters are the task file's
            remedies = [f"{section}.params={{}}" if section == "conditioning" else f"{section}={{name: {choice.name}}}"]
        if "mask_opt" in strange:
            remedies.append("measurement.mask_opt=null")
        if not remedies:
            raise
        old = ", ".join(name for name in choice.params if name in strange or not strange)
        raise UserError(f"{error}. The task file's parameters ({old}) still apply; "
                        f"replace them by {' '.join(f'--set {quote(remedy)}' for remedy in remedies)}") from None


def build_source(config: Config, folder: MeasurementFolder | None, chosen: bool, limit: int | None) -> Source:
    """Where the measurements come from: clean images, photographs that are already degraded, or `folder`.

    Args:
        folder: saved measurements.
        chosen: whether the command line names the images, so that they must be there.
        limit: how many images are asked for, the first ones; None for all.

    Raises:
        UserError: the images cannot be had.
    """
    try:
        dataset = build_named(config, DATASETS, config.data, "data.name")
    except UserError as error:
        if folder is None or chosen:
            raise
        logger.warning(f"the measurements are restored without ground truth: {error}")
        return Stored(folder)
    if folder is not None:
        names = folder.names[:limit]
        if not dataset.observed and (alone := [name for name in names if name not in dataset.names]):
            logger.warning(f"{len(alone)} of {count(len(names), 'measurement')} restored without ground truth: the "
                           f"data hold no image of the same name as {alone[0]}")
        return Stored(folder, None if dataset.observed else dataset)
    dataset.require(dataset.names[:limit])
    side = usual_size(config.model)
    if not 1 <= side <= LARGEST_SIDE:
        raise UserError(f"model config: image_size is {side}, expected 1 to {LARGEST_SIDE}")
    if dataset.observed:
        return Observed(dataset, side)
    dataset.image_size = dataset.image_size or side
    return Simulated(dataset)


def run_settings(args: Namespace, config: Config, task: Task) -> dict[str, object]:
    """All that decides the results of a run, as plain YAML values; files by their fingerprints.

    Where the run repeats another one, what differs is told.
    """
    checkpoint = find_checkpoint(config.model) if task.method.needs_prior else None
    files = {name: [path] for name, path in task.operator.files_read().items()}
    if task.method.needs_prior:
        files |= prior_files(config.model)
    given = {"tile": args.tile, "load_measurements": args.load_measurements,
             "checkpoint": checkpoint and fingerprint(Path(checkpoint)),
             "files": {name: fingerprint(*paths) for name, paths in files.items()} or None}
    settings = {**config.as_dict(), "seed": args.seed, "num_samples": args.num_samples, "precision": args.precision,
                **{key: value for key, value in given.items() if value is not None}}
    if config.repeats and (changes := changed_settings(config.repeats, settings)):
        logger.warning(f"{args.task_config} is repeated but for {', '.join(changes)}")
    return settings


def require_apart(config: Config, run: Path) -> None:
    """UserError if a run in this folder would find its results among its images the next time."""
    root = config.data.params.get("root")
    if root is not None:
        data, results = (Path(os.path.realpath(user_path(path))) for path in (root, run))
        if results.is_relative_to(data) or data.is_relative_to(results):
            raise UserError(f"the results would go to {run}, and the images come from {root}: the next run would "
                            "restore results; choose a --save_dir apart from --data")


def fetch_weights(config: Config, team: Team) -> None:
    """Fetch the weights of network, operator and method, where they are missing and known to models/files.yaml.

    Raises:
        UserError: they cannot be fetched.
    """
    if team.leads:
        places = {weights.place.resolve(): weights for weights in known_weights().values()}
        values = [config.model.get("model_path")]
        for registry, choice in ((OPERATORS, config.operator), (METHODS, config.conditioning)):
            values += {**defaults(registry[choice.name]), **choice.params}.values()
        for named in values:
            path = (REPOSITORY / user_path(named)).resolve() if isinstance(named, str) else None
            if path in places and not path.exists():
                fetch(places[path])
        team.publish("fetched", "")
    team.receive("fetched")


def load_plugin(file: str) -> None:
    """Run a Python file of the user's, which registers operators, noises or methods.

    Raises:
        UserError: there is no such file, or it fails.
    """
    path = find_file(file, "--plugin").resolve()
    spec = importlib.util.spec_from_file_location(f"{PLUGIN}{path.stem}", path)
    if spec is None:
        raise UserError(f"--plugin {file}: expected a Python file, which ends in .py")
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except Exception as error:                      # whatever the user's code raises
        raise UserError(plugin_mistake(error) or f"--plugin {file}: {type(error).__name__}: {error}") from None


def plugin_mistake(error: BaseException) -> str | None:
    """What is wrong in a line of a plugin, "--plugin mine.py, line 3: KeyError: 'k'"; None where the error came from
    elsewhere."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if frame.f_globals.get("__name__", "").startswith(PLUGIN):
            name = os.path.relpath(frame.f_code.co_filename)
            return f"--plugin {name}, line {line}: {type(error).__name__}: {error}"
    return None
