"""Runs of several processes, started by torchrun as a user does: gloo on the CPU."""

import os
import signal
import time
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import pytest
import torch
from torch.distributed import DistNetworkError

import sample_condition
from guided_diffusion.restoration.arguments import parse_arguments
from tests.command_line import FOLDER, arguments, contents
from tests.forks import program, ranks
from tests.helpers import picture
from util.command import run_command
from util.config.config import REPOSITORY
from util.errors import UserError
from util.logger import logger
from util.run.lock import hold, locked
from util.run.team import Team, device_of

IMAGES = 5
OPTIONS = ["--data", "photos", "--batch_size", "1"]


@pytest.fixture
def one_thread():
    """As torchrun starts its processes: sums are rounded differently on another number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def photos(workplace, one_thread):
    for i in range(IMAGES):
        picture(workplace / "photos" / f"{i}.png", i)
    (workplace / "photos" / "broken.png").write_text("no image")
    return workplace


def ranks_of(torchrun: int) -> dict[int, int]:
    """Rank -> process id, of the processes that torchrun started."""
    found = {}
    for children in Path(f"/proc/{torchrun}/task").glob("*/children"):
        for pid in map(int, children.read_text().split()):
            environment = dict(item.partition("=")[::2] for item in
                               Path(f"/proc/{pid}/environ").read_text().split("\0"))
            if "RANK" in environment:
                found[int(environment["RANK"])] = pid
    return found


def test_several_processes_leave_what_one_does(run, fork, prior, photos):
    assert run(*OPTIONS, "--save_dir", "one")[0] == 1
    expected = contents(photos / "one" / FOLDER)
    process = fork(ranks, 3, "sample_condition", arguments(prior, *OPTIONS, "--save_dir", "three"))
    out, err = process.communicate()
    assert process.returncode == 1, err
    assert contents(photos / "three" / FOLDER) == expected
    assert out.count(f"{IMAGES + 1} images of") == out.count("mean of 5") == 1           # one process speaks
    assert err.count("cannot read image") == err.count("left out: LPIPS") == 1
    assert "18/18" in err and "1 of 6 images could not be read" in err


def test_a_run_by_torchrun_survives_the_death_of_a_process(run, fork, prior, photos, monkeypatch):
    """Whose processes torchrun starts, as a user's: they alone have imports of their own."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    (photos / "quick.py").write_text("from tests.fake_weights import use_fast_scores\nimport sample_condition\n"
                                     "use_fast_scores()\nsample_condition.run_program(sample_condition.main)\n")
    slow = [*OPTIONS, "--set", "diffusion.timestep_respacing=8"]
    process = fork(program, find_spec("torch.distributed.run").origin, "--standalone", "--nproc_per_node=2", "quick.py",
                   *arguments(prior, *slow, "--save_dir", "two"))
    table = photos / "two" / FOLDER / "rows"
    deadline = time.monotonic() + 600
    while not any(f.stat().st_size for f in table.glob("*.csv")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 1
    line, = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "another process of the run has ended" in line and "of 6 images are finished and kept" in line
    assert "same command continues" in line
    before = {f: f.stat().st_mtime_ns for f in (photos / "two" / FOLDER / "recon").glob("*.png")}
    assert before
    status, out, err = run(*slow, "--save_dir", "two")
    assert status == 1 and "finished before" in out, err
    done = [f for f in before if f.stat().st_mtime_ns == before[f]]
    assert done
    assert run(*slow, "--save_dir", "single")[0] == 1
    assert contents(photos / "two" / FOLDER) == contents(photos / "single" / FOLDER)


def test_a_process_alone_is_a_team():
    with Team() as team:
        assert (team.rank, team.size, team.leads) == (0, 1, True)
        assert list(team.share(3)) == [0, 1, 2]
        assert team.first("word") and not team.first("word") and team.first("other")
        team.publish("key", "text")
        assert team.receive("key") == "text"
        assert team.gather({"a": 1}, lambda: None) == [{"a": 1}]
        assert team.choose_device(None).type in ("cpu", "cuda")


def test_work_goes_to_whoever_is_free():
    """Two members of a team that share a store: one takes two pieces, the other the rest, none both."""
    first, second = Team(), Team()
    second.store = first.store
    quick, slow = first.share(5), second.share(5)
    assert [next(slow), next(quick), next(quick), next(quick), next(slow)] == [0, 1, 2, 3, 4]
    assert list(quick) == list(slow) == []


def test_the_log_of_other_processes_keeps_to_warnings_and_names_the_rank(capsys):
    first, second = Team(), Team()
    second.store, second.rank = first.store, 1
    said = {}
    for team in (first, second):
        logger.addFilter(team._keep)
        logger.info("hello")
        logger.warning("both see this")
        logger.warning(f"only {team.rank}")
        logger.removeFilter(team._keep)
        said[team.rank] = capsys.readouterr()
    assert said[0].out == "hello\n" and said[1].out == ""
    assert said[0].err == "warning: both see this\nwarning: only 0\n"
    assert said[1].err == "warning: rank 1: only 1\n"


def test_an_error_of_another_process_begins_a_line_of_its_own(capsys, monkeypatch):
    """The first process's progress bar may stand on the line."""
    monkeypatch.setenv("RANK", "1")
    logger.error("disk full")
    assert capsys.readouterr().err == "\nerror: disk full\n"


@pytest.mark.parametrize("option", ["--help", "--list", "--print_config"])
def test_what_is_printed_is_printed_by_one_process(capsys, option):
    first, second = Team(), Team()
    second.store, second.rank = first.store, 1
    said = []
    for team in (first, second):
        logger.addFilter(team._keep)
        try:
            status = sample_condition.run(parse_arguments([option]), team, None)
        except SystemExit as end:                   # as argparse ends after --help
            status = end.code
        logger.removeFilter(team._keep)
        assert not status
        said.append(capsys.readouterr())
    assert len(said[0].out.splitlines()) > 20 and said[1].out == ""
    assert said[0].err == said[1].err == ""


def test_a_gpu_cannot_be_chosen_for_all_processes():
    team = Team()
    team.device = torch.device("cpu")
    assert team.choose_device(None) == torch.device("cpu")
    with pytest.raises(UserError, match="--gpu 0.*CUDA_VISIBLE_DEVICES"):
        team.choose_device(0)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of(1) == torch.device("cuda:1")
    with pytest.raises(UserError, match="2 GPUs.*--nproc_per_node=2"):
        device_of(2)


def test_processes_that_cannot_meet_say_so(monkeypatch, capsys):
    """Before there is a team: a line and status 2, no traceback."""
    for pair in ("RANK=1", "WORLD_SIZE=2", "LOCAL_RANK=0", "MASTER_ADDR=localhost", "MASTER_PORT=9"):
        monkeypatch.setenv(*pair.split("="))

    def unreachable(url):
        raise DistNetworkError("The client socket has timed out\nand more")

    monkeypatch.setattr(torch.distributed, "rendezvous", unreachable)
    assert run_command(lambda: sample_condition.main(["--list"])) == 2
    assert "do not reach each other at localhost:9 (The client socket has timed out)" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run_command(lambda: sample_condition.main(["--list"])) == 2
    assert "--nproc_per_node=1" in capsys.readouterr().err


@pytest.fixture
def pair(monkeypatch) -> tuple[Team, Team]:
    """Two members of a team, in this process."""
    monkeypatch.setattr("util.run.lock.VISIBLE_SECONDS", 0.3)
    first, second = Team(), Team()
    second.store, second.rank = first.store, 1
    first.size = second.size = 2
    return first, second


def test_a_folder_that_is_not_shared_is_refused(tmp_path, pair):
    with locked(tmp_path / "a") as owner:
        pair[0].publish("owner", owner)
        with (pytest.raises(UserError, match="same folder on all machines.*shared disk"),
              hold(tmp_path / "b", pair[1])):
            pass


def test_the_folder_stays_locked_until_all_have_looked(tmp_path, pair):
    """However short the run of the leading process is, and however late another one looks."""
    held = []

    def lead() -> None:
        with hold(tmp_path, pair[0]):
            held.append(pair[0].rank)

    leading = Thread(target=lead)
    leading.start()
    pair[1].receive("owner")
    time.sleep(0.3)
    assert not held and (tmp_path / "run.lock").exists()
    with hold(tmp_path, pair[1]):
        leading.join()
    assert held and not list(tmp_path.iterdir())
