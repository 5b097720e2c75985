"""What a run finds in its folder: other settings and foreign files are refused, and --overwrite deletes a run's own."""

import pytest
import torch
import yaml

from tests.run_folders import CONFIG, open_run, outcome, save
from util.errors import UserError
from util.report import __main__ as report


def test_a_changed_config_is_refused_with_both_values(tmp_path):
    save(open_run(tmp_path))
    changed = {**CONFIG, "conditioning": {"method": "ps", "params": {"scale": 0.4}}, "precision": "fp32"}
    del changed["seed"]
    with pytest.raises(UserError) as caught:
        open_run(tmp_path, changed)
    message = str(caught.value)
    assert "conditioning.params.scale (0.3 there, 0.4 now)" in message
    assert "seed (0 there, unset now)" in message
    assert "precision (unset there, fp32 now)" in message
    assert "--save_dir" in message and "--overwrite" in message
    assert "image_size" not in message
    assert open_run(tmp_path).finished("a")


def test_a_changed_config_is_welcome_where_there_are_no_results(tmp_path):
    open_run(tmp_path)
    run = open_run(tmp_path, {"seed": 3})
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == {"seed": 3}


def test_overwrite_deletes_what_a_run_wrote_and_nothing_else(tmp_path):
    run = open_run(tmp_path)
    save(run, "a", [outcome("0"), outcome("mean")])
    save(run, "b")
    run.save_progress("b", None, 3, torch.zeros(3, 8, 8), torch.zeros(3, 8, 8))
    run.save_progress("a", "0", 3, torch.zeros(3, 8, 8), torch.zeros(3, 8, 8))
    run.write_summary({})
    run.write_grid()
    mine = [run.path / "notes.txt", run.path / "recon" / "mine.png", run.path / "progress" / "b" / "mine.png"]
    for file in mine:
        file.write_text("x")
    fresh = open_run(tmp_path, {"seed": 9}, overwrite=True)
    assert not fresh.rows
    left = {f for f in run.path.rglob("*") if f.is_file()}
    assert left == {*mine, run.path / "config.yaml"}


def test_impossible_folders_are_found_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write to .*--save_dir"):
        open_run(tmp_path / "file")
    open_run(tmp_path / "locked")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("util.files.open", refuse, raising=False)
    with pytest.raises(UserError, match="cannot write .*Permission denied; choose another place"):
        open_run(tmp_path / "locked")


@pytest.mark.parametrize("text", ["not,ours\n1,2\n", "image,sample\na,0\n", "\x00\n", "image,sample,psnr\na,0,high\n"])
def test_a_foreign_table_is_refused(tmp_path, text):
    run = open_run(tmp_path)
    (run.path / "metrics.csv").write_text(text)
    with pytest.raises(UserError, match="not a table of ours"):
        open_run(tmp_path)


def test_overwrite_stays_in_its_folder(tmp_path):
    run = open_run(tmp_path)
    save(run)
    (tmp_path / "mine.png").write_text("x")
    table = run.path / "metrics.csv"
    table.write_text(table.read_text().replace("\na,", "\n../../../mine,"))
    open_run(tmp_path, overwrite=True)
    assert (tmp_path / "mine.png").exists()


@pytest.mark.parametrize("text", ["- 1\n", "a: [\n", "!!python/object/apply:os.getcwd []\n"])
def test_a_foreign_config_is_refused(tmp_path, text):
    run = open_run(tmp_path)
    save(run)
    (run.path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="no configuration of ours"):
        open_run(tmp_path)


@pytest.mark.parametrize("written", ["many", "[1]", "-5", str(10 ** 30), "null"])
def test_an_odd_number_of_samples_is_no_obstacle_to_overwriting(tmp_path, written):
    run = open_run(tmp_path)
    save(run)
    (run.path / "config.yaml").write_text(f"num_samples: {written}\n")
    assert not open_run(tmp_path, overwrite=True).rows
    assert not (run.path / "recon" / "a.png").exists()


def test_overwrite_leaves_a_report_on_the_run(tmp_path):
    run = open_run(tmp_path)
    save(run)
    assert report.main([str(run.path)]) == 0
    open_run(tmp_path, overwrite=True)
    assert (run.path / "report.html").is_file()
