"""Pairs of image files, scored: per image, and as sets."""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from util.errors import UserError
from util.img_utils import load_image
from util.logger import logger
from util.metrics.pairs import MEAN, Pair
from util.metrics.perceptual import EXTRACTOR, frechet_distance, kernel_distance
from util.metrics.scores import PER_IMAGE, Metrics, Scores
from util.metrics.statistics import describe


@dataclass
class Comparison:
    """Scores of pairs of files, and the features of those that are no means of samples."""

    rows: list[tuple[str, str, Scores]] = field(default_factory=list)               # image, sample, its scores
    real: dict[str, Tensor] = field(default_factory=dict)                           # image -> (D,)
    restored: dict[tuple[str, str], Tensor] = field(default_factory=dict)           # (image, sample) -> (D,)
    skipped: int = 0

    def add(self, pair: Pair, metrics: Metrics) -> None:
        """Score a pair; UserError if it cannot be scored."""
        restored, label = load_image(pair.restored), load_image(pair.label)
        if restored.shape != label.shape:
            sizes = " and ".join(f"{x.shape[2]} x {x.shape[1]}" for x in (restored, label))
            raise UserError(f"{pair.restored} and {pair.label} differ in size ({sizes})")
        self.rows.append((pair.image, pair.sample, metrics(restored, label)))
        features = metrics.features(restored) if pair.sample != MEAN else None
        if features is not None:
            self.restored[pair.image, pair.sample] = features
            self.real[pair.image] = self.real[pair.image] if pair.image in self.real else metrics.features(label)

    def summary(self, names: Sequence[str]) -> dict[str, object]:
        """Mean, standard deviation, count and interval of each score in `names`; FID and KID with their images."""
        single, means = ([row for row in self.rows if (row[1] == MEAN) is is_mean] for is_mean in (False, True))
        summary: dict[str, object] = {"images": len({row[0] for row in self.rows}), "skipped": self.skipped,
                                      "metrics": _summarise(single, names)}
        if means:
            summary["metrics_of_sample_means"] = _summarise(means, names)
        return summary | self.distances(names)

    def distances(self, names: Sequence[str]) -> dict[str, dict[str, object]]:
        """FID and KID, where they are in `names`, with extractor and numbers of images; None without features."""
        real, restored = (torch.stack([*x.values()]) if x else torch.empty(0, 0) for x in (self.real, self.restored))
        values = {name: distance(real, restored) for name, distance in (("fid", frechet_distance),
                                                                        ("kid", kernel_distance)) if name in names}
        return {name: {"value": value if math.isfinite(value) else None, "extractor": EXTRACTOR,
                       "images": len(restored), "reference_images": len(real)} for name, value in values.items()}


def _summarise(rows: Sequence[tuple[str, str, Scores]], names: Sequence[str]) -> dict[str, object]:
    images = [image for image, _, _ in rows]
    return {name: describe([getattr(scores, name) for _, _, scores in rows], images)
            for name in PER_IMAGE if name in names}


def compare(pairs: Iterable[Pair], metrics: Metrics) -> Comparison:
    """Score pairs of files; those that cannot be scored are named in warnings, counted and passed over."""
    comparison = Comparison()
    for pair in tqdm(pairs, desc="Scoring", leave=False, disable=not sys.stderr.isatty()):
        try:
            comparison.add(pair, metrics)
        except UserError as error:
            comparison.skipped += 1
            logger.warning(f"{error}; passed over")
    return comparison
