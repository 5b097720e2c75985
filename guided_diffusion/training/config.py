"""What a training file says: the network, the crops, the optimiser, and how long each of them lasts."""

from dataclasses import asdict, dataclass
from typing import Literal

import torch

from guided_diffusion.training.losses import LossWeight
from guided_diffusion.unet import UNetModel, create_model
from util.config.config import read_yaml
from util.config.registry import check_arguments
from util.errors import UserError

LARGEST = 1e12                                      # times another such number, or the timesteps, fits any tensor
MOST = {"crop": 2 ** 12, "batch_size": 2 ** 16, "steps": 10 ** 9}
MOST_PIXELS = 2 ** 28                               # of a batch: its crops alone take 3 GiB


@dataclass(frozen=True)
class Phase:
    """Some steps at one crop size: `batch_size` crops of `crop` x `crop` pixels a step, over all processes."""

    crop: int
    batch_size: int
    steps: int


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
    seed: int = 0
    learning_rate: float = 5e-4
    warmup_steps: int = 500
    weight_decay: float = 0.0
    ema_decay: float = 0.999
    vlb_weight: float = 1e-3
    loss_weight: LossWeight = "none"
    gradient_clip: float = 1.0
    micro_batch: int = 0
    precision: Literal["fp32", "bf16"] = "bf16"
    scales: tuple[float, float] = (0.3, 1.0)
    zooms: tuple[float, float] | None = None
    colour_jitter: float = 0.0
    cache: bool = True
    workers: int = 0
    save_every: int = 500

    @classmethod
    def read(cls, path: str) -> tuple["TrainConfig", list[Phase]]:
        """Read a training file; UserError on any key or value that does not fit."""
        values = read_yaml(path, "training file")
        check_arguments(cls, values, where=path)
        phases = []
        for number, phase in enumerate(values["phases"], 1):
            check_arguments(Phase, phase, where=f"{path}: phase {number}")
            phases.append(Phase(**phase))
            _check_phase(phases[-1], f"{path}: phase {number}")
        if not phases:
            raise UserError(f"{path}: phases is empty, expected a list of {{crop, batch_size, steps}}")
        config = cls(**values)
        config._check_ranges(path)
        return config, phases

    def _check_ranges(self, path: str) -> None:
        if not 0 < self.scales[0] <= self.scales[1]:
            raise UserError(f"{path}: scales is {list(self.scales)}, expected [low, high] with 0 < low <= high")
        if self.zooms is not None and not 1 <= self.zooms[0] <= self.zooms[1]:
            raise UserError(f"{path}: zooms is {list(self.zooms)}, expected [low, high] with 1 <= low <= high, or null")
        if not 0 <= self.colour_jitter < 1:
            raise UserError(f"{path}: colour_jitter is {self.colour_jitter}, expected 0 <= colour_jitter < 1")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"{path}: ema_decay is {self.ema_decay}, expected 0 <= ema_decay < 1")
        for key in ("save_every", "warmup_steps"):
            if (value := getattr(self, key)) < 1:
                raise UserError(f"{path}: {key} is {value}, expected 1 or more")
        for key in ("learning_rate", "gradient_clip"):
            if (value := getattr(self, key)) <= 0:
                raise UserError(f"{path}: {key} is {value}, expected more than 0")
        for key in ("seed", "workers", "micro_batch", "weight_decay", "vlb_weight"):
            if (value := getattr(self, key)) < 0:
                raise UserError(f"{path}: {key} is {value}, expected 0 or more")
        for key in ("learning_rate", "gradient_clip", "weight_decay", "vlb_weight"):
            if (value := getattr(self, key)) > LARGEST:
                raise UserError(f"{path}: {key} is {value:g}, expected at most {LARGEST:g}")


def _check_phase(phase: Phase, where: str) -> None:
    for key, most in MOST.items():
        if not 1 <= (value := getattr(phase, key)) <= most:
            raise UserError(f"{where}: {key} is {value}, expected 1 or more, and {most} at most")
    if (pixels := phase.batch_size * phase.crop ** 2) > MOST_PIXELS:
        raise UserError(f"{where}: {phase.batch_size} crops of {phase.crop} x {phase.crop} are {pixels} pixels a step, "
                        f"expected {MOST_PIXELS} at most; lower batch_size or crop")


def resumable(config: TrainConfig) -> dict:
    """The settings that must not change when a run is resumed: all but how long it lasts, how it is fed, and what is
    changed where it diverges."""
    free = ("phases", "save_every", "workers", "cache", "learning_rate", "precision", "micro_batch")
    return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(config).items() if key not in free}


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
