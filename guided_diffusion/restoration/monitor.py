"""What is going on while images are restored: progress over all processes, cost and course of each batch."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.dataloader import Batch
from util.run.directory import RunDirectory
from util.run.team import Team

CHECK_EVERY = 50                                    # steps between two questions whether all of a batch has diverged


class AllDiverged(Exception):
    """No entry of a batch has a finite state any more."""


@dataclass(frozen=True)
class Course:
    """What the entries of a batch went through.

    Attributes:
        indices: of the steps, in order, counting down to 0.
        distances: of each entry, the measurement distance of every step.
        diverged: of each entry, the step after which its state was not finite; None where it always was.
    """

    indices: list[int]
    distances: list[list[float]]
    diverged: list[int | None]

    def trajectory(self, b: int) -> tuple[tuple[int, float], ...]:
        """(step index, measurement distance) of entry b, up to where it diverged."""
        last = self.diverged[b] or 0
        return tuple((i, d) for i, d in zip(self.indices, self.distances[b], strict=True) if i >= last)


class Monitor:
    """The callback of the sampling loop; a context manager.

    What it learns of a step stays on the device until the batch is done, but for the distance that the bar shows at
    every redrawing, and a question every 50 steps.

    Args:
        model: the network whose evaluations are counted, an image that goes through it being one; None for none.
        run: where pictures of the way go.
        team: the processes whose progress is shown.
        images: how many there are to restore, by all of them.
        num_samples: posterior samples of each.
        num_steps: steps of each sample.
        every: save the state after every N-th step; None for never.
    """

    def __init__(self, model: nn.Module | None, run: RunDirectory, team: Team, images: int, num_samples: int,
                 num_steps: int, every: int | None = None):
        self.run, self.team, self.num_samples, self.num_steps, self.every = run, team, num_samples, num_steps, every
        self.steps = images * num_samples * num_steps
        self.evaluations = 0                        # in this batch
        self.interval = 1.0 if sys.stderr.isatty() else 10.0        # seconds between two redrawings
        self.drawn = -math.inf                      # when the bar was drawn
        self.pending, self.in_batch = 0, 0          # steps since then, and those of a batch that is not done
        self.bar = tqdm(total=self.steps, unit=" steps", desc="Restoring", dynamic_ncols=True, mininterval=0,
                        miniters=1, disable=not team.leads)
        if model is not None:
            model.register_forward_pre_hook(self._count)

    def _count(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.evaluations += len(inputs[0])

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.draw()
        self.bar.close()

    def follow(self, batch: Batch, shape: tuple[int, ...], restore: Callable[["Monitor"], Tensor]) -> Tensor:
        """restore(callback) with the clock running: the images of `shape`, NaN if all entries diverge on the way."""
        self.pending -= self.in_batch               # an attempt that ran out of memory
        self.batch, self.evaluations, self.in_batch, self.started = batch, 0, 0, time.perf_counter()
        self.indices: list[int] = []
        self.distances: list[Tensor] = []           # (B,) each
        self.diverged: Tensor | None = None         # (B,) step indices, -1 for finite states
        try:
            return restore(self)
        except AllDiverged:
            return torch.full(shape, math.nan, device=self.diverged.device)

    def course(self, restored: Tensor) -> Course:
        """What became of the batch, (B, 3, H, W); waits for the device."""
        self.pending += len(restored) * self.num_steps - self.in_batch
        self.in_batch = 0
        self._note_divergence(restored, 0)
        distances = torch.stack(self.distances, dim=1).tolist() if self.distances else [[] for _ in restored]
        return Course(self.indices, distances, [None if i < 0 else i for i in self.diverged.tolist()])

    def _note_divergence(self, x: Tensor, index: int) -> None:
        finite = x.isfinite().flatten(1).all(dim=1)
        before = torch.full_like(finite, -1, dtype=torch.long) if self.diverged is None else self.diverged
        self.diverged = torch.where(finite | (before >= 0), before, index)

    @property
    def seconds(self) -> float:
        """Time since the batch began."""
        return time.perf_counter() - self.started

    def skip_image(self) -> None:
        """One image fewer to restore."""
        self.team.add("skipped", self.num_samples * self.num_steps)

    def __call__(self, step, x_prev: Tensor, distance: Tensor) -> None:
        """After a step: x_{t-1} (B, 3, H, W) and the measurement distances (B,)."""
        self.indices.append(step.index)
        self.distances.append(distance)
        self._note_divergence(x_prev, step.index)
        self.pending += len(x_prev)
        self.in_batch += len(x_prev)
        self.refresh(distance)
        if self.every and step.index % self.every == 0:
            self._save_pictures(step.index, x_prev, step.x0_hat)
        if len(self.indices) % CHECK_EVERY == 0 and bool((self.diverged >= 0).all()):
            raise AllDiverged

    def _save_pictures(self, index: int, x_prev: Tensor, x0_hat: Tensor) -> None:
        for name, k, x, x0 in zip(self.batch.names, self.batch.samples, x_prev, x0_hat, strict=True):
            self.run.save_progress(name, str(k) if self.num_samples > 1 else None, index, x, x0)

    def refresh(self, distance: Tensor | None = None) -> None:
        """Draw the bar, if it is time, with the mean of the distances (B,)."""
        if time.perf_counter() - self.drawn > self.interval:
            if distance is not None and self.team.leads:
                self.bar.set_postfix_str(f"distance {distance.nanmean().item():.3g}", refresh=False)
            self.draw()

    def draw(self) -> None:
        """Draw the bar, and let other processes know of the steps of this one."""
        done = self.team.add("steps", self.pending)
        self.bar.total = self.steps - self.team.add("skipped", 0)
        self.bar.update(done - self.bar.n)
        self.drawn, self.pending = time.perf_counter(), 0
