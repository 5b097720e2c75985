"""YAML that unfolds to more than it seems: refused from files, the command line and results."""

import pytest

import sample_condition
from tests.command_line import arguments
from tests.hostile import Within
from util.config.config import read_yaml
from util.config.yaml_text import parse_yaml
from util.errors import UserError


def laughs(levels: int, width: int = 9) -> str:
    lines = ["a0: &a0 [" + ", ".join(["lol"] * width) + "]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("text", [
    laughs(10), laughs(500, 2),
    "a: &a {x: 1}\n" + "\n".join(f"b{i}: &b{i} {{<<: [{', '.join(['*a' if i == 0 else f'*b{i - 1}'] * 9)}]}}"
                                 for i in range(10)),
    f"a: &a '{'x' * 200_000}'\nb: [{', '.join(['*a'] * 1000)}]", "a: &a [*a]", "a: &a {b: *a}", "&a {b: *a}",
    "[" * 20_000, "a: " + "{b: " * 20_000, "- " * 20_000, "? " * 5_000, "a: " + "[" * 60 + "]" * 60,
    "".join(f"a{i}: &a{i} {'[' * 30}{f'*a{i - 1}' if i else 1}{']' * 30}\n" for i in range(200)),
], ids=lambda text: text[:12])
def test_yaml_bombs_are_refused(tmp_path, text):
    (tmp_path / "bomb.yaml").write_text(text)
    with Within(20, 300), pytest.raises(UserError, match=r"bomb\.yaml, (line \d+: |it is nested)") as caught:
        read_yaml(tmp_path / "bomb.yaml")
    assert len(str(caught.value)) < 500


def test_long_texts_are_refused_whatever_is_in_them():
    assert parse_yaml(f"a: {'x' * 250_000}")
    for text in (f"[{'1, ' * 90_000}]", f"a: {'x' * 270_000}"):
        with pytest.raises(ValueError, match="more than 262144 characters"):
            parse_yaml(text)


def test_aliases_within_reason_are_plain_yaml():
    assert parse_yaml(laughs(3, 3))["a2"][2][2] == ["lol"] * 3
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}
    assert parse_yaml("[" * 40 + "]" * 40)


def test_a_large_file_is_no_configuration(tmp_path):
    (tmp_path / "large.yaml").write_bytes(b"a: 1\n" * (20 * 2 ** 20))        # 100 MB
    with Within(2, 64), pytest.raises(UserError, match="bytes, expected at most"):
        read_yaml(tmp_path / "large.yaml")


def test_a_bomb_on_the_command_line_or_in_results_is_refused(prior, workplace, capsys):
    text = "{" + laughs(10).strip().replace("\n", ", ") + "}"
    assert sample_condition.main(arguments(prior, "--set", f"conditioning.params={text}")) == 2
    assert len(capsys.readouterr().err) < 3000
    assert sample_condition.main(arguments(prior)) == 0
    capsys.readouterr()
    (workplace / "results/super_resolution/dpps/config.yaml").write_text(laughs(10))
    assert sample_condition.main(arguments(prior)) == 2
    assert "is no configuration of ours" in capsys.readouterr().err
