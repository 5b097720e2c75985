"""Train a prior on a folder of photographs: `python -m guided_diffusion.train --data FOLDER --config FILE`.

The hybrid loss of Nichol & Dhariwal (2021), "Improved Denoising Diffusion Probabilistic Models", eq. 16: the squared
error of the predicted noise trains the mean, a small share of the variational bound trains the variance. Everything
random is a function of (seed, step), so an interrupted run that is started again continues as if it had not been.
Under `torchrun` the batch is shared among the processes, which train the network that one process would.
"""

import argparse
import math
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from guided_diffusion.training.arguments import parse_training as parse_arguments
from util.command import check_command_line, command, output_folder, run_program, undivided, user_path

if __name__ == "__main__":                          # before the imports that take seconds
    check_command_line(parse_arguments)

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.random_crops import RandomCrops
from guided_diffusion.schedule import Schedule
from guided_diffusion.training.config import CONFIGS, Phase, TrainConfig, build_model, configs_of_prior, resumable
from guided_diffusion.training.losses import HybridLoss, random_steps
from guided_diffusion.training.widen import widened
from util.checkpoint import load_state_dict, read_checkpoint, record_of
from util.config.config import find_file
from util.config.registry import defaults
from util.errors import UserError
from util.files import content_of, write_atomically
from util.logger import logger
from util.run.lock import locked
from util.run.team import device_of

STATE = {"config": dict, "step": int, "model": dict, "ema": dict, "optimiser": dict, "history": list}     # of state.pt
RESULTS = ("ema.pt", "loss.csv", "loss.png", *CONFIGS)          # beside state.pt, which a run continues from


class Trainer:
    """Network, averaged weights, optimiser and the folder that they are saved in.

    Args:
        folder: receives state.pt (to resume), ema.pt (the prior: averaged weights in half precision), the two files of
            `configs_of_prior`, loss.csv and loss.png.
        rank, world: this process and the number of processes; process 0 alone writes files.
        init: weights to begin with, a checkpoint of the config's network or of a narrower one, which is widened; None
            for random ones.

    Raises:
        UserError: nothing to train on, a network, weights or a batch that does not fit.
    """

    def __init__(self, config: TrainConfig, phases: list[Phase], data: str, folder: Path, device: torch.device,
                 rank: int, world: int, init: str | None = None):
        self.config, self.phases, self.data, self.folder = config, phases, data, folder
        self.device, self.rank, self.world = device, rank, world
        self.step, self.history, self.cached = 0, [], {} if config.cache else None
        self._crops(phases[0])[0]                   # there is something to train on
        torch.manual_seed(config.seed)
        self.model = build_model(config).to(device)
        if init is not None:
            load_state_dict(self.model, find_file(init, "checkpoint"), select=partial(widened, model=self.model))
        for phase in phases:
            self.model.check_image_size(phase.crop, phase.crop)
            if phase.batch_size % world:
                raise UserError(f"batch_size {phase.batch_size} cannot be shared by {world} processes; use a multiple")
        self.ema = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
        try:
            schedule = Schedule.create(config.noise_schedule, config.diffusion_steps)
        except UserError as error:
            raise UserError(f"training file, noise_schedule and diffusion_steps: {error}") from None
        self.loss = HybridLoss(schedule, config.vlb_weight, config.loss_weight, config.coarse_weight).to(device)

    @property
    def total_steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up times a half cosine that reaches 0 after the last step."""
        warm = min(1.0, (step + 1) / self.config.warmup_steps)
        return self.config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.total_steps))

    def run(self) -> None:
        """Train to the last step; state is saved every `save_every` steps, at the end and on an interrupt."""
        model = DistributedDataParallel(self.model) if self.world > 1 else self.model
        self.model.train()
        with tqdm(total=self._pixels(self.total_steps), initial=self._pixels(self.step), unit="px", unit_scale=True,
                  disable=self.rank > 0) as bar:
            try:
                for x0 in self._batches():
                    self._train_step(model, x0, bar)
                    if self.step % self.config.save_every == 0:
                        self.save()
            except UserError:                       # a gradient that is not finite: what was saved before is sound
                raise
            except BaseException:
                self.save()
                raise
        self.save()

    def _pixels(self, steps: int) -> int:
        """Of all crops in the first steps: the bar's time left goes by them, as larger crops take longer."""
        pixels = 0
        for phase in self.phases:
            pixels += min(steps, phase.steps) * phase.batch_size * phase.crop ** 2
            steps -= min(steps, phase.steps)
        return pixels

    def _draw(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps (B,) and noise like x0 of this process's crops: its share of what one process draws for all."""
        generator = torch.Generator(self.device).manual_seed(self._key(0))
        whole = len(x0) * self.world
        index = random_steps(self.config.diffusion_steps, self.config.timestep_power, whole, generator)
        noise = torch.randn(whole, *x0.shape[1:], generator=generator, device=self.device)
        return index[self.rank::self.world], noise[self.rank::self.world]

    def _key(self, stream: int) -> int:
        """The seed of one of this step's random streams."""
        return int(np.random.SeedSequence((self.config.seed, self.step, stream)).generate_state(1)[0])

    def _train_step(self, model: nn.Module, x0: Tensor, bar: tqdm) -> None:
        index, noise = self._draw(x0)
        torch.manual_seed(self._key(1 + self.rank))                         # of dropout
        rate = self.learning_rate(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        sums = torch.zeros(2, device=x0.device)                             # of loss and error, over the parts
        for part in zip(*(x.split(self.config.micro_batch or len(x0)) for x in (x0, index, noise)), strict=True):
            loss, simple = self.loss(model, *part)
            share = len(part[0]) / len(x0)
            (share * loss).backward()
            sums += share * torch.stack((loss.detach(), simple))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        means = torch.stack((norm, *sums)) / self.world                     # over the processes, and read at once
        if self.world > 1:
            distributed.all_reduce(means)
        norm, *losses = means.tolist()
        if not math.isfinite(norm):
            raise UserError(f"the gradient is {norm} at step {self.step}; lower learning_rate or set precision: fp32, "
                            "and the same command continues from the last save")
        # a young average forgets faster: decay (1 + n) / (10 + n) until that reaches ema_decay
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        with undivided(), torch.no_grad():
            self.optimiser.step()
            torch._foreach_lerp_(list(self.ema.values()), list(self.model.parameters()), 1 - decay)
            self.step += 1
            self.history.append((self.step, x0.shape[-1], *losses, rate))
        recent = np.mean([row[2] for row in self.history[-100:]])
        bar.set_postfix_str(f"step {self.step}, crop {x0.shape[-1]}, loss {recent:.4f}", refresh=False)
        bar.update(self._pixels(self.step) - bar.n)

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
        return RandomCrops(self.data, phase.crop, self.config.scales, self.config.seed, self.cached,
                           self.config.zooms, self.config.colour_jitter)

    def save(self) -> None:
        """Write state, averaged weights, the losses and their curve, each whole or not at all."""
        if self.rank > 0:
            return
        state = {"config": resumable(self.config), "step": self.step, "model": self.model.state_dict(),
                 "ema": self.ema, "optimiser": self.optimiser.state_dict(), "history": self.history}
        _save_tensors(self.folder / "state.pt", state)
        record_of(self.folder / "ema.pt").unlink(missing_ok=True)           # of what it held at an earlier use
        _save_tensors(self.folder / "ema.pt", {name: p.half().contiguous() for name, p in self.ema.items()})
        rows = ["step,crop,loss,eps_mse,learning_rate"]
        rows += [f"{step},{crop},{loss:.6f},{mse:.6f},{rate:.3e}" for step, crop, loss, mse, rate in self.history]
        write_atomically(self.folder / "loss.csv", ("\n".join(rows) + "\n").encode())
        write_atomically(self.folder / "loss.png", plot_losses(self.history))
        missing = [name for name in CONFIGS if not (self.folder / name).exists()]       # others may be changed by now
        texts = configs_of_prior(self.config, self.folder / "ema.pt") if missing else {}
        for name in missing:
            write_atomically(self.folder / name, texts[name].encode())

    def resume(self) -> None:
        """Continue from the folder's state.pt, if there is one.

        Raises:
            UserError: it is damaged, or of another training; or there are results whose state.pt is gone.
        """
        path = self.folder / "state.pt"
        if not path.exists():
            if found := [name for name in RESULTS if (self.folder / name).exists()]:
                raise UserError(f"{self.folder} holds {', '.join(found)} but no state.pt to continue from; choose "
                                "another --out, or move those files away")
            return
        mend = "move its folder away to begin anew, or use another --out"
        state = read_checkpoint(path, mend)
        if not isinstance(state, dict) or not all(isinstance(state.get(key), kind) for key, kind in STATE.items()):
            raise UserError(f"{path} is not the state of a training; {mend}")
        found, wanted = {**defaults(TrainConfig), **state["config"]}, resumable(self.config)
        changed = [f"{key}: {found.get(key)} -> {wanted[key]}" for key in wanted if found.get(key) != wanted[key]]
        if changed:
            raise UserError(f"{path} was trained with other settings ({'; '.join(changed)}); use another --out or put "
                            "them back")
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError:
            raise UserError(f"{path} holds another network than {self.config.model_config} describes; put that file "
                            "back, or use another --out") from None
        self.ema = {name: tensor.to(self.device) for name, tensor in state["ema"].items()}
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.history = state["step"], [tuple(row) for row in state["history"]]


def _save_tensors(path: Path, content: dict) -> None:
    write_atomically(path, content_of(partial(torch.save, content)))


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
    return content_of(partial(figure.savefig, format="png", dpi=150))


def place_for(out: str, data: str) -> Path:
    """The folder of --out; UserError where it cannot be written, or lies among the photographs, of which loss.png would
    be one when the training goes on."""
    folder = output_folder(out)
    if data != "skimage" and folder.resolve().is_relative_to(user_path(data).resolve()):
        raise UserError(f"--out {out} lies in --data {data}: loss.png would be trained on; choose a place apart")
    return folder


@command(parse_arguments)
def main(args: argparse.Namespace) -> int:
    """Train; exit status 0, 2 for a mistake, 130 when interrupted."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = device_of(int(os.environ.get("LOCAL_RANK", 0)))
    if device.type == "cuda":
        torch.cuda.set_device(device)               # where NCCL and pinned memory work, too
    try:
        if world > 1:
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        config, phases = TrainConfig.read(args.config)
        folder = place_for(args.out, args.data)
        trainer = Trainer(config, phases, args.data, folder, device, rank, world, args.init)
        with locked(folder, "--out") if rank == 0 else nullcontext():
            trainer.resume()
            started, first = time.perf_counter(), trainer.step
            trainer.run()
    except KeyboardInterrupt:
        logger.error(f"interrupted; the same command continues from {args.out}/state.pt")
        return 130
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
    if rank == 0:
        out, seconds = args.out, time.perf_counter() - started
        logger.info(f"{trainer.step - first} steps in {seconds:.0f} s; the prior is {out}/ema.pt; to restore with it: "
                    f"--model_config {out}/model_config.yaml --diffusion_config {out}/diffusion_config.yaml")
    return 0


if __name__ == "__main__":
    run_program(main)
