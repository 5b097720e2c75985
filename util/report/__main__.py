"""Results as one HTML page to look at: `python -m util.report results/`.

Per task: measurement, every method and truth side by side with a crop magnified, scores, the measurement distance over
the steps, the deviation of the samples, and the configurations. A task is what was measured (data, operator, noise,
seed), whichever folders its runs lie in: those of `util.reproduce_table` and `guided_diffusion.tune`, too. The page
needs no network and no other file.
"""

import argparse

from util.command import check_command_line, command, output_file, run_program, user_path
from util.report.arguments import parse_arguments

if __name__ == "__main__":                          # before the imports that take seconds
    check_command_line(parse_arguments)

from util.errors import UserError
from util.files import write_atomically
from util.logger import count, logger
from util.report.page import page
from util.report.pictures import Pictures
from util.report.runs import find_runs, group

PAGE = "report.html"


@command(parse_arguments)
def main(args: argparse.Namespace) -> int:
    """Write the page; exit status 0, 1 if runs or pictures could not be read, 2 for a mistake, 130 when interrupted."""
    runs, damaged = find_runs(args.results, args.labels)
    for error in damaged:
        logger.error(f"left out: {error}")
    tasks = group(runs)
    out = output_file(args.out, PAGE) if args.out is not None else user_path(args.results[0]) / PAGE
    if out.suffix != ".html":
        raise UserError(f"--out {out}: expected a file that ends in .html, such as {PAGE}")
    pictures = Pictures()
    write_atomically(out, page(args.title, tasks, pictures, args.images).encode())
    logger.info(f"{count(len(runs), 'run')} of {count(len(tasks), 'task')}: {out}")
    return 1 if damaged or pictures.unreadable else 0


if __name__ == "__main__":
    run_program(main)
