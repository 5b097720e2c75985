"""YAML that is written is read as the same values, whatever characters are in them; odd YAML ends in a sentence."""

import math
import os

import pytest
import torch

from tests.run_folders import open_run, save
from util.config.yaml_text import dump_yaml, flow, parse_yaml, set_values
from util.errors import UserError
from util.run.config_file import check_settings, write_settings

ODD = [
    "a\x85b", "a\u2028b", "a\u2029", "\u2028", "tab\there", "\t", 'say "x"', "it's", "# none", "a #b", "a: b", "a:",
    ":", "- a", "-", "--- a", "---", "...", "? a", "! a", "!!int 3", "&a", "*a", "%a", "@a", "`a", "|", ">", "[a",
    "{a}", ",", "\U0001f600 smile",
    os.fsdecode(b"photo\xff\xfe"), "", " ", " a ", "null", "~", "Null",
    "1e3", "-1E+3", "1.5e3", "12", "0x1f", "0o7", "1_000", ".5", ".inf", ".nan", "1:30", "yes", "No", "on", "true",
    "2024-01-01", "=", "<<", "a\nb", "a\r\nb", "\x00\x1b", "\ufeffa", "a\xa0b", "ünïcödé/été", "x" * 300, "a " * 100,
    "\\", "\\u2028", "C:\\new"]


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_texts_survive(text):
    trees = [text, {"data": {"root": text, "images": [text, "b", text]}}, {text: {text: 1}}, [[text], {"a": text}]]
    for tree in trees:
        assert parse_yaml(dump_yaml(tree)) == tree
        assert parse_yaml(flow(tree)) == tree
        assert "\n" not in flow(tree) and flow(tree).isprintable()
        dump_yaml(tree).encode()
    for task in ("# above\ndata:\n  root: x    # here\n  n: 3\n", "data: {root: x, n: 3}\n"):
        assert parse_yaml(set_values(task, [(("data", "root"), text)])) == {"data": {"root": text, "n": 3}}


def test_printable_letters_stay_as_they_are():
    assert dump_yaml({"root": "été/日本"}) == "root: été/日本\n"


def test_numbers_survive():
    tree = {"a": [1, -2.5, 1e-30, 1e300, float("inf"), True, None, 0.1, 10 ** 20], "b": {}, "c": []}
    assert parse_yaml(dump_yaml(tree)) == parse_yaml(flow(tree)) == tree
    assert [type(value) for value in parse_yaml(dump_yaml(tree))["a"]] == [type(value) for value in tree["a"]]


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_a_run_with_an_odd_path_is_continued(tmp_path, text):
    settings = {"data": {"root": text, "images": [text]}, "conditioning": {"params": {text: 1.0}}, "seed": 0}
    write_settings(tmp_path, settings, None)
    check_settings(tmp_path, settings)
    other = {**settings, "data": {"root": f"{text}x", "images": [text]}}
    with pytest.raises(UserError, match="data.root"):
        check_settings(tmp_path, other)


def test_a_results_folder_with_an_odd_name_is_continued(tmp_path):
    odd = tmp_path / "a\x85b \u2028: # c"
    save(open_run(odd, {"data": {"root": str(odd)}}))
    assert open_run(odd, {"data": {"root": str(odd)}}).finished("a")
    assert torch.tensor(open_run(odd, {"data": {"root": str(odd)}}).rows[0].psnr).isfinite()


@pytest.mark.parametrize("text", [
    '!!int ""', '!!float ""', "!!bool x", "!!timestamp x", "!!binary aa", "!!set {a}", "!!omap [a: 1]", "1" * 5000,
    "!!map 3", "!!python/tuple 3", "!!python/object/apply:os.getcwd []", "!!python/name:os.system", "<<: 3",
    "a\n---\nb",    "%YAML 9\n---\na", "*a", "? [a]\n: 1", "!!int {=: '-'}", "\ud800", "\x00"], ids=ascii)
def test_odd_yaml_is_a_sentence(text):
    with pytest.raises(ValueError, match="line|position|some value"):
        parse_yaml(text)


def test_dates_are_texts():
    assert parse_yaml("{root: 2024-01-01, to: 2024-13-45}") == {"root": "2024-01-01", "to": "2024-13-45"}


def test_numbers_are_decimal():
    """What YAML 1.1 takes for base 8 and 60 is a text, which no parameter takes for a number."""
    assert parse_yaml("[061, 010, 10:20, 1:20.5, +0o7]") == ["061", "010", "10:20", "1:20.5", "+0o7"]
    assert parse_yaml("[0, -61, 1_000, 0x1F, 0b11, +5]") == [0, -61, 1000, 31, 3, 5]
    assert parse_yaml("[1e-3, 1.5, .5, -0.25, 1., 2.5e3, -.inf, 5e-4, 06.5]") == [
        0.001, 1.5, 0.5, -0.25, 1.0, 2500.0, -math.inf, 0.0005, 6.5]
    assert all(parse_yaml(dump_yaml([text])) == [text] for text in ("061", "10:20", "1e3", "0x1F", "5"))
