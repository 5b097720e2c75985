"""Where the time of a sampling step goes: a clock that is told what begins, and the parts of a step that tell it."""

import time

import torch
from torch import Tensor, nn

from guided_diffusion.condition_methods.dpps import PosteriorProximalSampling
from guided_diffusion.condition_methods.likelihoods import Likelihood
from guided_diffusion.gaussian_diffusion import Step
from guided_diffusion.measurements.measurement import Measurement

FORWARD, BACKWARD, OPERATOR = "network forward", "network backward", "operator"
CANDIDATES, OTHER = "candidate selection", "everything else"
PHASES = (FORWARD, BACKWARD, OPERATOR, CANDIDATES, OTHER)


class StepClock:
    """Divides the time of sampling steps among `PHASES`.

    On a GPU the marks are events on its stream, read after the run, so that measuring makes nobody wait; what the GPU
    idles until its next work arrives counts for the phase that it waits in.

    Args:
        device: where the sampling runs.
        processor_time: on the CPU, count the processor time of this process (all its threads together) instead of the
            time on the wall, which other programs lengthen.
    """

    def __init__(self, device: torch.device, processor_time: bool = False):
        self.device = device
        self._read = time.process_time if processor_time else time.perf_counter
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self._ends: list[int] = []                  # of the steps, as positions in the marks

    def _now(self) -> float | torch.cuda.Event:
        if self.device.type != "cuda":
            return self._read()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def switch(self, phase: str) -> None:
        """From now on, time counts for `phase`."""
        self._marks.append((phase, self._now()))

    def finish_step(self) -> None:
        """A step is over, and the next one begins."""
        self.switch(OTHER)
        self._ends.append(len(self._marks) - 1)

    def steps(self) -> list[dict[str, float]]:
        """Seconds per phase of every step between two calls of `finish_step`; waits for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        steps = []
        for first, last in zip(self._ends, self._ends[1:], strict=False):
            seconds = dict.fromkeys(PHASES, 0.0)
            for (phase, begin), (_, end) in zip(self._marks[first:last], self._marks[first + 1:last + 1], strict=True):
                on_gpu = self.device.type == "cuda"
                seconds[phase] += begin.elapsed_time(end) / 1e3 if on_gpu else end - begin
            steps.append(seconds)
        return steps


class TimedPrior(nn.Module):
    """A prior that tells the clock when its forward and its backward pass begin and end."""

    def __init__(self, model: nn.Module, clock: StepClock):
        super().__init__()
        self.model, self.clock = model, clock

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, C, H, W), (B,) -> (B, C or 2C, H, W)."""
        self.clock.switch(FORWARD)
        output = self.model(x_t, t)
        self.clock.switch(OTHER)
        if x_t.requires_grad:
            output.register_hook(lambda gradient: self.clock.switch(BACKWARD))
            x_t.register_hook(lambda gradient: self.clock.switch(OPERATOR))
        return output


class TimedLikelihood(Likelihood):
    """A likelihood that tells the clock when guidance is computed: all but the network's backward pass is the
    operator's."""

    def __init__(self, likelihood: Likelihood, clock: StepClock):
        self.likelihood, self.clock = likelihood, clock

    def guidance(self, step: Step, measurement: Measurement) -> tuple[Tensor, Tensor]:
        self.clock.switch(OPERATOR)
        guidance = self.likelihood.guidance(step, measurement)
        self.clock.switch(OTHER)
        return guidance


class TimedSelection(PosteriorProximalSampling):
    """DPPS that tells the clock when it chooses among its candidates, drawing them included."""

    def __init__(self, clock: StepClock, scale: float, likelihood: str = "point"):
        super().__init__(scale=scale, likelihood=likelihood)
        self.clock = clock

    def select(self, mean: Tensor, step: Step, measurement: Measurement) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        self.clock.switch(CANDIDATES)
        z = super().select(mean, step, measurement)
        self.clock.switch(OTHER)
        return z


class OneByOne(TimedSelection):
    """DPPS that sends every candidate through the whole operator, one after another; the choice is the same."""

    def __init__(self, clock: StepClock, scale: float, likelihood: str = "point"):
        super().__init__(clock, scale, likelihood)
        self.chunk = 1

    def residual(self, mean: Tensor, step: Step, measurement: Measurement):
        """As in `PosteriorProximalSampling`, without the use of linearity."""
        goal = step.alpha_bar_prev ** 0.5 * measurement.y
        centre = mean - (1 - step.alpha_bar_prev) ** 0.5 * step.eps
        return lambda z: torch.stack([goal - measurement.operator(centre + step.std * one) for one in z])
