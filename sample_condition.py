"""Restore images: `python sample_condition.py` runs the demo; DPS's command line, and a little more, runs the rest.

    YAML -> config -> prior, operator + noise -> Measurement, schedule + sampler + method
    images -> Measurement -> method.restore -> RunDirectory -> metrics, grid
"""

import argparse
import signal
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote

import torch
from torch import Tensor

from data.dataloader import DATASETS, Batch, ImageDataset, get_dataloader
from guided_diffusion.condition_methods import CONDITIONING_METHODS, ConditioningMethod
from guided_diffusion.gaussian_diffusion import Sampler, create_sampler
from guided_diffusion.measurements import NOISES, OPERATORS, Measurement, Noise, Operator
from guided_diffusion.unet import UNetModel, create_model
from util.compute_metric import Metrics
from util.config import Choice, Config, find_file, load_config
from util.errors import UserError, did_you_mean
from util.logger import get_logger
from util.registry import Registry, check_arguments
from util.report import Monitor, device_name, environment, log_table
from util.run_dir import MEAN, Outcome, RunDirectory
from util.seeding import ImageRandomness

DEFAULT_BATCH_PIXELS = 4 * 128 ** 2                 # images per batch by default: 4 of 128 x 128, 1 of 256 x 256

logger = get_logger()


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `UserError`s, with the nearest spelling of unknown options."""

    def error(self, message: str) -> None:
        raise UserError(f"{message}; see --help")

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        args, unknown = self.parse_known_args(argv)
        if unknown:
            word = unknown[0].partition("=")[0]
            options = [option for option in self._option_string_actions if option.startswith("--")]
            what = "option" if word.startswith("-") else "argument"
            raise UserError(f"unknown {what} '{word}'; {did_you_mean(word, options)}")
        return args


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
    add("--precision", choices=["fp32"], default="fp32", help="number format of the network; default %(default)s")
    add("--progress", type=positive, metavar="N", help="save the state after every N-th step to progress/")
    add("--overwrite", action="store_true", help="replace the results of an earlier run in the same folder")
    return parser.parse(argv)


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)


def choose_device(gpu: int | None) -> torch.device:
    """GPU `gpu`; when None, GPU 0 or else the CPU. UserError for a GPU that is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu is None:
        return torch.device("cuda:0" if count else "cpu")
    if not 0 <= gpu < count:
        found = f"the GPUs are 0 to {count - 1}" if count else "no GPU is found here; leave --gpu out for the CPU"
        raise UserError(f"--gpu {gpu}: {found}")
    return torch.device(f"cuda:{gpu}")


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

    dataset: ImageDataset
    operator: Operator
    noiser: Noise
    sampler: Sampler
    method: ConditioningMethod


def build_task(config: Config, overrides: Sequence[str]) -> Task:
    """Build all but the network, and check that the parts fit each other and the network.

    Raises:
        UserError: whatever is wrong in the configuration or the data.
    """
    check_arguments(create_model, config.model, "model config")
    check_arguments(create_sampler, config.diffusion, "diffusion config")
    find_checkpoint(config)
    sampler = create_sampler(**config.diffusion)
    sampler.check_model_channels(6 if config.model.get("learn_sigma", False) else 3)
    operator = build(OPERATORS, config.operator, "measurement.operator.name", overrides)
    noiser = build(NOISES, config.noise, "measurement.noise.name", overrides)
    method = build(CONDITIONING_METHODS, config.conditioning, "conditioning.method", overrides)
    method.check(operator, noiser)
    dataset = build(DATASETS, config.data, "data.name", overrides)
    if dataset.image_size is None:
        dataset.image_size = config.model["image_size"]
    size = dataset.image_size
    if size < 1:
        raise UserError(f"model config: image_size is {size}, expected 1 or more")
    operator.prepare((1, 3, size, size), ImageRandomness(0, ["trial"], purpose="operator"))
    return Task(dataset, operator, noiser, sampler, method)


def find_checkpoint(config: Config) -> str:
    """The path of the network's checkpoint; UserError if none is named or there is no such file."""
    remedy = "models/README.md says where each checkpoint comes from"
    if not config.model.get("model_path"):
        raise UserError(f"model config: model_path is missing; {remedy}")
    return str(find_file(config.model["model_path"], "checkpoint", remedy))


def load_prior(config: Config, image_size: int, device: torch.device) -> UNetModel:
    """The network with its checkpoint, frozen, on `device`; UserError if either is wrong or the images do not fit."""
    model = create_model(**{**config.model, "model_path": find_checkpoint(config)})
    model.check_image_size(image_size, image_size)
    return model.eval().requires_grad_(False).to(device)


class Gatherer:
    """Brings the samples of an image together, and hands complete images to the run directory."""

    def __init__(self, run: RunDirectory, metrics: Metrics, num_samples: int):
        self.run, self.metrics, self.num_samples = run, metrics, num_samples
        self.outcomes: dict[str, list[Outcome]] = defaultdict(list)

    def add(self, batch: Batch, measurement: Measurement, restored: Tensor, monitor: Monitor) -> None:
        """Take in a restored batch (B, 3, S, S), and save the images that are complete with it."""
        seconds, evaluations = monitor.seconds / len(restored), monitor.evaluations / len(restored)
        for name, sample, judged in zip(batch.names, batch.samples, self._judge(measurement, restored), strict=True):
            self.outcomes[name].append(Outcome(str(sample), seconds=seconds, network_evaluations=evaluations, **judged))
            if not torch.isfinite(judged["restored"]).all():
                logger.warning(f"the restoration of {name} diverged; try a smaller conditioning.params.scale")
        # the mean of the samples so far, per entry: complete at the last sample of its image
        means = torch.stack([torch.stack([o.restored for o in self.outcomes[name]]).mean(0) for name in batch.names])
        lifted = measurement.operator.lift(measurement.y).cpu()
        for b, judged in enumerate(self._judge(measurement, means.to(restored.device))):
            if batch.samples[b] == self.num_samples - 1:
                outcomes = self.outcomes.pop(batch.names[b])
                if self.num_samples > 1:
                    outcomes.append(Outcome(MEAN, seconds=sum(o.seconds for o in outcomes), **judged,
                                            network_evaluations=sum(o.network_evaluations for o in outcomes)))
                self.run.save(batch.names[b], batch.images[b], lifted[b], outcomes, self.metrics)

    @staticmethod
    @torch.no_grad()
    def _judge(measurement: Measurement, x: Tensor) -> list[dict[str, object]]:
        """Each image on the CPU with its equivalents, its distance and its chi-square, as `Outcome` names them."""
        equivalents = torch.stack(measurement.operator.ambiguities(x), dim=1)[:, 1:].cpu()         # (B, n, 3, S, S)
        values = zip(x.cpu(), equivalents, measurement.distance(x).tolist(), measurement.chi_square(x).tolist(),
                     strict=True)
        return [{"restored": image, "equivalents": tuple(others), "distance": distance, "chi_square": chi_square}
                for image, others, distance, chi_square in values]


def sample(args: argparse.Namespace, config: Config, task: Task, run: RunDirectory, todo: Sequence[int],
           device: torch.device) -> int:
    """Restore the images `todo` of the task's dataset and return how many of them could not be read."""
    operator, sampler, num_samples = task.operator.to(device), task.sampler, args.num_samples
    model = load_prior(config, task.dataset.image_size, device)
    gatherer = Gatherer(run, Metrics(device), num_samples)
    monitor = Monitor(model, run, len(todo), num_samples, sampler.num_steps, args.progress)
    batch_size = args.batch_size or max(1, DEFAULT_BATCH_PIXELS // task.dataset.image_size ** 2)
    unreadable: list[UserError] = []

    def pass_over(error: UserError) -> None:
        unreadable.append(error)
        monitor.skip_image()
        logger.warning(f"{error}; passed over")

    try:
        with monitor.bar:
            for batch in get_dataloader(task.dataset, batch_size, num_samples, todo, pass_over):
                randomness = ImageRandomness(args.seed, batch.names, batch.samples)
                measurement = Measurement.simulate(operator, task.noiser, batch.images.to(device), randomness)
                restored = task.method.restore(model, sampler, measurement, randomness, monitor.watch(batch))
                gatherer.add(batch, measurement, restored, monitor)
    except torch.cuda.OutOfMemoryError:
        raise UserError(f"{device_name(device)} is out of memory with batches of {batch_size}; "
                        "lower --batch_size, or set model.use_checkpoint=true") from None
    return len(unreadable)


def restore(args: argparse.Namespace) -> int:
    """Do what the command line asks for and return the exit status."""
    config = load_config(args.model_config, args.diffusion_config, args.task_config, args.overrides, args.data)
    device = choose_device(args.gpu)
    task = build_task(config, args.overrides)
    settings = {**config.as_dict(), "seed": args.seed, "num_samples": args.num_samples, "precision": args.precision}
    run = RunDirectory(args.save_dir, task.operator.name, task.method.name, settings, args.overwrite)

    chosen = range(len(task.dataset))[:args.limit]
    names = [task.dataset.names[i] for i in chosen]
    todo = [i for i in chosen if not run.finished(task.dataset.names[i])]
    side, before = task.dataset.image_size, len(chosen) - len(todo)
    logger.info(f"{task.operator.name} by {task.method.name}: {len(chosen)} image{'s' * (len(chosen) != 1)} of "
                f"{side} x {side}{f' ({before} finished before)' if before else ''}, {task.sampler.num_steps} steps, "
                f"on {device_name(device)}")
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
    logger.info(f"\nresults in {run.path} (grid.png: ground truth | measurement | restoration)")
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
