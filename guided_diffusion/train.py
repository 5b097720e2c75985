"""Train a prior on a folder of photographs: `python -m guided_diffusion.train --data FOLDER --config FILE`.

The hybrid loss of Nichol & Dhariwal (2021), "Improved Denoising Diffusion Probabilistic Models", eq. 16: the squared
error of the predicted noise trains the mean, a small share of the variational bound trains the variance. Everything
random is a function of (seed, step), so an interrupted run that is started again continues as if it had not been.
Under `torchrun` the batch is shared among the processes.
"""

import argparse
import io
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.random_crops import RandomCrops
from guided_diffusion.losses import HybridLoss
from guided_diffusion.schedule import Schedule
from guided_diffusion.unet import UNetModel, create_model
from util.checkpoint import read_checkpoint
from util.command import Parser, run_command, run_program
from util.config import read_yaml
from util.errors import UserError
from util.img_utils import write_atomically
from util.logger import get_logger
from util.registry import check_arguments
from util.signals import undivided
from util.user_path import user_path

logger = get_logger()


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


class Trainer:
    """Network, averaged weights, optimiser and the folder that they are saved in.

    Args:
        folder: receives state.pt (to resume), ema.pt (the prior: averaged weights in half precision), loss.csv and
            loss.png.
        rank, world: this process and the number of processes; process 0 alone writes files.
    """

    def __init__(self, config: TrainConfig, phases: list[Phase], data: str, folder: Path, device: torch.device,
                 rank: int, world: int):
        self.config, self.phases, self.data, self.folder = config, phases, data, folder
        self.device, self.rank, self.world = device, rank, world
        self.step, self.history, self.cached = 0, [], {} if config.cache else None
        self._crops(phases[0])[0]                   # there is something to train on
        torch.manual_seed(config.seed)
        self.model = build_model(config).to(device)
        for phase in phases:
            self.model.check_image_size(phase.crop, phase.crop)
            if phase.batch_size % world:
                raise UserError(f"batch_size {phase.batch_size} cannot be shared by {world} processes; use a multiple")
        self.ema = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        schedule = Schedule.create(config.noise_schedule, config.diffusion_steps)
        self.loss = HybridLoss(schedule, config.vlb_weight)
        self._resume()

    @property
    def total_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a half cosine down to 0 at the last step."""
        warm = min(1.0, (step + 1) / self.config.warmup_steps)
        return self.config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.total_steps))

    def run(self) -> None:
        """Train to the last step; state is saved every `save_every` steps, at the end and on an interrupt."""
        model = DistributedDataParallel(self.model) if self.world > 1 else self.model
        self.model.train()
        bar = tqdm(total=self.total_steps, initial=self.step, unit="step", disable=self.rank > 0)
        try:
            for x0 in self._batches():
                self._train_step(model, x0, bar)
                if self.step % self.config.save_every == 0:
                    self.save()
        finally:
            bar.close()
            self.save()

    def _train_step(self, model: nn.Module, x0: Tensor, bar: tqdm) -> None:
        generator = torch.Generator(self.device).manual_seed(
            int(np.random.SeedSequence((self.config.seed, self.step, self.rank)).generate_state(1)[0]))
        index = torch.randint(self.config.diffusion_steps, (len(x0),), generator=generator, device=self.device)
        noise = torch.randn(x0.shape, generator=generator, device=self.device)
        rate = self.learning_rate(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss, simple = self.loss(model, x0, index, noise)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        if not torch.isfinite(norm):
            raise UserError(f"the gradient is {norm.item()} at step {self.step}; lower learning_rate or use fp32")
        losses = loss.item(), simple.item()
        # a young average forgets faster: decay (1 + n) / (10 + n) until that reaches ema_decay
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        with undivided(), torch.no_grad():
            self.optimiser.step()
            torch._foreach_lerp_(list(self.ema.values()), list(self.model.parameters()), 1 - decay)
            self.step += 1
            self.history.append((self.step, x0.shape[-1], *losses, rate))
        recent = np.mean([row[2] for row in self.history[-100:]])
        bar.set_postfix_str(f"crop {x0.shape[-1]}, loss {recent:.4f}", refresh=False)
        bar.update()

    def _batches(self) -> Iterator[Tensor]:
        """This process's share of the batches that are still to come, (B, 3, s, s) on the device."""
        first_step = first_crop = 0
        for phase in self.phases:
            done = min(max(self.step - first_step, 0), phase.steps)
            start, stop = first_crop + done * phase.batch_size, first_crop + phase.steps * phase.batch_size
            yield from (x0.to(self.device, non_blocking=True) for x0 in DataLoader(
                self._crops(phase), phase.batch_size // self.world, sampler=range(start + self.rank, stop, self.world),
                num_workers=self.config.workers, pin_memory=self.device.type == "cuda"))
            first_step, first_crop = first_step + phase.steps, stop

    def _crops(self, phase: Phase) -> RandomCrops:
        return RandomCrops(self.data, phase.crop, self.config.scales, self.config.seed, self.cached)

    def save(self) -> None:
        """Write state, averaged weights, the losses and their curve, each whole or not at all."""
        if self.rank > 0:
            return
        state = {"config": resumable(self.config), "step": self.step, "model": self.model.state_dict(),
                 "ema": self.ema, "optimiser": self.optimiser.state_dict(), "history": self.history}
        _save_tensors(self.folder / "state.pt", state)
        _save_tensors(self.folder / "ema.pt", {name: p.half() for name, p in self.ema.items()})
        rows = ["step,crop,loss,eps_mse,learning_rate"]
        rows += [f"{step},{crop},{loss:.6f},{mse:.6f},{rate:.3e}" for step, crop, loss, mse, rate in self.history]
        write_atomically(self.folder / "loss.csv", ("\n".join(rows) + "\n").encode())
        write_atomically(self.folder / "loss.png", plot_losses(self.history))

    def _resume(self) -> None:
        path = self.folder / "state.pt"
        if not path.exists():
            return
        mend = "delete it to begin anew, or use another --out"
        state = read_checkpoint(path, mend)
        expected = {"config", "model", "ema", "optimiser", "step", "history"}
        if not isinstance(state, dict) or not expected <= state.keys():
            raise UserError(f"{path} is not the state of a training; {mend}")
        found, wanted = state["config"], resumable(self.config)
        changed = [f"{key}: {found.get(key)} -> {wanted[key]}" for key in wanted if found.get(key) != wanted[key]]
        if changed:
            raise UserError(f"{path} was trained with other settings ({'; '.join(changed)}); use another --out or put "
                            "them back")
        self.model.load_state_dict(state["model"])
        self.ema = {name: tensor.to(self.device) for name, tensor in state["ema"].items()}
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.history = state["step"], [tuple(row) for row in state["history"]]


def resumable(config: TrainConfig) -> dict:
    """The settings that must not change when a run is resumed: all but how long it lasts and how it is fed."""
    free = ("phases", "save_every", "workers", "cache")
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


def _save_tensors(path: Path, content: dict) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def plot_losses(history: list[tuple]) -> bytes:
    """PNG of the loss over steps, smoothed by a running mean over a hundredth of the run, a colour per crop size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    table = np.array(history, dtype=float).reshape(-1, 5)
    window = max(1, len(table) // 100)
    for crop in dict.fromkeys(table[:, 1]):
        rows = table[table[:, 1] == crop]
        if len(rows) >= window:
            smooth = np.convolve(rows[:, 2], np.full(window, 1 / window), "valid")
            axes.plot(rows[window - 1:, 0], smooth, label=f"crops of {crop:.0f} x {crop:.0f}")
    axes.set(xlabel="step", ylabel=f"hybrid loss, mean of {window} steps", yscale="log")
    axes.grid(alpha=0.3)
    if len(table):
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; UserError for a mistake in it."""
    parser = Parser(prog="python -m guided_diffusion.train", description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--data", required=True, metavar="FOLDER", help="of photographs")
    add("--config", default="configs/train_demo.yaml", metavar="FILE", help="training file; default %(default)s")
    add("--out", default="runs/train_demo", metavar="FOLDER", help="for checkpoints and curves; default %(default)s")
    return parser.parse(argv)


def train(args: argparse.Namespace) -> int:
    """Do what the command line asks for and return the exit status."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    gpu = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", gpu) if torch.cuda.is_available() else torch.device("cpu")
    try:
        if world > 1:
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        config, phases = TrainConfig.read(args.config)
        trainer = Trainer(config, phases, args.data, user_path(args.out), device, rank, world)
        started, first = time.perf_counter(), trainer.step
        trainer.run()
    except KeyboardInterrupt:
        logger.error(f"interrupted; the same command continues from {args.out}/state.pt")
        return 130
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if rank == 0:
        seconds = time.perf_counter() - started
        logger.info(f"{trainer.step - first} steps in {seconds:.0f} s; the prior is {args.out}/ema.pt")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; exit status 0, 2 for a mistake, 130 when interrupted."""
    return run_command(lambda: train(parse_arguments(argv)))


if __name__ == "__main__":
    run_program(main)
