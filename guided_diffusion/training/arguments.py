"""The command line of `guided_diffusion.train`, without what takes seconds to import."""

import argparse
from collections.abc import Sequence

from util.command import Parser


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; UserError for a mistake in it."""
    parser = Parser(
        prog="python -m guided_diffusion.train", allow_abbrev=False,
        description="Train a prior on a folder of photographs.",
        epilog="The same command continues a training that was interrupted, from state.pt in --out, and prolongs one "
        "whose phases have grown. On several GPUs: torchrun --nproc_per_node=N -m guided_diffusion.train ... with the "
        "same options; batch_size is shared among the processes. docs/training.md explains the training file.")
    add = parser.add_argument
    add("--data", required=True, metavar="FOLDER", help="of photographs")
    add("--config", default="configs/train_demo.yaml", metavar="FILE", help="training file; default %(default)s")
    add("--out", default="runs/train_demo", metavar="FOLDER", help="for checkpoints and curves; default %(default)s")
    add("--init", metavar="FILE", help="weights to begin with, instead of random ones; once --out holds a state.pt, "
        "that is continued")
    return parser.parse(argv)
