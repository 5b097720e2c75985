"""Examples of the README and of docs/extending.md, run as they stand there; files and options that the pages name."""

import importlib
import re
import shlex
import shutil
import textwrap
from pathlib import Path

import pytest
import torch

import sample_condition
from guided_diffusion.condition_methods import CONDITIONING_METHODS, get_conditioning_method
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import OPERATORS, Measurement, get_noise, get_operator
from tests.helpers import picture
from util.config.config import REPOSITORY, read_yaml
from util.seeding import ImageRandomness

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
OURS = "(?:configs|data|docs|guided_diffusion|models|util)"
COMMAND = re.compile(r"^    (?:pip install .* && )?((?:python|torchrun) .*)$", re.MULTILINE)
PAGES = {file.relative_to(REPOSITORY).as_posix(): file.read_text(encoding="utf-8")
         for file in (REPOSITORY / "README.md", *sorted(REPOSITORY.glob("*/*.md")))}
EXAMPLES = [example for page in ("README.md", "docs/extending.md")
            for example in re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)]


def test_an_operator_a_method_and_a_solver_are_added_as_shown(monkeypatch):
    for registry in (OPERATORS, CONDITIONING_METHODS):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    assert len(EXAMPLES) == 3
    for example in EXAMPLES:
        exec(example, {})
    images, randomness = torch.rand(2, 3, 8, 8) * 2 - 1, ImageRandomness(0, ["a", "b"])
    measurement = Measurement.simulate(get_operator("mirror"), get_noise("clean"), images, randomness)
    assert torch.equal(measurement.y, images.flip(-1))
    torch.testing.assert_close(measurement.operator.transpose(measurement.y), images)
    torch.testing.assert_close(measurement.operator.pinv(measurement.y), images)
    sampler = create_sampler(model_var_type="fixed_small", timestep_respacing="4")
    restored = get_conditioning_method("ps_squared", scale=0.01).restore(
        lambda x, t: 0.1 * x, sampler, measurement, randomness)
    assert restored.shape == images.shape and restored.isfinite().all()
    landweber = get_conditioning_method("landweber", iterations=3)
    torch.testing.assert_close(landweber.restore(None, sampler, measurement, randomness), images)   # A is orthogonal


def test_a_notebook_restores_as_shown(workplace):
    """But for the pixels, and the steps."""
    picture(Path("photograph.jpg"))
    block = re.search(r"^    from guided_diffusion import .*\n(?:    .*\n|\n)*", README, re.MULTILINE)[0]
    lines = textwrap.dedent(block).splitlines()
    names: dict[str, object] = {}
    process = {**read_yaml("configs/demo_diffusion_config.yaml"), "timestep_respacing": 2}
    for there, here in (("size=128", "size=16"), ("num_samples=4", f"num_samples=4, diffusion={process}")):
        lines = [line.replace(there, here) for line in lines]
    exec("\n".join(lines), names)
    assert names["restoration"].samples.shape == (4, 3, 16, 16) and names["restoration"].metrics["psnr"] > 0
    assert [file.name for file in Path().rglob("*") if file.is_file()] == ["photograph.jpg"]


def test_the_readme_is_read_to_its_end():
    assert README.count("\n") <= 200


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_and_names_is_there(page):
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", PAGES[page]):
        assert ((REPOSITORY / page).parent / path).is_file(), path
    for path in re.findall(rf"{OURS}/[\w/]+\.(?:yaml|md|ipynb|py)", PAGES[page]):
        assert (REPOSITORY / path).is_file(), path


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line to type, continued lines joined, placeholders of more options left out."""
    found = []
    for page, text in PAGES.items():
        joined = text.replace("\\\n", " ")
        found += [(page, line.partition("   #")[0].strip().removesuffix(" ..."))
                  for line in COMMAND.findall(joined)]
    return found


@pytest.mark.parametrize("page, command", commands())
def test_commands_are_understood(page, command, workplace, capsys, monkeypatch):
    """Runs print their configuration; other programs read their command line."""
    monkeypatch.setattr(shutil, "which", lambda name: name)         # srun
    words = shlex.split(command)
    words = words[1:] if words[0] == "python" else words[next(i for i, w in enumerate(words) if w.endswith(".py")):]
    if words[0] == "sample_condition.py":
        status = sample_condition.main([*words[1:], "--print_config"])
        assert status == 0, capsys.readouterr().err
    elif words[1] != "pytest":
        module = importlib.import_module(words[1])
        program = importlib.import_module(f"{words[1]}.__main__") if hasattr(module, "__path__") else module
        program.parse_arguments(words[2:])


def test_options_in_the_table_are_those_of_the_command(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        sample_condition.main(["--help"])
    known = set(re.findall(r"--\w+", capsys.readouterr().out)) - {"--help"}
    runs = (REPOSITORY / "docs" / "runs.md").read_text(encoding="utf-8")
    table = runs[runs.index("| option | meaning |"):].split("\n\n")[0]
    assert set(re.findall(r"--\w+", table)) == known
