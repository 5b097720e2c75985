"""Reproduce a paper's table: `python -m util.reproduce_table configs/tables/dps_ffhq_linear.yaml --data FOLDER`.

Runs what is missing through `sample_condition.py`, one run per task and method, each of them resumable; then prints and
writes table.md, table.csv and table.png: paper | ours +- 95 % interval | difference.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from data.dataloader import DATASETS
from util.command import DEFAULT_PRECISION, PRECISIONS, Parser, natural, positive, run_command, run_program, user_path
from util.errors import UserError
from util.img_utils import write_atomically
from util.logger import get_logger
from util.metrics.weights import WeightStore
from util.reproduce_table.job import (
    Job,
    Options,
    ask_steps,
    count,
    duration,
    evaluations,
    execute,
    images_left,
    seconds_per_evaluation,
)
from util.reproduce_table.plots import draw
from util.reproduce_table.spec import PaperTable, Run, load_table
from util.reproduce_table.text import evaluate, markdown, to_csv

logger = get_logger()


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; UserError for a mistake in it."""
    parser = Parser(prog="python -m util.reproduce_table", description="Reproduce a paper's table, side by side.",
                    allow_abbrev=False)
    add = parser.add_argument
    add("table", help="the table (YAML), such as configs/tables/demo.yaml")
    add("--data", metavar="FOLDER", help="the images, or 'skimage'; default: what the table or its task files say")
    add("--methods", metavar="A,B", help="run these methods of the table only; default: all that can be run")
    add("--limit", type=positive, metavar="N", help="the first N images only")
    add("--save_dir", help="where results go; default ./results/tables/<name of the table>")
    add("--seed", type=natural, default=0, help="of all random numbers; default %(default)s")
    add("--batch_size", type=positive, metavar="N", help="images restored together")
    add("--precision", choices=PRECISIONS, default=DEFAULT_PRECISION,
        help="number format of the network; default %(default)s: float32, with TF32 convolutions on GPUs that have it")
    add("--nproc", type=positive, default=1, metavar="N", help="processes per run, by torchrun; default %(default)s")
    add("--gpu", type=natural, metavar="N", help="index of the GPU")
    add("--weights_dir", metavar="FOLDER", help="holds the weights of LPIPS and FID; nothing is fetched then")
    add("--set", action="append", default=[], metavar="KEY.PATH=VALUE", dest="overrides",
        help="change a configuration value of every run; repeatable")
    add("--overwrite", action="store_true", help="replace the results of earlier runs")
    add("--dry_run", action="store_true", help="list the runs, their cost and the time they would take; run none")
    return parser.parse(argv)


def plan(table: PaperTable, args: argparse.Namespace, folder: Path) -> list[Job]:
    """A job per run of the table, under `folder`; UserError where a configuration is wrong or has no images.

    Files that only some runs need, such as checkpoints, are looked for by these.
    """
    spec = table.spec
    options = Options(args.data or spec.data, args.seed, args.limit or spec.limit, spec.num_samples, args.batch_size,
                      args.gpu, args.nproc, args.overwrite, args.weights_dir, args.precision)
    WeightStore(args.weights_dir)                   # complains about a folder that is not there
    jobs = []
    for run, steps in zip(table.runs, ask_steps(table.runs, options.data), strict=True):
        if isinstance(steps, UserError):
            raise UserError(f"{title(table, run)}: {steps}")
        config = run.load(options.data)
        images = DATASETS.build(config.data.name, **config.data.params)
        jobs.append(Job(run, config, images.names[:options.limit], folder / run.task / run.method, options, steps))
    return jobs


def title(table: PaperTable, run: Run) -> str:
    """Words for a run: its task and its method."""
    return f"{table.tasks[run.task].title}, {table.methods[run.method].title}"


def dry_run(table: PaperTable, jobs: Sequence[Job], nproc: int) -> None:
    """List what would be run: images, network evaluations, and the time of each run from a measured step."""
    logger.info(f"{table.spec.title}\n\n{'run':44}  {'images':>7}  {'evaluations':>11}  {'time':>12}")
    measured: dict[tuple[object, ...], float | UserError] = {}
    times, said = [], set()
    for job in jobs:
        try:
            times.append(estimate(job, measured))
        except UserError as error:
            job.error, job.failed = str(error), True
            if job.error not in said:
                logger.error(f"{title(table, job.run)}: {error}")
            said.add(job.error)
        time_left = "unknown" if job.failed else duration(times[-1])
        logger.info(f"{title(table, job.run)[:44]:44}  {images_left(job):7}  {evaluations(job):11}  {time_left:>12}")
    unknown = len(jobs) - len(times)
    total = " and ".join([duration(sum(times))] * (bool(times) or not unknown)
                         + [f"{count(unknown, 'run')} of unknown time"] * (unknown > 0))
    logger.info(f"\n{count(len(jobs), 'run')}, {sum(map(evaluations, jobs))} network evaluations, "
                f"{total} on this machine with {nproc} process{'es' * (nproc > 1)}; nothing was run")


def estimate(job: Job, measured: dict[tuple[object, ...], float | UserError]) -> float:
    """Seconds that a job will take; UserError if its steps cannot be run.

    Steps of each kind are tried once, and what came of it is remembered in `measured`.
    """
    size = job.config.data.params.get("image_size") or job.config.model.get("image_size")
    kind = (job.run.model_config, job.config.conditioning.name, size)
    if not evaluations(job):
        return 0.0
    if kind not in measured:
        try:
            measured[kind] = seconds_per_evaluation(job)
        except UserError as error:
            measured[kind] = error
    found = measured[kind]
    if isinstance(found, UserError):
        raise found
    return evaluations(job) * found / job.options.nproc


def reproduce(args: argparse.Namespace) -> int:
    """Do what the command line asks for and return the exit status."""
    table = load_table(args.table)
    table = table.select(args.methods.split(",") if args.methods is not None else None).extend(args.overrides)
    folder = user_path(args.save_dir or f"./results/tables/{table.name}")
    jobs = plan(table, args, folder)
    if args.dry_run:
        dry_run(table, jobs, args.nproc)
        return 1 if any(job.error for job in jobs) else 0
    started = time.perf_counter()
    try:
        logger.info(f"{table.spec.title}: {count(len(jobs), 'run')}, "
                    f"{sum(not job.to_do for job in jobs)} of them finished before")
        execute(jobs, "Table", lambda job: title(table, job.run))
    except KeyboardInterrupt:
        logger.error(f"interrupted: {sum(not job.missing() for job in jobs)} of {len(jobs)} runs are finished, all "
                     f"finished images are kept in {folder}; the same command continues")
        return 130
    entries = evaluate(table, jobs)
    text = markdown(table, entries)
    write_atomically(folder / "table.md", text.encode())
    write_atomically(folder / "table.csv", to_csv(entries).encode())
    draw(table, entries, folder / "table.png")
    logger.info(f"\n{text}\n{folder / 'table.md'}, table.csv and table.png, in "
                f"{duration(time.perf_counter() - started)}")
    wrong = [job for job in jobs if job.error]
    if wrong:
        logger.error(f"{len(wrong)} of {len(jobs)} runs went wrong; the same command tries them again")
    return 1 if wrong else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; exit status 0, 1 if a run went wrong, 2 for a mistake, 130 when interrupted."""
    return run_command(lambda: reproduce(parse_arguments(argv)))


if __name__ == "__main__":
    run_program(main)
