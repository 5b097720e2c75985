"""Tune settings of a task on a few images:

    python -m guided_diffusion.tune --task_config configs/demo_super_resolution_config.yaml --data FOLDER --limit 10 \\
        --grid conditioning.params.scale=0.7,1,1.4 --out tuned.yaml

Runs every point of the grid through `sample_condition.py`, each run resumable; prints a table of all points and writes
the task file with the best values.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from guided_diffusion.tune.arguments import parse_arguments
from util.command import check_command_line, choose_device, command, output_file, run_program, user_path

if __name__ == "__main__":                          # before the imports that take seconds
    check_command_line(parse_arguments)

from guided_diffusion.restoration.build import build_task
from guided_diffusion.tune.grid import Point, Result, at_the_edge, choose, markdown, points, read_grid, result_of
from util.config.config import find_file, read_yaml
from util.config.yaml_text import parse_yaml, set_values
from util.errors import UserError
from util.files import write_atomically
from util.logger import count, duration, logger
from util.metrics.names import SHORT
from util.metrics.perceptual import NETWORKS
from util.metrics.weights import weights_folders
from util.reproduce_table.job import Job, Options, execute
from util.reproduce_table.spec import Run

FILES = ("model_config", "diffusion_config")        # what a tuned file names, where they were given
SECTIONS = ("conditioning", "measurement")          # and says; its images are to be others'


def plan(args: argparse.Namespace, grid: Sequence[Point], folder: Path) -> list[Job]:
    """A job per point, under `folder`; UserError for whatever is wrong in a point, the checkpoint's content aside, or
    where the images cannot be had."""
    weights_folders(args.weights_dir)               # complains about a folder that is not there
    choose_device(args.gpu)                         # and this about a GPU
    options, jobs = Options.of(args, num_samples=args.samples, overwrite=False), []
    for point in grid:
        run = Run(Path(args.task_config).stem, point.name, args.model_config, args.diffusion_config, args.task_config,
                  (*args.overrides, *point.overrides))
        try:
            config = run.load(args.data)
            task = build_task(config, chosen=args.data is not None, limit=args.limit)
        except UserError as error:
            raise UserError(f"{', '.join(point.overrides)}: {error}") from None
        names = task.source.names[:args.limit]
        job = Job(run, config, names, folder / point.name, options,
                  task.method.num_steps(task.sampler), task.method.num_evaluations(task.sampler),
                  {name: task.source.files(name)[0] for name in names})
        jobs.append(job.replacing() if args.overwrite else job)
    return jobs


def chosen_text(args: argparse.Namespace, best: Point, remark: str) -> str:
    """The task file with the best values and the overrides of conditioning and measurement; `remark` is put above."""
    changes = [(name, file) for name in FILES if (file := getattr(args, name)) is not None]
    for override in args.overrides:
        key, _, text = override.partition("=")
        changes.append((key.strip(), parse_yaml(text)))
    changes += best.settings
    paths = [(tuple(part.strip() for part in key.split(".")), value) for key, value in changes]
    kept = [(path, value) for path, value in paths if path[0] in (*FILES, *SECTIONS)]
    text = find_file(args.task_config, "task configuration").read_text(encoding="utf-8-sig")
    return f"# {remark}\n" + set_values(text, kept)


def remark(args: argparse.Namespace, result: Result, by: str, grid: dict[str, list[object]]) -> str:
    """One line on how the values were found."""
    values = "; ".join(f"{key}={','.join(map(str, tried))}" for key, tried in grid.items())
    what = "mean of the samples" if args.of == "mean" else "samples"
    data = Path(args.data).name if args.data else "the task's images"
    others = [override for override in args.overrides if override.partition(".")[0] not in SECTIONS]
    return (f"Tuned by {by if args.by in (None, by) else f'{args.by} ({by})'} of the {what} "
            f"({count(args.samples, 'sample')} per image, {count(result.images, 'image')} of {data}, seed {args.seed}) "
            f"over {values}{f', with {chr(44).join(others)}' if others else ''}")


@command(parse_arguments)
def main(args: argparse.Namespace) -> int:
    """Tune; exit status 0, 1 if a point went wrong, 2 for a mistake, 130 when interrupted."""
    if args.of == "mean" and args.samples < 2:
        raise UserError(f"--of mean needs several samples, found --samples {args.samples}; use --samples 4, say")
    out = output_file(args.out, "tuned.yaml")
    if out.exists() and not args.overwrite:
        raise UserError(f"--out {args.out} is there already; choose another name, or replace it with --overwrite")
    read_yaml(args.task_config, "task configuration")
    grid = read_grid(args.grid)
    folder = user_path(args.save_dir or f"./results/tune/{Path(args.task_config).stem}")
    jobs = plan(args, tried := points(grid), folder)
    judge = NETWORKS.get(SHORT.get(args.by, args.by))
    if judge is not None and any(job.left for job in jobs):
        try:
            judge[1].find(weights_folders(args.weights_dir))
        except UserError as error:
            raise UserError(f"--by {args.by}: {error}; or choose by another figure") from None
    logger.info(f"{count(len(jobs), 'run')} of {count(len(jobs[0].names), 'image')}, "
                f"{sum(not job.left for job in jobs)} of them finished before")
    started = time.perf_counter()
    if not execute(jobs, "Tuning", lambda job: job.run.method, folder):
        return 130
    results = [result_of(point, job, args.of == "mean") for point, job in zip(tried, jobs, strict=True)]
    best, by = choose(results, args.by)
    table = markdown(results, best, by)
    write_atomically(folder / "table.md", table.encode())
    write_atomically(out, chosen_text(args, best.point, remark(args, best, by, grid)).encode())
    logger.info(f"\n{table}\nthe best by {by}: {', '.join(best.point.overrides)}\n{out} and {folder / 'table.md'}, in "
                f"{duration(time.perf_counter() - started)}")
    for sentence in at_the_edge(grid, best.point):
        logger.warning(sentence)
    wrong = sum(bool(job.error) for job in jobs)
    if wrong:
        logger.error(f"{wrong} of {len(jobs)} runs went wrong; the same command with --overwrite tries them again")
    return 1 if wrong else 0


if __name__ == "__main__":
    run_program(main)
