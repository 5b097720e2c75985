"""--print_config and --list: what a user reads there is what a run would do."""

import re

import pytest
import yaml

import sample_condition
from data.dataloader import DATASETS
from guided_diffusion.gaussian_diffusion import SAMPLERS
from guided_diffusion.measurements import NOISES, OPERATORS
from guided_diffusion.restoration.arguments import parse_arguments
from guided_diffusion.restoration.catalogue import METHODS, catalogue, flow, resolved_config
from util.config.config import REPOSITORY, leaves, load_config, read_yaml
from util.config.registry import REQUIRED, Registry, defaults

TASKS = sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "configs").glob("*_config.yaml")
               if "measurement" in read_yaml(path))


@pytest.fixture
def program(tmp_path, monkeypatch, capsys):
    """program(*arguments) -> (exit status, standard output, standard error), in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def program(*arguments: str) -> tuple[int, str, str]:
        status = sample_condition.main(arguments)
        return status, *capsys.readouterr()
    return program


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("files", ["", "demo_"])
def test_what_is_set_stays_and_what_is_not_has_its_default(task, files):
    config = load_config(*(f"configs/{files}{kind}_config.yaml" for kind in ("model", "diffusion")), task)
    tree = yaml.safe_load(resolved_config(config, parse_arguments([])))
    found, plain = leaves(tree), leaves(config.as_dict())
    assert {key: found.get(key) for key, value in plain.items() if value != {}} == {
        key: value for key, value in plain.items() if value != {}}
    params = {name: list(value) if isinstance(value, tuple) else value
              for name, value in defaults(METHODS[config.conditioning.name]).items() if value is not REQUIRED}
    assert tree["conditioning"]["params"] == {**params, **config.conditioning.params}
    assert tree["diffusion"]["clip_denoised"] in (True, False) and tree["seed"] == 0


def test_the_command_line_counts(program):
    status, out, err = program(
        "--print_config", "--data", "some folder", "--set", "measurement.noise={name: poisson, rate: 0.5}",
        "--set", "measurement.mask_opt.mask_type=box", "--set", "diffusion.eta=0.5", "--set", "diffusion.eta=1e-3",
        "--set", "measurement.observed=true", "--set", "data.image_size=null", "--seed", "0", "--tile=64")
    assert (status, err) == (0, "")
    tree = yaml.safe_load(out)
    assert tree["data"] == {"name": "folder", "root": "some folder", "image_size": None, "observed": True}
    assert tree["measurement"]["noise"] == {"name": "poisson", "rate": 0.5, "likelihood": "official"}
    assert tree["measurement"]["operator"]["mask_opt"]["mask_type"] == "box"
    assert (tree["diffusion"]["eta"], tree["seed"], tree["tile"], tree["num_samples"]) == (0.001, 0, 64, 1)


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
    assert "      timestep_respacing: " in out and "      num_channels: an integer; required" in out


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
