"""The registry checks YAML parameters against class signatures, and its errors are documentation."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import pytest

from util.config.registry import Bounds, Count, Registry, check_arguments, describe, fits
from util.errors import UserError, did_you_mean

THINGS = Registry("thing")


@THINGS.register("lens")
class Lens:
    def __init__(self, width: float, count: int = 1, shape: tuple[int, int] = (1, 1), names: Sequence[str] = (),
                 kind: Literal["thin", "thick"] = "thin", label: str | None = None, on: bool = False,
                 options: dict | None = None):
        self.width, self.count, self.shape, self.kind = width, count, shape, kind


@THINGS.register("plain")
class Plain:
    pass


def test_build_makes_an_instance_that_knows_its_name():
    lens = THINGS.build("lens", width=2, shape=[3, 4])
    assert (lens.width, lens.shape, lens.name) == (2, [3, 4], "lens")
    assert list(THINGS) == ["lens", "plain"]
    assert "lens" in THINGS
    assert "lense" not in THINGS


def test_a_name_is_taken_once():
    with pytest.raises(UserError, match="there already"):
        THINGS.register("lens")(Plain)


def test_a_class_that_is_defined_again_takes_its_own_place():
    """As a cell of a notebook does that runs again."""
    def cell(default: int) -> type:
        class Cell:
            def __init__(self, width: int = default):
                self.width = width
        return things.register("cell")(Cell)

    things = Registry("thing")
    cell(1)
    cell(2)
    assert things.build("cell").width == 2


@pytest.mark.parametrize("number", [np.float32(3), np.int64(3), np.float64(3)])
def test_numbers_of_numpy_are_numbers(number):
    width = THINGS.build("lens", width=number).width
    assert type(width) is float and width == 3


@pytest.mark.parametrize("name", ["lense", 3, None, ["lens"]])
def test_unknown_names_get_the_choices(name):
    with pytest.raises(UserError, match="unknown thing.*choose from lens, plain"):
        THINGS.build(name)


@pytest.mark.parametrize("params, message", [
    ({"width": 1, "coumt": 2}, "thing 'lens': unknown key 'coumt'; did you mean 'count'"),
    ({"width": 1, "self": 2}, "unknown key 'self'"),
    ({"width": 1, "name": 2}, "unknown key 'name'"),
    ({}, "'width' is missing"),
    ({"width": "1"}, "width is '1', expected a finite number"),
    ({"width": float("nan")}, "width is nan, expected a finite number"),
    ({"width": float("inf")}, "width is inf"),
    ({"width": True}, "width is True, expected a finite number"),
    ({"width": None}, "width is None"),
    ({"width": 1, "count": 1.5}, "count is 1.5, expected an integer"),
    ({"width": 1, "count": False}, "count is False, expected an integer"),
    ({"width": 1, "shape": [1, 2, 3]}, "shape is .* expected a list of 2, each an integer"),
    ({"width": 1, "shape": 3}, "shape is 3"),
    ({"width": 1, "names": "abc"}, "names is 'abc'"),
    ({"width": 1, "names": ["a", 1]}, "names is"),
    ({"width": 1, "kind": "thik"}, "kind is 'thik', expected one of 'thin', 'thick'"),
    ({"width": 1, "label": 3}, "label is 3, expected a string or null"),
    ({"width": 1, "on": 1}, "on is 1, expected true or false"),
    ({"width": 1, "on": "yes"}, "on is 'yes'"),
    ({"width": 1, "options": []}, "options is .*expected a mapping or null"),
])
def test_wrong_parameters_are_named(params, message):
    with pytest.raises(UserError, match=message):
        THINGS.build("lens", **params)


def test_a_class_without_parameters_says_so():
    assert THINGS.build("plain").name == "plain"
    with pytest.raises(UserError, match="unknown key 'scale'; it takes no parameters"):
        THINGS.build("plain", scale=1)


def test_functions_are_checked_as_well():
    def f(a: int, b: float = 0.0) -> None: ...

    check_arguments(f, {"a": 1}, "f")
    with pytest.raises(UserError, match="f: 'a' is missing"):
        check_arguments(f, {"b": 1}, "f")


def test_an_integer_may_stand_for_a_float_but_not_the_other_way():
    assert fits(1, float)
    assert not fits(1.0, int)
    assert fits((1, 2), list[int])
    assert fits([1, 2.5], tuple[float, ...])
    assert describe(tuple[float, ...]) == "a list, each entry a finite number"


def test_did_you_mean_names_the_nearest_and_lists_all():
    assert did_you_mean("sigm", ["sigma", "rate"]) == "did you mean 'sigma'? choose from rate, sigma"
    assert did_you_mean("zzz", ["sigma", "rate"]) == "choose from rate, sigma"
    assert did_you_mean("sigma:0.1", ["sigma", "rate"]) == "did you mean 'sigma: 0.1', with a space?"


def test_ranges_are_checked_whoever_builds_the_class():
    things = Registry("thing")

    @things.register("one")
    class One:
        def __init__(self, count: Count, share: Annotated[float, Bounds(above=0, most=1)] | None = None):
            self.count, self.share = count, share

    assert things.build("one", count=2, share=1).share == 1 and One(1).share is None
    for build in (lambda: things.build("one", count=0), lambda: One(0)):
        with pytest.raises(UserError, match="thing 'one': count is 0, expected an integer, 1 or more"):
            build()
    with pytest.raises(UserError, match="share is 0, expected a finite number, more than 0 and at most 1"):
        One(1, share=0)
