"""The DnCNN weights in scico's wheel, as flax saved them, for PyTorch: `python -m util.flax_weights WHEEL`."""

import argparse
import zipfile
from functools import partial
from pathlib import Path

import msgpack
import numpy as np
import torch
from torch import Tensor

from util.command import Parser, command, output_file, run_program, user_path
from util.errors import UserError
from util.files import content_of, write_atomically
from util.logger import logger

VARIANTS = ("6L", "6M", "6H", "6N", "17L", "17M", "17H", "17N")
BATCH_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
WHEEL = "pip download --no-deps scico==0.0.7"       # BSD-3-Clause, Los Alamos National Laboratory


def read_flax(content: bytes) -> dict:
    """The tree of arrays that flax's `to_bytes` wrote."""
    def array(kind: int, packed: bytes) -> np.ndarray:
        shape, dtype, values = msgpack.unpackb(packed)
        return np.frombuffer(values, dtype).reshape(shape).copy()

    return msgpack.unpackb(content, ext_hook=array)


def dncnn_state_dict(source: Path, variant: str = "17M") -> dict[str, Tensor]:
    """A trained DnCNN of scico 0.0.7, named and laid out as PyTorch has it.

    Convolutions are scico.0, .2, .5, .8, ..., without biases, and the batch normalisations .3, .6, ... between them.
    scico exchanges the height and the width of colour images before it applies a network; here the kernels' are.

    Args:
        source: scico's wheel, or a file scico/data/flax/dncnn*.mpk out of it.
        variant: 6 or 17 layers; trained for noise of 0.06 (L), 0.1 (M), 0.2 (H) on [0, 1], or told its sigma (N).

    Raises:
        UserError: there is no such file, or no such network in it.
    """
    member = f"scico/data/flax/dncnn{variant}.mpk"
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as wheel:
                tree = read_flax(wheel.read(member))
        else:
            tree = read_flax(source.read_bytes())
        params, statistics = tree["params"], tree["batch_stats"]
        blocks = [f"ConvBNBlock_{i}" for i in range(len(statistics))]
        kernels = [params["conv_start"], *(params[block]["Conv_0"] for block in blocks), params["conv_end"]]
        state = {f"scico.{max(0, 3 * i - 1)}.weight": conv["kernel"].T                          # of (H, W, in, out)
                 for i, conv in enumerate(kernels)}
        for i, block in enumerate(blocks):
            values = params[block]["BatchNorm_0"] | statistics[block]["BatchNorm_0"]
            state |= {f"scico.{3 * i + 3}.{ours}": values[theirs] for theirs, ours in BATCH_NORM.items()}
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}; fetch the wheel by {WHEEL}") from None
    except (KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, msgpack.UnpackException):
        raise UserError(f"{source} holds no {member}, expected the wheel of scico 0.0.7 ({WHEEL}) or that file out of "
                        "it") from None
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in state.items()}


parser = Parser(prog="python -m util.flax_weights",
                description="Convert a DnCNN out of scico's wheel to a PyTorch state dict.")
parser.add_argument("source", metavar="WHEEL", help=f"from {WHEEL}; or a file dncnn*.mpk out of it")
parser.add_argument("--variant", choices=VARIANTS, default="17M", help="default %(default)s")
parser.add_argument("--out", metavar="FILE", help="default models/dncnnVARIANT.pt")


@command(parser.parse)
def main(args: argparse.Namespace) -> int:
    """Write the network's file; exit status 0, 2 for a mistake, 130 when interrupted."""
    name = f"models/dncnn{args.variant}.pt"
    out = output_file(args.out or name, name)
    write_atomically(out, content_of(partial(torch.save, dncnn_state_dict(user_path(args.source), args.variant))))
    logger.info(f"written to {out}")
    return 0


if __name__ == "__main__":
    run_program(main)
