"""Restorations in a notebook: the same bytes as the command line, the same sentences, and the tutorial."""

import subprocess
import sys

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell
from PIL import Image

from guided_diffusion import UserError, degrade, load_prior, observe, restore
from tests.command_line import TASK
from tests.helpers import picture
from util.config.config import REPOSITORY, read_yaml
from util.img_utils import from_uint8, load_image, to_uint8

OPERATOR, METHOD = TASK["measurement"]["operator"], TASK["conditioning"]
SIGMA = TASK["measurement"]["noise"]["sigma"]


@pytest.fixture
def network(prior, workplace) -> torch.nn.Module:
    return load_prior(prior / "model.yaml")


def test_a_notebook_restores_what_the_command_line_does(run, prior, workplace, network):
    picture(workplace / "photos" / "cat.png")
    status, *_ = run("--data", "photos", "--num_samples", "2", "--set", "diffusion.timestep_respacing=3")
    assert status == 0
    size = read_yaml(prior / "model.yaml")["image_size"]
    degraded = degrade("photos/cat.png", OPERATOR, SIGMA, size=size)
    process = {**read_yaml("configs/demo_diffusion_config.yaml"), "timestep_respacing": 3}
    restoration = restore(degraded, network, {"name": METHOD["method"], **METHOD.get("params", {})}, 2, process)
    folder = workplace / "results" / OPERATOR["name"] / METHOD["method"] / "recon"
    for k, sample in enumerate(restoration.samples):
        assert np.array_equal(to_uint8(sample), np.asarray(Image.open(folder / f"cat_{k}.png")))
    assert np.array_equal(to_uint8(restoration.mean), np.asarray(Image.open(folder / "cat_mean.png")))
    assert not restoration.std.isnan().any() and restoration.metrics["psnr_of_mean"] > restoration.metrics["psnr"]
    assert restoration._repr_html_().count("<img") == 6         # truth, measurement, two samples, mean, deviation


def test_whatever_holds_a_photograph_is_the_same_photograph(tmp_path):
    picture(tmp_path / "a.png", size=(16, 16))
    levels = np.asarray(Image.open(tmp_path / "a.png"))
    truth = load_image(tmp_path / "a.png")
    for image in (tmp_path / "a.png", levels, Image.fromarray(levels), from_uint8(levels), levels / 255):
        torch.testing.assert_close(degrade(image, "noise").truth, truth)
    assert degrade(levels[..., 0], "noise").truth.shape == (3, 16, 16)
    assert degrade(np.zeros((20, 31, 3)), "noise", size=8).truth.shape == (3, 8, 8)


def test_an_observed_photograph_has_no_truth_and_no_scores(network):
    restoration = restore(observe(torch.zeros(3, 4, 4), {"name": "super_resolution", "scale_factor": 4}, 0.05), network,
                          "lift")
    assert restoration.samples.shape == (1, 3, 16, 16)
    assert restoration.scores is None and set(restoration.metrics) == {"chi_square"}
    assert "truth" not in restoration._repr_html_()


@pytest.mark.parametrize("mistake, message", [
    (lambda: degrade(np.zeros((4, 4, 2)), "noise"), r"shape \[4, 4, 2\].*expected \(H, W, 3\)"),
    (lambda: degrade(np.full((4, 4, 3), 200.0), "noise"), "200; expected"),
    (lambda: degrade(torch.full((3, 4, 4), 7.0), "noise"), r"7 to 7; expected \(3, H, W\) in \[-1, 1\]"),
    (lambda: degrade("none.png", "noise"), "none.png"),
    (lambda: degrade(np.zeros((8, 8, 3)), "super_resolutoin"), "did you mean 'super_resolution'"),
    (lambda: degrade(np.zeros((8, 8, 3)), {"scale_factor": 4}), "'name' is missing; found scale_factor"),
    (lambda: degrade(np.zeros((8, 8, 3)), "noise", noise=-1), "sigma"),
    (lambda: restore(degrade(np.zeros((8, 8, 3)), "noise"), None), "'dpps' needs a prior"),
    (lambda: restore(degrade(np.zeros((8, 8, 3)), "hdr"), None, "mcg"), "linear"),
    (lambda: restore(degrade(np.zeros((8, 8, 3)), "noise"), None, "lift", num_samples=0), "num_samples is 0"),
])
def test_mistakes_are_told_in_a_sentence(mistake, message):
    with pytest.raises(UserError, match=message):
        mistake()


def test_the_package_is_imported_without_torch():
    code = "import sys, guided_diffusion; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False, timeout=60).returncode == 0


def test_the_tutorial_runs(monkeypatch):
    notebook = nbformat.read(REPOSITORY / "docs" / "tutorial.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    for cell in notebook.cells:                     # as it stands but for the pixels, and the steps
        cell.source = cell.source.replace("size=48", "size=16")
    process = {**read_yaml("configs/demo_diffusion_config.yaml"), "timestep_respacing": 4}
    first = next(i for i, cell in enumerate(notebook.cells) if "import degrade" in cell.source)
    notebook.cells.insert(first + 1, new_code_cell(f"from functools import partial\n"
                                                   f"restore = partial(restore, diffusion={process})"))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(REPOSITORY / "docs")}}).execute()
    shown = [output["data"]["text/html"] for cell in notebook.cells for output in cell.get("outputs", ())
             if "text/html" in output.get("data", {})]
    assert len(shown) == 4 and all("<img" in page for page in shown)
