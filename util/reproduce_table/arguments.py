"""The command line of `util.reproduce_table`, without what takes seconds to import; parts of it are `tune`'s, too."""

import argparse
import shlex
import shutil
from collections.abc import Callable

from util.command import DEFAULT_PRECISION, PRECISIONS, Parser, natural, positive


def add_options(add: Callable[..., object], overwrite: str) -> None:
    """The options of a program that starts several runs, for argparse; `overwrite` says what --overwrite replaces."""
    add("--data", metavar="FOLDER", help="the images, or 'skimage'; default: what the files say")
    add("--limit", type=positive, metavar="N", help="the first N images only")
    add("--save_dir", metavar="FOLDER", help="where the runs go; default below ./results, by the name of the file")
    add("--seed", type=natural, default=0, help="of all random numbers; default %(default)s")
    add("--batch_size", type=positive, metavar="N", help="images restored together")
    add("--precision", choices=PRECISIONS, default=DEFAULT_PRECISION,
        help="number format of the network; default %(default)s: float32, with TF32 convolutions on GPUs that have it")
    add("--nproc", type=positive, default=1, metavar="N", help="processes per run, by torchrun; default %(default)s")
    add("--launcher", type=launcher, default=(), metavar="COMMAND", help="starts the program of every run in place of "
        "python, such as 'srun torchrun --nnodes 4 ...' on a cluster; --nproc is then what the forecast counts on")
    add("--gpu", type=natural, metavar="N", help="index of the GPU")
    add("--weights_dir", metavar="FOLDER", help="holds the weights of LPIPS and FID; default: models")
    add("--set", action="append", default=[], metavar="KEY.PATH=VALUE", dest="overrides",
        help="change a configuration value of every run; repeatable")
    add("--overwrite", action="store_true", help=overwrite)


def launcher(text: str) -> tuple[str, ...]:
    """The words of a command whose program is found here, for argparse."""
    words = tuple(shlex.split(text))
    if not words or shutil.which(words[0]) is None:
        raise argparse.ArgumentTypeError(f"'{text}': there is no such program")
    return words


parser = Parser(prog="python -m util.reproduce_table", description="Reproduce a paper's table, side by side.")
add = parser.add_argument
add("table", help="the table (YAML), such as configs/tables/demo.yaml")
add("--methods", metavar="A,B", help="run these methods of the table only; default: all that can be run")
add("--tasks", metavar="A,B", help="run these tasks of the table only; default: all")
add("--picture", metavar="IMAGE", help="also make IMAGE.png: the image of that name, restored by every method")
add("--dry_run", action="store_true", help="list the runs, their cost and the time they would take; run none")
add("--num_samples", type=positive, metavar="N", help="posterior samples per image; default: what the table says")
add_options(add, overwrite="replace the results of earlier runs")
parse_arguments = parser.parse
