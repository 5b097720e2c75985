"""Runs of several processes, started by torchrun as a user does: gloo on the CPU."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_cli import arguments, prior, run, save_image, workplace  # noqa: F401
from tests.test_resume import FOLDER, contents
from util.config import REPOSITORY
from util.distributed import ENVIRONMENT, Team, device_of
from util.errors import UserError

IMAGES = 5
OPTIONS = ["--data", "photos", "--batch_size", "1"]


@pytest.fixture
def photos(workplace):
    for i in range(IMAGES):
        save_image(workplace / "photos" / f"{i}.png", i)
    (workplace / "photos" / "broken.png").write_text("no image")
    return workplace


def torchrun(processes: int, prior: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}",
         str(REPOSITORY / "sample_condition.py"), *arguments(prior, *OPTIONS, *more)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def ranks_of(torchrun: subprocess.Popen) -> dict[int, int]:
    """Rank -> process id, of the processes that torchrun started."""
    found = {}
    for children in Path(f"/proc/{torchrun.pid}/task").glob("*/children"):
        for pid in map(int, children.read_text().split()):
            environment = dict(item.partition("=")[::2] for item in
                               Path(f"/proc/{pid}/environ").read_text().split("\0"))
            if "RANK" in environment:
                found[int(environment["RANK"])] = pid
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_several_processes_leave_what_one_does_and_survive_the_death_of_one(run, prior, photos):
    assert run(*OPTIONS, "--save_dir", "one")[0] == 1
    expected = contents(photos / "one" / FOLDER)
    process = torchrun(3, prior, "--save_dir", "three")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert contents(photos / "three" / FOLDER) == expected
    assert out.count(f"{IMAGES + 1} images of") == out.count("mean of 5") == 1           # one process speaks
    assert err.count("cannot read image") == err.count("left out: LPIPS") == 1
    assert "15/15" in err and "1 of 6 images could not be read" in err

    slow = ["--set", "diffusion.timestep_respacing=60", "--save_dir", "two"]
    process = torchrun(2, prior, *slow)
    table = photos / "two" / FOLDER / "rows"
    deadline = time.monotonic() + 120
    while len([f for f in table.glob("*.csv") if f.stat().st_size]) < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    line, = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "another process of the run has ended" in line and "of 6 images are finished and kept" in line
    assert "same command continues" in line
    before = {f: f.stat().st_mtime_ns for f in (photos / "two" / FOLDER / "recon").glob("*.png")}
    assert before
    status, out, err = run(*OPTIONS, *slow)
    assert status == 1 and "finished before" in out, err
    done = [f for f in before if f.stat().st_mtime_ns == before[f]]
    assert done
    assert run(*OPTIONS, *slow[:2], "--save_dir", "single")[0] == 1
    assert contents(photos / "two" / FOLDER) == contents(photos / "single" / FOLDER)
