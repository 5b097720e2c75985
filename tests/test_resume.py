"""A run that is killed at any moment, and continued, leaves what an uninterrupted one leaves."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.test_cli import arguments, prior, run, save_image, workplace  # noqa: F401
from util.checkpoint import fingerprint
from util.config import REPOSITORY
from util.img_utils import write_atomically
from util.run_dir import TEMPORARY_FILE

FOLDER = "super_resolution/dpps"
KILLS = 20
DRIVER = """
import json, os, random, signal, sys, time
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
    pid = start([*arguments, "--save_dir", f"killed{kill}"])
    time.sleep(duration * (kill + random.random()) / kills)
    os.kill(pid, signal.SIGKILL)
    statuses.append(finish(pid))
    table = f"killed{kill}/super_resolution/dpps/metrics.csv"
    rows.append(len(open(table).readlines()) - 1 if os.path.exists(table) else -1)
    statuses.append(finish(start([*arguments, "--save_dir", f"killed{kill}"])))
json.dump({"statuses": statuses, "rows": rows}, sys.stdout)
"""


def contents(folder: Path) -> dict[str, object]:
    """Every file of a run, but for what depends on time: seconds and memory."""
    files: dict[str, object] = {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*")
                                if f.is_file()}
    table = list(csv.DictReader(io.StringIO(files["metrics.csv"].decode())))
    files["metrics.csv"] = [{key: value for key, value in row.items() if key != "seconds"} for row in table]
    summary = json.loads(files["summary.json"])
    files["summary.json"] = json.dumps({k: v for k, v in summary.items() if k not in ("seconds", "peak_memory_bytes")})
    return files


def drive(prior: Path, kills: int, *more: str) -> dict:
    done = subprocess.run([sys.executable, "-c", DRIVER, str(kills), *arguments(prior, *more)], capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_runs_killed_at_twenty_moments_end_like_one_that_was_not(prior, workplace):
    for i in range(5):
        save_image(workplace / "photos" / f"{i}.png", i)
    told = drive(prior, KILLS, "--data", "photos", "--num_samples", "2", "--batch_size", "4", "--save_measurements",
                 "--progress", "2")
    assert told["statuses"][::2] == [0] * (KILLS + 1), (workplace / "log.txt").read_text()
    assert told["statuses"][1::2].count(-9) > KILLS // 2                # the others had come to their end before
    assert len(set(told["rows"])) > 2, told["rows"]                     # the moments differ
    whole = contents(workplace / "whole" / FOLDER)
    assert len(whole) == 4 + 5 * (1 + 1 + 3 + 1 + 1 + 1 + 8)
    for kill in range(KILLS):
        killed = contents(workplace / f"killed{kill}" / FOLDER)
        assert killed.keys() == whole.keys()
        assert killed == whole, [name for name in whole if whole[name] != killed[name]]
