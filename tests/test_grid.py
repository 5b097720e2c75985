"""The grids of `python -m guided_diffusion.tune`: their points, the best of them, and its place at an edge."""

import re

import pytest

from guided_diffusion.tune.grid import JUDGES, Point, Result, at_the_edge, choose, markdown, points, read_grid
from util.errors import UserError
from util.metrics.statistics import describe


def test_a_grid_is_the_product_of_its_options():
    grid = read_grid(["conditioning.params.scale=0.1,1e-1,3", "conditioning.params.target=eps,mean",
                      "measurement.operator.range=[0, 1],null"])
    assert grid["conditioning.params.scale"] == [0.1, 3] and grid["measurement.operator.range"] == [[0, 1], None]
    every = points(grid)
    assert len(every) == 8 and len({point.name for point in every}) == 8
    assert every[1].settings[0] == ("conditioning.params.scale", 0.1) and every[1].settings[2][1] is None
    assert every[0].overrides == ("conditioning.params.scale=0.1", 'conditioning.params.target="eps"',
                                  "measurement.operator.range=[0, 1]")


@pytest.mark.parametrize("value", ["../x", "a/b", "x" * 400, "a b", {"k": [1, "/"]}])
def test_names_of_points_are_names_of_folders(value):
    key = "conditioning.params.schedule"
    name, other = Point(((key, value),)).name, Point(((key, "_x"),)).name
    assert re.fullmatch(r"[\w.=,+-]{1,120}", name) and name != other


@pytest.mark.parametrize("options, words", [
    (["conditioning.params.scale"], "expected key=values"),
    (["conditioning.params.scale="], "expected key=values"),
    (["=3"], "expected key=values"),
    (["conditioning.params.scale=[1"], "expected key=values"),
    (["diffusion.steps=10"], "'diffusion.steps' cannot be tuned"),
    (["conditionning.params.scale=1"], "did you mean 'conditioning'"),
    (["conditioning"], "expected key=values"),
    (["conditioning=1,2"], "'conditioning' cannot be tuned"),
    (["conditioning.params.a=1", "conditioning.params.a=2"], "in two of the options"),
    (["conditioning.params.a=1", "conditioning.params={}"], "a part of the other"),
    (["measurement.noise={name: clean}", "measurement.noise.sigma=1"], "a part of the other"),
])
def test_mistakes_in_a_grid(options, words):
    with pytest.raises(UserError, match=words):
        read_grid(options)


def result(value, error="", **figures):
    """A result of two images; figures as pairs of values."""
    pairs = {name: figures.get(name, (float("nan"),) * 2) for name in JUDGES}
    point = Point((("conditioning.params.scale", value),))
    return Result(point, {name: describe(pair, ["a", "b"]) for name, pair in pairs.items()}, 2, error)


RESULTS = [result(1, psnr=(20, 22), ssim=(0.5, 0.6), lpips=(0.5, 0.4), st_lpips=(0.1, 0.2), chi_square=(2.0, 2.2)),
           result(2, psnr=(24, 22), ssim=(0.4, 0.4), lpips=(0.4, 0.4), st_lpips=(0.3, 0.2), chi_square=(1.3, 1.3)),
           result(3, psnr=(22, 22), ssim=(0.5, 0.5), lpips=(0.2, 0.3), st_lpips=(0.2, 0.3), chi_square=(0.9, 0.8))]


@pytest.mark.parametrize("by, best", [(None, 2), ("psnr", 2), ("ssim", 1), ("lpips", 3), ("st_lpips", 1),
                                      ("chi_square", 3)])
def test_the_best_is_chosen(by, best):
    chosen, decided = choose(RESULTS, by)
    assert chosen.point.settings[0][1] == best and decided == (by or "psnr")


def test_without_truth_the_chi_square_decides():
    unknown = [result(1, chi_square=(0.2, 0.3)), result(2, chi_square=(1.5, 1.6))]
    assert choose(unknown, None) == (unknown[1], "chi_square")
    with pytest.raises(UserError, match=r"nothing can be chosen by psnr.*choose by chi_square"):
        choose(unknown, "psnr")


def test_points_that_diverged_or_failed_are_not_chosen():
    diverged = result(9, psnr=(99, float("nan")), chi_square=(1.0, float("nan")))
    failed = Result(Point((("conditioning.params.scale", 0),)), result(0).figures, 0, "no such thing")
    assert choose([diverged, failed, *RESULTS], None)[0] is RESULTS[1]
    with pytest.raises(UserError, match="no such thing"):
        choose([failed], None)
    text = markdown([failed, *RESULTS], RESULTS[1], "psnr")
    assert "FAILED: no such thing" in text and "**23.00 [22.00, 24.00]**" in text and "PSNR (dB) *" in text


@pytest.mark.parametrize("value, words", [(1, "smallest of the grid; add smaller"), (9, "largest"), (3, None)])
def test_the_edge_of_the_grid_is_said(value, words):
    grid = {"a": [3, 1, 9], "b": ["x", "y"], "c": [5], "d": [True, False]}
    said = at_the_edge(grid, Point((("a", value), ("b", "x"), ("c", 5), ("d", True))))
    assert [words in sentence and "best a is" in sentence for sentence in said] == [True] * (words is not None)


@pytest.mark.parametrize("chi_squares, psnrs, best, decided", [
    ([0.4, 0.6, 1.1], [30.0, 29.0, 28.0], 1, "psnr"),                      # the highest PSNR fits the noise of y
    ([0.4, 2.5, 9.0], [28.0, 29.0, 30.0], 0, "chi_square"),                # none agrees with y
])
def test_consistency_takes_the_best_of_what_agrees_with_the_measurement(chi_squares, psnrs, best, decided):
    results = [Result(Point((("k", i),)), {name: describe([values[i]], ["a"]) for name, values in
                                           {**dict.fromkeys(JUDGES, psnrs), "chi_square": chi_squares}.items()}, 1)
               for i in range(3)]
    assert choose(results, "consistency") == (results[best], decided)
