"""What a restoration costs: `python -m guided_diffusion.benchmark`.

Times runs of the program that users start, in turns: `official-like`, with the habits of the released code (see
`official.py`), and `fast`, as it is. A run restores batches of random images by a few steps; the first batch warms up.
The seconds of the others are those of metrics.csv, so that they hold whatever a run does within them; what a run takes
besides them (imports, network, files, scores) is told, too.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shutil import rmtree
from statistics import median
from tempfile import TemporaryDirectory

from guided_diffusion.benchmark.arguments import parse_arguments
from util.command import DEFAULT_PRECISION, check_command_line, choose_device, command, output_file, run_program

if __name__ == "__main__":                          # before the imports that take seconds
    check_command_line(parse_arguments)

import torch
from tqdm import tqdm

from guided_diffusion.unet import UNetModel, create_model
from util.config.config import find_file, load_config, read_yaml
from util.config.registry import check_arguments
from util.errors import UserError
from util.files import write_atomically
from util.img_utils import save_image
from util.logger import aligned, logger
from util.reproduce_table.job import PROGRAM, Options, launch, reason
from util.reproduce_table.spec import Run
from util.run.console import environment
from util.run.layout import run_path
from util.run.table import read_summary, read_table

OFFICIAL = ("-m", "guided_diffusion.benchmark.official")
BLURS = ("gaussian_blur", "motion_blur")            # which the released code computes directly
MARK = b'"seconds_per_image_step"'                  # in the file of a benchmark


@dataclass
class Case:
    """A line of the table: batches of `batch` images by `method`.

    What its runs took, a number per run: seconds of a step of the whole batch, and besides the sampling.
    """

    setting: str
    method: str
    batch: int
    step_seconds: list[float] = field(default_factory=list)
    besides_seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None

    @property
    def per_image(self) -> float:
        """Seconds of a step of one image: the median of the runs."""
        return median(self.step_seconds) / self.batch


def network(path: str) -> tuple[UNetModel, str | None]:
    """The network of a model config and the path of its checkpoint, None where that is not there: random weights.

    Raises:
        UserError: the config or the checkpoint is wrong.
    """
    options = read_yaml(path, "model configuration")
    if "prior" in options or options.pop("format", "adm") != "adm":
        raise UserError(f"{path} is no network of this repository, which alone are timed; name one of those, such as "
                        "configs/model_config.yaml")
    check_arguments(create_model, options, "model config")
    try:
        checkpoint = str(find_file(options.get("model_path") or "", "checkpoint"))
    except UserError:
        checkpoint = None
    return create_model(**{**options, "model_path": checkpoint or ""}), checkpoint


class Bench:
    """Runs cases in `folder`, on random images of `size` x `size`; `checkpoint` is of the network."""

    def __init__(self, args: argparse.Namespace, folder: Path, size: int, checkpoint: str):
        self.args, self.folder, self.size, self.checkpoint = args, folder, size, checkpoint
        config = load_config(args.model_config, args.diffusion_config, args.task_config, args.overrides)
        self.operator = config.operator.name
        for number in range(2 * max(1, *args.batch_sizes)):
            image = torch.rand(3, size, size, generator=torch.Generator().manual_seed(number)) * 2 - 1
            save_image(folder / "images" / f"{number:04}.png", image)

    def command(self, case: Case) -> list[str]:
        """The command line of a run of two batches."""
        args, official = self.args, case.setting == "official-like"
        conditioning = f"conditioning={{method: {case.method}}}"
        if official and case.method == "dpps":
            conditioning = "conditioning={method: dpps, params: {chunk: 1}}"
        changes = [f"diffusion.timestep_respacing={args.steps}", f"data.image_size={self.size}",
                   f"model.model_path={json.dumps(self.checkpoint)}", conditioning]
        changes += ["measurement.operator.convolution=direct"] if official and self.operator in BLURS else []
        run = Run("", case.method, args.model_config, args.diffusion_config, args.task_config,
                  (*changes, *args.overrides))
        options = Options(str(self.folder / "images"), 0, 2 * case.batch, 1, case.batch, args.gpu,
                          weights_dir=str(self.folder), precision=DEFAULT_PRECISION if official else args.precision)
        program = OFFICIAL if official else (PROGRAM,)
        return [sys.executable, *program, *run.options(), *options.arguments(), "--save_dir",
                str(self.folder / "results"), *(["--compile"] if args.compile and not official else [])]

    def measure(self, case: Case) -> None:
        """Run a case once more; UserError if the run fails."""
        rmtree(self.folder / "results", ignore_errors=True)
        began = time.perf_counter()
        status, lines = launch(self.command(case))
        total = time.perf_counter() - began
        run = run_path(self.folder / "results", self.operator, case.method)
        rows = read_table(run) if status in (0, 1) else []
        lost = [line for line in lines if "out of memory" in line]          # then batches were smaller
        if len(rows) < 2 * case.batch or lost:
            raise UserError(f"{case.setting}, {case.method}, batches of {case.batch}: "
                            f"{lost[0] if lost else reason(status, lines)}")
        case.step_seconds.append(sum(row.seconds for row in rows[case.batch:]) / self.args.steps)
        case.besides_seconds.append(total - sum(row.seconds for row in rows))
        case.peak_bytes = (read_summary(run) or {}).get("peak_memory_bytes")


def measure_all(bench: Bench, cases: Sequence[Case], repeats: int) -> list[Case]:
    """Run all cases `repeats` times, in turns, so that they meet the same disturbances; one that fails is left out."""
    left = list(cases)
    with tqdm(total=repeats * len(cases), desc="Benchmark", unit=" runs", leave=False) as bar:
        for _ in range(repeats):
            for case in tuple(left):
                bar.set_postfix_str(f"{case.setting}, {case.method}, {case.batch}")
                try:
                    bench.measure(case)
                except UserError as error:
                    logger.warning(f"{error}; left out")
                    left.remove(case)
                bar.update()
    return left


def lines_of(cases: Sequence[Case]) -> list[dict[str, object]]:
    """The figures of each case; `x_official` is how many times as fast an image is as with the released habits."""
    official = {case.method: case.per_image for case in cases if case.setting == "official-like"}
    return [{**asdict(case), "seconds_per_image_step": case.per_image,
             "images_per_second_of_1000_steps": 1 / (1000 * case.per_image),
             "x_official": official[case.method] / case.per_image if case.method in official else None}
            for case in cases]


def show(lines: Sequence[dict[str, object]]) -> None:
    """Log the figures as a table."""
    table = [["setting", "method", "images", "ms per step", "per image", "images/s", "peak GiB", "besides s",
              "x official"]]
    for line in lines:
        ratio, peak = line["x_official"], line["peak_bytes"]
        table.append([line["setting"], line["method"], str(line["batch"]),
                      f"{1e3 * median(line['step_seconds']):.1f}", f"{1e3 * line['seconds_per_image_step']:.1f}",
                      f"{line['images_per_second_of_1000_steps']:.3g}",
                      "-" if peak is None else f"{peak / 2 ** 30:.2f}", f"{median(line['besides_seconds']):.1f}",
                      "-" if ratio is None else f"{ratio:.2f}"])
    logger.info("\n".join(aligned(table, left=2)))


@command(parse_arguments)
def main(args: argparse.Namespace) -> int:
    """Measure, show and save; exit status 0, 1 if a run failed, 2 for a mistake, 130 when interrupted."""
    out, device = output_file(args.out, "benchmark.json"), choose_device(args.gpu)
    if out.exists() and not (out.is_file() and MARK in out.read_bytes()):
        raise UserError(f"--out {args.out} is there already and holds no benchmark; choose another name")
    model, checkpoint = network(args.model_config)
    size = args.image_size or model.image_size
    model.check_image_size(size, size)
    cases = [Case(setting, method, batch) for method in args.methods for setting in args.settings
             for batch in (args.batch_sizes if setting == "fast" else (1,))]
    with TemporaryDirectory() as name:
        if checkpoint is None:
            checkpoint = f"{name}/random.pt"
            torch.save(model.state_dict(), checkpoint)
        bench = Bench(args, Path(name), size, checkpoint)
        facts = {"model_config": args.model_config, "random_weights": checkpoint.startswith(name), "image_size": size,
                 "operator": bench.operator, "steps": args.steps, "repeats": args.repeats, "precision": args.precision,
                 "compile": args.compile, "threads": torch.get_num_threads(), **environment(device)}
        logger.info(f"{args.model_config}, {bench.operator}, {size} x {size}, on {facts['device']}\nruns of 2 batches "
                    f"and {args.steps} steps, the median of {args.repeats}, the second batch; images/s are of 1000 "
                    "steps, besides is what a run takes besides sampling\n")
        lines = lines_of(measure_all(bench, cases, args.repeats))
    show(lines)
    write_atomically(out, (json.dumps({**facts, "results": lines}, indent=2, allow_nan=False) + "\n").encode())
    logger.info(f"\nall figures in {args.out}")
    return 0 if len(lines) == len(cases) else 1


if __name__ == "__main__":
    run_program(main)
