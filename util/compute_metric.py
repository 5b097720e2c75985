"""Score the images of two folders, or of a results folder: `python -m util.compute_metric A [B]`."""

import json
import math
from argparse import Namespace
from collections import Counter
from dataclasses import astuple
from pathlib import Path

from util.command import check_command_line, choose_device, command, run_program, user_path
from util.metrics.arguments import parse_arguments

if __name__ == "__main__":                          # before the imports that take seconds
    check_command_line(parse_arguments)

from util.errors import UserError
from util.files import csv_text, write_atomically
from util.logger import logger
from util.metrics.comparison import Comparison, compare
from util.metrics.names import METRICS, OF_SETS
from util.metrics.pairs import Pair, pair_folders, shorten
from util.metrics.perceptual import PERCEPTUAL
from util.metrics.scores import PER_IMAGE, Metrics
from util.run.layout import TABLE, file_of
from util.run.table import read_table


def pair_results(run: Path) -> tuple[list[Pair], list[str]]:
    """Pair recon/ and label/ in the folder of a run, ours or one of DPS, as `pair_folders`.

    Raises:
        UserError: as `pair_folders`, or its metrics.csv is no table of ours.
    """
    rows = [row for row in read_table(run) if row.ok and row.has_truth]
    recon, label = run / "recon", run / "label"
    if not recon.is_dir() or not label.is_dir():
        raise UserError(f"'{run}' has no folders recon/ and label/, so it holds no results; name such a folder "
                        "(results/<operator>/<method>), or two folders of images")
    if not any(label.iterdir()):
        raise UserError(f"{label} is empty: the run had no true images, so there is nothing to compare with")
    if not rows:
        return pair_folders(recon, label)
    count = Counter(row.image for row in rows)
    pairs = [Pair(row.image, row.sample, file_of(run, "recon", row.image, row.sample if count[row.image] > 1 else None),
                  file_of(run, "label", row.image)) for row in rows]
    there = [pair for pair in pairs if pair.restored.is_file() and pair.label.is_file()]
    gone = {str(file.relative_to(run)) for pair in pairs for file in (pair.restored, pair.label) if not file.is_file()}
    return there, [f"{run} has no {shorten(gone)}, which {TABLE} tells of"] if gone else []


@command(parse_arguments)
def main(args: Namespace) -> int:
    """Score; exit status 0, 1 if some images could not be scored, 2 for a mistake, 130 when interrupted."""
    device = choose_device(args.gpu)
    pairs, missing = (pair_results(user_path(args.restored)) if args.labels is None else
                      pair_folders(args.restored, args.labels))
    for line in missing:
        logger.warning(line)
    networks = [name for name in PERCEPTUAL if name in args.metrics]
    networks += ["inception"] if {"fid", "kid"} & set(args.metrics) else []
    metrics = Metrics(device, args.weights_dir, networks)
    comparison = compare(pairs, metrics)
    if not comparison.rows:
        raise UserError("no image could be scored")
    summary = {"restored": args.restored, "labels": args.labels or "label", **comparison.summary(args.metrics)}
    log_summary(summary)
    if equal := sum(math.isinf(scores.psnr) for *_, scores in comparison.rows):
        logger.warning(f"{equal} of {len(comparison.rows)} pairs are equal: their PSNR is infinite, and no part "
                             "of its mean")
    folder = args.save_dir or (args.restored if args.labels is None else None)
    if folder:
        _save(user_path(folder), comparison, summary)
    if comparison.skipped:
        logger.error(f"{comparison.skipped} of {len(pairs)} pairs could not be scored")
    return 1 if comparison.skipped or missing else 0


def log_summary(summary: dict) -> None:
    """Log a table: a line per score with its mean and interval over the images, then FID and KID of the set."""
    log = logger.info
    of_means = "metrics_of_sample_means" in summary
    log(f"{summary['images']} images")
    log(f"{'':16}{'mean':>10}   {'95 % interval':21}{'std':>9}{'count':>8}")
    for key, what in (("metrics", "samples"), ("metrics_of_sample_means", "means of samples")):
        if of_means:
            log(f"{what}:")
        for name, row in summary.get(key, {}).items():
            mean, std, *interval = (shown(name, value) for value in (row["mean"], row["std"], *(row["ci95"] or ())))
            log(f"{METRICS[name].title:16}{mean:>10}   {' to '.join(interval) or '-':21}{std:>9}{row['count']:>8}")
    for name in OF_SETS:
        if name in summary:
            of = summary[name]
            images = f"{of['images']} against {of['reference_images']} images, {of['extractor']}"
            log(f"{METRICS[name].title:16}{shown(name, of['value']):>10}   {images if of['images'] else ''}".rstrip())


def shown(name: str, value: float | None) -> str:
    """A figure as it is shown, "-" where there is none."""
    return "-" if value is None else METRICS[name].words(value)


def _save(folder: Path, comparison: Comparison, summary: dict) -> None:
    lines = [[image, sample, *("" if math.isnan(v) else f"{v:.6g}" for v in astuple(scores))]
             for image, sample, scores in comparison.rows]
    write_atomically(folder / "scores.csv", csv_text([["image", "sample", *PER_IMAGE], *lines]).encode())
    write_atomically(folder / "scores.json", (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
    logger.info(f"written to {folder / 'scores.json'} and scores.csv")


if __name__ == "__main__":
    run_program(main)
