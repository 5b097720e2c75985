"""Reproduce a paper's table: `python -m util.reproduce_table configs/tables/dps_ffhq_linear.yaml --data FOLDER`.

Runs what is missing through `sample_condition.py`, one run per task and method, each of them resumable; then prints and
writes table.md, table.tex, table.csv and table.png: paper | ours +- 95 % interval | difference. Where the table has a
`reference`, every method is compared with it, image by image.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from util.command import check_command_line, command, run_program, user_path
from util.reproduce_table.arguments import parse_arguments

if __name__ == "__main__":                          # before the imports that take seconds
    check_command_line(parse_arguments)

from data.dataloader import DATASETS
from util.config.ask import ask
from util.errors import UserError, did_you_mean
from util.files import write_atomically
from util.logger import count, duration, logger
from util.metrics.weights import weights_folders
from util.reproduce_table.job import Job, Options, execute, seconds_per_evaluation
from util.reproduce_table.picture import save_picture
from util.reproduce_table.plots import draw, scatter
from util.reproduce_table.scores import evaluate
from util.reproduce_table.spec import PaperTable, load_table
from util.reproduce_table.text import latex, markdown, to_csv


def plan(table: PaperTable, args: argparse.Namespace, folder: Path) -> list[Job]:
    """A job per run of the table, under `folder`; UserError where a configuration is wrong or has no images.

    Files that only some runs need, such as checkpoints, are looked for by these.
    """
    spec = table.spec
    options = Options.of(args, data=spec.data if args.data is None else args.data, limit=args.limit or spec.limit,
                         num_samples=args.num_samples or spec.num_samples)
    weights_folders(args.weights_dir)               # complains about a folder that is not there
    jobs = []
    costs = ask([{"run": run.arguments(options.data)} for run in table.runs]) if table.runs else []
    for run, cost in zip(table.runs, costs, strict=True):
        if "error" in cost:
            raise UserError(f"{table.title(run)}: {cost['error']}")
        config = run.load(options.data)
        dataset = DATASETS.build(config.data.name, **config.data.params)
        names = dataset.names[:options.limit]
        dataset.require(names)
        jobs.append(Job(run, config, names, folder / run.task / run.method, options, **cost,
                        files={name: dataset.path_of(name) for name in names}))
        if args.picture is not None and args.picture not in names:
            raise UserError(f"--picture: the data have no image '{args.picture}'; {did_you_mean(args.picture, names)}")
    fewest = min((len(job.names) for job in jobs), default=0)
    if options.limit and fewest < options.limit and jobs:
        logger.warning(f"the data have {count(fewest, 'image')}: {options.limit - fewest} are missing for --limit "
                       f"{options.limit}{'' if args.limit else ', which the table asks for'}")
    return jobs


def dry_run(table: PaperTable, jobs: Sequence[Job], nproc: int) -> int:
    """List what would be run: images, network evaluations, and the time of each run from a measured evaluation.

    One is measured for every row of the table, in the first of its tasks.
    """
    logger.info(f"{table.spec.title}\n\n{'run':44}  {'images':>11}  {'evaluations':>11}  {'time':>12}")
    measured: dict[tuple[object, ...], float | None] = {}
    times: list[float] = []
    for job in jobs:
        kind = (job.config.prior, job.run.method, job.config.data.params.get("image_size"))
        refused = job.foreign and not job.options.overwrite
        if refused:
            logger.error(f"{table.title(job.run)}: {job.path} holds results of other settings or images; choose "
                         "another folder with --save_dir, or replace them with --overwrite")
        elif job.evaluations and kind not in measured:
            try:
                measured[kind] = seconds_per_evaluation(job)
            except UserError as error:
                logger.error(f"{table.title(job.run)}: {error}")
                measured[kind] = None
        time_left = "unknown"
        seconds = None if refused else measured[kind] if job.evaluations else 0.0
        if seconds is not None:
            times.append(job.evaluations * seconds / nproc)
            time_left = duration(times[-1])
        logger.info(f"{table.title(job.run)[:44]:44}  {f'{job.left} of {len(job.names)}':>11}  {job.evaluations:11}  "
                    f"{time_left:>12}")
    unknown = len(jobs) - len(times)
    more = f" and {count(unknown, 'run')} of unknown time" if unknown else ""
    logger.info(f"\n{count(len(jobs), 'run')}, {sum(job.evaluations for job in jobs)} network evaluations, "
                f"{duration(sum(times))}{more} on this machine with {nproc} process{'' if nproc == 1 else 'es'}, "
                "and some seconds for each to start; nothing was run")
    return 1 if unknown else 0


@command(parse_arguments)
def main(args: argparse.Namespace) -> int:
    """Make the table; exit status 0, 1 if a run went wrong, 2 for a mistake, 130 when interrupted."""
    methods, tasks = (None if names is None else names.split(",") for names in (args.methods, args.tasks))
    table = load_table(args.table, methods, args.overrides, tasks)
    folder = user_path(args.save_dir or f"./results/tables/{table.name}")
    jobs = plan(table, args, folder)
    if args.dry_run:
        return dry_run(table, jobs, args.nproc)
    started = time.perf_counter()
    logger.info(f"{table.spec.title}: {count(len(jobs), 'run')}, {sum(not job.left for job in jobs)} of them finished "
                "before")
    if not execute(jobs, "Table", lambda job: table.title(job.run), folder):
        return 130
    entries = evaluate(table, jobs)
    text = markdown(table, entries)
    for name, content in (("table.md", text), ("table.tex", latex(table, entries)), ("table.csv", to_csv(entries))):
        write_atomically(folder / name, content.encode())
    write_atomically(folder / "table.png", draw(table, entries))
    for x, y in table.spec.scatter:
        write_atomically(folder / f"{y}_against_{x}.png", scatter(table, entries, x, y))
    logger.info(f"\n{text}\n{folder / 'table.md'}, .tex, .csv and .png, in {duration(time.perf_counter() - started)}")
    if args.picture is not None:
        save_picture(folder / f"{args.picture}.png", table, jobs, args.picture)
    wrong = sum(bool(job.error) for job in jobs)
    if wrong:
        logger.error(f"{wrong} of {len(jobs)} runs went wrong; the same command tries them again")
    return 1 if wrong else 0


if __name__ == "__main__":
    run_program(main)
