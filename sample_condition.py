"""Restore images: `python sample_condition.py` runs the demo; DPS's command line, and a little more, runs the rest.

    YAML -> config -> prior, operator + noise, schedule + sampler + method
    images, photographs or saved measurements -> Measurement -> method.restore -> RunDirectory -> metrics, grid
"""

import argparse
import sys
from collections.abc import Sequence
from functools import cache, partial
from inspect import signature
from pathlib import Path

if __name__ == "__main__":
    from util.command import end_at_once

    end_at_once()                                   # while the imports take their time

import torch
from torch import nn
from torch.distributed import DistError

from guided_diffusion.measurements.sources import to_store
from guided_diffusion.priors.compiled import compiled
from guided_diffusion.priors.load import autocast_dtype, find_checkpoint, load_prior
from guided_diffusion.restoration.build import build_task
from guided_diffusion.restoration.catalogue import list_choices, resolved_config
from guided_diffusion.restoration.gather import Gatherer, likely_cause
from guided_diffusion.restoration.monitor import Monitor
from guided_diffusion.restoration.plan import Plan, best_batch_size, default_entries, make_plan
from guided_diffusion.restoration.restore import Report, Restorer, Task
from util.checkpoint import fingerprint
from util.command import (
    DEFAULT_PRECISION,
    MOST_SAMPLES,
    PRECISIONS,
    Parser,
    Terminated,
    at_most,
    catch_signals,
    positive,
    run_command,
)
from util.config.config import Config, load_config
from util.errors import StorageError, UserError
from util.logger import get_logger
from util.memory import BatchSize
from util.metrics.comparison import log_distances
from util.metrics.scores import Metrics
from util.run.console import device_name, environment, log_table
from util.run.directory import RunDirectory
from util.run.layout import run_path
from util.run.lock import hold
from util.run.measurements import MeasurementFolder
from util.run.set_scores import score_sets
from util.run.team import Team

NEARLY_CLEAN = 0.5                                  # alpha_bar of a first step that noise alone is no start for

logger = get_logger()


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; UserError for a mistake in it."""
    parser = Parser(description="Restore images with a diffusion prior; without options, the demo.", allow_abbrev=False)
    add = parser.add_argument
    add("--model_config", default="configs/demo_model_config.yaml", help="the network (YAML)")
    add("--diffusion_config", default="configs/demo_diffusion_config.yaml", help="the reverse process (YAML)")
    add("--task_config", default="configs/demo_task_config.yaml", help="method, data, operator and noise (YAML)")
    add("--gpu", type=int, metavar="N", help="index of the GPU; default: GPU 0, or the CPU where there is none")
    add("--save_dir", default="./results", help="where results go; default %(default)s")
    add("--data", metavar="FOLDER", help="restore these images, or 'skimage' for scikit-image's photographs")
    add("--set", action="append", default=[], metavar="KEY.PATH=VALUE", dest="overrides",
        help="change a configuration value, such as conditioning.params.scale=0.4; repeatable")
    add("--seed", type=int, default=0, help="of all random numbers; default %(default)s")
    add("--batch_size", type=positive_or_auto, metavar="N", help="images restored together, or 'auto' for the number "
        "that is fastest here; default: by image size, and more of them on a GPU")
    add("--num_samples", type=at_most(MOST_SAMPLES), default=1, metavar="N",
        help="posterior samples per image; default %(default)s")
    add("--limit", type=positive, metavar="N", help="restore the first N images only")
    add("--precision", choices=PRECISIONS, default=DEFAULT_PRECISION,
        help="number format of the network; default %(default)s: float32, with TF32 convolutions on GPUs that have it")
    add("--compile", action="store_true", help="compile the network by torch.compile, which takes minutes")
    add("--tile", type=positive, metavar="N", help="restore images larger than N x N in overlapping windows of N x N")
    add("--save_measurements", action="store_true", help="save the measurements, masks and kernels to measurements/")
    add("--load_measurements", metavar="FOLDER", help="restore exactly these saved measurements")
    add("--progress", type=positive, metavar="N", help="save the state after every N-th step to progress/")
    add("--fid", action="store_true", help="at the end, FID and KID of the saved images against the true ones")
    add("--weights_dir", metavar="FOLDER", help="holds the weights of LPIPS, FID and KID; nothing is fetched then")
    add("--overwrite", action="store_true", help="replace the results of an earlier run in the same folder")
    add("--print_config", action="store_true", help="print the resolved configuration with the origin of each value")
    add("--list", action="store_true", help="print operators, noises, methods, ... with their parameters and defaults")
    return parser.parse(argv)


def positive_or_auto(text: str) -> int | str:
    """A whole number of 1 or more, or "auto", for argparse."""
    return text if text == "auto" else positive(text)


def load_metrics(args: argparse.Namespace, task: Task, plan: Plan, device: torch.device) -> Metrics | None:
    """What judges the images, with the networks that are needed; None where nobody knows the truth."""
    if not task.source.knows_truth:
        if args.fid:
            logger.warning("left out: FID and KID, as there are no true images to compare with")
        return None
    networks = [*["lpips_vgg", "lpips_alex"] * bool(plan.groups), *["inception"] * args.fid]
    return Metrics(device, args.weights_dir, networks)


def sample(args: argparse.Namespace, config: Config, task: Task, prior: nn.Module | None, metrics: Metrics | None,
           run: RunDirectory, plan: Plan, team: Team, device: torch.device) -> Report:
    """Restore this process's share of what is left, and return what all processes did once they are done."""
    source, method, num_samples = task.source, task.method, args.num_samples
    settings = config.as_dict()["measurement"]
    store = partial(to_store, operator=settings["operator"], noise=settings["noise"], seed=args.seed,
                    observed=config.observed) if args.save_measurements else None
    explain = partial(likely_cause, has_scale="scale" in signature(type(method)).parameters,
                      half_precision=autocast_dtype(config.model, args.precision) is not None)
    gatherer = Gatherer(run, source, metrics, num_samples, plan.finished, explain, store, device.type == "cuda")
    monitor = Monitor(prior, run, team, sum(map(len, plan.groups)), num_samples, method.num_steps(task.sampler),
                      args.progress)
    restorer = Restorer(task, prior, gatherer, monitor, BatchSize(plan.batch_size, device_name(device)), num_samples,
                        args.seed, device)
    with monitor:
        with gatherer:
            for number in team.share(len(plan.groups)):
                restorer(plan.groups[number])
        monitor.draw()
        reports = team.gather({"table": run.store.own_table(), "unreadable": restorer.unreadable,
                               "peak_memory_bytes": environment(device)["peak_memory_bytes"]}, monitor.refresh)
    report = Report.of(reports)
    for table in report.tables if team.leads else ():
        run.store.merge(table)
    return report


def announce(task: Task, run: RunDirectory, plan: Plan, team: Team, device: torch.device) -> None:
    """Say what is going to be done, and on what."""
    count, done = len(plan.names), len(plan.finished)
    steps = f", {task.sampler.num_steps} steps" * task.method.needs_prior
    processes = f"{team.size} processes, each on " * (team.size > 1)
    logger.info(f"{task.operator.name} by {task.method.name}: {count} image{'s' * (count != 1)} of {task.source.size}"
                f"{f' ({done} finished before)' * (done > 0)}{steps}, on {processes}{device_name(device)}")
    schedule = task.sampler.schedule
    if task.method.needs_prior and (start := schedule.alphas_cumprod[-1]) > NEARLY_CLEAN:
        logger.warning(f"timestep_respacing keeps no step noisier than t = {schedule.timesteps[-1]}, where images are "
                       f"nearly clean (alpha_bar {start:.4g}), but sampling begins there from noise; keep noisier ones")
    gone = sorted({row.image for row in run.rows} - set(task.source.names))
    if gone:
        which = f"1 image ({gone[0]})" if len(gone) == 1 else f"{len(gone)} images ({gone[0]}, ...)"
        logger.warning(f"metrics.csv and summary.json hold {which} no longer in the data; --overwrite begins anew")
    if 0 < len(plan.groups) < team.size:
        logger.info(f"{len(plan.groups)} batches for {team.size} processes: a smaller --batch_size gives all some work")


def conclude(args: argparse.Namespace, task: Task, run: RunDirectory, plan: Plan, report: Report,
             set_scores: dict[str, dict[str, object]], device: torch.device) -> int:
    """Write what is made from all images, show the table, and return the exit status."""
    if not run.concluded:
        run.conclude({"operator": task.operator.name, "method": task.method.name, "seed": args.seed,
                      "lpips_network": "vgg", **environment(device), **report.facts})
    if set_scores:
        run.add_to_summary(set_scores)
    log_table(run, plan.names)
    log_distances(set_scores)
    grid = f" (grid.png: {'ground truth | ' * task.source.knows_truth}measurement | restoration)"
    logger.info(f"\nresults in {run.path}{grid * any(row.ok for row in run.rows)}")
    diverged = sum(any(not row.ok for row in run.rows_of(name)) for name in plan.names)
    if report.unreadable:
        logger.error(f"{report.unreadable} of {len(plan.names)} images could not be read")
    if diverged:
        logger.error(f"{diverged} of {len(plan.names)} images diverged, see the column status of metrics.csv")
    return 1 if report.unreadable or diverged else 0


def conduct(args: argparse.Namespace, config: Config, task: Task, run: RunDirectory, team: Team,
            device: torch.device) -> int:
    """Restore all that is left and return the exit status, 130 when interrupted, 1 if the disk is full or gone."""
    task.operator.to(device)
    size = task.source.image_size
    load = cache(lambda: load_prior(config.model, size, args.tile, args.precision, device))
    measurable = task.method.needs_prior and size is not None
    default = default_entries(size, device)
    plan = make_plan(task.source, args.limit, args.num_samples, args.batch_size, default, run, team,
                     lambda entries: best_batch_size(task, load(), size, device, entries) if measurable else default)
    announce(task, run, plan, team, device)
    try:
        prior = load() if task.method.needs_prior and plan.groups else None
        if args.compile and prior is not None:
            prior = compiled(prior, plan.largest_batch(args.num_samples), size, device)
        metrics = load_metrics(args, task, plan, device)
        report = sample(args, config, task, prior, metrics, run, plan, team, device) if plan.groups else Report()
        set_scores = score_sets(run, metrics, team, plan.names, args.num_samples) if args.fid and metrics else {}
        return conclude(args, task, run, plan, report, set_scores, device) if team.leads else 0
    except KeyboardInterrupt as stop:
        if team.first("stopped"):
            told = isinstance(stop, Terminated)
            because = "another process of the run has ended, or all were told to" if told and team.size > 1 else ""
            logger.error(f"{'stopped' if told else 'interrupted'}{f' ({because})' * bool(because)}: "
                         f"{kept(run, plan)}; the same command continues")
        return 130
    except StorageError as error:
        team.first("stopped")
        logger.error(f"{error}; {kept(run, plan)}")
        return 1


def kept(run: RunDirectory, plan: Plan) -> str:
    """How much is done, in words, when a run ends early."""
    done = run.collect()
    return f"{sum(name in done for name in plan.names)} of {len(plan.names)} images are finished and kept in {run.path}"


def restore(args: argparse.Namespace, team: Team) -> int:
    """Do what the command line asks for and return the exit status."""
    if args.list:
        logger.info(list_choices())
        return 0
    folder = MeasurementFolder(args.load_measurements) if args.load_measurements is not None else None
    config = load_config(args.model_config, args.diffusion_config, args.task_config, args.overrides, args.data,
                         folder and folder.settings)
    if args.print_config:
        logger.info(resolved_config(config, {
            name: (vars(args)[name], f"--{name}" if name in args.given else "default")
            for name in ("seed", "num_samples", "precision", "tile", "load_measurements")}))
        return 0
    device = team.choose_device(args.gpu)
    task = build_task(config, args.overrides, folder, args.data is not None)
    given = {"tile": args.tile, "load_measurements": args.load_measurements,
             "checkpoint": fingerprint(Path(find_checkpoint(config.model))) if task.method.needs_prior else None,
             "files": {name: fingerprint(path) for name, path in task.operator.files_read().items()} or None}
    settings = {**config.as_dict(), "seed": args.seed, "num_samples": args.num_samples, "precision": args.precision,
                **{key: value for key, value in given.items() if value is not None}}
    place = args.save_dir, task.operator.name, task.method.name
    with hold(run_path(*place), team):
        run = RunDirectory(*place, settings, args.overwrite, args.save_measurements, task.source.names, team.leads)
        return conduct(args, config, task, run, team, device)


def answer(argv: Sequence[str] | None, team: Team) -> int:
    """Run the command line as one of a team and return the exit status; what goes wrong is said once."""
    try:
        return restore(parse_arguments(argv), team)
    except UserError as error:
        team.first("stopped")
        logger.error(error)
        return 1 if isinstance(error, StorageError) else 2
    except DistError as error:
        logger.error(f"the process that leads the run is gone ({str(error).splitlines()[0]}); what is finished is "
                     "kept, and the same command continues")
        return 1
    except KeyboardInterrupt:
        if team.first("stopped"):
            logger.error("interrupted before the first image")
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0; 1 if images could not be read or diverged, or the disk is full or gone; 2 for a mistake;
        130 when interrupted.
    """
    def work() -> int:
        with Team() as team:
            return answer(argv, team)
    return run_command(work)


if __name__ == "__main__":
    catch_signals()
    sys.exit(main())
