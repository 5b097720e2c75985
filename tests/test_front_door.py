"""The way of an image through `sample_condition.py`: short to read, and from `main` to the gradient few frames."""

import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

import sample_condition
from guided_diffusion.restoration import monitor
from guided_diffusion.restoration.catalogue import METHODS
from tests.command_line import arguments, rows
from tests.forks import program
from tests.helpers import picture
from util import memory
from util.config.config import REPOSITORY
from util.logger import Lasting
from util.run.team import Team

MOST_FRAMES, MOST_LINES = 9, 150
PROGRAMS = ("sample_condition", "guided_diffusion.benchmark", "guided_diffusion.train", "guided_diffusion.tune",
            "guided_diffusion.validate", "util.compute_metric", "util.report", "util.reproduce_table")
FOLLOW_A_GRADIENT = [name for name in METHODS if getattr(METHODS[name], "needs_grad", False)]
HEAVY = ("torch", "torchvision", "scipy", "skimage", "matplotlib")


class FrameCounter(nn.Module):
    """A network that counts, in its backward pass, the frames of the stack from `main` on."""

    def __init__(self, network: nn.Module, counted: list[int]):
        super().__init__()
        self.network, self.counted = network, counted

    def forward(self, x, t):
        output = self.network(x, t)
        if output.requires_grad:
            output.register_hook(lambda gradient: self.count(sys._getframe(1)))
        return output

    def count(self, frame) -> None:
        frames = 1
        while frame.f_code is not sample_condition.main.__code__:
            frame, frames = frame.f_back, frames + 1
        self.counted.append(frames)                 # without the hook, with `main`


@pytest.mark.parametrize("conditioning", [*(f"{{method: {name}}}" for name in FOLLOW_A_GRADIENT),
                                          "{method: ps, params: {likelihood: gaussian}}", "{method: dcps}",
                                          "{method: sitcom, params: {iterations: 2}}"])
def test_few_frames_lie_between_main_and_the_gradient_of_the_network(run, monkeypatch, conditioning):
    counted, load = [], sample_condition.load_prior
    monkeypatch.setattr(sample_condition, "load_prior", lambda *given: FrameCounter(load(*given), counted))
    status, _, err = run("--limit", "1", "--set", f"conditioning={conditioning}")
    assert status == 0, err
    assert min(counted) > 3 and max(counted) <= MOST_FRAMES


def test_the_program_is_short():
    assert len((REPOSITORY / "sample_condition.py").read_text().splitlines()) <= MOST_LINES


def test_help_and_mistakes_need_no_torch():
    """They are answered before the imports that take seconds."""
    code = f"""
import runpy, sys
for program in {PROGRAMS}:
    for option in ("--help", "--no_such_option", "--seed"):
        sys.argv = [program, option]
        try:
            runpy.run_module(program, run_name="__main__")
        except SystemExit as end:
            print(f"{{program}} {{option}}: {{end.code}}, {{sorted({{*sys.modules}} & {{*{HEAVY}}})}}", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    told = [line for line in done.stderr.splitlines() if not line.startswith("error: ")]
    assert told == [f"{program} {option}: {status}, []" for program in PROGRAMS
                    for option, status in (("--help", 0), ("--no_such_option", 2), ("--seed", 2))]
    assert "--task_config" in done.stdout


def test_the_program_keeps_its_freed_memory(monkeypatch):
    """As a user runs it: README's figures of a step are those of runs that do."""
    told = []
    monkeypatch.setattr("util.command.keep_freed_memory", lambda: told.append(memory.KEPT))
    monkeypatch.setattr("util.command.catch_signals", lambda: None)
    with pytest.raises(SystemExit) as end:
        sample_condition.run_program(lambda: sample_condition.main(["--list"]))
    assert end.value.code == 0 and told == [96 * 2 ** 20]
    source = (REPOSITORY / "sample_condition.py").read_text()
    assert source.endswith('if __name__ == "__main__":\n    run_program(main)\n')


def without_a_reader(*options: str) -> int:
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)
    return program(REPOSITORY / "sample_condition.py", *options)


def test_a_reader_that_goes_away_stops_nothing(fork, prior, workplace):
    """As with `| head -1`: the run's files are complete, and nobody complains."""
    process = fork(without_a_reader, *arguments(prior, "--limit", "1"))
    _, err = process.communicate()
    assert process.returncode == 0 and "Traceback" not in err and "cannot be written" not in err
    assert len(rows()) == 1 and Path("results/super_resolution/dpps/summary.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
@pytest.mark.parametrize("full", [False, True])
def test_what_nobody_can_receive_is_dropped(capsys, full):
    ends = (None, os.open("/dev/full", os.O_WRONLY)) if full else os.pipe()
    if not full:
        os.close(ends[0])
    with io.TextIOWrapper(open(ends[1], "wb")) as stream:
        lasting = Lasting(stream)
        for _ in range(2):
            lasting.write("hello\n")
            lasting.flush()
    assert capsys.readouterr().err.count("cannot be written: No space left on device") == full


@pytest.mark.parametrize("data, save_dir", [("photos", "photos/out"), (".", "results"), ("photos", "photos"),
                                            ("photos", "link"), ("out/super_resolution/dpps/input", "out")])
def test_results_do_not_become_data(run, data, save_dir):
    for folder in ("photos", "out/super_resolution/dpps/input"):
        picture(Path(folder, "a.png"), 1)
    Path("link").symlink_to("photos")
    status, _, err = run("--data", data, "--save_dir", save_dir)
    assert status == 2 and "choose a --save_dir apart from --data" in err
    assert run("--data", data, "--save_dir", "elsewhere", "--limit", "1")[0] == (2 if data == "." else 0)


def test_progress_of_a_finished_run_is_missed(run):
    assert run("--limit", "2")[0] == 0
    status, _, err = run("--limit", "2", "--progress", "1")
    assert status == 0 and "--progress: nothing was saved on the way of 2 images finished before; --overwrite" in err
    assert run("--limit", "2", "--progress", "1", "--overwrite")[0] == 0
    assert "--progress" not in run("--limit", "2", "--progress", "1")[2]


@pytest.mark.parametrize("seconds, advised", [(30, 1), (1, 0)])
def test_hours_to_go_are_warned_of_once(monkeypatch, capsys, seconds, advised):
    """Of the duration of later steps than the first, which takes an hour here."""
    now = [0.0]
    monkeypatch.setattr(monitor, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    progress = monitor.Monitor(None, None, Team(), images=10, num_samples=1, num_steps=100)
    for step in range(100):
        now[0] += seconds if step else 3600
        progress.steps_done += 1
        progress.refresh()
    words = "about 8 h 19 min to go; fewer steps (--set diffusion.timestep_respacing=100)"
    assert capsys.readouterr().err.count(words) == advised
