"""Runs that are stopped: what is kept, how they continue, and under which settings they may."""

import re
import signal
import time
from pathlib import Path

import pytest
import yaml

import sample_condition
from tests.command_line import arguments, launch, pictures, rows
from tests.forks import program
from tests.helpers import picture
from util.config.config import REPOSITORY


def test_a_stopped_run_continues_and_ends_as_if_it_had_not_been_stopped(run):
    assert run("--save_dir", "whole")[0] == 0
    assert run("--save_dir", "parts", "--limit", "1")[0] == 0
    before = rows("parts/super_resolution/dpps")
    status, out, _ = run("--save_dir", "parts")
    assert status == 0 and "1 finished before" in out
    assert rows("parts/super_resolution/dpps")[0] == before[0]
    whole, parts = (pictures(Path(folder)) for folder in ("whole", "parts"))
    assert whole == parts
    modified = Path("parts/super_resolution/dpps/recon/coffee.png").stat().st_mtime_ns
    status, out, err = run("--save_dir", "parts")
    assert status == 0 and "3 finished before" in out and "coffee" in out
    assert err == ""
    assert Path("parts/super_resolution/dpps/recon/coffee.png").stat().st_mtime_ns == modified


def test_a_changed_setting_is_refused_until_it_may_overwrite(run):
    assert run("--limit", "1")[0] == 0
    status, _, err = run("--limit", "1", "--set", "measurement.noise.sigma=0.1", "--seed", "5")
    assert status == 2
    assert "measurement.noise.sigma (0.05 there, 0.1 now)" in err and "seed (0 there, 5 now)" in err
    assert run("--limit", "1", "--seed", "5", "--overwrite")[0] == 0
    assert yaml.safe_load(Path("results/super_resolution/dpps/config.yaml").read_text())["seed"] == 5


def test_results_that_hold_no_finished_image_do_not_bind(run):
    assert run("--set", "model.num_channels=64")[0] == 2                # found when the checkpoint is loaded
    assert run("--limit", "1")[0] == 0


def in_the_background(*options: str) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)                        # as a shell starts a job there
    return program(REPOSITORY / "sample_condition.py", *options)


def test_interrupting_keeps_what_is_finished(fork, prior, workplace):
    for i in range(40):
        picture(workplace / "photos" / f"{i:02d}.png", i)
    options = ["--data", "photos", "--batch_size", "1", "--set", "diffusion.timestep_respacing=8"]
    process = fork(in_the_background, *arguments(prior, *options))
    table = workplace / "results/super_resolution/dpps/metrics.csv"
    deadline = time.monotonic() + 600
    while not table.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    done = rows(str(table.parent))
    assert 1 <= len(done) < 40
    message, = [line for line in err.splitlines() if line.startswith("error: ")]
    assert f"{len(done)} of 40 images are finished and kept" in message and "same command continues" in message
    assert not list(table.parent.rglob("*.tmp"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see when signals are minded")
def test_an_interrupt_during_the_imports_has_status_130(prior, workplace):
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)             # ignored until the program minds it
    process = launch(prior)
    signal.signal(signal.SIGINT, previous)
    while process.poll() is None:
        ignored = re.search(r"^SigIgn:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
        if not int(ignored[1], 16) >> (signal.SIGINT - 1) & 1:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.01)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130 and err == "error: interrupted\n"


def test_an_interrupt_before_sampling_is_no_traceback(run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sample_condition, "load_config", interrupt)
    status, _, err = run()
    assert status == 130 and len(err.splitlines()) == 1
