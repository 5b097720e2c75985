"""Whether runs can be started, for programs that only know the command line:

    python -m guided_diffusion.restoration.check < runs.json

reads a JSON list with the arguments of `load_config` for each run, and prints a JSON list: {"steps": 20, "cost": 56} of
one sample of an image, the second in evaluations of the network, or {"error": "..."}. Files that only some runs need,
such as checkpoints, are looked for by these.
"""

import json
import sys
from collections.abc import Mapping, Sequence

from guided_diffusion.measurements import OPERATORS
from guided_diffusion.restoration.build import build_parts
from util.command import run_program
from util.config.config import load_config
from util.errors import UserError
from util.logger import get_logger


def answer(runs: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """What is printed: for each run its steps and their cost, or what is wrong with it."""
    answers: list[dict[str, object]] = []
    for arguments in runs:
        try:
            config = load_config(**arguments)
            sampler, _, method = build_parts(config)
            OPERATORS.check(config.operator.name, **config.operator.params)
            answers.append({"steps": method.num_steps(sampler), "cost": method.num_evaluations(sampler)})
        except UserError as error:
            answers.append({"error": str(error)})
    return answers


def main() -> int:
    """Answer standard input; exit status 0."""
    get_logger().info(json.dumps(answer(json.load(sys.stdin))))
    return 0


if __name__ == "__main__":
    run_program(main)
