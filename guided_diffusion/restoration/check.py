"""What is right and wrong with runs and with weights, for programs that do not know diffusion (`util.config.ask`):

    python -m guided_diffusion.restoration.check < questions.json

reads a JSON list of questions and prints a JSON list of answers, {"error": "..."} wherever something is wrong.
"""

import json
import sys
from collections.abc import Mapping, Sequence

from guided_diffusion.measurements import OPERATORS
from guided_diffusion.restoration.build import build_parts
from guided_diffusion.unet import create_model
from util.command import run_program
from util.config.config import load_config, read_yaml
from util.errors import UserError
from util.logger import logger


def answer(questions: Sequence[Mapping[str, Mapping]]) -> list[dict[str, object]]:
    """What is printed; a question is {"run": arguments of `cost`} or {"weights": arguments of `try_weights`}."""
    answers = []
    for question in questions:
        try:
            answers.append(cost(**question["run"]) if "run" in question else try_weights(**question["weights"]))
        except UserError as error:
            answers.append({"error": str(error)})
    return answers


def cost(**arguments: object) -> dict[str, object]:
    """The steps of one sample of an image, and their cost in evaluations of the network; arguments of `load_config`.

    Files that only some runs need, such as checkpoints, are looked for by these.
    """
    config = load_config(**arguments)
    sampler, _, method = build_parts(config)
    OPERATORS.check(config.operator.name, **config.operator.params)
    return {"steps": method.num_steps(sampler), "cost": method.num_evaluations(sampler)}


def try_weights(config: str, file: str) -> dict[str, object]:
    """Nothing; UserError unless the network of a model config, or the operator of a task config, loads `file`, every
    name and shape."""
    tree = read_yaml(config)
    if "measurement" in tree:
        operator = dict(tree["measurement"]["operator"])
        OPERATORS.build(operator.pop("name"), **{**operator, "model_path": file})
    else:
        create_model(**{**tree, "model_path": file})
    return {}


def main() -> int:
    """Answer standard input; exit status 0."""
    logger.info(json.dumps(answer(json.load(sys.stdin))))
    return 0


if __name__ == "__main__":
    run_program(main)
