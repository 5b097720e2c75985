"""The command line of `guided_diffusion.benchmark`, without what takes seconds to import."""

from util.command import DEFAULT_PRECISION, PRECISIONS, Parser, natural, positive, some_of

SETTINGS = ("official-like", "fast")
METHODS = ("ps", "dpps")


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers of 1 or more, each once, separated by commas, for argparse."""
    return tuple(dict.fromkeys(map(positive, text.split(","))))


parser = Parser(prog="python -m guided_diffusion.benchmark", description="Measure what a restoration costs.")
add = parser.add_argument
add("--model_config", default="configs/demo_model_config.yaml", help="the network, whatever the task names; "
    "without its checkpoint, random weights, which take the same time")
add("--diffusion_config", default="configs/demo_diffusion_config.yaml", help="the reverse process")
add("--task_config", default="configs/demo_gaussian_deblur_config.yaml", help="operator and noise")
add("--methods", type=some_of(METHODS), default=METHODS, metavar="NAME,NAME", help="default: ps,dpps")
add("--settings", type=some_of(SETTINGS), default=SETTINGS, metavar="NAME,NAME", help="default: both")
add("--batch_sizes", type=numbers, default=(1, 8), metavar="N,N", help="of `fast`; default 1,8")
add("--image_size", type=positive, metavar="N", help="side of the images; default: the network's")
add("--precision", choices=PRECISIONS, default=DEFAULT_PRECISION, help="of `fast`; default %(default)s")
add("--compile", action="store_true", help="`fast` with --compile")
add("--set", action="append", default=[], metavar="KEY.PATH=VALUE", dest="overrides",
    help="change a configuration value of every run; repeatable")
add("--steps", type=positive, default=4, metavar="K", help="of a restoration; default %(default)s")
add("--repeats", type=positive, default=2, metavar="K", help="runs of each line, in turns; default %(default)s")
add("--gpu", type=natural, metavar="N", help="index of the GPU; default: GPU 0, or the CPU where there is none")
add("--out", default="benchmark.json", metavar="FILE", help="all figures as JSON; default %(default)s")
parse_arguments = parser.parse
