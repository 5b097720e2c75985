"""What the page of `python -m util.report` is made of: crops, ticks, numbers, markup."""

import pytest
import torch

from util.report.figures import fixed_crop, round_numbers, step_ticks, telling_crop
from util.report.markup import Markup, element
from util.report.tables import COLUMNS, digits


def test_the_crop_lies_where_methods_differ_most():
    a = torch.zeros(3, 40, 80)
    b = a.clone()
    b[:, 20:30, 50:60] = 1
    assert telling_crop([a, b], []) == (50 / 80, 20 / 40, 10 / 40)
    assert telling_crop([a], [b]) == (50 / 80, 20 / 40, 10 / 40)
    assert telling_crop([a, torch.zeros(3, 8, 8)], []) == telling_crop([], []) == (0.375, 0.375, 0.25)
    assert fixed_crop(70, 0, 20, (3, 40, 80)) == (60 / 80, 0, 20 / 40)      # moved inside
    assert fixed_crop(0, 0, 500, (3, 40, 80)) == (0, 0, 1)


@pytest.mark.parametrize("low, high", [(20.9, 270), (1, 1), (0.003, 4e5), (99, 101), (1e-300, 1e300), (0.02, 0.5)])
def test_ticks_are_few_and_begin_at_or_below_the_lowest_value(low, high):
    ticks = round_numbers(low, high)
    assert 1 <= len(ticks) <= 7
    assert ticks == sorted(set(ticks)) and ticks[0] <= low and ticks[-1] <= high
    assert ticks[0] > 0.7 * low or high / low > 10                  # a narrow range is not lost in a wide axis


@pytest.mark.parametrize("most, ticks", [
    (1, [0, 1]), (9, [0, 2, 4, 6, 8]), (19, [0, 5, 10, 15]), (60, [*range(0, 61, 10)]), (999, [0, 200, 400, 600, 800])])
def test_ticks_along_the_steps_are_round(most, ticks):
    assert list(step_ticks(most)) == ticks


@pytest.mark.parametrize("column, value, text", [
    ("distance", 4.18, "4.180"), ("distance", 1234.4, "1234"), ("chi_square", 2.1, "2.10"),
    ("chi_square", 0.9, "0.900"), ("chi_square", 210.4, "210"), ("chi_square", float("inf"), "inf"),
    ("psnr", 20, "20.00"), ("seconds", 3, "3.0"), ("network_evaluations", 1000, "1000")])
def test_numbers_of_a_column_have_the_same_digits(column, value, text):
    assert digits(value, next(c for c in COLUMNS if c.name == column)) == text


def test_markup_escapes_whatever_is_not_markup():
    assert element("p", {"title": '"<&', "id": None}, "<b>", Markup("<i></i>"), 3) == (
        '<p title="&quot;&lt;&amp;">&lt;b&gt;<i></i>3</p>')
