"""What is going on while images are restored: progress over all processes, cost and course of each batch."""

import math
import sys
import time

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.dataloader import Batch
from guided_diffusion.measurements.measurement import Measurement
from util.logger import duration, logger
from util.run.directory import RunDirectory
from util.run.team import Team

CHECK_EVERY = 50                                    # steps between two questions whether all of a batch has diverged
LONG = 7200                                         # seconds to go that some advice is given for


class Monitor:
    """The progress of a run, on a bar; a context manager.

    Args:
        model: the network whose evaluations are counted, an image that goes through it being one, and backward passes,
            a gradient of an image that comes back through it being one; None for none.
        run: where pictures of the way go.
        team: the processes whose progress is shown.
        images: how many there are to restore, by all of them.
        num_samples: posterior samples of each.
        num_steps: steps of each sample.
        every: save the state after every N-th step; None for never.

    Attributes:
        steps_done: by this process; an image has `num_samples * num_steps`, and one that cannot be read has had them.
    """

    def __init__(self, model: nn.Module | None, run: RunDirectory, team: Team, images: int, num_samples: int,
                 num_steps: int, every: int | None = None):
        self.run, self.team, self.num_samples, self.num_steps, self.every = run, team, num_samples, num_steps, every
        self.total = images * num_samples * num_steps
        self.evaluations = self.backward_passes = 0
        self.interval = 1.0 if sys.stderr.isatty() else 10.0        # seconds between two redrawings
        self.drawn = -math.inf                      # when the bar was drawn
        self.steps_done, self.steps_told = 0, 0     # the team knows of the second
        self.first: tuple[float, int] | None = None             # when that was the first time, and the steps until then
        self.advised = False
        self.bar = tqdm(total=self.total, unit=" steps", desc="Restoring", dynamic_ncols=True, mininterval=0,
                        miniters=1, disable=not (team.leads and self.total))
        self.counting = None if model is None else model.register_forward_hook(self._count)

    def _count(self, model: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.evaluations += len(output)
        if output.requires_grad:
            output.register_hook(self._count_backward)

    def _count_backward(self, grad: Tensor) -> None:
        self.backward_passes += len(grad)

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.draw()
        self.bar.close()
        if self.counting is not None:
            self.counting.remove()

    def refresh(self, distance: Tensor | None = None) -> None:
        """Draw the bar, if it is time, with the mean of the distances (B,)."""
        if time.perf_counter() - self.drawn > self.interval:
            if distance is not None and self.team.leads:
                self.bar.set_postfix_str(f"distance {distance.nanmean().item():.3g}", refresh=False)
            self.draw()

    def draw(self) -> None:
        """Draw the bar, and let other processes know of the steps of this one."""
        done = self.team.add("steps", self.steps_done - self.steps_told)
        self.bar.update(done - self.bar.n)
        self.drawn, self.steps_told = time.perf_counter(), self.steps_done
        if self.first is None:                      # the first step may warm up
            self.first = self.drawn, done
        elif self.team.leads and not self.advised and done > self.first[1]:
            self.advised = True
            seconds = (self.drawn - self.first[0]) / (done - self.first[1]) * (self.total - done)
            if seconds > LONG:
                logger.warning(f"about {duration(seconds)} to go; fewer steps (--set diffusion.timestep_respacing=100) "
                               "or images (--limit) take less, and the same command continues what is interrupted")


class AllDiverged(Exception):
    """No entry of a batch has a finite state any more."""


class Course:
    """What the entries of a batch go through: the callback of their restoration, and the context that it runs in.

    What it learns of a step stays on the device until the batch is done, but for the distance that the bar shows at
    every redrawing, and a question every 50 steps. When no entry is finite any more, the block ends there.

    Attributes:
        restored: what comes of the batch, (B, 3, H, W), to be set within the block; NaN unless it is.
        indices: of the steps, in order, counting down to 0.
        distances: of each entry, the measurement distance of every step.
        diverged: of each entry, the step after which its state was not finite; None where it always was.
        seconds, evaluations, backward_passes: that all entries took together; the last two are the network's.
    """

    def __init__(self, monitor: Monitor, batch: Batch, measurement: Measurement):
        self.monitor, self.batch = monitor, batch
        self.restored = torch.full((), math.nan, device=measurement.y.device).expand(measurement.image_shape)
        self.indices: list[int] = []
        self.distances: list[list[float]] = []
        self.diverged: list[int | None] = []
        self._distances: list[Tensor] = []          # (B,) of every step
        self._diverged = torch.full((len(measurement.y),), -1, device=measurement.y.device)    # -1 for finite states
        self.begun, self.seconds = time.perf_counter(), 0.0
        self.evaluations, self.backward_passes = -monitor.evaluations, -monitor.backward_passes
        self.steps_before = monitor.steps_done

    def __enter__(self) -> "Course":
        return self

    def __call__(self, step, x_prev: Tensor, distance: Tensor) -> None:
        """After a step: x_{t-1} (B, 3, H, W) and the measurement distances (B,)."""
        self.indices.append(step.index)
        self._distances.append(distance)
        self._note_divergence(x_prev, step.index)
        self.monitor.steps_done += len(x_prev)
        self.monitor.refresh(distance)
        if self.monitor.every and step.index % self.monitor.every == 0:
            self._save_pictures(step.index, x_prev, step.x0_hat)
        if len(self.indices) % CHECK_EVERY == 0 and bool((self._diverged >= 0).all()):
            raise AllDiverged

    def __exit__(self, kind: type | None, *_: object) -> bool:
        """Wait for the device, and learn what became of the batch."""
        if kind not in (None, AllDiverged):
            return False
        self.monitor.steps_done = self.steps_before + len(self.restored) * self.monitor.num_steps
        self._note_divergence(self.restored, 0)
        self.diverged = [None if index < 0 else index for index in self._diverged.tolist()]
        self.distances = torch.stack(self._distances, dim=1).tolist() if self._distances else [[]] * len(self.restored)
        self.seconds = time.perf_counter() - self.begun
        self.evaluations += self.monitor.evaluations
        self.backward_passes += self.monitor.backward_passes
        return True

    def trajectory(self, b: int) -> tuple[tuple[int, float], ...]:
        """(step index, measurement distance) of entry b, up to where it diverged."""
        last = self.diverged[b] or 0
        return tuple((i, d) for i, d in zip(self.indices, self.distances[b], strict=True) if i >= last)

    def _note_divergence(self, x: Tensor, index: int) -> None:
        finite = x.isfinite().flatten(1).all(dim=1)
        self._diverged = torch.where(finite | (self._diverged >= 0), self._diverged, index)

    def _save_pictures(self, index: int, x_prev: Tensor, x0_hat: Tensor) -> None:
        for name, k, x, x0 in zip(self.batch.names, self.batch.samples, x_prev, x0_hat, strict=True):
            self.monitor.run.save_progress(name, str(k) if self.monitor.num_samples > 1 else None, index, x, x0)
