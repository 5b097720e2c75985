"""The README's examples, run as they stand there, and the files and options that it names."""

import re

import pytest
import torch

import sample_condition
from guided_diffusion.condition_methods import CONDITIONING_METHODS, get_conditioning_method
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import OPERATORS, Measurement, get_noise, get_operator
from util.config.config import REPOSITORY
from util.seeding import ImageRandomness

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_an_operator_and_a_method_are_added_as_shown(monkeypatch):
    for registry in (OPERATORS, CONDITIONING_METHODS):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    assert len(EXAMPLES) == 2
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


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)\)", README))))
def test_pictures_and_files_that_are_linked_are_there(path):
    assert (REPOSITORY / path).is_file()


def test_options_in_the_table_are_those_of_the_command(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        sample_condition.main(["--help"])
    known = set(re.findall(r"--\w+", capsys.readouterr().out)) - {"--help"}
    table = README[README.index("| option | meaning |"):].split("\n\n")[0]
    assert set(re.findall(r"--\w+", table)) == known


def test_tasks_on_its_command_lines_are_there():
    for file in re.findall(r"configs/[\w/]+\.yaml", README):
        assert (REPOSITORY / file).is_file(), file
