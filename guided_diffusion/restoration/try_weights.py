"""Whether a file holds the weights that a configuration asks for, every name and shape, for programs that only know the
command line:

    python -m guided_diffusion.restoration.try_weights configs/model_config.yaml FILE
"""

import sys
from collections.abc import Sequence

from guided_diffusion.measurements import OPERATORS
from guided_diffusion.unet import create_model
from util.command import run_program
from util.config.config import read_yaml
from util.errors import UserError


def try_weights(config: str, file: str) -> None:
    """UserError if the network of a model config, or the operator of a task config, cannot be loaded from `file`."""
    tree = read_yaml(config)
    if "measurement" in tree:
        operator = dict(tree["measurement"]["operator"])
        OPERATORS.build(operator.pop("name"), **{**operator, "model_path": file})
    else:
        create_model(**{**tree, "model_path": file})


def main(argv: Sequence[str] | None = None) -> int:
    """The command; exit status 0, UserError where the file does not fit."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 2:
        raise UserError(f"found {len(arguments)} arguments, expected a configuration and a file")
    try_weights(*arguments)
    return 0


if __name__ == "__main__":
    run_program(main)
