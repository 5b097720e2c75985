"""The nonlinear tasks from the command line, and what a run reports of ambiguous measurements and several samples."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch

from guided_diffusion.measurements import Operator, get_operator
from util.config.config import REPOSITORY
from util.img_utils import load_image
from util.metrics.scores import Scores, psnr, ssim
from util.run.console import log_table
from util.run.directory import Outcome, RunDirectory

SHAPE = (3, 16, 16)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def task(name: str) -> list[str]:
    return ["--task_config", str(REPOSITORY / "configs" / name), "--data", "skimage", "--limit", "1"]


@pytest.mark.parametrize("more", [[], ["--set", "measurement.operator.signal_range=[0,1]"],
                                  ["--set", "conditioning.method=dpps"]])
def test_phase_retrieval_reports_the_best_of_four_and_aligned_scores(run, more):
    status, out, err = run(*task("phase_retrieval_config.yaml"), "--num_samples", "4", *more)
    assert status == 0, err
    folder, = Path("results/phase_retrieval").iterdir()
    *samples, mean = rows(folder)
    assert [row["sample"] for row in samples] == ["0", "1", "2", "3"] and mean["sample"] == "mean"
    distances = [float(row["distance"]) for row in samples]
    best = distances.index(min(distances))
    assert [row["best"] for row in samples] == ["1" if k == best else "0" for k in range(4)] and mean["best"] == ""
    operator = get_operator("phase_retrieval", signal_range=(0, 1) if "[0,1]" in "".join(more) else (-1, 1))
    label = load_image(folder / "label" / "astronaut.png")
    for row in samples:
        saved = load_image(folder / "recon" / f"astronaut_{row['sample']}.png")
        scores = [psnr(image, label) for image in operator.ambiguities(saved)]
        assert float(row["psnr"]) == pytest.approx(scores[0], abs=0.05)
        assert float(row["psnr_aligned"]) == pytest.approx(max(scores), abs=0.05)
        assert -1 <= float(row["ssim_aligned"]) <= 1
    assert f"{float(samples[best]['psnr_aligned']):.2f}" in out and "best fit" in out and "aligned" in out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["metrics_of_best_samples"]["psnr_aligned"]["mean"] == pytest.approx(
        float(samples[best]["psnr_aligned"]), rel=1e-4)
    assert (folder / "grid.png").is_file()


def test_a_single_sample_is_its_best_one(run):
    assert run(*task("phase_retrieval_config.yaml"))[0] == 0
    row, = rows(Path("results/phase_retrieval/ps"))
    assert row["best"] == "1" and float(row["psnr_aligned"]) >= float(row["psnr"])


def test_gopro_blur_runs_and_has_nothing_to_align(run):
    status, out, err = run(*task("gopro_blur_config.yaml"), "--num_samples", "2")
    assert status == 0, err
    table = rows(Path("results/gopro_blur/ps"))
    assert all(row["psnr_aligned"] == row["ssim_aligned"] == row["lpips_vgg_aligned"] == "" for row in table)
    assert sorted(row["best"] for row in table) == ["", "0", "1"]
    assert "best fit" in out and "their mean" in out and "aligned" not in out


def test_nonlinear_deblurring_runs(run, checkpoint):
    status, _, err = run(*task("nonlinear_deblur_config.yaml"), "--set", "data.image_size=128", "--set",
                         "diffusion.timestep_respacing=1", "--set", f"measurement.operator.model_path={checkpoint}")
    assert status == 0, err
    row, = rows(Path("results/nonlinear_blur/ps"))
    assert math.isfinite(float(row["psnr"])) and math.isfinite(float(row["distance"]))


def test_nonlinear_deblurring_without_weights_or_at_other_sizes_is_a_mistake(run, checkpoint):
    path = "measurement.operator.model_path"
    status, _, err = run(*task("nonlinear_deblur_config.yaml"), "--set", f"{path}=models/none.pth")
    assert status == 2 and "models/none.pth not found" in err and "blur-kernel-space-exploring" in err
    status, _, err = run(*task("nonlinear_deblur_config.yaml"), "--set", f"{path}={checkpoint}")
    assert status == 2 and "32x32, expected sides that are multiples of 128" in err


@pytest.mark.parametrize("method", ["mcg", "projection"])
def test_methods_for_linear_operators_are_refused_before_sampling(run, method):
    status, _, err = run(*task("gopro_blur_config.yaml"), "--set", f"conditioning={{method: {method}}}")
    assert status == 2 and "needs a linear operator, found 'gopro_blur'" in err
    assert not list(Path().rglob("recon/*.png"))


# The run directory

def metrics(restored, label) -> Scores:
    return Scores(psnr(restored, label), ssim(restored, label), math.nan)


def outcome(sample: str, restored, distance: float, operator: Operator | None = None) -> Outcome:
    others = operator.ambiguities(restored[None])[1:] if operator else []
    return Outcome(sample, restored, distance, 1.0, 1.0, 1.0, [image[0] for image in others])


def test_the_best_sample_has_the_lowest_distance_not_the_highest_psnr(tmp_path):
    label = torch.rand(SHAPE)
    run = RunDirectory(tmp_path, "o", "m", {})
    run.save("a", label, label, [outcome("0", label, 2.0), outcome("1", label + 0.5, 1.0),
                                 outcome("2", label + 0.1, math.nan), outcome("mean", label, 0.0)], metrics)
    assert [row.best for row in run.rows[:3]] == [0, 1, 0] and math.isnan(run.rows[3].best)
    assert RunDirectory(tmp_path, "o", "m", {}).rows[1].best == 1


def test_no_sample_is_best_where_all_diverged(tmp_path):
    run, label = RunDirectory(tmp_path, "o", "m", {}), torch.rand(SHAPE)
    run.save("a", label, label, [outcome("0", label, math.nan), outcome("1", label, math.inf),
                                 outcome("mean", label, math.nan)], metrics)
    assert [row.best for row in run.rows[:2]] == [0, 0]
    run.write_summary({})
    run.write_grid()
    log_table(run, ["a"])


def test_a_turned_negative_scores_fully_once_aligned_and_the_table_says_so(tmp_path, capsys):
    operator, label = get_operator("phase_retrieval"), 2 * torch.rand(SHAPE) - 1
    run = RunDirectory(tmp_path, "o", "m", {})
    turned = -(label + 0.02).flip(-2, -1)
    run.save("a", label, label, [outcome("0", label + 0.4, 3.0, operator), outcome("1", turned, 1.0, operator),
                                 outcome("mean", label, 2.0, operator)], metrics)
    row = run.rows[1]
    assert row.psnr < 15 and row.psnr_aligned == pytest.approx(40, abs=0.5)
    assert row.ssim < 0.5 and row.ssim_aligned > 0.99
    log_table(run, ["a"])
    lines = capsys.readouterr().out.splitlines()
    values = lines[-1].split()[1:]
    assert lines[-2].split() == ["image", *2 * ["samples", "best", "fit", "aligned"]]
    assert float(values[1]) == pytest.approx(row.psnr, abs=0.01)
    assert float(values[2]) == pytest.approx(row.psnr_aligned, abs=0.01)
