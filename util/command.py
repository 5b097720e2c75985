"""What the commands of this project share: how they read their arguments, where they compute, and how they end."""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence

import torch

from util.errors import UserError, did_you_mean
from util.logger import get_logger
from util.memory import keep_freed_memory

MOST_SAMPLES = 10_000                               # posterior samples per image

# Of the network; all else is float32. tf32 is float32, but for the products of all convolutions on GPUs that have it.
PRECISIONS = {"tf32": None, "fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
DEFAULT_PRECISION = "tf32"


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `UserError`s, with the nearest spelling of unknown options."""

    def error(self, message: str) -> None:
        raise UserError(f"{message}; see --help")

    def print_help(self, file: object = None) -> None:
        """Say what there is to choose from, once where there are several processes."""
        get_logger().info(self.format_help().rstrip("\n"))

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Read the command line; UserError for a mistake in it. `given` holds the names of the options in it."""
        args, unknown = self.parse_known_args(argv)
        words = {word.partition("=")[0] for word in (sys.argv[1:] if argv is None else argv)}
        args.given = {action.dest for action in self._actions if words.intersection(action.option_strings)}
        if unknown:
            word = unknown[0].partition("=")[0]
            options = [option for option in self._option_string_actions if option.startswith("--")]
            what = "option" if word.startswith("-") else "argument"
            raise UserError(f"unknown {what} '{word}'; {did_you_mean(word, options)}")
        return args


def run_command(work: Callable[[], int]) -> int:
    """The exit status of a command: that of `work`, 2 for a mistake, 130 when stopped, both told in a line."""
    try:
        return work()
    except UserError as error:
        get_logger().error(error)
        return 2
    except KeyboardInterrupt:
        get_logger().error("interrupted")
        return 130


def run_program(main: Callable[[], int]) -> None:
    """End the process with the exit status of `main`; SIGTERM stops it like Ctrl-C.

    Shells start background jobs with SIGINT ignored; it counts nevertheless. The process keeps its freed memory.
    """
    keep_freed_memory()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    sys.exit(main())


def natural(text: str) -> int:
    """A whole number of 0 or more, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 0 or more")
    return int(text)


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)


def at_most(most: int) -> Callable[[str], int]:
    """What reads a whole number of 1 to `most`, for argparse."""
    def number(text: str) -> int:
        if positive(text) > most:
            raise argparse.ArgumentTypeError(f"'{text:.30}' is more than {most}")
        return int(text)
    return number


def choose_device(gpu: int | None) -> torch.device:
    """GPU `gpu`; when None, GPU 0 or else the CPU. UserError for a GPU that is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu is None:
        return torch.device("cuda:0" if count else "cpu")
    if not 0 <= gpu < count:
        found = f"the GPUs are 0 to {count - 1}" if count else "no GPU is found here; leave --gpu out for the CPU"
        raise UserError(f"--gpu {gpu}: {found}")
    return torch.device(f"cuda:{gpu}")
