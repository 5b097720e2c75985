"""`sample_condition.py` with the habits of the released code: `python -m guided_diffusion.benchmark.official ...`.

The graph of the parameters is kept, the matrices of attention are written out, weights are contiguous, the device is
waited for at every step, DPPS sends its candidates through the whole operator without the use of linearity, and large
blocks of memory go back to the system. The restorations are the same.
"""

import math
import runpy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from guided_diffusion.condition_methods.dpps import PosteriorProximalSampling
from guided_diffusion.gaussian_diffusion import Step
from guided_diffusion.measurements import Measurement
from guided_diffusion.unet import UNetModel
from util.memory import keep_freed_memory
from util.reproduce_table.job import PROGRAM


@contextmanager
def as_released() -> Iterator[None]:
    """Within the block, networks and methods compute as the released code does."""
    forward, residual = UNetModel.forward, PosteriorProximalSampling.residual

    def slow_forward(self: UNetModel, x: Tensor, *more: Tensor) -> Tensor:
        keep_freed_memory(False)
        self.requires_grad_(True).to(memory_format=torch.contiguous_format)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        with sdpa_kernel(SDPBackend.MATH):
            return forward(self, x, *more)

    UNetModel.forward, PosteriorProximalSampling.residual = slow_forward, _residual
    try:
        yield
    finally:
        UNetModel.forward, PosteriorProximalSampling.residual = forward, residual
        keep_freed_memory()


def _residual(self: PosteriorProximalSampling, mean: Tensor, step: Step, measurement: Measurement
              ) -> Callable[[Tensor], Tensor]:
    """Noises z (n, B, C, H, W) -> residuals (n, B, ...) of the candidates mean + std z, target "eps"."""
    goal = math.sqrt(step.alpha_bar_prev) * measurement.y
    centre = mean - math.sqrt(1 - step.alpha_bar_prev) * step.eps
    return lambda z: torch.stack([goal - measurement.operator(centre + step.std * one) for one in z])


if __name__ == "__main__":
    with as_released():
        runpy.run_path(PROGRAM, run_name="__main__")
