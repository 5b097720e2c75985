"""--plugin: operators and methods in a file of the user's; --fetch: weights that are missing."""

from pathlib import Path

import pytest

from guided_diffusion.measurements import OPERATORS
from guided_diffusion.method import CONDITIONING_METHODS
from guided_diffusion.restoration import build
from tests.command_line import rows

PLUGIN = '''
from guided_diffusion.measurements.base import LinearOperator, register_operator


@register_operator("mirror")
class Mirror(LinearOperator):
    """Left and right exchanged."""

    def forward(self, x):
        return x.flip(-1)
'''
METHOD = '''
from guided_diffusion.condition_methods.base import ConditioningMethod, register_conditioning_method


@register_conditioning_method("ten_of_six")
class TenOfSix(ConditioningMethod):
    def conditioning(self, step, measurement):
        return step.mean[:, 10], measurement.distance(step.x0_hat)
'''
MIRROR = ("--set", "measurement.operator={name: mirror}", "--limit", "1")


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(OPERATORS, "_classes", dict(OPERATORS._classes))


def test_an_operator_in_a_file_of_ones_own_is_restored(registry, run):
    Path("mine.py").write_text(PLUGIN)
    status, _, err = run("--plugin", "mine.py", *MIRROR)
    assert status == 0, err
    assert rows("results/mirror/dpps")[0]["status"] == "ok"


@pytest.mark.parametrize("text, message", [
    (None, "--plugin mine.py not found"), ("x = 1\nraise KeyError('k')\n", "mine.py, line 2: KeyError: 'k'"),
    ("def f(:\n", "SyntaxError"), (PLUGIN.replace("mirror", "inpainting"), "line 5: UserError: operator 'inpainting'"),
])
def test_what_is_wrong_with_a_plugin_is_said_in_a_line(registry, run, text, message):
    if text is not None:
        Path("mine.py").write_text(text)
    status, _, err = run("--plugin", "mine.py")
    assert status == 2 and message in err and err.count("\n") == 1


def test_missing_weights_are_fetched_or_the_command_for_it_is_offered(run, monkeypatch):
    ffhq = ("--model_config", "configs/model_config.yaml")
    status, _, err = run(*ffhq)
    assert status == 2 and "'python -m util.fetch ffhq_10m', or --fetch here, gets it" in err
    asked = []
    monkeypatch.setattr(build, "fetch", lambda weights: asked.append(weights.name))
    assert run(*ffhq, "--fetch")[0] == 2 and asked == ["ffhq_10m"]
    bks = ("--set", "measurement.operator={name: nonlinear_blur, model_path: models/GOPRO_wVAE.pth}",
           "--set", "conditioning={method: bks_stylegan2}")
    assert run(*bks, "--fetch")[0] == 2 and {*asked} == {"ffhq_10m", "gopro_wvae", "gopro_wovae", "stylegan2_ffhq_256"}
    assert "'python -m util.fetch gopro_wvae', or --fetch here, gets it" in run(*bks)[2]


@pytest.mark.parametrize("code, message", [
    ("x @ torch.zeros(3, 3)", "--plugin mine.py, line 10: RuntimeError: mat1 and mat2"),
    ("x.clamp(-1, 1)", "operator 'mirror' is no linear one"),
])
def test_what_is_wrong_in_an_operator_is_said_before_anything_is_restored(registry, run, code, message):
    Path("mine.py").write_text(PLUGIN.replace("x.flip(-1)", code).replace("\nfrom", "import torch\nfrom"))
    status, _, err = run("--plugin", "mine.py", *MIRROR)
    assert status == 2 and message in err and err.count("\n") == 1 and not Path("results").exists()


def test_a_method_that_fails_on_the_way_is_told_of_in_a_line(registry, run, monkeypatch):
    monkeypatch.setattr(CONDITIONING_METHODS, "_classes", dict(CONDITIONING_METHODS._classes))
    Path("mine.py").write_text(METHOD)
    status, _, err = run("--plugin", "mine.py", "--set", "conditioning={method: ten_of_six}", "--limit", "1")
    assert status == 2 and "error: --plugin mine.py, line 8: IndexError: " in err and "Traceback" not in err
