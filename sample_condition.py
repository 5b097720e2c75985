"""Restore images: `python sample_condition.py` runs the demo; DPS's command line, and a little more, runs the rest.

    YAML -> config -> prior, operator + noise, schedule + sampler + method
    images, photographs or saved measurements -> Measurement -> method.restore -> RunDirectory -> metrics, grid
"""

import argparse
from collections.abc import Callable, Sequence
from functools import cache

from guided_diffusion.restoration.arguments import parse_arguments
from util.command import check_command_line, run_program

if __name__ == "__main__":                          # before the imports that take seconds
    check_command_line(parse_arguments)

import torch

from guided_diffusion.priors.compiled import compiled
from guided_diffusion.priors.load import load_prior
from guided_diffusion.restoration.batches import Batches
from guided_diffusion.restoration.build import Task, build_task, fetch_weights, load_plugin, require_apart, run_settings
from guided_diffusion.restoration.catalogue import list_choices, resolved_config
from guided_diffusion.restoration.ending import Ending, bring_together, conclude
from guided_diffusion.restoration.gather import Gatherer
from guided_diffusion.restoration.monitor import Course, Monitor
from guided_diffusion.restoration.plan import announce, make_plan
from util.config.config import Config, load_config
from util.logger import logger
from util.run.console import device_name
from util.run.directory import RunDirectory
from util.run.layout import run_path
from util.run.lock import hold
from util.run.measurements import MeasurementFolder
from util.run.team import Team
from util.seeding import ImageRandomness


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status, see `Ending`."""
    with Team() as team, Ending(team) as ending:
        ending.status = run(parse_arguments(argv), team, ending)
    return ending.status


def run(args: argparse.Namespace, team: Team, ending: Ending) -> int:
    """Build what the command line asks for, and do it; return the exit status."""
    for file in args.plugin:
        load_plugin(file)
    if args.list:
        logger.info(list_choices())
        return 0
    stored = MeasurementFolder(args.load_measurements) if args.load_measurements is not None else None
    config = load_config(args.model_config, args.diffusion_config, args.task_config, args.overrides, args.data,
                         stored and stored.settings)
    if args.print_config:
        logger.info(resolved_config(config, args))
        return 0
    if args.fetch:
        fetch_weights(config, team)
    device = team.choose_device(args.gpu)
    task = build_task(config, stored, args.data is not None, args.limit)
    place = args.save_dir, task.operator.name, task.method.name
    require_apart(config, run_path(*place))
    load = cache(lambda: load_prior(config.model, task.source.image_size, args.tile, args.precision, device,
                                    task.sampler))
    if args.overwrite and task.method.needs_prior:
        load()                                                  # what it refuses is said before results are deleted
    with hold(run_path(*place), team):
        folder = RunDirectory(*place, run_settings(args, config, task), args.overwrite, args.save_measurements,
                              task.source.names, team.leads)
        return restore(args, config, task, folder, team, ending, device, load)


def restore(args: argparse.Namespace, config: Config, task: Task, folder: RunDirectory, team: Team, ending: Ending,
            device: torch.device, load: Callable[[], torch.nn.Module]) -> int:
    """Restore what is left of the images, and return the exit status; `load` gives the prior."""
    task.operator.to(device)
    plan = make_plan(args, task, folder, team, load, device)
    announce(task, folder, plan, team, device, args.progress)
    with ending.keeping(folder, plan.names):
        prior = load() if task.method.needs_prior and plan.groups else None
        if prior is not None:
            task.check_prior(prior)
        if args.compile and prior is not None:
            prior = compiled(prior, plan.largest_batch(args.num_samples), task.source.image_size, device)
        gatherer = Gatherer(args, config, task, folder, plan, device)
        num_steps = task.method.num_steps(task.sampler)
        with Monitor(prior, folder, team, plan.images_left, args.num_samples, num_steps, args.progress) as monitor:
            batches = Batches(task.source, plan, args.num_samples, team, monitor, device_name(device))
            with gatherer:
                for batch in batches:                           # what is left, as large as memory holds
                    with batches.fitting():                     # out of memory: again, in halves
                        gatherer.begin(batch)
                        randomness = ImageRandomness(args.seed, batch.names, batch.samples, device=device)
                        measurement = task.measure(batch, device, randomness)
                        with Course(monitor, batch, measurement) as course:
                            x = task.method.restore(prior, task.sampler, measurement, randomness, course)
                            course.restored = measurement.finish(x)
                        gatherer.add(batch, measurement, course)
            unreadable, peak = bring_together(folder, team, monitor, batches.unreadable, device)
        return conclude(args.seed, task, folder, plan, unreadable, peak, device) if team.leads else 0


if __name__ == "__main__":
    run_program(main)
