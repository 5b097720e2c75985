"""The command line of `guided_diffusion.benchmark`, without what takes seconds to import."""

import argparse
from collections.abc import Callable, Sequence

from util.command import Parser
from util.errors import UserError

SETTINGS = ("official-like", "fast")
TASKS = {
    "super_resolution": {"scale_factor": 4},
    "inpainting": {"mask_opt": {"mask_type": "random", "mask_prob_range": [0.7, 0.7]}},
    "gaussian_blur": {"kernel_size": 61, "intensity": 3.0},
    "motion_blur": {"kernel_size": 61, "intensity": 0.5},
}
METHODS = ("ps", "dpps")
LIKELIHOODS = ("point", "gaussian")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; UserError for a mistake in it."""
    parser = Parser(prog="python -m guided_diffusion.benchmark", description="Measure what a sampling step costs.",
                    allow_abbrev=False)
    add = parser.add_argument
    add("--model_config", default="configs/demo_model_config.yaml", help="the network; random weights will do")
    add("--gpu", type=int, metavar="N", help="index of the GPU; default: GPU 0, or the CPU where there is none")
    add("--image_size", type=numbers, metavar="N", help="side of the images; default: the network's")
    add("--batch_sizes", type=numbers, default=(1, 2, 4, 8), metavar="N,N", help="of `fast`; default 1,2,4,8")
    add("--settings", type=names(SETTINGS), default=SETTINGS, metavar="NAME,NAME", help="default: both")
    add("--methods", type=names(METHODS), default=METHODS, metavar="NAME,NAME", help="default: ps,dpps")
    add("--task", choices=TASKS, default="gaussian_blur", help="of the first table; default %(default)s")
    add("--precision", choices=("fp32", "bf16"), help="of `fast`; default: in which matrix products are faster")
    add("--steps", type=numbers, default=(4,), metavar="K", help="noise levels at which a step is measured; default 4")
    add("--repeats", type=numbers, default=(2,), metavar="K", help="repetitions, settings alternating; default 2")
    add("--sampling_steps", type=numbers, default=(1000,), metavar="N", help="of a restoration, for images per second")
    add("--sizes", type=numbers, default=(64, 128, 256), metavar="N,N", help="of the growth with pixels; "
        "default 64,128,256")
    add("--only_table", action="store_true",
        help="leave out how cost grows, the comparison of DPPS with DPS, and what keeping an image costs")
    add("--weights_dir", metavar="FOLDER", help="holds the weights of LPIPS; nothing is fetched then")
    add("--likelihood", choices=LIKELIHOODS, default="point", help="of `fast`; default %(default)s")
    add("--contiguous", action="store_true", help="`fast` without channels_last, to see what that is worth")
    add("--compile", action="store_true", help="`fast` with the network compiled by torch.compile")
    add("--processor_time", action="store_true", help="on a CPU that is shared: processor time instead of wall time")
    add("--out", default="benchmark.json", metavar="FILE", help="all figures as JSON; default %(default)s")
    args = parser.parse(argv)
    for option in ("image_size", "steps", "repeats", "sampling_steps"):
        values = vars(args)[option]
        if values is not None and len(values) != 1:
            raise UserError(f"--{option}: {len(values)} numbers are given, expected one")
        setattr(args, option, values and values[0])
    return args


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers of 1 or more, separated by commas, for argparse."""
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) >= 1 for word in words):
        raise argparse.ArgumentTypeError(f"'{text}': expected whole numbers of 1 or more, separated by commas")
    return tuple(map(int, words))


def names(choices: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A reader of some of `choices`, separated by commas, for argparse."""
    def read(text: str) -> tuple[str, ...]:
        words = tuple(word.strip() for word in text.split(","))
        if not set(words) <= set(choices):
            raise argparse.ArgumentTypeError(f"'{text}': choose from {', '.join(choices)}")
        return words
    return read
