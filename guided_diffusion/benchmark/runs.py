"""What the benchmark measures: settings, single runs of a few sampling steps, and the floor below which no run gets."""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from guided_diffusion.benchmark.arguments import TASKS
from guided_diffusion.benchmark.clock import (
    CANDIDATES,
    OTHER,
    PHASES,
    OneByOne,
    StepClock,
    TimedLikelihood,
    TimedPrior,
    TimedSelection,
)
from guided_diffusion.condition_methods import ConditioningMethod, get_conditioning_method
from guided_diffusion.gaussian_diffusion import DDPM, Sampler
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.posterior_mean_variance import MEAN_PROCESSORS, VAR_PROCESSORS
from guided_diffusion.schedule import Schedule
from util.memory import is_out_of_memory, keep_freed_memory, return_freed_memory
from util.seeding import ImageRandomness

TRAINING_STEPS = 1000                               # of the process whose noise levels are visited
DTYPES = {"fp32": None, "bf16": torch.bfloat16}
BLURS = ("gaussian_blur", "motion_blur")
FORGET_PEAK = Path("/proc/self/clear_refs")         # Linux; a sandbox may lack it or refuse


@dataclass(frozen=True)
class Setting:
    """How a run is computed.

    Attributes:
        precision: of the network, "fp32" or "bf16".
        as_official: keep the graph of the parameters, write out the matrices of attention, blur by direct convolution,
            wait for the device at every step, send candidates one by one through the whole operator, and return large
            blocks of memory to the system.
        tf32: let a GPU round the factors of float32 products to TF32.
        channels_last: memory format of the network's weights, and so of what flows through it; otherwise contiguous.
        compile: by `torch.compile`.
        likelihood: of ps and dpps, "point" or "gaussian".
    """

    name: str
    precision: str = "fp32"
    as_official: bool = False
    tf32: bool = False
    channels_last: bool = False
    compile: bool = False
    likelihood: str = "point"


@dataclass(frozen=True)
class Case:
    """One line of the table: `batch` images of `size` x `size`, restored by `method`."""

    setting: Setting
    method: str
    task: str
    size: int
    batch: int


@dataclass
class Result:
    """What was measured of a case: seconds of each phase, per visited noise level; one row per repetition."""

    case: Case
    levels: list[list[dict[str, float]]]            # [repetition][level][phase]
    peak_bytes: int | None = None

    def phase(self, name: str) -> float:
        """Seconds of a phase in a step: the median over repetitions of every level, and the mean of the levels."""
        return float(np.mean([median(values) for values in zip(
            *([level[name] for level in levels] for levels in self.levels), strict=True)]))

    def level_steps(self) -> list[float]:
        """Seconds of the whole batch's step at each visited noise level, the median over repetitions."""
        return [median(sum(level.values()) for level in levels) for levels in zip(*self.levels, strict=True)]

    @property
    def step(self) -> float:
        """Seconds of a step of the whole batch."""
        return sum(map(self.phase, PHASES))

    @property
    def selection_share(self) -> float:
        """What choosing among candidates adds to a step that has none, as a fraction of that step."""
        return self.phase(CANDIDATES) / (self.step - self.phase(CANDIDATES))


def sampler_through(levels: int, learned_variance: bool) -> Sampler:
    """A process that visits a first level, `levels` that stand for the whole of the 1000, and the last one.

    The middle of each of `levels` equally long sections: what changes with the noise level, such as DPPS's number of
    candidates, has its mean there. The first step is for warming up, and the last one has no candidates.
    """
    full = Schedule.create("linear", TRAINING_STEPS)
    middles = [round((i + 0.5) * TRAINING_STEPS / levels) for i in range(levels)]
    timesteps = np.array([0, *middles, TRAINING_STEPS - 1])
    kept = full.alphas_cumprod[timesteps]
    schedule = Schedule(1 - kept / np.append(1.0, kept[:-1]), timesteps, TRAINING_STEPS)
    variance = VAR_PROCESSORS["learned_range" if learned_variance else "fixed_large"]
    return DDPM(schedule, MEAN_PROCESSORS["epsilon"](schedule), variance(schedule))


def build_method(case: Case, clock: StepClock) -> ConditioningMethod:
    """The case's method, telling the clock what it does."""
    params = {"scale": 0.3, "likelihood": case.setting.likelihood}
    if case.method == "ps":
        method = get_conditioning_method("ps", **params)
    else:
        method = (OneByOne if case.setting.as_official else TimedSelection)(clock, **params)
    method.likelihood = TimedLikelihood(method.likelihood, clock)
    return method


def measure_task(case: Case, device: torch.device) -> tuple[Measurement, ImageRandomness]:
    """The measurement of random images, as the case's task makes it."""
    direct = {"convolution": "direct"} if case.setting.as_official and case.task in BLURS else {}
    operator = get_operator(case.task, device, **TASKS[case.task], **direct)
    randomness = ImageRandomness(0, [f"image {b}" for b in range(case.batch)])
    images = 2 * randomness.rand_like(torch.empty(case.batch, 3, case.size, case.size, device=device)) - 1
    return Measurement.simulate(operator, get_noise("gaussian", sigma=0.05), images, randomness), randomness


@contextmanager
def network_of(model: nn.Module, setting: Setting) -> Iterator[nn.Module]:
    """The network under a setting; precision, weights in channels_last, and memory are put back afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = model.autocast_dtype, matmul.allow_tf32, cudnn.allow_tf32
    model.autocast_dtype, matmul.allow_tf32, cudnn.allow_tf32 = DTYPES[setting.precision], setting.tf32, setting.tf32
    keep_freed_memory(not setting.as_official)
    model.requires_grad_(setting.as_official)
    model.to(memory_format=torch.channels_last if setting.channels_last else torch.contiguous_format)
    try:
        with sdpa_kernel(SDPBackend.MATH) if setting.as_official else nullcontext():
            yield torch.compile(model, dynamic=False) if setting.compile else model
    finally:
        model.autocast_dtype, matmul.allow_tf32, cudnn.allow_tf32 = before
        model.requires_grad_(False).to(memory_format=torch.channels_last)
        keep_freed_memory()


def run_case(model: nn.Module, case: Case, levels: int, clock: StepClock) -> list[dict[str, float]]:
    """Seconds of each phase at every one of `levels` noise levels."""
    measurement, randomness = measure_task(case, clock.device)
    method = build_method(case, clock)

    def after_step(step, x: Tensor, distance: Tensor) -> None:
        if case.setting.as_official:
            distance.tolist()
        clock.finish_step()

    with network_of(model, case.setting) as network:
        method.restore(TimedPrior(network, clock), sampler_through(levels, model.out_channels == 6), measurement,
                       randomness, after_step)
    return clock.steps()[:levels]                   # those between the first step's end and the last one's beginning


def measure(model: nn.Module, cases: Sequence[Case], levels: int, repeats: int, new_clock: Callable[[], StepClock],
            progress: Callable[[Case], None]) -> list[Result]:
    """Run all cases `repeats` times, alternating, so that they meet the same disturbances.

    A case that the device has no memory for is left out.
    """
    results = {case: Result(case, []) for case in cases}
    for _ in range(repeats):
        for case in list(results):
            progress(case)
            clock = new_clock()
            reset_peak_memory(clock.device)
            try:
                results[case].levels.append(run_case(model, case, levels, clock))
                results[case].peak_bytes = peak_memory(clock.device)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                del results[case]
    return list(results.values())


def count_flops(model: nn.Module, size: int) -> int:
    """Floating-point operations of the network for one image, forward and gradient with respect to the image.

    Counted on the meta device, where nothing is computed; a multiplication and an addition are two.
    """
    twin = copy.deepcopy(model).to("meta").requires_grad_(False)
    twin.autocast_dtype = None
    x = torch.empty(1, 3, size, size, device="meta", requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        twin(x * 1, torch.zeros(1, device="meta")).sum().backward()
    return counter.get_total_flops()


def matmul_peak(device: torch.device, precision: str, processor_time: bool = False) -> float:
    """Floating-point operations per second of a square matrix product, the fastest of ten, on all threads."""
    side = 8192 if device.type == "cuda" else 1536
    a, b = torch.randn(2, side, side, device=device, dtype=DTYPES[precision] or torch.float32)
    clock = StepClock(device, processor_time)
    for _ in range(12):
        a @ b
        clock.finish_step()
    return 2 * side ** 3 / min(seconds[OTHER] for seconds in clock.steps())


def reset_peak_memory(device: torch.device) -> None:
    """Forget the highest use of memory so far, where the system can, and on the CPU give back what is free."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access(FORGET_PEAK, os.W_OK):
        return_freed_memory()
        FORGET_PEAK.write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """The highest use of memory in bytes since then: of the GPU, or of this process; None where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
