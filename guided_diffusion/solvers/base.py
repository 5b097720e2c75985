"""What methods with a loop of their own share; the classical restorers among them need no prior."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import Sampler, Step
from guided_diffusion.measurements.base import LinearOperator, kind_of
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.method import Method
from util.errors import UserError
from util.seeding import ImageRandomness


@dataclass(frozen=True)
class Iteration:
    """What a callback learns of an iteration that is no reverse step: index 0 is the last; x0_hat (B, C, H, W)."""

    index: int
    x0_hat: Tensor


class Solver(Method):
    """A restoration that is a loop over states, each of which `restore` reports."""

    @abstractmethod
    def iterates(self, prior: Callable, sampler: Sampler, measurement: Measurement,
                 randomness: ImageRandomness) -> Iterator[tuple[Step | Iteration, Tensor]]:
        """What happened and the state after it (B, C, H, W), `num_steps` times; the last state is the restored image.

        Runs without gradients; where it needs some, it enables them.
        """

    def restore(self, prior: Callable, sampler: Sampler, measurement: Measurement, randomness: ImageRandomness,
                callback: Callable | None = None) -> Tensor:
        """The last of `iterates`, (B, C, H, W); UserError where these are something else than it says."""
        x, like = None, measurement.y.new_empty(()).expand(measurement.image_shape)
        with torch.no_grad(), self.differentiated():
            for found in self.iterates(prior, sampler, measurement, randomness):
                if not isinstance(found, tuple) or len(found) != 2:
                    raise UserError(f"conditioning method '{self.name}' yields {kind_of(found)}, expected what "
                                    "happened and the state after it: yield Iteration(index, x), x")
                step, x = found
                self.check_state(x, like)
                if callback is not None:
                    callback(step, x, measurement.distance(x))
        if x is None:
            raise UserError(f"conditioning method '{self.name}' yields nothing, expected the state after every "
                            "iteration")
        return x


class ClassicalRestorer(Method):
    """A restoration by a library's algorithm, the same for every seed, on the CPU.

    Parameters that have a unit are on the scale [0, 1] of the images that the algorithm sees; the noise of sigma 0.05
    on [-1, 1] is 0.025 there.
    """

    needs_prior = False

    @abstractmethod
    def estimate(self, measurement: Measurement) -> Sequence[np.ndarray]:
        """The restored images, (H, W, C) float64 each, on [0, 1] but not clipped."""

    def num_steps(self, sampler: Sampler) -> int:
        """1."""
        return 1

    @torch.no_grad()
    def restore(self, prior: Callable | None, sampler: Sampler, measurement: Measurement, randomness: ImageRandomness,
                callback: Callable | None = None) -> Tensor:
        """Restored images (B, C, H, W), clipped to [-1, 1]; only `measurement` plays a part."""
        images = np.stack(self.estimate(measurement))
        x = 2 * torch.from_numpy(images).permute(0, 3, 1, 2).to(measurement.y).clamp(0, 1) - 1
        if callback is not None:
            callback(Iteration(0, x), x, measurement.distance(x))
        return x


def to_arrays(x: Tensor) -> np.ndarray:
    """Images (B, C, H, W) on the scale [-1, 1] -> (B, H, W, C) float64 on [0, 1], not clipped."""
    return x.detach().cpu().double().permute(0, 2, 3, 1).numpy() / 2 + 0.5


def unit_measurement(operator: LinearOperator, y: Tensor) -> Tensor:
    """What `operator` measures of (x + 1)/2, on [0, 1], where it measures `y` of x on [-1, 1]: (B, ...) -> the same."""
    return (y + operator(y.new_ones(operator.image_shape))) / 2
