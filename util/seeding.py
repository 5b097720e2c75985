"""Random numbers that belong to an image, not to a run.

Every number comes from a stream keyed by (seed, image name, sample, purpose), so that a restoration does not
depend on batch size, order, sharding or resuming, and two methods see the same measurement.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch


class ImageRandomness:
    """The random streams of a batch, one per image, for one purpose.

    Args:
        seed: the run's seed; every integer, 0 included, is a seed.
        names: one name per batch entry; entries of the same name (and sample) get the same numbers.
        samples: which posterior sample of its image each entry is; all 0 when omitted.
        purpose: "operator" (masks, kernels), "noise" (measurement noise) or "sampling".
        device: where the numbers are drawn. Streams on the CPU are the same on every machine; streams on a
            CUDA device are reproducible on that kind of device only.
    """

    def __init__(self, seed: int, names: Sequence[str], samples: Sequence[int] | None = None,
                 purpose: str = "sampling", device: torch.device | str = "cpu"):
        self.seed, self.names = seed, tuple(names)
        self.samples = tuple(samples) if samples is not None else (0,) * len(self.names)
        assert len(self.samples) == len(self.names), (self.samples, self.names)
        self.purpose, self.device = purpose, torch.device(device)

    @property
    def _keys(self) -> list[int]:
        texts = ("\x1f".join((str(self.seed), self.purpose, name, str(sample)))
                 for name, sample in zip(self.names, self.samples, strict=True))
        return [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") for text in texts]

    def __len__(self) -> int:
        return len(self.names)

    def for_purpose(self, purpose: str, device: torch.device | str = "cpu") -> "ImageRandomness":
        """The streams of the same images for another purpose.

        "operator" and "noise" describe the measurement, which all samples of an image share, so they leave
        the sample out of the key.
        """
        samples = self.samples if purpose == "sampling" else None
        return ImageRandomness(self.seed, self.names, samples, purpose, device)

    @cached_property
    def generators(self) -> list[torch.Generator]:
        """One torch generator per image, on `device`."""
        return [torch.Generator(self.device).manual_seed(key) for key in self._keys]

    @cached_property
    def numpy_generators(self) -> list[np.random.Generator]:
        """One numpy generator per image, for masks and kernels."""
        return [np.random.default_rng(key) for key in self._keys]

    def randn_like(self, x: torch.Tensor) -> torch.Tensor:
        """Standard normal numbers (B, ...) in the shape, dtype and device of `x`, image b from stream b."""
        return self._draw(torch.randn, x)

    def rand_like(self, x: torch.Tensor) -> torch.Tensor:
        """Uniform numbers on [0, 1), (B, ...), in the shape, dtype and device of `x`."""
        return self._draw(torch.rand, x)

    def _draw(self, draw, x: torch.Tensor) -> torch.Tensor:
        assert len(x) == len(self), (x.shape, len(self))
        numbers = [draw(x.shape[1:], generator=g, dtype=x.dtype, device=self.device) for g in self.generators]
        return torch.stack(numbers).to(x.device)
