"""One run of a paper's table or of a grid: its folder, the command line that fills it, and what is already there."""

import argparse
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from util.checkpoint import fingerprint
from util.command import DEFAULT_PRECISION, undivided, user_path
from util.config.ask import environment
from util.config.config import REPOSITORY, Config, find_file, leaves
from util.errors import UserError
from util.logger import logger
from util.metrics.pairs import MEAN
from util.reproduce_table.spec import Run
from util.run.config_file import read_settings
from util.run.layout import TABLE
from util.run.table import Row, read_table

PROGRAM = str(REPOSITORY / "sample_condition.py")
PROGRESS = re.compile(r"(\d+)/(\d+) \[")            # what a progress bar writes: steps done / of all


@dataclass(frozen=True)
class Options:
    """What a command line hands on to every run; see `add_options`."""

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
    launcher: Sequence[str] = ()

    @classmethod
    def of(cls, args: argparse.Namespace, **more) -> "Options":
        """Those of a command line with `add_options`; `more` counts instead."""
        return cls(**{name: more.get(name, getattr(args, name, None)) for name in cls.__dataclass_fields__})

    def arguments(self) -> list[str]:
        """The options of `sample_condition.py`."""
        given = {"data": self.data, "limit": self.limit, "batch_size": self.batch_size, "gpu": self.gpu,
                 "weights_dir": self.weights_dir, "seed": self.seed, "num_samples": self.num_samples,
                 "precision": self.precision}
        parts = [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]
        return [*parts, "--overwrite"] if self.overwrite else parts


@dataclass
class Job:
    """A run with its place on disk.

    Attributes:
        run, config: what is run.
        names: the images, in order.
        save_dir: the run's own --save_dir.
        steps: of one sample of one image.
        cost: evaluations of the network that these take, at most; as many as steps where there is no network.
        files: what the images are read from.
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
    cost: int
    files: Mapping[str, Path] = field(default_factory=dict)
    error: str = ""
    failed: bool = False
    warnings: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The folder with metrics.csv, recon/ and label/."""
        return self.save_dir / self.config.operator.name / self.config.conditioning.name

    def all_rows(self) -> list[Row]:
        """The lines of metrics.csv of this run's images: their samples and the samples' means; none if it failed."""
        wanted = set(self.names)
        return [] if self.failed else [row for row in read_table(self.path) if row.image in wanted]

    def rows(self, means: bool = False) -> list[Row]:
        """A line of metrics.csv for every image that is finished: of several samples the one that fits y best, or their
        mean."""
        several = self.options.num_samples > 1
        chosen = {row.image: row for row in self.all_rows()
                  if not several or (row.sample == MEAN if means else row.best == 1)}
        return [chosen[name] for name in self.names if name in chosen]

    def missing(self) -> int:
        """How many images are not finished, all of them where the results are not this run's."""
        return len(self.names) - len(self.rows()) if self._own() else len(self.names)

    @property
    def left(self) -> int:
        """How many images are to be restored."""
        return len(self.names) if self.options.overwrite else self.missing()

    @property
    def evaluations(self) -> int:
        """Network evaluations that this takes, at most."""
        return self.left * self.options.num_samples * self.cost

    @property
    def foreign(self) -> bool:
        """Whether its folder holds results that are not this run's, so that it takes --overwrite."""
        return (self.path / TABLE).is_file() and not self._own()

    def replacing(self) -> "Job":
        """This job, told to replace what is there if that is not its own."""
        return replace(self, options=replace(self.options, overwrite=True)) if self.foreign else self

    def _own(self) -> bool:
        """Whether the results can be read, have these settings, and come from files that have not changed since."""
        wanted = {**self.config.as_dict(), "seed": self.options.seed, "num_samples": self.options.num_samples,
                  "precision": self.options.precision}
        try:
            found, rows = read_settings(self.path), self.rows()
        except UserError:
            return False
        if "checkpoint" in found:
            with suppress(UserError):               # results may outlive it
                wanted["checkpoint"] = fingerprint(find_file(self.config.model.get("model_path", ""), "checkpoint"))
        named = set(map(str, leaves(self.config.operator.params).values()))         # may name a mask or kernel
        read = [(self.files[row.image], row.source) for row in rows if row.image in self.files]
        read += [(user_path(name), before) for name, before in (found.get("files") or {}).items() if name in named]
        return (all(found.get(key) == value for key, value in wanted.items())
                and not any(_changed(file, before) for file, before in read))

    def command(self) -> list[str]:
        """The command line, as a user would type it."""
        start = [sys.executable]
        if self.options.nproc > 1:
            start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.options.nproc}"]
        return [*(self.options.launcher or start), PROGRAM, *self.run.options(), *self.options.arguments(),
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
            self.error, self.failed = reason(status, lines), status != 1


def _changed(file: Path, before: str) -> bool:
    """Whether a file has other contents than `before` tells; False where that is not known, or it cannot be read."""
    try:
        return before not in ("", _contents(file, file.stat().st_mtime_ns))
    except OSError:
        return False


@cache
def _contents(file: Path, _time: int) -> str:
    return fingerprint(file)


def launch(command: Sequence[str], advance: Callable[[int, int], None] = lambda done, total: None,
           log: Callable[[str], object] = lambda line: None) -> tuple[int, list[str]]:
    """Run a command and return its exit status and lines; an interrupt is handed on and waited for."""
    lines: list[str] = []
    with _started(command) as process:
        for line in process.stdout:                 # universal newlines: a carriage return ends a line, too
            if found := PROGRESS.search(line):
                advance(int(found[1]), int(found[2]))
            elif line.strip():
                lines.append(line.rstrip())
                log(lines[-1])
    return process.returncode, lines


@contextmanager
def _started(command: Sequence[str]) -> Iterator[subprocess.Popen]:
    """The process of a command, which is at its end after the block; what ends the block early interrupts it."""
    process = None
    try:
        with undivided():                           # a process that has begun is known here
            # a group of its own: Ctrl-C in a terminal reaches this process only, which passes it on once
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                       encoding="utf-8", errors="replace", start_new_session=True, env=environment())
        yield process
    except BaseException:                           # an interrupt, or the log cannot be written
        if process is not None:
            process.send_signal(signal.SIGINT)
        raise
    finally:
        if process is not None:
            process.wait()
            process.stdout.close()


def reason(status: int, lines: Sequence[str]) -> str:
    """The line that says why a run ended with `status`."""
    errors = [line.partition("error: ")[2] for line in lines if line.startswith("error: ")]
    return (errors or list(lines[-1:]) or [f"exit status {status}"])[0]


def seconds_per_evaluation(job: Job) -> float:
    """Time on this machine of one evaluation in `job` for one image: network, gradient and method, after a first batch.

    Raises:
        UserError: the run ends with an error, which is the message.
    """
    batch = job.options.batch_size or 1
    options = replace(job.options, limit=2 * batch, num_samples=1, batch_size=batch, nproc=1, overwrite=False,
                      launcher=())
    with TemporaryDirectory() as folder:
        few = replace(job.run, overrides=(*job.run.overrides, "diffusion.timestep_respacing=2"))
        trial = replace(job, run=few, save_dir=Path(folder), options=options)
        status, lines = launch(trial.command())
        rows = trial.rows() if status in (0, 1) else []
    if not rows:
        raise UserError(reason(status, lines))
    return min(row.seconds / (row.network_evaluations or job.cost) for row in rows)


def execute(jobs: Sequence[Job], label: str, title: Callable[[Job], str], folder: Path) -> bool:
    """Run what is missing, with one progress bar over all of it; what goes wrong stands in the jobs.

    Args:
        label: what the bar is called.
        title: words for a job.
        folder: where they all go.

    Returns:
        Whether it came to its end; False where it was interrupted, which is said.
    """
    todo = [job for job in jobs if job.left]
    try:
        with tqdm(total=sum(job.evaluations for job in todo), unit=" evaluations", desc=label, dynamic_ncols=True,
                  mininterval=0.1 if sys.stderr.isatty() else 10.0) as bar:
            for number, job in enumerate(todo, start=1):
                bar.set_postfix_str(f"run {number} of {len(todo)}: {title(job)}")
                _execute(job, bar, title(job), {warning for done in todo for warning in done.warnings})
        return True
    except KeyboardInterrupt:
        logger.error(f"interrupted: {sum(not job.missing() for job in jobs)} of {len(jobs)} runs are finished, all "
                     f"finished images are kept in {folder}; the same command continues")
        return False


def _execute(job: Job, bar: tqdm, title: str, said: set[str]) -> None:
    start, share = bar.n, job.evaluations
    job.execute(lambda done, total: bar.update(start + share * done // max(total, 1) - bar.n))
    if job.failed:
        bar.total -= share                          # time left is that of what is still run
    bar.update(start + (0 if job.failed else share) - bar.n)
    if job.error:
        logger.error(f"{title}: {job.error}")
    for warning in dict.fromkeys(job.warnings):
        if warning not in said:
            logger.warning(warning)
