"""A run that is killed at any moment, and continued, leaves what an uninterrupted one leaves."""

import errno
import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import sample_condition
from tests.command_line import FOLDER, arguments, contents
from tests.helpers import picture
from util.checkpoint import fingerprint
from util.errors import UserError
from util.files import write_atomically
from util.run.directory import RunDirectory
from util.run.layout import TEMPORARY_FILE
from util.run.lock import locked

CHAINS, KILLS = 5, 4
OPERATIONS = {"open", "os.mkdir", "os.remove", "os.rename"}


def killed(last: int | None, *options: str) -> tuple[int, int]:
    """Exit status of a run that kills itself before operation `last` on a file in its folder; how many there were."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        operations, status = [], 99

        def count(event: str, arguments: tuple) -> None:
            if event in OPERATIONS and f"/{options[-1]}/" in f"/{arguments[0]}":
                operations.append(event)
                if len(operations) == last:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            status = sample_condition.main(options)
        finally:
            os.write(writing, str(len(operations)).encode())
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as told:
        operations = told.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), int(operations or 0)


def chains(*options: str) -> int:
    """A run as a whole, and chains of runs that are killed and continued; told.json says how they ended, and how many
    files each had left."""
    random.seed(0)
    status, operations = killed(None, *options, "--save_dir", "whole")
    statuses, files = [status], []
    for chain in range(CHAINS):
        left = operations
        for _ in range(KILLS):                      # each leaves all that it did not do to the next
            last = random.randint(1, left)
            left -= last - 1
            statuses.append(killed(last, *options, "--save_dir", f"killed{chain}")[0])
            files.append(len(list(Path(f"killed{chain}").rglob("*"))))
        statuses.append(killed(None, *options, "--save_dir", f"killed{chain}")[0])
    Path("told.json").write_text(json.dumps({"statuses": statuses, "files": files}))
    return 0


def test_runs_killed_at_twenty_moments_end_like_one_that_was_not(fork, prior, workplace):
    for i in range(2):
        picture(workplace / "photos" / f"{i}.png", i)
    options = ["--model_config", "configs/exact_gaussian_model_config.yaml", "--data", "photos", "--num_samples", "2",
               "--batch_size", "2", "--save_measurements", "--progress", "2"]
    process = fork(chains, *arguments(prior, *options))
    _, err = process.communicate()
    assert process.returncode == 0, err
    told = json.loads((workplace / "told.json").read_text())
    assert told["statuses"] == [0] + CHAINS * (KILLS * [-9] + [0]), err
    assert len(set(told["files"])) > 10, told["files"]                  # the moments differ
    whole = contents(workplace / "whole" / FOLDER)
    assert len(whole) == 4 + 2 * (1 + 1 + 4 + 2 + 1 + 1 + 8)
    for chain in range(CHAINS):
        killed = contents(workplace / f"killed{chain}" / FOLDER)
        assert killed.keys() == whole.keys()
        assert killed == whole, [name for name in whole if whole[name] != killed[name]]


def break_file(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "truncated": content[:-5], "half": content[:len(content) // 2],
                      "damaged": content[:-30] + bytes(255 - byte for byte in content[-30:-29]) + content[-29:]}[how])


ONE_STEP = ["--set", "diffusion.timestep_respacing=1"]
DAMAGES = [
    ("recon/chelsea_1.png", "empty"), ("recon/chelsea_1.png", "truncated"), ("recon/chelsea_mean.png", "half"),
    ("recon/chelsea_0.png", "damaged"), ("input/chelsea.png", "damaged"), ("label/chelsea.png", "truncated"),
    ("std/chelsea.png", "half"), ("measurements/chelsea.npz", "empty"), ("measurements/chelsea.npz", "truncated"),
    ("measurements/chelsea.npz", "damaged"), ("trajectories/chelsea.csv", "empty"),
    ("std/chelsea.npy", "empty"), ("std/chelsea.npy", "truncated"), ("recon/chelsea_mean.npy", "half"),
]


def test_an_image_with_a_damaged_file_is_done_again(run):
    options = ["--num_samples", "2", "--save_measurements", *ONE_STEP]
    assert run(*options)[0] == 0
    folder = Path("results") / FOLDER
    whole, damaged = contents(folder), {}
    for file, how in DAMAGES:
        content = (folder / file).read_bytes()
        break_file(folder / file, how)
        damaged[file] = (folder / file).read_bytes()
        seen = RunDirectory("results", *FOLDER.split("/"), {"num_samples": 2}, keeps_measurements=True, leads=False)
        assert [seen.finished(name) for name in ("astronaut", "chelsea", "coffee")] == [True, False, True], (file, how)
        (folder / file).write_bytes(content)
    for file, content in damaged.items():
        (folder / file).write_bytes(content)
    status, out, _ = run(*options)
    assert status == 0 and "2 finished before" in out
    assert contents(folder) == whole


def test_a_table_with_a_torn_line_loses_that_line_only(run):
    assert run(*ONE_STEP)[0] == 0
    whole, table = contents(Path("results") / FOLDER), Path("results") / FOLDER / "metrics.csv"
    for cut in (1, 30, 4000):
        table.write_bytes(table.read_bytes()[:-cut])
        status, out, _ = run(*ONE_STEP)
        assert status == 0
        assert "2 finished before" in out or cut > 1000
        assert contents(Path("results") / FOLDER) == whole


def test_a_limit_that_grows_keeps_what_is_there_in_the_order_of_the_data(run):
    assert run("--limit", "2", "--batch_size", "1", *ONE_STEP)[0] == 0
    table = Path("results") / FOLDER / "metrics.csv"
    head, _, second = table.read_text().splitlines(keepends=True)
    table.write_text(head + second)
    status, out, _ = run("--batch_size", "1", *ONE_STEP)
    assert status == 0 and "1 finished before" in out
    assert run("--save_dir", "whole", "--batch_size", "1", *ONE_STEP)[0] == 0
    assert contents(Path("results") / FOLDER) == contents(Path("whole") / FOLDER)


def test_a_run_killed_before_its_summary_writes_it(run):
    assert run("--limit", "1", *ONE_STEP)[0] == 0
    assert run(*ONE_STEP)[0] == 0
    folder = Path("results") / FOLDER
    whole = contents(folder)
    (folder / "rows").mkdir()                       # as long as it is there, summary and grid may be of other rows
    (folder / "summary.json").write_text("{}")
    assert run(*ONE_STEP)[0] == 0
    assert contents(folder) == whole


def test_another_run_in_the_folder_says_so_and_leaves(run, workplace):
    with locked(workplace / "results" / FOLDER):
        status, out, err = run("--overwrite")
        assert status == 2 and out == "" and len(err.splitlines()) == 1
        assert f"process {os.getpid()} on {socket.gethostname()}" in err and "another run is at work" in err
        assert {f.name for f in (workplace / "results").rglob("*") if f.is_file()} == {"run.lock", ".run.lock"}
    assert run()[0] == 0
    assert not list((workplace / "results" / FOLDER).glob("*.lock"))


def hold_for_ever(folder: Path) -> int:
    with locked(folder):
        sys.stdout.write("held\n")
        signal.pause()


def test_a_lock_of_a_killed_process_holds_nobody_up(fork, tmp_path):
    other = fork(hold_for_ever, tmp_path)
    while not other.files[0].read_text() and other.poll() is None:
        time.sleep(0.01)
    with pytest.raises(UserError, match=rf"process {other.pid} on .*--out"):
        locked(tmp_path, "--out").__enter__()
    other.end()
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
    assert run(*ONE_STEP)[0] == 0
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
    assert run(*ONE_STEP)[0] == 0
    assert all(file.exists() for file in mine) and not any(name.exists() for name in names)


def test_another_network_under_the_same_name_is_noticed(run, prior, workplace):
    model = yaml.safe_load((prior / "model.yaml").read_text())
    weights = torch.load(model["model_path"], weights_only=True)
    torch.save(weights, workplace / "mine.pt")
    options = ["--set", f"model.model_path={workplace / 'mine.pt'}", "--limit", "1", *ONE_STEP]
    assert run(*options)[0] == run(*options)[0] == 0
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
    options = ["--set", f"measurement.operator={operator}", "--limit", "1", *ONE_STEP]
    assert run(*options)[0] == run(*options)[0] == 0
    np.save(file, np.tri(*contents[file].shape, 1))
    status, _, err = run(*options)
    assert status == 2 and f"files.{file} (" in err and fingerprint(Path(file)) in err
    assert run(*options, "--overwrite")[0] == 0


@pytest.mark.parametrize("observed", ["false", "true"])
def test_another_image_under_the_same_name_is_noticed(run, observed):
    for i in range(2):
        picture(Path(f"photos/{i}.png"), i, (32, 32))
    options = ["--data", "photos", "--set", f"measurement.observed={observed}", "--set",
               "measurement.operator={name: noise}", *ONE_STEP]
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
