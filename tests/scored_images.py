"""Pictures with scores of their own, and the scores that `python -m util.compute_metric` writes."""

import csv
import json
from pathlib import Path

import torch
from torch import Tensor, nn


def image(seed: int, size: int = 24) -> Tensor:
    """A smooth picture with a brightness of its own."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 4, generator=generator) * 2 - 1
    return nn.functional.interpolate(coarse, size=size, mode="bicubic")[0].clamp(-1, 1)


def noisy(x: Tensor, seed: int, sigma: float = 0.1) -> Tensor:
    return x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def read(folder: Path) -> tuple[dict, list[dict[str, str]]]:
    """scores.json and the rows of scores.csv."""
    with open(folder / "scores.csv", newline="") as file:
        return json.loads((folder / "scores.json").read_text()), list(csv.DictReader(file))
