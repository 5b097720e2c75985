"""A run that is killed at any moment, and continued, leaves what an uninterrupted one leaves."""

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.command_line import FOLDER, arguments, contents
from tests.helpers import picture
from util.checkpoint import fingerprint
from util.config.config import REPOSITORY
from util.errors import UserError
from util.img_utils import write_atomically
from util.run.layout import TEMPORARY_FILE
from util.run.lock import locked

KILLS = 20
DRIVER = """
import json, os, random, shutil, signal, sys, time
import matplotlib.backends.backend_agg, matplotlib.figure, skimage.metrics
import sample_condition

def start(arguments):
    pid = os.fork()
    if pid == 0:
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        status = 99
        try:
            status = sample_condition.main(arguments)
        finally:
            os._exit(status)
    return pid

def finish(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

arguments, kills = sys.argv[2:], int(sys.argv[1])
random.seed(0)
finish(start([*arguments, "--save_dir", "warm"]))
begun = time.monotonic()
statuses = [finish(start([*arguments, "--save_dir", "whole"]))]
duration = time.monotonic() - begun
rows = []
for kill in range(kills):
    while True:                         # a run that came to its end before is done again, and killed earlier
        shutil.rmtree(f"killed{kill}", ignore_errors=True)
        pid = start([*arguments, "--save_dir", f"killed{kill}"])
        time.sleep(duration * (kill + random.random()) / kills)
        os.kill(pid, signal.SIGKILL)
        status = finish(pid)
        if status == -signal.SIGKILL:
            break
        duration *= 0.9
    statuses.append(status)
    table = f"killed{kill}/super_resolution/dpps/metrics.csv"
    rows.append(len(open(table).readlines()) - 1 if os.path.exists(table) else -1)
    statuses.append(finish(start([*arguments, "--save_dir", f"killed{kill}"])))
json.dump({"statuses": statuses, "rows": rows}, sys.stdout)
"""


def drive(prior: Path, kills: int, *more: str) -> dict:
    done = subprocess.run([sys.executable, "-c", DRIVER, str(kills), *arguments(prior, *more)], capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_runs_killed_at_twenty_moments_end_like_one_that_was_not(prior, workplace):
    for i in range(3):
        picture(workplace / "photos" / f"{i}.png", i)
    told = drive(prior, KILLS, "--data", "photos", "--num_samples", "2", "--batch_size", "2", "--save_measurements",
                 "--progress", "2")
    assert told["statuses"][::2] == [0] * (KILLS + 1), (workplace / "log.txt").read_text()
    assert told["statuses"][1::2] == [-9] * KILLS
    assert len(set(told["rows"])) > 2, told["rows"]                     # the moments differ
    whole = contents(workplace / "whole" / FOLDER)
    assert len(whole) == 4 + 3 * (1 + 1 + 4 + 2 + 1 + 1 + 8)
    for kill in range(KILLS):
        killed = contents(workplace / f"killed{kill}" / FOLDER)
        assert killed.keys() == whole.keys()
        assert killed == whole, [name for name in whole if whole[name] != killed[name]]


def break_file(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "truncated": content[:-5], "half": content[:len(content) // 2],
                      "damaged": content[:-30] + bytes(255 - byte for byte in content[-30:-29]) + content[-29:]}[how])


DAMAGES = [
    ("recon/chelsea_1.png", "empty"), ("recon/chelsea_1.png", "truncated"), ("recon/chelsea_mean.png", "half"),
    ("recon/chelsea_0.png", "damaged"), ("input/chelsea.png", "damaged"), ("label/chelsea.png", "truncated"),
    ("std/chelsea.png", "half"), ("measurements/chelsea.npz", "empty"), ("measurements/chelsea.npz", "truncated"),
    ("measurements/chelsea.npz", "damaged"), ("trajectories/chelsea.csv", "empty"),
]


def test_an_image_with_a_damaged_file_is_done_again(run):
    options = ["--num_samples", "2", "--save_measurements", "--set", "diffusion.timestep_respacing=1"]
    assert run(*options)[0] == 0
    whole = contents(Path("results") / FOLDER)
    for file, how in DAMAGES:
        break_file(Path("results") / FOLDER / file, how)
        status, out, _ = run(*options)
        assert status == 0 and "2 finished before" in out, (file, how)
        assert contents(Path("results") / FOLDER) == whole, (file, how)


@pytest.mark.parametrize("cut", [1, 30, 4000])
def test_a_table_with_a_torn_line_loses_that_line_only(run, cut):
    assert run()[0] == 0
    whole, table = contents(Path("results") / FOLDER), Path("results") / FOLDER / "metrics.csv"
    table.write_bytes(table.read_bytes()[:-cut])
    status, out, _ = run()
    assert status == 0
    assert "2 finished before" in out or cut > 1000
    assert contents(Path("results") / FOLDER) == whole


def test_a_limit_that_grows_keeps_what_is_there_in_the_order_of_the_data(run):
    assert run("--limit", "2", "--batch_size", "1")[0] == 0
    (Path("results") / FOLDER / "recon" / "astronaut.png").unlink()
    status, out, _ = run("--batch_size", "1")
    assert status == 0 and "1 finished before" in out
    assert run("--save_dir", "whole", "--batch_size", "1")[0] == 0
    assert contents(Path("results") / FOLDER) == contents(Path("whole") / FOLDER)


def test_a_run_killed_before_its_summary_writes_it(run):
    assert run("--limit", "1")[0] == 0
    assert run()[0] == 0
    folder = Path("results") / FOLDER
    whole = contents(folder)
    (folder / "rows").mkdir()                       # as long as it is there, summary and grid may be of other rows
    (folder / "summary.json").write_text("{}")
    assert run()[0] == 0
    assert contents(folder) == whole


def test_another_run_in_the_folder_says_so_and_leaves(run, workplace):
    with locked(workplace / "results" / FOLDER):
        status, out, err = run("--overwrite")
        assert status == 2 and out == "" and len(err.splitlines()) == 1
        assert f"process {os.getpid()} on {socket.gethostname()}" in err and "another run is at work" in err
        assert {f.name for f in (workplace / "results").rglob("*") if f.is_file()} == {"run.lock", ".run.lock"}
    assert run()[0] == 0
    assert not list((workplace / "results" / FOLDER).glob("*.lock"))


def test_a_lock_of_a_killed_process_holds_nobody_up(tmp_path):
    holding = ("import sys, time; from pathlib import Path; from util.run.lock import locked; "
               "lock = locked(Path(sys.argv[1])); lock.__enter__(); print(); sys.stdout.flush(); time.sleep(60)")
    command = [sys.executable, "-c", holding, str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match=rf"process {other.pid} on .*--out"):
            locked(tmp_path, "--out").__enter__()
        other.kill()
    assert (tmp_path / "run.lock").exists()
    (tmp_path / "run.lock").write_text(f"{os.getpid()} elsewhere\n")     # its number is in use again
    with locked(tmp_path) as owner:
        assert (tmp_path / "run.lock").read_text() == f"{owner}\n" == f"{os.getpid()} {socket.gethostname()}\n"
    assert not list(tmp_path.iterdir())


def test_where_the_file_system_has_no_locks_the_user_is_told(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path):
        assert "has no locks" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_temporaries_of_a_killed_run_are_removed_and_only_those(run, workplace, monkeypatch):
    assert run()[0] == 0
    folder = workplace / "results" / FOLDER
    names = []
    monkeypatch.setattr("pathlib.Path.replace", lambda self, target: names.append(self))
    for place in (folder, folder / "recon", folder / "progress" / "coffee"):
        for name in ("a.png", "metrics.csv", "config.yaml"):
            write_atomically(place / name, b"x")
    monkeypatch.undo()
    assert len(names) == 9 and all(TEMPORARY_FILE.fullmatch(name.name) for name in names)
    mine = [folder / ".notes.tmp", folder / "recon" / ".a.png.tmp", folder / "a.png.12.tmp"]
    for file in (*mine, *names):
        file.write_text("x")
    os.chdir(workplace)
    assert run()[0] == 0
    assert all(file.exists() for file in mine) and not any(name.exists() for name in names)


def test_another_network_under_the_same_name_is_noticed(run, prior, workplace):
    model = yaml.safe_load((prior / "model.yaml").read_text())
    weights = torch.load(model["model_path"], weights_only=True)
    torch.save(weights, workplace / "mine.pt")
    options = ["--set", f"model.model_path={workplace / 'mine.pt'}", "--limit", "1"]
    assert run(*options)[0] == 0
    assert run(*options)[0] == 0
    torch.save({name: value * 1.001 for name, value in weights.items()}, workplace / "mine.pt")
    status, _, err = run(*options)
    assert status == 2 and "checkpoint (" in err and fingerprint(workplace / "mine.pt") in err


@pytest.mark.parametrize("operator, file", [
    ("{name: blur, kernel: kernel.npy}", "kernel.npy"),
    ("{name: composite, operators: [{name: blur, kernel: kernel.npy}, {name: sr_average, scale_factor: 2}]}",
     "kernel.npy"),
    ("{name: inpainting, mask_opt: {mask_type: file, file: mask.npy}}", "mask.npy")])
def test_another_kernel_or_mask_under_the_same_name_is_noticed(run, operator, file):
    contents = {"kernel.npy": np.full((3, 3), 1 / 9), "mask.npy": np.tri(32)}
    np.save(file, contents[file])
    options = ["--set", f"measurement.operator={operator}", "--limit", "1"]
    assert run(*options)[0] == 0
    assert run(*options)[0] == 0
    np.save(file, np.tri(*contents[file].shape, 1))
    status, _, err = run(*options)
    assert status == 2 and f"files.{file} (" in err and fingerprint(Path(file)) in err
    assert run(*options, "--overwrite")[0] == 0


@pytest.mark.parametrize("observed", ["false", "true"])
def test_another_image_under_the_same_name_is_noticed(run, observed):
    for i in range(2):
        picture(Path(f"photos/{i}.png"), i, (32, 32))
    options = ["--data", "photos", "--set", f"measurement.observed={observed}", "--set",
               "measurement.operator={name: noise}"]
    assert run(*options, "--limit", "1")[0] == 0
    picture(Path("photos/1.png"), 7, (32, 32))                          # not restored yet
    assert run(*options)[0] == 0
    picture(Path("photos/1.png"), 8, (32, 32))
    status, _, err = run(*options)
    assert status == 2 and "image 1 was restored from a file that has other contents now" in err
    assert fingerprint(Path("photos/1.png")) in err and "--overwrite" in err


def test_images_that_are_gone_from_the_data_are_named(run):
    for i in range(2):
        picture(Path(f"photos/{i}.png"), i)
    assert run("--data", "photos")[0] == 0
    Path("photos/0.png").unlink()
    status, _, err = run("--data", "photos")
    warning = "warning: metrics.csv and summary.json hold 1 image (0) no longer in the data"
    assert status == 0 and err.count(warning) == 1


def test_all_that_differs_is_listed(run):
    assert run("--limit", "1")[0] == 0
    changes = {"measurement.noise.sigma": (0.05, 0.1), "conditioning.params.scale": (0.5, 2.0),
               "diffusion.timestep_respacing": (3, 4), "measurement.operator.scale_factor": (4, 2)}
    status, _, err = run("--seed", "7", "--num_samples", "2",
                         *(part for key, (_, new) in changes.items() for part in ("--set", f"{key}={new}")))
    assert status == 2
    for key, (old, new) in {**changes, "seed": (0, 7), "num_samples": (1, 2)}.items():
        assert f"{key} ({old} there, {new} now)" in err


def test_overwriting_deletes_what_killed_runs_and_other_commands_wrote(run, workplace):
    assert run("--progress", "1", "--num_samples", "2", "--save_measurements")[0] == 0
    folder = workplace / "results" / FOLDER
    (folder / "rows").mkdir()
    (folder / "rows" / "begun.csv").touch()
    written = ["recon/begun_0.png", "input/begun.png", "progress/begun_1/x_0002.png", "scores.json", "scores.csv",
               "trajectories/begun.csv"]
    kept = ["notes.txt", "recon/mine.png", "progress/begun_1/mine.png", "label/astronaut_0.png"]
    for name in (*written, *kept):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    assert run("--overwrite", "--limit", "1")[0] == 0
    files = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
    assert files == {*kept, "metrics.csv", "summary.json", "config.yaml", "grid.png", "trajectories/astronaut.csv",
                     *(f"{place}/astronaut.png" for place in ("input", "label", "recon"))}


def test_results_without_their_configuration_are_not_continued(run):
    assert run("--limit", "1")[0] == 0
    (Path("results") / FOLDER / "config.yaml").unlink()
    status, _, err = run("--limit", "1")
    assert status == 2 and "config.yaml is missing" in err and "--overwrite" in err
