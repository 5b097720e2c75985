"""--print_config and --list: what a user reads there is what a run would do."""

import re

import pytest
import yaml

import sample_condition
from data.dataloader import DATASETS
from guided_diffusion.gaussian_diffusion import SAMPLERS
from guided_diffusion.measurements import NOISES, OPERATORS
from guided_diffusion.restoration.arguments import parse_arguments
from guided_diffusion.restoration.catalogue import METHODS, annotated, catalogue, flow, resolved_config
from util.config.config import REPOSITORY, leaves, load_config, read_yaml
from util.config.registry import REQUIRED, Registry, defaults

TASKS = sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "configs").glob("*_config.yaml")
               if "measurement" in read_yaml(path))
LINE = re.compile(r"(?P<yaml>.*?\S)  +# (?P<origin>.*)")


@pytest.fixture
def program(tmp_path, monkeypatch, capsys):
    """program(*arguments) -> (exit status, standard output, standard error), in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def program(*arguments: str) -> tuple[int, str, str]:
        status = sample_condition.main(arguments)
        return status, *capsys.readouterr()
    return program


def origins(text: str) -> dict[tuple[str, ...], str]:
    """Where each value of a printed configuration says that it comes from."""
    found, path = {}, []
    for line in text.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        path = [*path[:depth], yaml.safe_load(line.lstrip().partition(":")[0])]
        if match := LINE.fullmatch(line):
            found[tuple(path)] = match["origin"]
    return found


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("files", ["", "demo_"])
def test_every_value_has_its_origin_and_what_is_not_set_its_default(task, files):
    model, diffusion = (f"configs/{files}{kind}_config.yaml" for kind in ("model", "diffusion"))
    config = load_config(model, diffusion, task)
    text = resolved_config(config, parse_arguments([]))
    tree, told = yaml.safe_load(text), origins(text)
    found, plain = leaves(tree), leaves(config.as_dict())
    assert set(told) == set(found)
    assert {key: found[key] for key, value in plain.items() if value != {}} == {
        key: value for key, value in plain.items() if value != {}}
    file = {"model": model, "diffusion": diffusion}
    assert told == {key: f"--{key[0]}" if len(key) == 1 else file.get(key[0], task) if key in plain else "default"
                    for key in found}
    params = {name: list(value) if isinstance(value, tuple) else value
              for name, value in defaults(METHODS[config.conditioning.name]).items() if value is not REQUIRED}
    assert tree["conditioning"]["params"] == {**params, **config.conditioning.params}


def test_the_command_line_is_an_origin(program):
    status, out, err = program(
        "--print_config", "--data", "some folder", "--set", "measurement.noise={name: poisson, rate: 0.5}",
        "--set", "measurement.mask_opt.mask_type=box", "--set", "diffusion.eta=0.5", "--set", "diffusion.eta=1e-3",
        "--set", "measurement.observed=true", "--set", "data.image_size=null", "--seed", "0", "--tile=64")
    assert (status, err) == (0, "")
    tree, told = yaml.safe_load(out), origins(out)
    assert tree["data"] == {"name": "folder", "root": "some folder", "image_size": None, "observed": True, "list": None}
    assert told["data", "name"] == told["data", "root"] == "--data"
    assert told["data", "image_size"] == "--set data.image_size"
    assert told["data", "observed"] == "--set measurement.observed"
    assert tree["measurement"]["noise"] == {"name": "poisson", "rate": 0.5, "likelihood": "official"}
    assert told["measurement", "noise", "rate"] == "--set measurement.noise"
    assert told["measurement", "noise", "likelihood"] == "default"
    assert told["measurement", "operator", "mask_opt", "mask_type"] == "--set measurement.mask_opt.mask_type"
    assert told["measurement", "operator", "mask_opt", "mask_prob_range"] == "configs/demo_task_config.yaml"
    assert (tree["diffusion"]["eta"], told["diffusion", "eta"]) == (0.001, "--set diffusion.eta")
    assert (tree["seed"], tree["tile"], tree["num_samples"], told["tile",]) == (0, 64, 1, "--tile")


def test_odd_names_of_files_stay_in_their_comment(program, tmp_path):
    name = "task\n  evil: 1\u2028.yaml"
    (tmp_path / name).write_text((REPOSITORY / "configs/demo_task_config.yaml").read_text())
    status, out, _ = program("--print_config", "--task_config", name)
    assert status == 0
    assert yaml.safe_load(out)["conditioning"]["method"] == "dpps"
    assert "evil" not in yaml.safe_load(out)["conditioning"]


def test_comments_are_aligned_and_long_values_do_not_push_all_of_them_away():
    text = annotated({"a": "x" * 200, "b": {"c": 1, "d": 22}}, {("a",): "here", ("b", "c"): "there"})
    assert text.splitlines() == [f"a: {'x' * 200}  # here", "b:", "  c: 1   # there", "  d: 22  # default"]


def test_nothing_is_run_or_written(program, tmp_path):
    for option in ("--print_config", "--list"):
        status, out, err = program(option, "--data", "nowhere", "--set", "model.model_path=nowhere.pt")
        assert status == 0 and out and not err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["a # b", "a: b", "- a", "new\\nline", "\\u2028\\x85", "[1, {a: '#'}]", "'", "null",
                                   "{a: {b: {}}}", "1e400", "'...'", "'---'", "&x [1]", "日本語", "\\ud83d\\ude00"])
def test_odd_values_come_back(program, value):
    override = f'data.root="{value}"' if "\\" in value else f"data.root={value}"
    status, out, err = program("--print_config", "--data", "x\n- y: #", "--set", override)
    if status == 2:                                                 # the type is wrong
        assert len(err.splitlines()) == 1 and not out
        return
    expected = yaml.safe_load(f'"{value}"') if "\\" in value else yaml.safe_load(value)
    assert yaml.safe_load(out)["data"]["root"] == expected


@pytest.mark.parametrize("override, words", [
    ("conditioning.params.scael=1", "did you mean 'scale'"), ("measurement.operator.name=inpaint", "did you mean"),
    ("model.num_heads=many", "an integer"), ("diffusion.stps=3", "did you mean 'steps'"),
    ("measurement.noise={name: gaussian}", "'sigma' is missing"), ("data.name=flder", "did you mean 'folder'")])
def test_a_mistake_is_named_instead(program, override, words):
    status, out, err = program("--print_config", "--set", override)
    assert status == 2 and not out
    assert words in err and len(err.splitlines()) == 1


def test_the_list_has_everything_with_parameters_defaults_and_words(program):
    status, out, err = program("--list")
    assert (status, err) == (0, "")
    for registry in (OPERATORS, NOISES, METHODS, DATASETS):
        for name in registry:
            entry = re.search(rf"^  {re.escape(name)}: (\S.*)\n((?:      .*\n?)*)", out, re.MULTILINE)
            assert entry, name
            for key, default in defaults(registry[name]).items():
                end = "; required" if default is REQUIRED else f"; default {flow(default)}"
                end = re.escape(end).replace(r"\ ", r"\s+")                 # long lines are folded
                line = rf"^      {key}\b.*(\n          .*)*{end}$"
                assert re.search(line, entry[2], re.MULTILINE), (name, key)
    for name in SAMPLERS:
        assert re.search(rf"^  {name}: \S", out, re.MULTILINE)
    assert "      timestep_respacing: " in out and "      num_channels: an integer, 1 to 8192; required" in out


def test_every_registered_thing_has_its_own_words():
    for registry in (OPERATORS, NOISES, METHODS, DATASETS, SAMPLERS):
        for name in registry:
            assert registry[name].__doc__, f"{registry.kind} '{name}' has no docstring"


def test_a_list_is_made_of_signatures():
    things = Registry("thing")

    @things.register("lens")
    class Lens:
        """Bends light.

        More of it.
        """

        def __init__(self, width: float, kinds: tuple[str, ...] = ("thin",)):
            self.width, self.kinds = width, kinds

    assert catalogue({"things": things, "bare": things}, names_only=["bare"]) == (
        "things\n  lens: Bends light.\n      width: a finite number; required\n"
        "      kinds: a list, each entry a string; default [thin]\n\nbare\n  lens: Bends light.")
