"""A results folder as one HTML page to look at: `python -m util.report results/`.

Per task: measurement, every method and truth side by side with a crop magnified, scores, the measurement distance
over the steps, the deviation of the samples, and the configurations. The page needs no network and no other file, but
for pictures past 48 MiB, which lie in a folder beside it.
"""

import argparse
from collections.abc import Sequence

from util.command import Parser, output_file, positive, run_command, run_program, user_path
from util.errors import UserError
from util.img_utils import write_atomically
from util.logger import get_logger
from util.report.data import find_runs
from util.report.figures import Pictures
from util.report.page import View, page
from util.report.place import PAGE, is_report

logger = get_logger()


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; UserError for a mistake in it."""
    parser = Parser(prog="python -m util.report", allow_abbrev=False,
                    description="Write one HTML page about the runs below a results folder.")
    add = parser.add_argument
    add("results", nargs="?", default="results", help="the folder that runs wrote to; default %(default)s")
    add("--out", metavar="FILE", help="the page; default report.html in the results folder")
    add("--title", default="Restorations", help="its heading; default %(default)s")
    add("--images", type=positive, default=6, metavar="N",
        help="pictures of the first N images of each task; default %(default)s")
    add("--crop", type=_crop, metavar="X,Y,SIDE", help="the square, in pixels, that is magnified at first; default: "
        "where the methods differ most")
    return parser.parse(argv)


def _crop(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts) or int(parts[2]) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no square; expected X,Y,SIDE in pixels, such as 40,32,64")
    return int(parts[0]), int(parts[1]), int(parts[2])


def write_report(args: argparse.Namespace) -> int:
    """Write the page; exit status 1 if pictures could not be read."""
    runs = find_runs(args.results)
    out = output_file(args.out, PAGE) if args.out is not None else user_path(args.results) / PAGE
    if out.exists() and not is_report(out):
        raise UserError(f"{out} is there already and is no report of ours; choose another file with --out")
    pictures = Pictures(out)
    write_atomically(out, page(args.title, runs, pictures, View(args.images, args.crop)).encode())
    tasks = len({run.task for run in runs})
    logger.info(f"{len(runs)} run{'s' * (len(runs) > 1)} of {tasks} task{'s' * (tasks > 1)}: {out}")
    return 1 if pictures.unreadable else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; exit status 0, 1 if pictures could not be read, 2 for a mistake, 130 when interrupted."""
    return run_command(lambda: write_report(parse_arguments(argv)))


if __name__ == "__main__":
    run_program(main)
