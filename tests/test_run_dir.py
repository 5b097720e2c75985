"""The folder of a run: what is in it, and that it can be stopped and continued."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from tests.run_folders import open_run, outcome, read_rows, save
from util import img_utils
from util.img_utils import load_image
from util.metrics.scores import Scores

COLUMNS = ["image", "sample", "psnr", "ssim", "lpips_vgg", "psnr_input", "ssim_input", "distance", "seconds",
           "chi_square"]


def test_a_saved_image_is_finished_and_everything_lies_in_its_place(tmp_path):
    run = open_run(tmp_path)
    assert run.path == tmp_path / "blur" / "ps"
    assert not run.finished("a")
    save(run)
    assert run.finished("a")
    assert not run.finished("b")
    for folder, value in (("input", -0.5), ("label", 0.0), ("recon", 0.25)):
        saved = load_image(run.path / folder / "a.png")
        torch.testing.assert_close(saved, torch.full((3, 8, 8), value), rtol=0, atol=4e-3)
    row, = read_rows(run)
    assert list(row)[:len(COLUMNS)] == COLUMNS
    assert (row["image"], row["sample"], row["psnr"], row["psnr_input"]) == ("a", "0", "0.25", "12.0412")
    assert (row["lpips_vgg"], row["chi_square"], row["seconds"]) == ("", "", "1.5")
    assert yaml.safe_load((run.path / "config.yaml").read_text())["conditioning"]["params"] == {"scale": 0.3}


def test_several_samples_have_a_file_each_and_one_for_their_mean(tmp_path):
    run = open_run(tmp_path)
    save(run, "a", [outcome("0", -0.5), outcome("1", 0.5), outcome("mean", 0.0)])
    assert sorted(f.name for f in (run.path / "recon").iterdir()) == ["a_0.png", "a_1.png", "a_mean.npy", "a_mean.png"]
    assert np.load(run.path / "recon" / "a_mean.npy").shape == (8, 8, 3)
    assert np.load(run.path / "recon" / "a_mean.npy") == pytest.approx(0.5)
    assert np.load(run.path / "std" / "a.npy") == pytest.approx(np.full((8, 8, 3), math.sqrt(0.125)))      # on [0, 1]
    assert [row["sample"] for row in read_rows(run)] == ["0", "1", "mean"]
    assert run.finished("a")
    (run.path / "recon" / "a_1.png").unlink()
    assert not run.finished("a")


def test_the_distance_of_every_step_is_kept_for_every_sample(tmp_path):
    run = open_run(tmp_path)
    courses = {"0": [(2, 9.0), (1, 1 / 3), (0, 0.25)], "1": [(2, 8.0), (1, 1e-9), (0, math.nan)]}
    save(run, "a", [*(replace(outcome(k), trajectory=course) for k, course in courses.items()), outcome("mean")])
    text = (run.path / "trajectories" / "a.csv").read_text()
    assert text == "step,0,1\n2,9,8\n1,0.333333,1e-09\n0,0.25,nan\n"
    (run.path / "trajectories" / "a.csv").unlink()
    assert not run.finished("a")


def test_a_run_is_continued(tmp_path):
    save(open_run(tmp_path), "a")
    again = open_run(tmp_path)
    assert again.finished("a")
    save(again, "b")
    assert [row["image"] for row in read_rows(again)] == ["a", "b"]
    assert open_run(tmp_path).rows[0].seconds == 1.5
    assert math.isnan(open_run(tmp_path).rows[0].chi_square)


@pytest.mark.parametrize("folder", ["input", "recon", "label"])
def test_an_image_without_its_file_is_not_finished_and_its_rows_are_replaced(tmp_path, folder):
    run = open_run(tmp_path)
    save(run, "a")
    save(run, "b")
    (run.path / folder / "a.png").unlink()
    assert not run.finished("a")
    assert run.finished("b")
    save(run, "a")
    assert run.finished("a")
    assert [row["image"] for row in read_rows(run)] == ["a", "b"]


@pytest.mark.parametrize("file", ["grid.png", "summary.json"])
@pytest.mark.parametrize("harm", ["missing", "truncated", "foreign"])
def test_a_damaged_grid_or_summary_is_made_again(tmp_path, file, harm):
    run = open_run(tmp_path)
    save(run)
    run.conclude({})
    path = run.path / file
    content = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:len(content) // 2] if harm == "truncated" else b"[]")
    open_run(tmp_path).conclude({})
    assert path.read_bytes() == content


def test_a_summary_keeps_what_else_it_says_as_long_as_the_rows_are_the_same(tmp_path):
    run = open_run(tmp_path)
    save(run, "a")
    run.conclude({"peak_memory_bytes": 10 ** 9})
    (run.path / "grid.png").unlink()
    run = open_run(tmp_path)
    run.conclude({"peak_memory_bytes": 1})
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary["peak_memory_bytes"] == 10 ** 9
    save(run, "b")
    run.conclude({"peak_memory_bytes": 1})
    summary = json.loads((run.path / "summary.json").read_text())
    assert (summary["peak_memory_bytes"], summary["images"]) == (1, 2)


def test_names_with_commas_and_quotes_survive(tmp_path):
    name = 'a, "b" ü'
    save(open_run(tmp_path), name)
    assert open_run(tmp_path).finished(name)


def test_summary_has_means_deviations_counts_and_costs(tmp_path):
    run = open_run(tmp_path)
    save(run, "a", [outcome("0", 0.1), outcome("1", 0.3), outcome("mean", 0.2)])
    save(run, "b", [outcome("0", 0.5), outcome("1", 0.7), outcome("mean", 0.6)])
    run.write_summary({"seed": 4})
    summary = json.loads((run.path / "summary.json").read_text())
    assert (summary["seed"], summary["images"], summary["samples"]) == (4, 2, 4)
    assert (summary["seconds"], summary["network_evaluations"]) == (6.0, 40)
    assert summary["metrics"]["psnr"]["mean"] == pytest.approx(0.4)
    assert summary["metrics"]["psnr"]["std"] == pytest.approx(0.2582, abs=1e-4)
    assert summary["metrics"]["psnr"]["count"] == 4
    assert summary["metrics"]["psnr"]["ci95"] == pytest.approx([0.2, 0.6])     # of two images: one of them, twice
    assert summary["metrics"]["lpips_vgg"] == {"mean": None, "std": None, "count": 0, "ci95": None}
    assert summary["metrics_of_sample_means"]["psnr"]["mean"] == pytest.approx(0.4)


def test_infinite_psnr_is_no_obstacle(tmp_path):
    run = open_run(tmp_path)
    run.save("a", torch.zeros(3, 8, 8), torch.zeros(3, 8, 8), [outcome()], lambda *_: Scores(math.inf, 1.0, 0.0))
    run.write_summary({})
    assert read_rows(run)[0]["psnr"] == "inf"
    assert json.loads((run.path / "summary.json").read_text())["metrics"]["psnr"]["count"] == 0
    assert open_run(tmp_path).rows[0].psnr == math.inf


@pytest.mark.parametrize("samples, columns", [(1, 3), (3, 4)])
def test_grid_shows_at_most_eight_images(tmp_path, samples, columns):
    from PIL import Image
    run = open_run(tmp_path)
    outcomes = [outcome()] if samples == 1 else [*(outcome(str(k)) for k in range(samples)), outcome("mean")]
    for i in range(9):
        save(run, f"image {i}", outcomes)
    run.write_grid()
    cell = img_utils.GRID_CELL
    with Image.open(run.path / "grid.png") as grid:
        assert grid.width == columns * cell + (columns + 1) * 12
        assert grid.height == 2 * 12 + 30 + 8 * (cell + 30)


def test_without_results_there_is_no_grid(tmp_path):
    run = open_run(tmp_path)
    run.write_grid()
    assert not (run.path / "grid.png").exists()


def test_progress_pictures_lie_in_a_folder_per_image(tmp_path):
    run = open_run(tmp_path)
    run.save_progress("a", None, 7, torch.full((3, 8, 8), 9.0), torch.zeros(3, 8, 8))
    run.save_progress("a", "2", 0, torch.zeros(3, 8, 8), torch.zeros(3, 8, 8))
    files = sorted(f.relative_to(run.path / "progress").as_posix() for f in (run.path / "progress").rglob("*.png"))
    assert files == ["a/x0_hat_0007.png", "a/x_0007.png", "a_2/x0_hat_0000.png", "a_2/x_0000.png"]


@pytest.mark.parametrize("written, kept", [("3", 3), ("many", None), ("0", None), ("-1", None), ("true", None),
                                           ("[2]", None), ("1.5", None), ("null", None)])
def test_the_chosen_batch_size_is_kept_and_binds_nobody(tmp_path, written, kept):
    run = open_run(tmp_path)
    save(run)
    run.keep_batch_size(7)
    assert open_run(tmp_path).batch_size == 7
    path = run.path / "config.yaml"
    path.write_text(path.read_text().replace("batch_size: 7", f"batch_size: {written}"))
    assert open_run(tmp_path).batch_size == kept
    assert yaml.safe_load(path.read_text()).get("batch_size") == kept
    assert open_run(tmp_path, overwrite=True).batch_size is None
