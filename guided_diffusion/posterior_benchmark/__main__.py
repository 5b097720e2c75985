"""How far methods are from the posterior, where it is known: `python -m guided_diffusion.posterior_benchmark`.

Images are drawn from an exact prior and measured; each method draws samples, which are compared with the posterior. The
rows `exact` (samples of the posterior, through the reverse process) and `unconditional` (samples of the prior, which
ignore y) bracket every table. The same command again continues where it was stopped.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from util.command import Parser, before_imports, command, output_folder, positive, run_program, whole

if __name__ == "__main__":
    before_imports()

import numpy as np

from guided_diffusion.gaussian_diffusion import SAMPLERS
from guided_diffusion.posterior_benchmark.cases import (
    PLANE,
    PRIOR_PARAMS,
    Arena,
    Entrant,
    Problem,
    arena,
    draw,
    problems,
    process_of,
)
from guided_diffusion.posterior_benchmark.report import (
    Row,
    draw_calibration,
    draw_distances,
    draw_samples,
    table,
    write_json,
)
from guided_diffusion.posterior_benchmark.scores import average, score
from util.errors import UserError
from util.files import write_atomically
from util.logger import duration, logger

PRIORS = (*PRIOR_PARAMS, PLANE)
OPERATORS = ("inpainting", "super_resolution", "gaussian_blur")
METHODS = ("ps", "ps:likelihood=gaussian", "ps:likelihood=stationary", "dpps", "mcg", "projection", "ddrm", "ddnm",
           "pigdm", "tmpd", "dmps", "diffpir", "dsg", "fast_dips", "red_diff", "dcps", "daps", "sitcom", "pnp_dm",
           "fps_smc", "mcgdiff:particles=16")
BRACKETS = ("exact", "unconditional")
FEWEST = 8                                          # samples, whose bootstrap has never the same one throughout
FILE = "posterior_benchmark.json"


def sigma(text: str) -> float:
    """A positive number, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"'{text}' is no positive number; a posterior has a density with noise only")
    return value


def steps(text: str) -> int | str:
    """Whole numbers of 1 or more, with commas between them, for argparse."""
    parts = [positive(part) for part in text.split(",")]
    return parts[0] if len(parts) == 1 else ",".join(map(str, parts))


parser = Parser(prog="python -m guided_diffusion.posterior_benchmark",
                description="Compare the samples of methods with posteriors that are known exactly.")
add = parser.add_argument
add("--priors", nargs="+", default=list(PRIORS), metavar="NAME", help="default %(default)s")
add("--methods", nargs="+", default=list(METHODS), metavar="NAME",
    help="names, or name:key=value,key=value; default %(default)s")
add("--operators", nargs="+", default=list(OPERATORS), metavar="NAME", help="default %(default)s")
add("--sigma", nargs="+", type=sigma, default=[0.05], metavar="S", help="of the noise; default %(default)s")
add("--steps", nargs="+", type=steps, default=[20, 100], metavar="N",
    help="of the process, or of its equal parts from the least noise on, as 12,4,2,1,1; default %(default)s")
add("--sampler", choices=list(SAMPLERS), default="ddpm", help="default %(default)s")
add("--images", type=positive, default=3, metavar="N", help="measured, per problem; default %(default)s")
add("--samples", type=whole(FEWEST), default=64, metavar="N",
    help=f"of each of them, {FEWEST} or more; default %(default)s")
add("--seed", type=int, default=0, help="of all random numbers; default %(default)s")
add("--out", default="results/posterior_benchmark", metavar="FOLDER", help="default %(default)s")
parse_arguments = parser.parse


def read_rows(path: Path, settings: dict[str, object]) -> list[Row]:
    """What an earlier run has found; UserError if it had other settings, or the file is no benchmark's."""
    if not path.exists():
        return []
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        rows, before = [Row.read(row) for row in tree["rows"]], tree["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is there already and holds no benchmark; choose another folder with --out") from None
    changed = [key for key in settings if before.get(key) != settings[key]]
    if changed:
        raise UserError(f"{path} was made with another {', '.join(changed)} ({before.get(changed[0])} there, "
                        f"{settings[changed[0]]} now); choose another folder with --out")
    return rows


def evaluate(entrant: Entrant, place: Arena, sampler: str, keep: Path) -> Row:
    """Draw and judge the samples of one method; those of the plane are kept for the picture."""
    started = time.perf_counter()
    x, evaluations = draw(entrant, place, sampler)
    seconds = time.perf_counter() - started
    if not x.isfinite().all():
        return Row(str(place.problem), entrant.text, entrant.steps, evaluations, seconds, None)
    exact, shape = place.exact_samples().double(), tuple(x.shape[1:])
    chi_square = place.measurement.chi_square(x)
    parts = [score(x[rows].double().flatten(1), exact[rows].flatten(1), posterior, shape,
                   chi_square[rows].mean().item()) for posterior, rows in place.posteriors]
    row = Row(str(place.problem), entrant.text, entrant.steps, evaluations, seconds, average(parts))
    if place.problem.prior == PLANE:
        keep.mkdir(parents=True, exist_ok=True)
        first = place.posteriors[0][1]
        np.save(keep / f"{file_name(row.problem, row.title)}.npy", x[first].flatten(1).numpy())
        np.save(keep / f"{file_name(row.problem, 'truth')}.npy", exact[first].flatten(1).numpy())
    return row


def file_name(*parts: str) -> str:
    """Words as a file name."""
    return "_".join("".join(c if c.isalnum() or c in ".=-" else "_" for c in part) for part in parts)


def conduct(args: argparse.Namespace, out: Path) -> list[Row]:
    """Fill in all rows that are missing."""
    settings = {name: vars(args)[name] for name in ("images", "samples", "seed", "sampler")}
    rows = {(row.problem, row.title): row for row in read_rows(out / FILE, settings)}
    entrants = [Entrant.parse(text, steps) for text in dict.fromkeys([*BRACKETS, *args.methods])
                for steps in args.steps]
    cases = problems(args.priors, args.operators, args.sigma)
    for steps in args.steps:
        process_of(args.sampler, steps)             # complains before anything is drawn
    todo = {problem: [e for e in entrants if (str(problem), e.title) not in rows] for problem in cases}
    work = sum(entrant.count for missing in todo.values() for entrant in missing)
    started, finished = time.perf_counter(), 0
    for problem, missing in todo.items():
        place = arena(problem, args.images, args.samples, args.seed) if missing else None
        for entrant in missing:
            if entrant.method.serves(place.measurement.operator, place.measurement.noiser):
                rows[str(problem), entrant.title] = evaluate(entrant, place, args.sampler, out / "samples")
                write_json(settings, list(rows.values()), out / FILE)
            finished += entrant.count
            left = (time.perf_counter() - started) * (work - finished) / finished
            logger.info(f"{problem}: {entrant.title}; {100 * finished // work} %, about "
                        f"{duration(left)} left")
    return [row for problem in cases for e in entrants if (row := rows.get((str(problem), e.title)))]


def pictures(rows: Sequence[Row], cases: Sequence[Problem], out: Path) -> None:
    """The plots: calibration, distances, and samples in the plane."""
    draw_calibration(rows, out / "calibration.png")
    draw_distances(rows, out / "distances.png")
    for problem in map(str, (problem for problem in cases if problem.prior == PLANE)):
        titles = [row.title for row in rows if row.problem == problem and row.steps == rows[-1].steps and row.scores]
        samples = {title: np.load(out / "samples" / f"{file_name(problem, title)}.npy", allow_pickle=False)
                   for title in titles}
        exact = np.load(out / "samples" / f"{file_name(problem, 'truth')}.npy", allow_pickle=False)
        draw_samples(exact, samples, problem, out / f"{file_name(problem)}.png")


@command(parse_arguments)
def main(args: argparse.Namespace) -> int:
    """Run the benchmark, show and save it; exit status 0, 2 for a mistake, 130 when interrupted."""
    out = output_folder(args.out)
    rows = conduct(args, out)
    text = table(rows)
    write_atomically(out / "posterior_benchmark.txt", (text + "\n").encode())
    pictures(rows, problems(args.priors, args.operators, args.sigma), out)
    logger.info(f"\n{text}\n\nresults in {args.out}")
    return 0


if __name__ == "__main__":
    run_program(main)
