"""Means over images with their uncertainty."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

import numpy as np

RESAMPLES = 2000
CHUNK = 10 ** 7                                     # numbers drawn at a time

Summary = dict[str, float | int | list[float] | None]


def describe(values: Sequence[float], images: Sequence[str]) -> Summary:
    """Mean, standard deviation, count and 95 % confidence interval of scores; only finite ones count.

    Args:
        values: a score per posterior sample.
        images: the image that each belongs to. Samples of an image are not independent, so images are resampled.

    Returns:
        "mean", "std" (of the values, n - 1), "count" and "ci95": [low, high]; None for what so few values do not have.
    """
    finite = [(value, image) for value, image in zip(values, images, strict=True) if math.isfinite(value)]
    scores = [value for value, _ in finite]
    return {"mean": fmean(scores) if scores else None, "std": stdev(scores) if len(scores) > 1 else None,
            "count": len(scores), "ci95": bootstrap_interval(scores, [image for _, image in finite])}


def bootstrap_interval(values: Sequence[float], images: Sequence[str], level: float = 0.95, seed: int = 0
                       ) -> list[float] | None:
    """The percentile bootstrap interval [low, high] of a mean (Efron & Tibshirani, 1993, section 13.3).

    Images are drawn with replacement, each with all its samples. The same scores give the same interval, in whatever
    order they come.

    Args:
        values: finite scores.
        images: the image that each belongs to.
        level: how often such an interval covers the mean of all images.
        seed: of the resampling.

    Returns:
        None for fewer than two images.
    """
    order = sorted(zip(images, values, strict=True))
    _, group = np.unique([image for image, _ in order], return_inverse=True)
    sums, counts = np.bincount(group, [value for _, value in order]), np.bincount(group)       # per image
    n = len(sums)
    if n < 2:
        return None
    rng = np.random.default_rng(seed)
    means, chunk = [], max(1, CHUNK // n)
    for start in range(0, RESAMPLES, chunk):
        drawn = rng.integers(n, size=(min(chunk, RESAMPLES - start), n))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return [float(bound) for bound in np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])]
