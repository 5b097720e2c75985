"""What goes wrong with numbers, memory and disks stops as little as it can, and is said in a line."""

import errno
import json
import math
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

import sample_condition
from guided_diffusion.condition_methods import ConditioningMethod
from guided_diffusion.restoration import monitor
from tests.command_line import arguments, contents, rows
from tests.forks import program
from tests.helpers import picture
from tests.run_folders import open_run, save
from util import memory
from util.config.config import REPOSITORY
from util.errors import StorageError
from util.memory import is_out_of_memory, keep_freed_memory

FOLDER = Path("results/super_resolution/dpps")


class Poisoned(nn.Module):
    """A network whose prediction for one entry of a batch is NaN from some timestep on."""

    def __init__(self, network: nn.Module, entry: int, below: int):
        super().__init__()
        self.network, self.entry, self.below = network, entry, below

    def forward(self, x, t):
        output = self.network(x, t)
        if len(x) > self.entry and t[0] < self.below:
            output = output.clone()
            output[self.entry] = math.nan
        return output


class Hungry(nn.Module):
    """A network that runs out of memory above a batch size."""

    def __init__(self, network: nn.Module, most: int):
        super().__init__()
        self.network, self.most, self.seen = network, most, []

    def forward(self, x, t):
        self.seen.append(len(x))
        if len(x) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return self.network(x, t)


@pytest.fixture
def wrapped(monkeypatch):
    """wrapped(wrapper, ...): put the network into a wrapper; returns the list of wrapped networks."""
    def wrap(wrapper, *more):
        made, load = [], sample_condition.load_prior
        monkeypatch.setattr(sample_condition, "load_prior",
                            lambda *given: made.append(wrapper(load(*given), *more)) or made[-1])
        return made
    return wrap


def summary(folder: Path = FOLDER) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_a_diverged_image_stops_alone(run, wrapped):
    assert run("--save_dir", "sound")[0] == 0
    wrapped(Poisoned, 1, 500)                       # of the three steps at 999, 500 and 0 the last
    status, out, err = run()
    assert status == 1
    table = {row["image"]: row for row in rows()}
    assert list(rows()[0])[-1] == "status"
    assert {name: row["status"] for name, row in table.items()} == {
        "astronaut": "ok", "chelsea": "diverged at step 0", "coffee": "ok"}
    sound = {row["image"]: row for row in rows("sound/super_resolution/dpps")}
    for name in ("astronaut", "coffee"):
        assert {**table[name], "seconds": ""} == {**sound[name], "seconds": ""}
        assert (FOLDER / f"recon/{name}.png").read_bytes() == Path(
            f"sound/super_resolution/dpps/recon/{name}.png").read_bytes()
    lost = table["chelsea"]
    assert not any(lost[key] for key in ("psnr", "ssim", "distance", "chi_square")) and lost["psnr_input"]
    assert not (FOLDER / "recon/chelsea.png").exists() and (FOLDER / "input/chelsea.png").exists()
    warning, = [line for line in err.splitlines() if "chelsea" in line]
    assert "diverged at step 0" in warning and "conditioning.params.scale" in warning and "noise level" in warning
    assert "error: 1 of 3 images diverged" in err
    assert "chelsea" not in out and "astronaut" in out
    assert (summary()["images"], summary()["diverged"], summary()["metrics"]["psnr"]["count"]) == (3, 1, 2)
    assert summary()["metrics"]["psnr"]["mean"] == pytest.approx(
        sum(float(table[name]["psnr"]) for name in ("astronaut", "coffee")) / 2, rel=1e-9)


def test_a_diverged_image_is_finished(run, wrapped):
    made = wrapped(Poisoned, 1, 500)
    assert run()[0] == 1
    status, out, err = run()
    assert status == 1 and "3 finished before" in out and "1 of 3 images diverged" in err
    assert len(made) == 1


def test_of_several_samples_the_others_count(run, wrapped):
    wrapped(Poisoned, 1, 500)                       # sample 1 of the first image
    status, _, err = run("--num_samples", "3", "--limit", "2")
    assert status == 1 and "astronaut, sample 1, diverged at step 0" in err and "1 of 2 images diverged" in err
    assert [(r["sample"], r["status"]) for r in rows()[:4]] == [
        ("0", "ok"), ("1", "diverged at step 0"), ("2", "ok"), ("mean", "ok")]
    pictures = {f.stem for f in (FOLDER / "recon").glob("astronaut*.png")}
    assert pictures == {"astronaut_0", "astronaut_2", "astronaut_mean"}
    assert rows()[3]["psnr"] and rows()[3]["std"]
    lines = (FOLDER / "trajectories/astronaut.csv").read_text().splitlines()
    assert lines[0] == "step,0,1,2" and len(lines) == 4
    assert run("--num_samples", "3", "--limit", "2")[1].count("2 finished before") == 1


def test_a_batch_without_a_finite_entry_is_not_sampled_to_the_end(run, wrapped, monkeypatch):
    monkeypatch.setattr(monitor, "CHECK_EVERY", 4)
    made = wrapped(lambda network: Counting(Poisoned(network, 0, 1000)))
    status, out, _ = run("--limit", "1", "--set", "diffusion.timestep_respacing=12")
    assert status == 1
    assert "results in" in out and "grid.png" not in out and not (FOLDER / "grid.png").exists()
    assert rows()[0]["status"] == "diverged at step 11"
    assert made[0].calls == 4


class Counting(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, x, t):
        self.calls += 1
        return self.network(x, t)


@pytest.mark.parametrize("method, scale, remedy", [
    ("dpps", "scale: 1e38", "a smaller conditioning.params.scale, check measurement.noise"),
    ("red_diff", "lr: 1e38", "other conditioning.params (lam, lr, posterior), check"),
])
def test_too_large_a_step_diverges_with_its_cause(run, method, scale, remedy):
    status, _, err = run("--limit", "1", "--set", f"conditioning={{method: {method}, params: {{{scale}}}}}")
    folder = FOLDER.parent / method
    assert status == 1 and rows(folder)[0]["status"].startswith("diverged at step ")
    assert f"try {remedy}" in err
    assert summary(folder)["metrics"]["psnr"]["count"] == 0


def test_without_memory_batches_are_halved_once_and_for_all(run, wrapped):
    for i in range(7):
        picture(Path(f"photos/{i}.png"), i)
    made = wrapped(Hungry, 2)
    status, _, err = run("--data", "photos", "--batch_size", "5", "--set", "conditioning.params.scale=0.5")
    assert status == 0, err
    assert made[0].seen == [5] + [2] * 6 + [1] * 3 + [2] * 3
    assert err.count("out of memory") == 1
    assert "with batches of 5; going on with batches of 2" in err
    assert [row["image"] for row in rows()] == [str(i) for i in range(7)]
    assert "21/21" in err


def test_without_memory_for_a_single_image_there_is_an_error(run, wrapped):
    wrapped(Hungry, 0)
    status, _, err = run()
    assert status == 2 and "even with batches of 1" in err and "--tile" in err and "Traceback" not in err


@pytest.mark.parametrize("error, expected", [
    (torch.cuda.OutOfMemoryError("x"), True), (MemoryError(), True), (ValueError("out of memory"), False),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes"), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
    (RuntimeError("shapes do not match"), False),
])
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_other_errors_are_not_taken_for_want_of_memory(run, monkeypatch):
    def wrong(*given):
        raise RuntimeError("shapes")

    monkeypatch.setattr(sample_condition.Task, "measure", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        run()


@pytest.mark.parametrize("code, writes", [(errno.ENOSPC, 3), (errno.EDQUOT, 8), (errno.EROFS, 17), (errno.ENOSPC, 19)])
def test_a_full_disk_ends_the_run_with_a_line_and_the_same_command_continues(run, monkeypatch, code, writes):
    options = ["--batch_size", "1", "--set", "diffusion.timestep_respacing=1"]
    assert run("--save_dir", "whole", *options)[0] == 0
    left, fsync = [writes], os.fsync

    def full(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        status, _, err = run(*options)
    assert status == 1
    line, = [line for line in err.splitlines() if line.startswith("error: ")]
    assert os.strerror(code) in line and "of 3 images are finished and kept" in line
    assert not list(FOLDER.rglob("*.tmp")) and not (FOLDER / "run.lock").exists()
    for file in FOLDER.rglob("*.png"):
        assert file.read_bytes() == (Path("whole") / file.relative_to("results")).read_bytes()
    assert run(*options)[0] == 0
    assert contents(FOLDER) == contents(Path("whole/super_resolution/dpps"))


@pytest.mark.parametrize("place, finished", [(Path("results"), 0), (FOLDER / "recon", 1)])
def test_a_folder_that_disappears_ends_the_run_with_a_line(run, wrapped, place, finished):
    class Remover(Counting):
        def forward(self, x, t):
            if self.calls == 4 and not Path("removed").exists():        # during the second image
                shutil.rmtree(place)
                Path("removed").touch()
            return super().forward(x, t)

    wrapped(Remover)
    status, _, err = run("--batch_size", "1")
    assert status == 1 and f"{place}" in err and "is gone" in err and f"{finished} of 3 images are finished" in err
    assert not list(place.rglob("*.png"))
    assert run("--batch_size", "1")[0] == 0
    assert len(list((FOLDER / "recon").iterdir())) == 3


def test_a_picture_that_is_gone_at_the_end_is_restored_by_the_same_command(tmp_path):
    directory = open_run(tmp_path)
    save(directory)
    directory.path_of("recon", "a").unlink()
    with pytest.raises(StorageError, match="recon/a.png.*the same command restores that image anew"):
        directory.conclude({})
    assert not open_run(tmp_path).finished("a")


def with_small_files(*options: str) -> int:
    """Those of the process may not grow beyond 2,000 bytes, which a picture of the run is larger than."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    return program(REPOSITORY / "sample_condition.py", *options)


def test_a_disk_that_is_really_full(fork, prior, workplace):
    process = fork(with_small_files, *arguments(prior, "--batch_size", "1"))
    _, err = process.communicate()
    assert process.returncode == 1, err
    line, = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "File too large" in line and "0 of 3 images are finished" in line
    assert not list(workplace.rglob("*.tmp")) and "Traceback" not in err
    assert not (workplace / FOLDER / "metrics.csv").exists()


@pytest.mark.parametrize("keep", [True, False])
def test_glibc_is_told_how_large_blocks_stay(monkeypatch, keep):
    class Glibc:
        parameters: ClassVar[dict[int, int]] = {}

        def mallopt(self, parameter: int, value: int) -> int:
            self.parameters[parameter] = value
            return 1

    monkeypatch.setattr(memory, "_glibc", Glibc)
    keep_freed_memory(keep)
    kept, free_at_the_end = Glibc.parameters[-3], Glibc.parameters[-1]              # of M_MMAP_ and M_TRIM_THRESHOLD
    assert kept == (96 if keep else 32) * 2 ** 20
    assert free_at_the_end == (2 ** 31 - 1 if keep else 64 * 2 ** 20)
    monkeypatch.setattr(memory, "_glibc", lambda: None)                             # another C library
    keep_freed_memory(keep)


def test_one_pixel_that_is_no_number_is_a_divergence(run, monkeypatch):
    restore = ConditioningMethod.restore

    def spoilt(*arguments) -> torch.Tensor:
        x = restore(*arguments)
        x[0, 0, 0, 0] = math.nan
        return x

    monkeypatch.setattr(ConditioningMethod, "restore", spoilt)
    assert run("--limit", "1")[0] == 1
    row, = rows()
    assert row["status"] == "diverged at step 0" and row["psnr"] == ""
