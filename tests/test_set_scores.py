"""--fid: FID and KID of a run's saved files, which are those of `util.compute_metric` on its folder."""

import json
from pathlib import Path

import pytest
import torch

from guided_diffusion.condition_methods.base import ConditioningMethod
from tests.fake_weights import write_inception
from tests.helpers import picture
from util import compute_metric
from util.errors import UserError
from util.metrics import comparison
from util.metrics.perceptual import EXTRACTOR
from util.metrics.weights import INCEPTION

FOLDER = Path("results/super_resolution/dpps")


def summary() -> dict:
    return json.loads((FOLDER / "summary.json").read_text())


def of_the_folder() -> dict:
    """What the command finds in the saved files; its warnings are of no interest."""
    compute_metric.main([str(FOLDER), "--metrics", "fid,kid", "--from_png"])
    return json.loads((FOLDER / "scores.json").read_text())


@pytest.mark.parametrize("num_samples", [1, 2])
def test_a_run_has_the_scores_of_its_folder(run, tiny_inception, num_samples):
    status, out, err = run("--fid", "--num_samples", str(num_samples))
    assert status == 0, err
    found, expected = summary(), of_the_folder()
    for name in ("fid", "kid"):
        assert found[name] == {**expected[name], "left_out": 0}
        assert (found[name]["images"], found[name]["reference_images"]) == (3 * num_samples, 3)
        assert found[name]["extractor"] == EXTRACTOR
    assert found["fid"]["value"] > 0
    line, = [line for line in out.splitlines() if line.startswith("FID")]
    assert line.split()[1] == f"{found['fid']['value']:.2f}"
    assert f"{3 * num_samples} against 3 images, Inception" in line


def test_what_is_lacking_is_left_out_and_counted(run, tiny_inception, monkeypatch):
    """Of seven images one cannot be read, another diverges, and the file of a third cannot be read in time."""
    for i in range(6):
        picture(Path(f"photos/{i}.png"), i)
    Path("photos/broken.png").write_text("no image")
    restore, load = ConditioningMethod.restore, comparison.load_image

    def diverging(self, model, sampler, measurement, randomness, after_step):
        restored = restore(self, model, sampler, measurement, randomness, after_step)
        return torch.where(torch.tensor([name == "2" for name in randomness.names])[:, None, None, None],
                           torch.nan, restored)

    def unreadable(path):
        if path.name == "4.png" and path.parent.name == "recon":
            raise UserError(f"cannot read image {path}")
        return load(path)

    monkeypatch.setattr(ConditioningMethod, "restore", diverging)
    monkeypatch.setattr(comparison, "load_image", unreadable)
    status, out, err = run("--fid", "--data", "photos", "--batch_size", "2")
    assert status == 1 and "recon/4.png" in err
    found = summary()
    assert found["diverged"] == 1
    assert (found["fid"]["images"], found["fid"]["reference_images"], found["fid"]["left_out"]) == (4, 4, 3)
    assert "4 against 4 images" in out and "3 left out" in out
    assert {name: {**score, "left_out": 3} for name, score in of_the_folder().items() if name in ("fid", "kid")} == {
        name: found[name] for name in ("fid", "kid")}


def test_without_weights_the_scores_are_empty_and_the_reason_is_said_once(run):
    Path("weights").mkdir()
    status, out, err = run("--fid", "--limit", "2", "--weights_dir", "weights")
    assert status == 0
    assert err.count("warning") == 1 and "LPIPS (vgg), LPIPS (alex), FID and KID" in err
    for name in ("fid", "kid"):
        assert [summary()[name][key] for key in ("value", "images", "left_out")] == [None, 0, None]
    assert [line.split() for line in out.splitlines() if "ID " in line] == [["FID", "-"], ["KID", "-"]]
    status, _, err = run("--fid", "--limit", "2", "--weights_dir", "nowhere")
    assert status == 2 and "--weights_dir: folder 'nowhere' not found" in err


def test_weights_are_those_of_the_folder(run, monkeypatch):
    Path("weights").mkdir()
    write_inception(Path("weights") / INCEPTION.name)
    monkeypatch.setattr(comparison, "frechet_distance", lambda real, restored: float(real.shape[1]))    # quick
    status, _, err = run("--fid", "--weights_dir", "weights")
    assert status == 0 and "left out: LPIPS (vgg), LPIPS (alex), as" in err
    found = summary()
    assert found["fid"]["value"] == 2048 and found["kid"]["images"] == 3
    compute_metric.main([str(FOLDER), "--weights_dir", "weights"])
    assert json.loads((FOLDER / "scores.json").read_text())["kid"]["value"] == found["kid"]["value"] != 0


def test_a_finished_run_is_scored_later(run, tiny_inception):
    assert run()[0] == 0
    before, restored = summary(), (FOLDER / "recon/coffee.png").stat().st_mtime_ns
    assert "fid" not in before
    status, out, _ = run("--fid")
    assert status == 0 and "3 finished before" in out and "FID" in out
    after = summary()
    assert {key: after[key] for key in before} == before and after.keys() - before.keys() == {"fid", "kid"}
    assert (FOLDER / "recon/coffee.png").stat().st_mtime_ns == restored
    assert run()[0] == 0 and summary() == after
    (FOLDER / "summary.json").write_text("no summary")
    assert run("--fid")[0] == 0 and summary()["fid"] == after["fid"]            # written anew


def test_without_truth_there_is_nothing_to_compare_with(run, tiny_inception):
    picture(Path("photos/a.png"), size=(32, 32))
    status, _, err = run("--fid", "--data", "photos", "--set", "measurement.observed=true", "--set",
                         "measurement.operator={name: noise}")
    assert status == 0 and err.count("warning: left out: FID and KID, as there are no true images") == 1
    assert "fid" not in json.loads(Path("results/noise/dpps/summary.json").read_text())
