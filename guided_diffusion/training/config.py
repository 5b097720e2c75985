"""What a training file says: the network, the crops, the optimiser, and how long each of them lasts."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch

from guided_diffusion.training.losses import LossWeight
from guided_diffusion.unet import UNetModel, create_model
from util.config.config import DEMO, find_file, read_yaml
from util.config.registry import Bounds, Count, Natural, Positive, check_arguments
from util.config.yaml_text import set_values
from util.errors import UserError

LARGEST = 1e12                                      # times another such number, or the timesteps, fits any tensor
CONFIGS = ("model_config.yaml", "diffusion_config.yaml")        # beside the weights that a training leaves
FEW_STEPS = 100                                     # a process of fewer takes all of them
MOST_PIXELS = 2 ** 28                               # of a batch: its crops alone take 3 GiB

Rate = Annotated[float, Bounds(above=0, most=LARGEST)]
Weight = Annotated[float, Bounds(least=0, most=LARGEST)]
Share = Annotated[float, Bounds(least=0, below=1)]
Power = Annotated[float, Bounds(above=0, most=100)]
Zoom = Annotated[float, Bounds(least=1)]


@dataclass(frozen=True)
class Phase:
    """Some steps at one crop size: `batch_size` crops of `crop` x `crop` pixels a step, over all processes."""

    crop: Annotated[int, Bounds(least=1, most=2 ** 12)]
    batch_size: Annotated[int, Bounds(least=1, most=2 ** 16)]
    steps: Annotated[int, Bounds(least=1, most=10 ** 9)]


@dataclass(frozen=True)
class TrainConfig:
    """The keys of a training file.

    Args:
        model_config: YAML file of the architecture (`learn_sigma: true`); its `model_path` is not read.
        phases: list of {crop, batch_size, steps}, one after the other; the learning rate spans them all. Photographs
            smaller than a crop are enlarged.
        noise_schedule, diffusion_steps: the forward process.
        learning_rate: peak of the rate, which rises over `warmup_steps` and falls to 0 along a half cosine.
        ema_decay: decay of the averaged weights, which are the ones to use.
        vlb_weight: share of the variational bound (bits per dimension, summed over timesteps) in the loss.
        loss_weight: weight of the timesteps in the squared error of eps: "none", "min_snr" or "p2".
        timestep_power: timesteps are diffusion_steps u^power, u uniform on [0, 1): above 1 more of them have little
            noise, where restorations take most of their steps, see `losses.random_steps`.
        coarse_weight: of the error of eps in colours and coarse shapes, see `losses.coarse_errors`.
        gradient_clip: largest norm of the gradient.
        micro_batch: crops that go through the network at once, in each process; the gradients of a batch are summed
            over its parts, which is the step of the whole batch in less memory. 0 = the whole batch.
        precision: "fp32", or "bf16" for the network alone; weights, loss and optimiser stay float32.
        scales: a crop shows a square of crop / scale pixels of the photograph, scale uniform in this range.
        zooms: in place of `scales`, for aligned photographs such as faces: a crop shows a square of the photograph's
            shorter side / zoom, zoom uniform in this range, at least 1.
        colour_jitter: brightness, contrast and saturation are multiplied by 1 - colour_jitter .. 1 + colour_jitter.
        cache: keep the decoded photographs in memory.
        workers: processes that prepare crops; 0 = the training process itself.
        save_every: steps between checkpoints.
    """

    model_config: str
    phases: list[dict]
    noise_schedule: str = "linear"
    diffusion_steps: int = 1000
    seed: Natural = 0
    learning_rate: Rate = 5e-4
    warmup_steps: Count = 500
    weight_decay: Weight = 0.0
    ema_decay: Share = 0.999
    vlb_weight: Weight = 1e-3
    loss_weight: LossWeight = "none"
    timestep_power: Power = 1.0
    coarse_weight: Weight = 0.0
    gradient_clip: Rate = 1.0
    micro_batch: Natural = 0
    precision: Literal["fp32", "bf16"] = "bf16"
    scales: tuple[Positive, Positive] = (0.3, 1.0)
    zooms: tuple[Zoom, Zoom] | None = None
    colour_jitter: Share = 0.0
    cache: bool = True
    workers: Natural = 0
    save_every: Count = 500

    @classmethod
    def read(cls, path: str) -> tuple["TrainConfig", list[Phase]]:
        """Read a training file; UserError on any key or value that does not fit."""
        values = read_yaml(path, "training file")
        check_arguments(cls, values, where=path)
        phases = []
        for number, phase in enumerate(values["phases"], 1):
            check_arguments(Phase, phase, where=f"{path}: phase {number}")
            phases.append(Phase(**phase))
            if (pixels := phase["batch_size"] * phase["crop"] ** 2) > MOST_PIXELS:
                raise UserError(f"{path}: phase {number}: batch_size {phase['batch_size']} of crop {phase['crop']} are "
                                f"{pixels} pixels a step, expected {MOST_PIXELS} at most; lower one of them")
        if not phases:
            raise UserError(f"{path}: phases is empty, expected a list of {{crop, batch_size, steps}}")
        for key in ("scales", "zooms"):
            if (limits := values.get(key)) is not None and limits[0] > limits[1]:
                raise UserError(f"{path}: {key} is {list(limits)}, expected [low, high] with low <= high")
        return cls(**values), phases


def resumable(config: TrainConfig) -> dict:
    """The settings that must not change when a run is resumed: all but how long it lasts, how it is fed, and what is
    changed where it diverges."""
    free = ("phases", "save_every", "workers", "cache", "learning_rate", "precision", "micro_batch")
    return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(config).items() if key not in free}


def configs_of_prior(config: TrainConfig, prior: Path) -> dict[str, str]:
    """The contents of CONFIGS, to restore with the weights in `prior`, which cannot tell of what network and process
    they are; steps and sampler are the demo's, as far as the process has them."""
    steps = config.diffusion_steps
    process = {"noise_schedule": config.noise_schedule, "steps": steps}
    if steps < FEW_STEPS:
        process["timestep_respacing"] = steps
    changed = ((config.model_config, {"model_path": str(prior.resolve())}), (DEMO["diffusion"], process))
    return {name: set_values(find_file(file, name).read_text(encoding="utf-8-sig"),
                             [((key,), value) for key, value in values.items()])
            for name, (file, values) in zip(CONFIGS, changed, strict=True)}


def build_model(config: TrainConfig) -> UNetModel:
    """A new network of the architecture that `model_config` describes."""
    options = {**read_yaml(config.model_config, "model config"), "model_path": ""}
    check_arguments(create_model, options, where=config.model_config)
    model = create_model(**options)
    if model.out_channels != 6:
        raise UserError(f"{config.model_config}: learn_sigma is false, but the hybrid loss trains the variance too; "
                        "set learn_sigma: true")
    if model.class_cond:
        raise UserError(f"{config.model_config}: class_cond is true, but a folder of photographs has no labels; "
                        "set class_cond: false")
    model.autocast_dtype = torch.bfloat16 if config.precision == "bf16" else None
    return model
