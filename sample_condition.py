"""Restore images: `python sample_condition.py` runs the demo; DPS's command line, and a little more, runs the rest.

    YAML -> config -> prior, operator + noise, schedule + sampler + method
    images, photographs or saved measurements -> Measurement -> method.restore -> RunDirectory -> metrics, grid
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from inspect import signature
from pathlib import Path
from shlex import quote

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)    # while the imports take their time, an interrupt just ends them

import torch
from torch import nn
from torch.distributed import DistError

from data.dataloader import DATASETS, group_images
from guided_diffusion.batch_search import best_batch_size
from guided_diffusion.choices import list_choices, resolved_config
from guided_diffusion.compiled import compiled
from guided_diffusion.condition_methods import CONDITIONING_METHODS
from guided_diffusion.gathering import Gatherer, likely_cause
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import NOISES, OPERATORS
from guided_diffusion.measurements.sources import Observed, Simulated, Source, Stored, to_store
from guided_diffusion.restoring import Plan, Report, Restorer, Task
from guided_diffusion.tiling import PaddedPrior, TiledPrior
from guided_diffusion.unet import create_model
from util.checkpoint import fingerprint
from util.command import PRECISIONS, Parser, positive
from util.compute_metric import Metrics
from util.config import Choice, Config, find_file, load_config
from util.console import device_name, environment, log_table
from util.distributed import Team
from util.errors import StorageError, UserError
from util.lock import hold
from util.logger import get_logger
from util.measurement_files import MeasurementFolder
from util.memory import BatchSize
from util.monitor import Monitor
from util.registry import Registry, check_arguments
from util.run_dir import RunDirectory, run_path
from util.signals import Terminated, catch_signals

DEFAULT_BATCH_PIXELS = 4 * 128 ** 2                 # images per batch by default: 4 of 128 x 128, 1 of 256 x 256

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
        "that is fastest here; default: by image size")
    add("--num_samples", type=positive, default=1, metavar="N", help="posterior samples per image; default 1")
    add("--limit", type=positive, metavar="N", help="restore the first N images only")
    add("--precision", choices=PRECISIONS, default="fp32", help="number format of the network; default %(default)s")
    add("--compile", action="store_true", help="compile the network by torch.compile, which takes minutes")
    add("--tile", type=positive, metavar="N", help="restore images larger than N x N in overlapping windows of N x N")
    add("--save_measurements", action="store_true", help="save the measurements, masks and kernels to measurements/")
    add("--load_measurements", metavar="FOLDER", help="restore exactly these saved measurements")
    add("--progress", type=positive, metavar="N", help="save the state after every N-th step to progress/")
    add("--weights_dir", metavar="FOLDER", help="holds the weights of LPIPS's networks; nothing is fetched then")
    add("--overwrite", action="store_true", help="replace the results of an earlier run in the same folder")
    add("--print_config", action="store_true", help="print the resolved configuration with the origin of each value")
    add("--list", action="store_true", help="print operators, noises, methods, ... with their parameters and defaults")
    return parser.parse(argv)


def positive_or_auto(text: str) -> int | str:
    """A whole number of 1 or more, or "auto", for argparse."""
    return text if text == "auto" else positive(text)


def build(registry: Registry, choice: Choice, path: str, overrides: Sequence[str]):
    """Build a named thing of the configuration; `path` is where its name stands."""
    try:
        return registry.build(choice.name, **choice.params)
    except UserError as error:
        renamed = any(override.partition("=")[0].strip() == path for override in overrides)
        if not renamed or choice.name not in registry or not choice.params:
            raise
        section = path.rpartition(".")[0]
        remedies = [f"{section}.params={{}}" if section == "conditioning" else f"{section}={{name: {choice.name}}}"]
        remedies += ["measurement.mask_opt=null"] if "mask_opt" in choice.params else []
        raise UserError(f"{error}. The task file's parameters ({', '.join(choice.params)}) still apply; "
                        f"drop them by {' '.join(f'--set {quote(remedy)}' for remedy in remedies)}") from None


def build_source(config: Config, args: argparse.Namespace, folder: MeasurementFolder | None) -> Source:
    """Where the measurements come from: clean images, photographs that are already degraded, or `folder`."""
    try:
        dataset = build(DATASETS, config.data, "data.name", args.overrides)
    except UserError as error:
        if folder is None or args.data is not None:
            raise
        logger.warning(f"the measurements are restored without ground truth: {error}")
        return Stored(folder)
    if folder is not None:
        return Stored(folder, None if dataset.observed else dataset)
    usual_size = config.model["image_size"]
    if usual_size < 1:
        raise UserError(f"model config: image_size is {usual_size}, expected 1 or more")
    if dataset.observed:
        return Observed(dataset, usual_size)
    dataset.image_size = dataset.image_size or usual_size
    return Simulated(dataset)


def build_task(config: Config, args: argparse.Namespace, folder: MeasurementFolder | None) -> Task:
    """Build all but the network, and check that the parts fit each other and the network.

    Args:
        folder: measurements to restore in place of the task's.

    Raises:
        UserError: whatever is wrong in the configuration or the data.
    """
    check_arguments(create_model, config.model, "model config")
    check_arguments(create_sampler, config.diffusion, "diffusion config")
    sampler = create_sampler(**config.diffusion)
    sampler.check_model_channels(6 if config.model.get("learn_sigma", False) else 3)
    operator = build(OPERATORS, config.operator, "measurement.operator.name", args.overrides)
    noiser = build(NOISES, config.noise, "measurement.noise.name", args.overrides)
    method = build(CONDITIONING_METHODS, config.conditioning, "conditioning.method", args.overrides)
    method.check(operator, noiser)
    if method.needs_prior:
        find_checkpoint(config)
    source = build_source(config, args, folder)
    source.check(operator, noiser)
    return Task(source, operator, noiser, sampler, method)


def find_checkpoint(config: Config) -> str:
    """The path of the network's checkpoint; UserError if none is named or there is no such file."""
    remedy = "models/README.md says where each checkpoint comes from"
    if not config.model.get("model_path"):
        raise UserError(f"model config: model_path is missing; {remedy}")
    return str(find_file(config.model["model_path"], "checkpoint", remedy))


def load_prior(config: Config, image_size: int | None, tile: int | None, precision: str,
               device: torch.device) -> nn.Module:
    """The network with its checkpoint, frozen, on `device`: model(x_t, t).

    Args:
        image_size: side of all images; None for images of any size, which are padded where the network needs it.
        tile: restore larger images in windows of this side.
        precision: a key of `PRECISIONS`.

    Raises:
        UserError: the network or its checkpoint is wrong, or images or tiles do not fit the network.
    """
    model = create_model(**{**config.model, "model_path": find_checkpoint(config)})
    model.autocast_dtype = PRECISIONS[precision] or model.autocast_dtype
    prior = model.eval().requires_grad_(False).to(device)
    if tile is not None and tile % model.multiple:
        raise UserError(f"--tile {tile}: the network takes multiples of {model.multiple}, such as "
                        f"{max(1, round(tile / model.multiple)) * model.multiple}")
    if image_size is not None:
        model.check_image_size(image_size, image_size)
    else:
        prior = PaddedPrior(prior, model.multiple)
    return prior if tile is None else TiledPrior(prior, tile)


def default_entries(image_size: int | None) -> int:
    """Entries per batch: by the images' size, and 1 where it may differ."""
    return 1 if image_size is None else max(1, DEFAULT_BATCH_PIXELS // image_size ** 2)


def sample(args: argparse.Namespace, config: Config, task: Task, prior: nn.Module | None, run: RunDirectory, plan: Plan,
           team: Team, device: torch.device) -> Report:
    """Restore this process's share of what is left, and return what all processes did once they are done."""
    source, method, num_samples = task.source, task.method, args.num_samples
    settings = config.as_dict()["measurement"]
    store = partial(to_store, operator=settings["operator"], noise=settings["noise"], seed=args.seed,
                    observed=config.observed) if args.save_measurements else None
    explain = partial(likely_cause, has_scale="scale" in signature(type(method)).parameters,
                      half_precision=PRECISIONS[args.precision] is not None or config.model.get("use_fp16", False))
    metrics = Metrics(device, args.weights_dir) if source.knows_truth else None
    gatherer = Gatherer(run, source, metrics, num_samples, plan.finished, explain, store)
    monitor = Monitor(prior, run, team, sum(map(len, plan.groups)), num_samples, method.num_steps(task.sampler),
                      args.progress)
    restorer = Restorer(task, prior, gatherer, monitor, BatchSize(plan.batch_size, device_name(device)), num_samples,
                        args.seed, device)
    with monitor:
        for number in team.share(len(plan.groups)):
            restorer(plan.groups[number])
        monitor.draw()
        reports = team.gather({"table": run.store.own_table(), "unreadable": restorer.unreadable,
                               "peak_memory_bytes": environment(device)["peak_memory_bytes"]}, monitor.refresh)
    return Report.of(reports)


def make_plan(args: argparse.Namespace, task: Task, run: RunDirectory, team: Team,
              search: Callable[[int], int]) -> Plan:
    """What is left to do, as the leading process sees it.

    Args:
        search: search(entries) -> the fastest batch size for so many, where --batch_size auto asks for it.
    """
    names, num_samples = task.source.names[:args.limit], args.num_samples
    if team.leads:
        team.publish("finished", json.dumps([name for name in names if run.finished(name)]))
    finished = frozenset(json.loads(team.receive("finished")))
    entries = args.batch_size or default_entries(task.source.image_size)
    if args.batch_size == "auto":
        if team.leads:
            team.publish("batch_size", str(search(len(names) * num_samples)))
        entries = int(team.receive("batch_size"))
    given = isinstance(args.batch_size, int)
    batch_size = entries if given else num_samples * max(1, entries // num_samples)
    groups = [group for group in group_images(len(names), batch_size, num_samples)
              if not all(names[index] in finished for index in group)]
    return Plan(names, finished, batch_size, groups)


def announce(task: Task, plan: Plan, team: Team, device: torch.device) -> None:
    """Say what is going to be done, and on what."""
    count, done = len(plan.names), len(plan.finished)
    steps = f", {task.sampler.num_steps} steps" * task.method.needs_prior
    processes = f"{team.size} processes, each on " * (team.size > 1)
    logger.info(f"{task.operator.name} by {task.method.name}: {count} image{'s' * (count != 1)} of {task.source.size}"
                f"{f' ({done} finished before)' * (done > 0)}{steps}, on {processes}{device_name(device)}")
    if 0 < len(plan.groups) < team.size:
        logger.info(f"{len(plan.groups)} batches for {team.size} processes: a smaller --batch_size gives all some work")


def conclude(args: argparse.Namespace, task: Task, run: RunDirectory, plan: Plan, report: Report,
             device: torch.device) -> int:
    """Write what is made from all images, show the table, and return the exit status."""
    for table in report.tables:
        run.store.merge(table)
    if not run.concluded:
        run.conclude({"operator": task.operator.name, "method": task.method.name, "seed": args.seed,
                      "lpips_network": "vgg", **environment(device), **report.facts})
    log_table(run, plan.names)
    logger.info(f"\nresults in {run.path} (grid.png: "
                f"{'ground truth | ' * task.source.knows_truth}measurement | restoration)")
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
    load = cache(lambda: load_prior(config, size, args.tile, args.precision, device))
    measurable = task.method.needs_prior and size is not None
    plan = make_plan(args, task, run, team, lambda entries: (
        best_batch_size(task, load(), size, device, entries) if measurable else default_entries(size)))
    announce(task, plan, team, device)
    try:
        prior = load() if task.method.needs_prior and plan.groups else None
        if args.compile and prior is not None and measurable:
            prior = compiled(prior, (plan.batch_size, 3, size, size), device)
        report = sample(args, config, task, prior, run, plan, team, device) if plan.groups else Report()
        return conclude(args, task, run, plan, report, device) if team.leads else 0
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
    task = build_task(config, args, folder)
    given = {"tile": args.tile, "load_measurements": args.load_measurements,
             "checkpoint": fingerprint(Path(find_checkpoint(config))) if task.method.needs_prior else None}
    settings = {**config.as_dict(), "seed": args.seed, "num_samples": args.num_samples, "precision": args.precision,
                **{key: value for key, value in given.items() if value is not None}}
    place = args.save_dir, task.operator.name, task.method.name
    with hold(run_path(*place), team):
        run = RunDirectory(*place, settings, args.overwrite, args.save_measurements, task.source.names, team.leads)
        return conduct(args, config, task, run, team, device)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0; 1 if images could not be read or diverged, or the disk is full or gone; 2 for a mistake;
        130 when interrupted.
    """
    with Team() as team:
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


if __name__ == "__main__":
    catch_signals()
    sys.exit(main())
