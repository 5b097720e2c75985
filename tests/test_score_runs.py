"""`python -m util.compute_metric` on a results folder: by its table and by its files."""

import json

import numpy as np
import pytest

from tests.scored_images import image, noisy, read
from util.compute_metric import main
from util.img_utils import save_image
from util.metrics.scores import Metrics
from util.run.directory import RunDirectory
from util.run.table import Outcome, make_rows, to_csv

pytestmark = pytest.mark.usefixtures("offline")


def run_of(tmp_path, samples=("0",), images="abcd"):
    """A results folder as a run leaves it: scores of float tensors, files of 8 bits."""
    folder, metrics, rows = tmp_path / "results", Metrics(networks=[]), []
    for k, name in enumerate(images):
        label = image(k)
        save_image(folder / "label" / f"{name}.png", label)
        outcomes = [Outcome(sample, noisy(label, 10 * k + s), 1.0, 1.0, 1.0, 10) for s, sample in enumerate(samples)]
        rows += make_rows(name, label, label, outcomes, metrics)
        for outcome in outcomes:
            file = name if len(samples) == 1 else f"{name}_{outcome.sample}"
            save_image(folder / "recon" / f"{file}.png", outcome.restored)
    (folder / "metrics.csv").write_text(to_csv(rows))
    return folder


def test_the_files_score_as_their_run_scored_itself_within_rounding(tmp_path, tiny_inception):
    run = RunDirectory(tmp_path, "blur", "ps", {"seed": 0})
    for k in range(4):
        label = image(k) if k else None                                 # a photograph whose truth nobody knows
        outcomes = [Outcome(str(s), noisy(image(k), 10 * k + s), 1.0, 1.0, 1.0, 10) for s in range(3)]
        run.save(f"image_{k}", label, noisy(image(k), k), outcomes, Metrics(networks=[]))
    run.write_summary({})
    own = json.loads((run.path / "summary.json").read_text())["metrics"]
    assert main([str(run.path)]) == 0
    summary, rows = read(run.path)
    assert len({row["image"] for row in rows}) == summary["images"] == 3
    assert summary["fid"]["images"] == 9
    for name, tolerance in (("psnr", 0.02), ("ssim", 1e-3)):
        found, expected = summary["metrics"][name], own[name]
        assert found["count"] == expected["count"] == 9
        assert found["mean"] == pytest.approx(expected["mean"], abs=tolerance) and found["mean"] != expected["mean"]
        assert found["ci95"] == pytest.approx(expected["ci95"], abs=tolerance)


def test_without_a_table_a_results_folder_is_scored_all_the_same(tmp_path, tiny_inception):
    folder = run_of(tmp_path)
    assert main([str(folder)]) == 0
    expected = read(folder)
    (folder / "metrics.csv").unlink()                                   # as DPS leaves it
    assert main([str(folder)]) == 0
    assert {tuple(row.values()) for row in read(folder)[1]} == {tuple(row.values()) for row in expected[1]}
    assert read(folder)[0] == expected[0]


def test_samples_and_their_means_are_told_apart(tmp_path, capsys, tiny_inception):
    folder = run_of(tmp_path, samples=("0", "1", "mean"))
    assert main([str(folder)]) == 0
    summary, rows = read(folder)
    assert len(rows) == 12
    assert summary["images"] == 4
    assert summary["metrics"]["psnr"]["count"] == 8
    assert summary["metrics_of_sample_means"]["psnr"]["count"] == 4
    single = [float(row["psnr"]) for row in rows if row["sample"] != "mean"]
    assert summary["metrics"]["psnr"]["mean"] == pytest.approx(np.mean(single), rel=1e-5)
    assert (summary["fid"]["images"], summary["fid"]["reference_images"]) == (8, 4)
    assert "means of samples" in capsys.readouterr().out


def test_files_that_the_table_tells_of_and_that_are_gone_are_named(tmp_path, capsys, tiny_inception):
    folder = run_of(tmp_path)
    (folder / "recon" / "b.png").unlink()
    assert main([str(folder)]) == 1
    assert "has no 'recon/b.png'" in capsys.readouterr().err


@pytest.mark.parametrize("harm", [lambda text: text.replace("\na,", "\n../../x,"), lambda text: "a,b\n1,2\n",
                                  lambda text: text.replace("\na,0,", "\na,1/../../y,"), lambda text: "\x00\xff",
                                  lambda text: text.replace("\na,0,", "\na,0,high"), lambda text: text + "x,0\n"])
def test_a_table_of_something_else_is_refused(tmp_path, capsys, harm):
    table = run_of(tmp_path) / "metrics.csv"
    table.write_text(harm(table.read_text()), encoding="latin-1")
    assert main([str(table.parent), "--metrics", "psnr"]) == 2
    assert "is not a table of ours" in capsys.readouterr().err


def test_a_run_without_truth_has_nothing_to_compare(tmp_path, capsys):
    folder = run_of(tmp_path)
    for file in (folder / "label").iterdir():
        file.unlink()
    assert main([str(folder), "--metrics", "psnr"]) == 2
    assert "no true images" in capsys.readouterr().err
