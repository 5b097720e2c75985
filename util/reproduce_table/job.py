"""One run of a paper's table: its folder, the command line that fills it, and what is already there."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from util.checkpoint import fingerprint
from util.command import DEFAULT_PRECISION
from util.config.config import REPOSITORY, Config, find_file
from util.config.yaml_text import parse_yaml
from util.errors import UserError
from util.logger import get_logger
from util.reproduce_table.spec import Run

logger = get_logger()

CHECK = (sys.executable, "-m", "guided_diffusion.restoration.check")
PROGRESS = re.compile(r"(\d+)/(\d+) \[")            # what a progress bar writes: steps done / of all


@dataclass(frozen=True)
class Options:
    """What the command line of the table hands on to every run."""

    data: str | None
    seed: int
    limit: int | None
    num_samples: int
    batch_size: int | None = None
    gpu: int | None = None
    nproc: int = 1
    overwrite: bool = False
    weights_dir: str | None = None
    precision: str = DEFAULT_PRECISION

    def arguments(self) -> list[str]:
        """The options of `sample_condition.py`."""
        given = {"data": self.data, "limit": self.limit, "batch_size": self.batch_size, "gpu": self.gpu,
                 "weights_dir": self.weights_dir}
        parts = [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]
        return [*parts, "--seed", str(self.seed), "--num_samples", str(self.num_samples),
                "--precision", self.precision, *["--overwrite"] * self.overwrite]


@dataclass
class Job:
    """A run with its place on disk.

    Attributes:
        run, config: what is run.
        names: the images, in order.
        save_dir: the run's own --save_dir.
        steps: of one sample of one image, each one evaluation of the network if the method has one.
        error: in one line why the run failed, or why images are missing from it.
        failed: whether there are no results to show for that reason.
        warnings: what the run said besides.
    """

    run: Run
    config: Config
    names: Sequence[str]
    save_dir: Path
    options: Options
    steps: int
    error: str = ""
    failed: bool = False
    warnings: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The folder with metrics.csv, recon/ and label/."""
        return self.save_dir / self.config.operator.name / self.config.conditioning.name

    def all_rows(self) -> list[dict[str, str]]:
        """The lines of metrics.csv of this run's images, in the file's order: their samples and the samples' means."""
        try:
            with open(self.path / "metrics.csv", newline="", encoding="utf-8") as file:
                table = list(csv.DictReader(file))
        except FileNotFoundError:
            return []
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"cannot read {self.path / 'metrics.csv'}: {error}") from None
        wanted = set(self.names)
        return [row for row in table if row.get("image") in wanted]

    def rows(self) -> list[dict[str, str]]:
        """A line of metrics.csv for every image that is finished: of several samples the one that fits y best."""
        several = self.options.num_samples > 1
        chosen = {row["image"]: row for row in self.all_rows() if not several or row.get("best") == "1"}
        return [chosen[name] for name in self.names if name in chosen]

    def missing(self) -> int:
        """How many images are not finished, all of them where the results are not of these settings."""
        return len(self.names) - len(self.rows()) if self._same_settings() else len(self.names)

    @property
    def to_do(self) -> bool:
        """Whether there is anything to run."""
        return self.missing() > 0 or self.options.overwrite

    def replacing(self) -> "Job":
        """This job, told to replace what is there if that is of other settings."""
        foreign = (self.path / "metrics.csv").is_file() and not self._same_settings()
        return replace(self, options=replace(self.options, overwrite=True)) if foreign else self

    def _same_settings(self) -> bool:
        try:
            found = parse_yaml((self.path / "config.yaml").read_text(encoding="utf-8"))
            return all(found[key] == value for key, value in self._settings().items()) and self._same_prior(found)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _settings(self) -> dict[str, object]:
        return {**self.config.as_dict(), "seed": self.options.seed, "num_samples": self.options.num_samples,
                "precision": self.options.precision}

    def _same_prior(self, found: dict[str, object]) -> bool:
        """Whether the checkpoint is still the one of the run that `found` describes; results may outlive it."""
        try:
            return "checkpoint" not in found or found["checkpoint"] == fingerprint(
                find_file(self.config.model["model_path"], "checkpoint"))
        except UserError:
            return True

    def command(self) -> list[str]:
        """The command line, as a user would type it."""
        python = [sys.executable]
        if self.options.nproc > 1:
            python += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.options.nproc}"]
        return [*python, str(REPOSITORY / "sample_condition.py"), *self.run.options(), *self.options.arguments(),
                "--save_dir", str(self.save_dir)]

    def execute(self, advance: Callable[[int, int], None]) -> None:
        """Run what is missing; `advance(done, total)` hears of its steps. What it says goes to log.txt."""
        try:
            self.save_dir.mkdir(parents=True, exist_ok=True)
            with open(self.save_dir / "log.txt", "a", encoding="utf-8") as log:
                status, lines = launch(self.command(), advance, lambda line: log.write(f"{line}\n"))
        except OSError as error:
            raise UserError(f"cannot write to {self.save_dir}: {error.strerror or error}; "
                            "choose another folder with --save_dir") from None
        self.warnings += [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]
        if status:
            self.error, self.failed = _reason(status, lines), status != 1


def launch(command: Sequence[str], advance: Callable[[int, int], None] = lambda done, total: None,
           log: Callable[[str], object] = lambda line: None) -> tuple[int, list[str]]:
    """Run a command and return its exit status and lines; an interrupt is handed on and waited for."""
    lines: list[str] = []
    # a group of its own: Ctrl-C in a terminal reaches this process only, which passes it on once
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
                          errors="replace", start_new_session=True) as process:
        try:
            for line in process.stdout:             # universal newlines: a carriage return ends a line, too
                if found := PROGRESS.search(line):
                    advance(int(found[1]), int(found[2]))
                elif line.strip():
                    lines.append(line.rstrip())
                    log(lines[-1])
        except BaseException:                       # an interrupt, or the log cannot be written
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    return process.returncode, lines


def _reason(status: int, lines: Sequence[str]) -> str:
    """The line that says why a run ended with `status`."""
    errors = [line.partition("error: ")[2] for line in lines if line.startswith("error: ")]
    return (errors or list(lines[-1:]) or [f"exit status {status}"])[0]


def ask_steps(runs: Sequence[Run], data: str | None) -> list[int | UserError]:
    """Steps of one sample in each run, or what is wrong with its configuration; the command line knows both."""
    answers = json.loads(ask(json.dumps([run.arguments(data) for run in runs]))) if runs else []
    return [UserError(answer["error"]) if "error" in answer else answer["steps"] for answer in answers]


def ask(runs: str) -> str:
    """What the command line's check says of runs, JSON to JSON, asked once: it takes seconds to start."""
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    process = subprocess.run(CHECK, input=runs, capture_output=True, text=True, encoding="utf-8",
                             env={**os.environ, "PYTHONPATH": path})
    if process.returncode:
        raise UserError(f"{' '.join(CHECK)}: {_reason(process.returncode, process.stderr.splitlines())}")
    return process.stdout


def seconds_per_evaluation(job: Job) -> float:
    """Time on this machine of one step of `job` for one image: network, gradient and method, after a first batch.

    Raises:
        UserError: the run ends with an error, which is the message.
    """
    batch = job.options.batch_size or 1
    options = replace(job.options, limit=2 * batch, num_samples=1, batch_size=batch, nproc=1, overwrite=False)
    with TemporaryDirectory() as folder:
        command = [sys.executable, str(REPOSITORY / "sample_condition.py"), *job.run.options(), *options.arguments(),
                   "--set", "diffusion.timestep_respacing=2", "--save_dir", folder]
        status, lines = launch(command)
        trial = replace(job, save_dir=Path(folder), options=options)
        rows = trial.rows() if status in (0, 1) else []
    if not rows:
        raise UserError(_reason(status, lines))
    return min(float(row["seconds"]) / (float(row["network_evaluations"]) or job.steps) for row in rows)


def images_left(job: Job) -> int:
    """Images that a job still has to restore."""
    return len(job.names) if job.options.overwrite else job.missing()


def evaluations(job: Job) -> int:
    """Network evaluations that a job still needs."""
    return images_left(job) * job.options.num_samples * job.steps


def execute(jobs: Sequence[Job], label: str, title: Callable[[Job], str]) -> None:
    """Run what is missing, with one progress bar over all of it; what goes wrong stands in the jobs.

    Args:
        label: what the bar is called.
        title: words for a job.
    """
    todo = [job for job in jobs if job.to_do]
    said: set[str] = set()
    with tqdm(total=sum(map(evaluations, todo)), unit=" evaluations", desc=label, dynamic_ncols=True,
              mininterval=0.1 if sys.stderr.isatty() else 10.0) as bar:
        for number, job in enumerate(todo, start=1):
            start, share = bar.n, evaluations(job)
            bar.set_postfix_str(f"run {number} of {len(todo)}: {title(job)}")

            def advance(done: int, total: int, start: int = start, share: int = share) -> None:
                bar.update(start + share * done // max(total, 1) - bar.n)

            job.execute(advance)
            if job.failed:
                bar.total -= share                  # time left is that of what is still run
                bar.update(start - bar.n)
            else:
                advance(1, 1)
            if job.error:
                logger.error(f"{title(job)}: {job.error}")
            for warning in job.warnings:
                if warning not in said:
                    logger.warning(warning)
            said.update(job.warnings)


def count(number: int, noun: str) -> str:
    """"1 run", "2 runs"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Words for a time: "40 s", "12 min", "3 h 05 min", "4 d 7 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 99:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
