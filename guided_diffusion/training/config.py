"""What a training file says: the network, the crops, the optimiser, and how long each of them lasts."""

from dataclasses import asdict, dataclass
from typing import Literal

import torch

from guided_diffusion.unet import UNetModel, create_model
from util.config.config import read_yaml
from util.config.registry import check_arguments
from util.errors import UserError

LARGEST = 1e12                                      # times another such number, or the timesteps, fits any tensor


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
        gradient_clip: largest norm of the gradient.
        precision: "fp32", or "bf16" for the network alone; weights, loss and optimiser stay float32.
        scales: a crop shows a square of crop / scale pixels of the photograph, scale uniform in this range.
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
    gradient_clip: float = 1.0
    precision: Literal["fp32", "bf16"] = "bf16"
    scales: tuple[float, float] = (0.3, 1.0)
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
            if min(phase.values()) < 1:
                raise UserError(f"{path}: phase {number} is {phase}, expected 1 or more everywhere")
            phases.append(Phase(**phase))
        if not phases:
            raise UserError(f"{path}: phases is empty, expected a list of {{crop, batch_size, steps}}")
        config = cls(**values)
        config._check_ranges(path)
        return config, phases

    def _check_ranges(self, path: str) -> None:
        if not 0 < self.scales[0] <= self.scales[1]:
            raise UserError(f"{path}: scales is {list(self.scales)}, expected [low, high] with 0 < low <= high")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"{path}: ema_decay is {self.ema_decay}, expected 0 <= ema_decay < 1")
        for key in ("save_every", "warmup_steps"):
            if (value := getattr(self, key)) < 1:
                raise UserError(f"{path}: {key} is {value}, expected 1 or more")
        for key in ("learning_rate", "gradient_clip"):
            if (value := getattr(self, key)) <= 0:
                raise UserError(f"{path}: {key} is {value}, expected more than 0")
        for key in ("seed", "workers", "weight_decay", "vlb_weight"):
            if (value := getattr(self, key)) < 0:
                raise UserError(f"{path}: {key} is {value}, expected 0 or more")
        for key in ("learning_rate", "gradient_clip", "weight_decay", "vlb_weight"):
            if (value := getattr(self, key)) > LARGEST:
                raise UserError(f"{path}: {key} is {value:g}, expected at most {LARGEST:g}")


def resumable(config: TrainConfig) -> dict:
    """The settings that must not change when a run is resumed: all but how long it lasts, how it is fed, and what is
    changed where it diverges."""
    free = ("phases", "save_every", "workers", "cache", "learning_rate", "precision")
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
