"""What a sampling step costs, and where its time goes: `python -m guided_diffusion.benchmark`.

One table from one run compares two settings: `official-like` (batch 1, float32, the parameters' graph kept, attention's
matrices written out, blur by direct convolution, waiting for the device at every step, candidates one by one through
the whole operator) and `fast` (what this program does). Then how the cost grows with images and pixels, what DPPS
costs over DPS, and what it costs to score and save an image such that a run can be continued.
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from guided_diffusion.benchmark.arguments import parse_arguments
from util.command import check_command_line, choose_device, output_file, run_command, run_program

if __name__ == "__main__":                          # before the imports that take seconds
    check_command_line(parse_arguments)

import torch

from guided_diffusion.benchmark.clock import StepClock
from guided_diffusion.benchmark.runs import Case, Setting, count_flops, matmul_peak, measure
from guided_diffusion.benchmark.saving import measure_keeping
from guided_diffusion.benchmark.tables import Report, write_json
from guided_diffusion.unet import UNetModel, create_model
from util.config.config import find_file, read_yaml
from util.config.registry import check_arguments
from util.errors import UserError
from util.logger import get_logger
from util.metrics.scores import Metrics
from util.metrics.weights import WeightStore
from util.run.console import environment

CANDIDATE_TASKS = ("super_resolution", "inpainting", "gaussian_blur", "motion_blur")

logger = get_logger()


def load_network(path: str, device: torch.device) -> tuple[UNetModel, bool]:
    """The network of a model config, frozen, and whether it has the weights of its checkpoint.

    Without a checkpoint file its weights are random, which takes the same time.

    Raises:
        UserError: the config or the checkpoint is wrong.
    """
    options = read_yaml(path, "model configuration")
    check_arguments(create_model, options, "model config")
    try:
        options["model_path"] = str(find_file(options.get("model_path") or "", "checkpoint"))
    except UserError:
        options["model_path"] = ""
    model = create_model(**options)
    return model.requires_grad_(False).to(device), bool(options["model_path"])


def fast_setting(args: argparse.Namespace, device: torch.device, peaks: dict[str, float]) -> Setting:
    """What this program does at its best on this device."""
    precision = args.precision or max(peaks, key=peaks.get)
    return Setting("fast", precision, tf32=device.type == "cuda", channels_last=not args.contiguous,
                   compile=args.compile, likelihood=args.likelihood)


def table_cases(args: argparse.Namespace, settings: dict[str, Setting], size: int) -> list[Case]:
    """The lines of the first table."""
    batches = {"official-like": (1,), "fast": args.batch_sizes}
    return [Case(settings[name], method, args.task, size, batch)
            for method in args.methods for name in args.settings for batch in batches[name]]


def further_cases(args: argparse.Namespace, setting: Setting, size: int) -> tuple[list[Case], list[Case]]:
    """The lines that show how cost grows with pixels, and what candidates cost."""
    if args.only_table:
        return [], []
    return ([Case(setting, "ps", "super_resolution", side, 1) for side in args.sizes],
            [Case(setting, "dpps", task, size, 1) for task in CANDIDATE_TASKS])


def place_for(file: str) -> Path:
    """Where --out goes; UserError where it cannot be written, or is there and is no benchmark's."""
    out = output_file(file, "benchmark.json")
    try:
        foreign = out.exists() and not (out.is_file() and b'"matmul_peak_flops"' in out.read_bytes())
    except OSError:                                 # it cannot be read
        foreign = True
    if foreign:
        raise UserError(f"--out {file} is there already and holds no benchmark; choose another name")
    return out


def run(args: argparse.Namespace) -> int:
    """Measure, show and save what the command line asks for; return the exit status."""
    out = place_for(args.out)
    WeightStore(args.weights_dir)                   # complains about a folder that is not there
    device = choose_device(args.gpu)
    model, trained = load_network(args.model_config, device)
    size = args.image_size or model.image_size
    for side in {size, *args.sizes}:
        model.check_image_size(side, side)
    peaks = {precision: matmul_peak(device, precision, args.processor_time) for precision in ("fp32", "bf16")}
    fast = fast_setting(args, device, peaks)
    cases = table_cases(args, {"official-like": Setting("official-like", as_official=True), "fast": fast}, size)
    growth, candidates = further_cases(args, fast, size)
    everything = list(dict.fromkeys([*cases, *growth, *candidates]))
    flops = {side: count_flops(model, side) for side in {case.size for case in everything}}
    facts = {"model_config": str(args.model_config), "trained_weights": trained, "image_size": size,
             "parameters": sum(p.numel() for p in model.parameters()), "flops_per_image_step": flops,
             "matmul_peak_flops": peaks, "fast": vars(fast), "sampling_steps": args.sampling_steps,
             "noise_levels": args.steps, "repeats": args.repeats, "threads": torch.get_num_threads(),
             "clock": "processor time" if args.processor_time else "wall", **environment(device)}
    report = Report(facts, flops, peaks)
    report.introduce()
    total = args.repeats * len(everything)
    done = iter(range(1, total + 1))
    results = measure(model, everything, args.steps, args.repeats, partial(StepClock, device, args.processor_time),
                      lambda case: logger.debug(f"{next(done)} of {total}: {case}"))
    report.show([r for r in results if r.case in cases], [r for r in results if r.case in growth],
                [r for r in results if r.case in candidates])
    for case in everything:
        if case not in {result.case for result in results}:
            logger.warning(f"{case.batch} images of {case.size} x {case.size} ({case.setting.name}) need more memory "
                           "than there is; left out")
    keeping = None if args.only_table else measure_keeping(
        size, args.sampling_steps, 4, Metrics(device, args.weights_dir),
        time.process_time if args.processor_time else time.perf_counter)
    if keeping:
        report.show_keeping(keeping, [r for r in results if r.case in cases])
    write_json(out, report, results, keeping)
    logger.info(f"\nall figures in {args.out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; exit status 0, 2 for a mistake, 130 when interrupted."""
    return run_command(lambda: run(parse_arguments(argv)))


if __name__ == "__main__":
    run_program(main)
