"""What tests of noise share: random streams of a batch, measurements, gradients of a distance."""

import torch
from torch import Tensor

from guided_diffusion.measurements import Noise
from util.seeding import ImageRandomness

NAMES = ["a", "b", "c"]


def randomness(names: list[str] = NAMES, seed: int = 0) -> ImageRandomness:
    return ImageRandomness(seed, names, purpose="noise")


def uniform(*shape: int, seed: int = 0) -> Tensor:
    """Values in [-1, 1)."""
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


def grad(noise: Noise, y: Tensor, prediction: Tensor) -> Tensor:
    """d distance / d prediction."""
    prediction = prediction.clone().requires_grad_()
    return torch.autograd.grad(noise.distance(y, prediction).sum(), prediction)[0]
