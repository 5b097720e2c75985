"""Confidence intervals: against closed forms and against a plain bootstrap."""

import math

import numpy as np
import pytest

from util.metrics import statistics
from util.metrics.statistics import bootstrap_interval, describe


def names(n):
    return [f"image{i:03d}" for i in range(n)]


def test_the_interval_of_many_images_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(30, 2, 400)
    low, high = bootstrap_interval(values.tolist(), names(400))
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_it_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(rng.normal(5, 1, 40).tolist(), names(40))
        covered += low <= 5 <= high
    assert 178 <= covered <= 198                    # 95 % of 200, 3.5 standard deviations, a little less for 40 images


def test_images_are_resampled_and_not_their_samples():
    values = np.random.default_rng(3).normal(0, 1, 30)
    once = bootstrap_interval(values.tolist(), names(30))
    five_equal_samples = bootstrap_interval(np.repeat(values, 5).tolist(), np.repeat(names(30), 5).tolist())
    assert five_equal_samples == pytest.approx(once, abs=1e-12)         # five copies of an image say nothing new


def test_an_image_with_more_samples_weighs_more_as_in_the_mean():
    low, high = bootstrap_interval([0, 0, 0, 1], ["a", "a", "a", "b"])
    assert (low, high) == (0, 1)
    values, images = [1.0, 3.0, 8.0, 9.0, 2.0], ["a", "a", "b", "c", "c"]
    low, high = bootstrap_interval(values, images, level=0.0)           # the median of the resampled means
    assert low == high == pytest.approx(np.mean(values), abs=0.5)


def test_the_same_scores_give_the_same_interval_in_any_order_and_in_any_chunks(monkeypatch):
    values, images = np.random.default_rng(4).normal(size=21).tolist(), [f"i{k // 3}" for k in range(21)]
    expected = bootstrap_interval(values, images)
    assert bootstrap_interval(values, images) == expected
    order = np.random.default_rng(5).permutation(21)
    assert bootstrap_interval([values[k] for k in order], [images[k] for k in order]) == expected
    assert bootstrap_interval(values, images, seed=1) != expected
    monkeypatch.setattr(statistics, "CHUNK", 70)
    assert bootstrap_interval(values, images) == pytest.approx(expected, abs=0.1)


def test_summary_counts_only_finite_scores():
    summary = describe([1.0, 2.0, math.nan, math.inf, 6.0], names(5))
    assert summary["mean"] == 3
    assert summary["std"] == pytest.approx(math.sqrt(7))
    assert summary["count"] == 3
    low, high = summary["ci95"]
    assert 1 <= low < 3 < high <= 6


@pytest.mark.parametrize(("values", "mean"), [([], None), ([math.nan], None), ([4.0], 4.0)])
def test_too_few_scores_have_no_interval(values, mean):
    assert describe(values, names(len(values))) == {"mean": mean, "std": None, "count": len([mean] if mean else []),
                                                    "ci95": None}


def test_samples_of_one_image_have_no_interval_but_a_spread():
    summary = describe([1.0, 3.0], ["a", "a"])
    assert (summary["mean"], summary["ci95"]) == (2.0, None)
    assert summary["std"] == pytest.approx(math.sqrt(2))


def test_equal_scores_have_an_interval_of_no_width():
    assert bootstrap_interval([2.5] * 4, names(4)) == [2.5, 2.5]
