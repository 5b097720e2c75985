"""What the commands of this project share: arguments, paths as a user types them, where they compute, how they end."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from util.errors import UserError, did_you_mean
from util.logger import logger, outlive_readers
from util.memory import keep_freed_memory

if TYPE_CHECKING:
    import torch

MOST_SAMPLES = 10_000                               # posterior samples per image
SHOWN = 60                                          # characters of a path in a message
CLOSE = 0.75                                        # likeness of an option that is suggested, dashes and all
SPINS = "3000"                                      # of a thread of torch's that waits for another, before it sleeps

# Of the network; all else is float32. tf32 is float32, but for the products of all convolutions on GPUs that have it.
PRECISIONS = ("tf32", "fp32", "bf16", "fp16")
DEFAULT_PRECISION = PRECISIONS[0]


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `UserError`s, with the nearest spelling of unknown options."""

    def __init__(self, **words: str):
        super().__init__(allow_abbrev=False, **words)

    def error(self, message: str) -> None:
        raise UserError(f"{message}; see --help")

    def print_help(self, file: object = None) -> None:
        """Say what there is to choose from, once where there are several processes."""
        logger.info(self.format_help().rstrip("\n"))

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Read the command line; UserError for a mistake in it."""
        args, unknown = self.parse_known_args(argv)
        if unknown:
            word = unknown[0].partition("=")[0]
            options = [option for option in self._option_string_actions if option.startswith("--")]
            begun = next((option for option in options if option.startswith(word)), word)
            raise UserError(f"unknown argument '{word}'; {did_you_mean(begun, options, CLOSE)}")
        return args


def run_command(work: Callable[[], int]) -> int:
    """The exit status of a command: that of `work`, 2 for a mistake, 130 when stopped, both told in a line."""
    try:
        return work()
    except UserError as error:
        logger.error(error)
        return 2
    except KeyboardInterrupt:
        logger.error("interrupted")
        return 130


def command(parse: Callable[[Sequence[str] | None], argparse.Namespace]
            ) -> Callable[[Callable[[argparse.Namespace], int]], Callable[..., int]]:
    """Decorator of what a program does: of work(args) -> exit status it makes main(argv), by default the process's own
    arguments, which ends as `run_command` says."""
    def decorate(work: Callable[[argparse.Namespace], int]) -> Callable[..., int]:
        @wraps(work)
        def main(argv: Sequence[str] | None = None) -> int:
            return run_command(lambda: work(parse(argv)))
        return main
    return decorate


def before_imports() -> None:
    """To be called before imports that take seconds: SIGINT and SIGTERM end the process with status 130 and a line,
    until `run_program` says otherwise; torch has threads that do not spin long where another program has their core,
    unless the user says how long."""
    outlive_readers()
    end_at_once()
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def check_command_line(parse: Callable[[None], object]) -> None:
    """`before_imports`, and the end of the process if --help is asked for or the command line holds a mistake.

    Of the processes that torchrun started, none ends here: one speaks for all, once they have met.
    """
    before_imports()
    if "RANK" not in os.environ:
        status = run_command(lambda: 0 if parse(None) else 1)
        if status:
            sys.exit(status)


def run_program(main: Callable[[], int]) -> None:
    """End the process with the exit status of `main`; SIGTERM stops it like Ctrl-C. It keeps its freed memory."""
    outlive_readers()
    keep_freed_memory()
    catch_signals()
    sys.exit(run_command(main))


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """What reads a whole number in a range, for argparse."""
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"'{text:.30}' is not a whole number of {least} or more")
        if most is not None and int(text) > most:
            raise argparse.ArgumentTypeError(f"'{text:.30}' is more than {most}")
        return int(text)
    return number


def some_of(choices: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """What reads some of `choices`, each once, separated by commas, for argparse."""
    def names(text: str) -> tuple[str, ...]:
        words = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
        for word in words:
            if word not in choices:
                raise argparse.ArgumentTypeError(f"unknown name '{word}'; {did_you_mean(word, choices)}")
        return words
    return names


natural, positive, samples = whole(0), whole(1), whole(1, MOST_SAMPLES)


def choose_device(gpu: int | None) -> "torch.device":
    """GPU `gpu`; when None, GPU 0 or else the CPU. UserError for a GPU that is not there."""
    import torch  # takes seconds, which --help and mistakes need not wait for

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu is None:
        return torch.device("cuda:0" if count else "cpu")
    if not 0 <= gpu < count:
        found = f"the GPUs are 0 to {count - 1}" if count else "no GPU is found here; leave --gpu out for the CPU"
        raise UserError(f"--gpu {gpu}: {found}")
    return torch.device(f"cuda:{gpu}")


def user_path(path: str | Path) -> Path:
    """The path that a user typed, with ~ for a home folder; nothing need be there.

    Raises:
        UserError: no system call takes it: it is too long, holds a NUL, or ~ names nobody.
    """
    try:
        expanded = Path(path).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            os.lstat(expanded)
    except (OSError, RuntimeError, ValueError) as error:
        shown = str(path) if len(str(path)) <= SHOWN else f"{str(path)[:SHOWN]}..."
        raise UserError(f"'{shown}' is no path: {getattr(error, 'strerror', None) or error}") from None
    return expanded


def output_folder(path: str | Path) -> Path:
    """The folder of `--out`, which need not be there; UserError if nothing can be written there."""
    folder = user_path(path)
    _require_writable(folder, path)
    return folder


def output_file(path: str | Path, example: str) -> Path:
    """The file of `--out`, which may be there; UserError if it is a folder or cannot be written.

    Args:
        example: a file name, for messages.
    """
    file = user_path(path)
    if file.is_dir():
        raise UserError(f"--out {path} is a folder, expected a file such as {example}")
    _require_writable(file.parent, path)
    return file


def _require_writable(folder: Path, path: str | Path) -> None:
    try:
        with TemporaryFile(dir=next(place for place in (folder, *folder.absolute().parents) if place.exists())):
            pass
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror or error}; choose another place") from None


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler wants the machine back, or torchrun ends the run because a process of it has died."""


def end_at_once() -> None:
    """From now on SIGINT and SIGTERM end the process with status 130 and a line, whatever it does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)


def catch_signals() -> None:
    """From now on SIGINT raises KeyboardInterrupt and SIGTERM `Terminated`, the first that comes and no other.

    Shells start background jobs with SIGINT ignored; it counts nevertheless.
    """
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)


@contextmanager
def undivided() -> Iterator[None]:
    """SIGINT and SIGTERM that come within the block are acted on at its end. For the main thread alone."""
    come: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: come.append(number))
                for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in come[:1]:
        signal.raise_signal(number)


def _end(_number: int, _frame: object) -> None:
    os.write(2, b"error: interrupted\n")
    os._exit(130)


def _stop(number: int, _frame: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # torchrun sends SIGTERM after an interrupt
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
