"""The command line of `util.report`, without what takes seconds to import."""

import argparse
from collections.abc import Sequence

from util.command import Parser, positive


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; UserError for a mistake in it."""
    parser = Parser(prog="python -m util.report", allow_abbrev=False,
                    description="Write one HTML page about the runs in some folders.")
    add = parser.add_argument
    add("results", nargs="*", default=["results"], metavar="FOLDER",
        help="runs, or folders with runs below them, in the order in which they are shown; default: results")
    add("--out", metavar="FILE", help="the page; default report.html in the first folder")
    add("--title", default="Restorations", help="its heading; default %(default)s")
    add("--label", action="append", default=[], metavar="FOLDER=NAME", dest="labels",
        help="what the runs in a folder are called; repeatable; default: the method, and what distinguishes its runs")
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
