"""Restorations in a notebook: the same bytes as the command line, the same sentences, and the tutorial."""

import subprocess
import sys
from pathlib import Path

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
from util.config.yaml_text import dump_yaml
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


def opened(mode: str, path: Path) -> Path:
    """A photograph of a mode of Pillow, in a file."""
    levels = np.random.default_rng(0).integers(0, 256, (6, 8, 4), dtype=np.uint8)
    image = Image.fromarray(levels, "RGBA").convert(mode) if mode[0] != "I" else Image.fromarray(
        levels[..., 0].astype(np.uint16) * 200)
    turned = Image.Exif()
    turned[0x0112] = 6                              # orientation: a quarter turn
    image.save(path, **({"exif": turned} if mode == "RGB" else {"transparency": 3} if mode == "P" else {}))
    return path


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16"])
def test_pillow_and_the_file_show_the_same_photograph(mode, tmp_path):
    file = opened(mode, tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"))
    assert torch.equal(degrade(Image.open(file), "noise").truth, load_image(file))


@pytest.mark.parametrize("of", [np.float16, np.float64, ">f4", bool, np.int64])
def test_arrays_of_any_type_hold_numbers_from_0_to_1(of):
    levels = np.linspace(0, 1, 48).reshape(4, 4, 3).astype(of)
    for values in (levels, np.asfortranarray(levels), levels[::-1][::-1]):
        truth = degrade(values, "noise").truth
        torch.testing.assert_close(truth, torch.from_numpy(levels.astype(np.float32)).movedim(-1, 0) * 2 - 1)


@pytest.mark.parametrize("make", [degrade, observe])
def test_what_is_given_is_copied(make):
    x = torch.zeros(3, 8, 8, requires_grad=True)
    degraded = make(x, "noise")
    with torch.no_grad():
        x += 1
    assert not degraded.image.any() and not degraded.image.requires_grad


def test_measurements_that_are_no_pictures_come_as_they_are(tmp_path):
    magnitudes = np.random.default_rng(0).random((3, 24, 24)).astype(np.float32) * 7
    np.save(tmp_path / "y.npy", magnitudes)
    for y in (magnitudes, torch.from_numpy(magnitudes), tmp_path / "y.npy"):
        measurement, _ = observe(y, "phase_retrieval").measure()
        assert np.array_equal(measurement.y[0], magnitudes)


def test_an_exact_prior_is_that_of_the_process(run, workplace):
    """The variances of its steps, too, are those of the steps that are taken."""
    picture(workplace / "photos" / "a (1).png", size=(8, 8))
    model, process = {"prior": "gaussian", "image_size": 8}, {"sampler": "ddpm", "timestep_respacing": 3}
    for name, content in (("model", model), ("process", process)):
        Path(f"{name}.yaml").write_text(dump_yaml(content))
    status, _, err = run("--data", "photos", "--model_config", "model.yaml", "--diffusion_config", "process.yaml",
                         "--set", "conditioning={method: ps}")
    assert status == 0, err
    degraded = degrade("photos/a (1).png", OPERATOR, SIGMA, size=8)
    restoration = restore(degraded, load_prior(model), "ps", diffusion=process)
    saved = Image.open(f"results/{OPERATOR['name']}/ps/recon/a _1_.png")
    assert np.array_equal(to_uint8(restoration.samples[0]), np.asarray(saved))


def test_an_observed_photograph_has_no_truth_and_no_scores(network):
    restoration = restore(observe(torch.zeros(3, 4, 4), {"name": "super_resolution", "scale_factor": 4}, 0.05), network,
                          "lift")
    assert restoration.samples.shape == (1, 3, 16, 16)
    assert restoration.scores is None and set(restoration.metrics) == {"chi_square"}
    assert "truth" not in restoration._repr_html_()


@pytest.mark.parametrize("operator, values, warning", [
    ({"name": "inpainting", "mask_opt": {"mask_type": "random", "mask_prob_range": [0.3, 0.3]}}, 0.0,
     "draws its mask at random"),
    ("noise", 200.0, "values up to 200, but photographs are on [-1, 1]"), ("noise", 0.0, "")])
def test_what_can_hardly_have_been_observed_is_warned_of(operator, values, warning, capsys):
    observe(torch.full((3, 8, 8), values), operator, 0.05)
    err = capsys.readouterr().err
    assert warning in err and bool(warning) is bool(err)


@pytest.mark.parametrize("mistake, message", [
    (lambda: degrade(np.zeros((4, 4, 2)), "noise"), r"shape \[4, 4, 2\].*expected \(H, W, 3\)"),
    (lambda: degrade(np.full((4, 4, 3), 200.0), "noise"), "200; expected"),
    (lambda: degrade(torch.full((3, 4, 4), 7.0), "noise"), r"7 to 7; expected \(3, H, W\) in \[-1, 1\]"),
    (lambda: degrade("none.png", "noise"), "none.png"),
    (lambda: degrade(np.zeros((8, 8, 3)), "super_resolutoin"), "did you mean 'super_resolution'"),
    (lambda: degrade(np.zeros((8, 8, 3)), {"scale_factor": 4}), r"operator \{'scale_factor': 4\} has no name"),
    (lambda: degrade(np.zeros((8, 8, 3)).astype(object), "noise"), r"object; expected \(H, W, 3\)"),
    (lambda: degrade(np.zeros((0, 8, 3)), "noise"), r"shape \[0, 8, 3\], float64; expected"),
    (lambda: degrade(np.full((4, 4, 3), np.nan), "noise"), "nan to nan; expected"),
    (lambda: degrade(torch.zeros(3, 0, 4), "noise"), r"shape \[3, 0, 4\].*expected \(3, H, W\)"),
    (lambda: degrade(Image.new("F", (4, 4)), "noise"), "image of mode F: floating-point images have no known value"),
    (lambda: degrade(Image.new("RGB", (0, 4)), "noise"), "it has no pixels"),
    (lambda: degrade([[0.5]], "noise"), "image is .*, expected a string or Path or Image or ndarray or Tensor"),
    (lambda: degrade(np.zeros((8, 8, 3)), 3), "operator is 3, expected a string or a mapping or Operator"),
    (lambda: degrade(np.zeros((8, 8, 3)), "noise", size=0), "size is 0, expected an integer, 1 to 8192"),
    (lambda: observe(torch.zeros(3, 8, 8, dtype=torch.uint8), "noise"), "uint8; expected finite floating-point"),
    (lambda: observe(np.zeros((3, 8, 8)) + 1j, "fourier"), r"complex64; .*view_as_real"),
    (lambda: load_prior(precision="fp8"), "precision is 'fp8', expected one of 'tf32'"),
    (lambda: restore(np.zeros((8, 8, 3)), None, "lift"), "degraded is .*, expected Degraded"),
    (lambda: restore(degrade(np.zeros((8, 8, 3)), "noise"), None, "lift").save("x.foo"), "x.foo cannot be written"),
    (lambda: restore(degrade(np.zeros((8, 8, 3)), "noise"), None, "lift").save("x.png", 1), "sample is 1, expected 0"),
    (lambda: observe(torch.zeros(1, 3, 8, 8), "noise"), r"shape \[1, 3, 8, 8\]; expected .*without a batch axis"),
    (lambda: restore(degrade(np.zeros((8, 8, 3)), "fourier", {"name": "poisson"}), None, "pinv"),
     "noise 'poisson' is that of pictures.*'fourier' measures something else; use gaussian"),
    (lambda: degrade(np.zeros((8, 8, 3)), "noise", noise=-1), "sigma"),
    (lambda: restore(degrade(np.zeros((8, 8, 3)), "noise"), None), "'dpps' needs a prior"),
    (lambda: restore(degrade(np.zeros((8, 8, 3)), "hdr"), None, "mcg"), "linear"),
    (lambda: restore(degrade(np.zeros((8, 8, 3)), "noise"), None, "lift", 0), "num_samples is 0, expected an integer"),
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
    folders = [REPOSITORY / name for name in (".", "docs", "models")]
    before = [set(folder.iterdir()) for folder in folders]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(REPOSITORY / "docs")}}).execute()
    assert before == [set(folder.iterdir()) for folder in folders]          # nothing was written
    told = [output["text"] for cell in notebook.cells for output in cell.get("outputs", ()) if "text" in output]
    assert any("Restoring: 100%" in text for text in told) and not any("Warning" in text for text in told)
    shown = [output["data"]["text/html"] for cell in notebook.cells for output in cell.get("outputs", ())
             if "text/html" in output.get("data", {})]
    assert len(shown) == 4 and all("<img" in page for page in shown)


def test_a_tensor_of_torchvision_is_warned_of(capsys):
    x = torch.linspace(0, 1, 3 * 8 * 8).view(3, 8, 8)
    for take in (degrade, observe):
        take(x, "noise")
        assert "values from 0 to 1, but pictures are on [-1, 1]" in capsys.readouterr().err
        take(2 * x - 1, "noise")
        take(0 * x, "noise")
        assert not capsys.readouterr().err


def test_what_diverges_is_warned_of(capsys):
    degraded = degrade(torch.zeros(3, 8, 8), "noise", 0.1)
    restore(degraded, lambda x, t: torch.cat([x / 0, x], 1), "ps", diffusion={"timestep_respacing": 2}, progress=False)
    assert "1 of 1 sample diverged (NaN or infinity)" in capsys.readouterr().err
