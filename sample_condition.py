"""Restore images: `python sample_condition.py` runs the demo; DPS's command line, and a little more, runs the rest.

    YAML -> config -> prior, operator + noise, schedule + sampler + method
    images, photographs or saved measurements -> Measurement -> method.restore -> RunDirectory -> metrics, grid
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from shlex import quote

import torch
from torch import nn

from data.dataloader import DATASETS, get_dataloader
from guided_diffusion.condition_methods import CONDITIONING_METHODS
from guided_diffusion.gathering import Gatherer
from guided_diffusion.gaussian_diffusion import Sampler, create_sampler
from guided_diffusion.measurements import NOISES, OPERATORS, Noise, Operator
from guided_diffusion.measurements.sources import Observed, Simulated, Source, Stored, to_store
from guided_diffusion.solvers import Method
from guided_diffusion.tiling import PaddedPrior, TiledPrior
from guided_diffusion.unet import create_model
from util.command import Parser, choose_device
from util.compute_metric import Metrics
from util.config import Choice, Config, find_file, load_config
from util.errors import UserError
from util.logger import get_logger
from util.measurement_files import MeasurementFolder
from util.registry import Registry, check_arguments
from util.console import Monitor, device_name, environment, log_table
from util.run_dir import RunDirectory
from util.seeding import ImageRandomness

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}     # of the network alone; everything else is float32
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
    add("--batch_size", type=positive, metavar="N", help="images restored together; default: by image size")
    add("--num_samples", type=positive, default=1, metavar="N", help="posterior samples per image; default 1")
    add("--limit", type=positive, metavar="N", help="restore the first N images only")
    add("--precision", choices=PRECISIONS, default="fp32", help="number format of the network; default %(default)s")
    add("--tile", type=positive, metavar="N", help="restore images larger than N x N in overlapping windows of N x N")
    add("--save_measurements", action="store_true", help="save the measurements, masks and kernels to measurements/")
    add("--load_measurements", metavar="FOLDER", help="restore exactly these saved measurements")
    add("--progress", type=positive, metavar="N", help="save the state after every N-th step to progress/")
    add("--weights_dir", metavar="FOLDER", help="holds the weights of LPIPS's networks; nothing is fetched then")
    add("--overwrite", action="store_true", help="replace the results of an earlier run in the same folder")
    return parser.parse(argv)


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)


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


@dataclass(frozen=True)
class Task:
    """Everything that a restoration needs besides the network."""

    source: Source
    operator: Operator
    noiser: Noise
    sampler: Sampler
    method: Method


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


def sample(args: argparse.Namespace, config: Config, task: Task, run: RunDirectory, todo: Sequence[int],
           device: torch.device) -> int:
    """Restore the images `todo` of the task and return how many of them could not be read."""
    source, operator, num_samples = task.source, task.operator.to(device), args.num_samples
    prior = (load_prior(config, source.image_size, args.tile, args.precision, device) if task.method.needs_prior
             else None)
    settings = config.as_dict()["measurement"]
    store = partial(to_store, operator=settings["operator"], noise=settings["noise"], seed=args.seed,
                    observed=config.observed) if args.save_measurements else None
    metrics = Metrics(device, args.weights_dir) if source.knows_truth else None
    gatherer = Gatherer(run, source, metrics, num_samples, store)
    monitor = Monitor(prior, run, len(todo), num_samples, task.method.num_steps(task.sampler), args.progress)
    batch_size = args.batch_size or num_samples * max(1, default_entries(source.image_size) // num_samples)
    unreadable: list[UserError] = []

    def pass_over(error: UserError) -> None:
        unreadable.append(error)
        monitor.skip_image()
        logger.warning(f"{error}; passed over")

    try:
        with monitor:
            for batch in get_dataloader(source, batch_size, num_samples, todo, pass_over):
                randomness = ImageRandomness(args.seed, batch.names, batch.samples)
                measurement = source.measure(operator, task.noiser, batch, device, randomness)
                restored = task.method.restore(prior, task.sampler, measurement, randomness, monitor.watch(batch))
                gatherer.add(batch, measurement, restored, monitor)
    except torch.cuda.OutOfMemoryError:
        raise UserError(f"{device_name(device)} is out of memory with batches of {batch_size}; "
                        "lower --batch_size, set model.use_checkpoint=true, or restore large images with --tile 256"
                        ) from None
    return len(unreadable)


def restore(args: argparse.Namespace) -> int:
    """Do what the command line asks for and return the exit status."""
    folder = MeasurementFolder(args.load_measurements) if args.load_measurements is not None else None
    config = load_config(args.model_config, args.diffusion_config, args.task_config, args.overrides, args.data,
                         folder and folder.settings)
    device = choose_device(args.gpu)
    task = build_task(config, args, folder)
    given = {"tile": args.tile, "load_measurements": args.load_measurements}
    settings = {**config.as_dict(), "seed": args.seed, "num_samples": args.num_samples, "precision": args.precision,
                **{key: value for key, value in given.items() if value is not None}}
    run = RunDirectory(args.save_dir, task.operator.name, task.method.name, settings, args.overwrite,
                       args.save_measurements)

    names = task.source.names[:args.limit]
    todo = [i for i, name in enumerate(names) if not run.finished(name)]
    steps = f", {task.sampler.num_steps} steps" * task.method.needs_prior
    before = f" ({len(names) - len(todo)} finished before)" if len(todo) < len(names) else ""
    logger.info(f"{task.operator.name} by {task.method.name}: {len(names)} image{'s' * (len(names) != 1)} of "
                f"{task.source.size}{before}{steps}, on {device_name(device)}")
    try:
        unreadable = sample(args, config, task, run, todo, device) if todo else 0
        if len(todo) > unreadable or not run.has_summary:
            run.write_summary({"operator": task.operator.name, "method": task.method.name, "seed": args.seed,
                               "lpips_network": "vgg", **environment(device)})
            run.write_grid()
    except KeyboardInterrupt:
        logger.error(f"interrupted: {sum(map(run.finished, names))} of {len(names)} images are finished and kept in "
                     f"{run.path}; the same command continues")
        return 130
    log_table(run, names)
    logger.info(f"\nresults in {run.path} (grid.png: "
                f"{'ground truth | ' * task.source.knows_truth}measurement | restoration)")
    if unreadable:
        logger.error(f"{unreadable} of {len(names)} images could not be read")
    return 1 if unreadable else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; exit status 0, 1 if images were passed over, 2 for a mistake, 130 when interrupted."""
    try:
        return restore(parse_arguments(argv))
    except UserError as error:
        logger.error(error)
        return 2
    except KeyboardInterrupt:
        logger.error("interrupted before the first image")
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)    # shells start background jobs with it ignored
    sys.exit(main())
