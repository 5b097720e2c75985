"""What several test files share: examples of operators and noise, the deterministic network filling, pictures."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from guided_diffusion.measurements import OPERATORS
from util.config.config import REPOSITORY, read_yaml
from util.seeding import ImageRandomness

MASK = np.uint64(0xFFFFFFFF)
NAMES = ["a.png", "b.png", "c.png"]         # of the images of a batch
OPERATOR_EXAMPLES = {                       # parameters of every operator that needs no file, for images of 16 x 16
    "noise": {},
    "super_resolution": {"scale_factor": 4},
    "inpainting": {"mask_opt": {"mask_type": "random", "mask_prob_range": [0.5, 0.7]}},
    "gaussian_blur": {"kernel_size": 5, "intensity": 1.0},
    "motion_blur": {"kernel_size": 3, "intensity": 0.0},
    "colorization": {},
    "sr_average": {"scale_factor": 2},
    "compressed_sensing": {"ratio": 0.3},
    "fourier": {"acceleration": 3.0},
    "composite": {"operators": [{"name": "gaussian_blur", "kernel_size": 3, "intensity": 0.6},
                                {"name": "colorization"}]},
    "hdr": {"scale": 2.0},
    "jpeg": {"quality": 30},
    "phase_retrieval": {},
    "gopro_blur": {"frames": 4, "kernel_size": 5},
}
NOISE_EXAMPLES = {
    "clean": {}, "gaussian": {"sigma": 0.1}, "poisson": {"rate": 0.5}, "quantization": {"bits": 5},
    "poisson_gaussian": {"rate": 0.5, "sigma": 0.05}, "speckle": {"sigma": 0.1}, "salt_and_pepper": {"fraction": 0.3},
}
NEED_FILES = {"blur", "nonlinear_blur"}     # a kernel, the weights: tests of their own


def from_task_files() -> dict[str, dict]:
    """Parameters of operators that have no smaller example above, as their task files in configs/ have them."""
    operators = [tree["measurement"]["operator"] for tree in map(read_yaml, sorted(REPOSITORY.glob("configs/*.yaml")))
                 if "measurement" in tree]
    return {operator["name"]: {key: value for key, value in operator.items() if key != "name"} for operator in operators
            if operator["name"] in set(OPERATORS) - set(OPERATOR_EXAMPLES) - NEED_FILES}


OPERATOR_EXAMPLES |= from_task_files()


def deterministic(i: int, shape: tuple[int, ...]) -> np.ndarray:
    """T(i, shape) of the golden numbers: a hash of i and the flat index, uniform on [-1, 1), float64."""
    j = np.arange(int(np.prod(shape)), dtype=np.uint64)
    u = (j + np.uint64(1)) * np.uint64(2654435761) + np.uint64((i + 1) * 2246822519 & 0xFFFFFFFF) & MASK
    u = (u ^ u >> np.uint64(15)) * np.uint64(2246822519) & MASK
    u = (u ^ u >> np.uint64(13)) * np.uint64(3266489917) & MASK
    u = u ^ u >> np.uint64(16)
    return (2 * u.astype(np.float64) / 2 ** 32 - 1).reshape(shape)


def fill_network(model: nn.Module, salt: int, gain: float = 1.0) -> nn.Module:
    """Fill every tensor of the state dict by the rule of the golden numbers; returns the model in evaluation mode."""
    filled = {}
    for k, (name, tensor) in enumerate(model.state_dict().items()):
        values = deterministic(salt + k, tuple(tensor.shape))
        if tensor.dim() >= 2:
            values = gain * np.sqrt(3 / np.prod(tensor.shape[1:])) * values
        else:
            values = 1 + 0.2 * values if name.endswith("weight") else 0.1 * values
        filled[name] = torch.from_numpy(values).to(tensor.dtype)
    model.load_state_dict(filled)
    return model.eval().requires_grad_(False)


def randomness(names: list[str], seed: int = 0) -> ImageRandomness:
    return ImageRandomness(seed, names, purpose="operator")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 48)) -> None:
    """A picture of random pixels in a file of whatever name: JPEG for .jpg, otherwise PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(
        buffer, "jpeg" if path.suffix == ".jpg" else "png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


class ReplayedRandomness:
    """ImageRandomness's interface over recorded draws, handed out in order."""

    def __init__(self, normal: list[Tensor], uniform: list[Tensor] = ()):
        self.normal, self.uniform = list(normal), list(uniform)

    def randn_like(self, x: Tensor) -> Tensor:
        return self._next(self.normal, x)

    def rand_like(self, x: Tensor) -> Tensor:
        return self._next(self.uniform, x)

    @staticmethod
    def _next(draws: list[Tensor], x: Tensor) -> Tensor:
        draw = draws.pop(0)
        assert draw.shape == x.shape, (draw.shape, x.shape)
        return draw.to(x.dtype)
