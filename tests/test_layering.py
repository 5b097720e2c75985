"""Imports go one way: a file imports only files of a lower rank."""

import ast
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("data", "guided_diffusion", "util")

RANKS = [                                           # the first pattern that fits
    ("util/__init__.py", 0), ("data/__init__.py", 0), ("guided_diffusion/__init__.py", 0),
    ("util/errors.py", 0), ("util/logger.py", 0), ("util/user_path.py", 0.5),
    ("util/safe_yaml.py", 1),
    ("util/registry.py", 1), ("util/checkpoint.py", 1), ("util/command.py", 1), ("util/img_utils.py", 1),
    ("util/statistics.py", 1), ("util/weights.py", 1),
    ("util/arrays.py", 2), ("util/config.py", 2), ("util/image_pairs.py", 2), ("util/kernels.py", 2),
    ("util/perceptual.py", 2),
    ("util/resizer.py", 2), ("util/seeding.py", 2), ("guided_diffusion/nn.py", 2), ("guided_diffusion/tiling.py", 2),
    ("guided_diffusion/schedule.py", 2),
    ("data/random_crops.py", 4), ("data/*.py", 3), ("util/compute_metric.py", 3), ("util/measurement_files.py", 3),
    ("guided_diffusion/unet_blocks.py", 2.5), ("guided_diffusion/unet.py", 3), ("guided_diffusion/train_config.py", 4),
    ("guided_diffusion/measurements/iterative.py", 2),
    ("guided_diffusion/analytic_prior.py", 3), ("guided_diffusion/posterior_mean_variance.py", 3),
    ("guided_diffusion/measurements/base.py", 3), ("guided_diffusion/measurements/kernel_wizard.py", 3),
    ("util/signals.py", 0), ("util/memory.py", 0.5), ("util/distributed.py", 2), ("util/lock.py", 3),
    ("util/metrics_table.py", 4), ("util/row_store.py", 5), ("util/run_config.py", 5),
    ("util/run_files.py", 6), ("util/run_dir.py", 6.5), ("util/monitor.py", 7),
    ("guided_diffusion/gaussian_diffusion.py", 4), ("guided_diffusion/losses.py", 4),
    ("guided_diffusion/measurements/__init__.py", 5), ("guided_diffusion/measurements/*.py", 4),
    ("util/console.py", 7), ("util/set_scores.py", 7),
    ("guided_diffusion/gathering.py", 8), ("guided_diffusion/restoring.py", 9),
    ("guided_diffusion/method.py", 5), ("guided_diffusion/solvers/base.py", 6),
    ("guided_diffusion/solvers/__init__.py", 8), ("guided_diffusion/solvers/*.py", 7),
    ("guided_diffusion/condition_methods/base.py", 6), ("guided_diffusion/condition_methods/step_size.py", 6),
    ("guided_diffusion/condition_methods/guidance.py", 6.5),
    ("guided_diffusion/condition_methods/__init__.py", 8), ("guided_diffusion/condition_methods/*.py", 7),
    ("util/paper_table.py", 3), ("util/table_run.py", 4), ("util/table_report.py", 5), ("util/table_plots.py", 6),
    ("util/yaml_text.py", 3), ("util/grid.py", 5), ("util/tune.py", 12), ("util/reproduce_table.py", 12),
    ("util/markup.py", 0), ("util/report_files.py", 0),
    ("util/report_data.py", 3), ("util/report_figures.py", 4), ("util/report_tables.py", 4),
    ("util/report_page.py", 5), ("util/report.py", 6),
    ("util/settings.py", 3), ("guided_diffusion/choices.py", 9), ("guided_diffusion/building.py", 10),
    ("guided_diffusion/planning.py", 9),
    ("guided_diffusion/compiled.py", 3), ("guided_diffusion/batch_search.py", 10),
    ("util/benchmark_clock.py", 9), ("util/benchmark_runs.py", 10), ("util/benchmark_saving.py", 10),
    ("util/benchmark_tables.py", 11), ("util/benchmark.py", 12),
    ("sample_condition.py", 11), ("guided_diffusion/train.py", 12), ("guided_diffusion/validate.py", 13),
]
FORBIDDEN = [                                       # (importer, imported, why)
    ("util/*", "guided_diffusion/*", "util knows nothing of diffusion"),
    ("data/*", "guided_diffusion/*", "data knows nothing of diffusion"),
    ("guided_diffusion/gaussian_diffusion.py", "guided_diffusion/measurements/*", "operators arrive as arguments"),
    ("guided_diffusion/gaussian_diffusion.py", "guided_diffusion/condition_methods/*", "methods arrive as arguments"),
    ("guided_diffusion/gaussian_diffusion.py", "guided_diffusion/unet.py", "the network arrives as an argument"),
    ("guided_diffusion/measurements/*", "guided_diffusion/gaussian_diffusion.py", "measurements know no diffusion"),
    ("guided_diffusion/measurements/*", "guided_diffusion/schedule.py", "measurements know no diffusion"),
]
ALLOWED = [
    ("util/benchmark*.py", "guided_diffusion/*"),   # the command that measures diffusion, and its parts
    ("util/tune.py", "guided_diffusion/building.py"),       # check all settings before they run any
    ("util/reproduce_table.py", "guided_diffusion/building.py"),
    ("util/reproduce_table.py", "guided_diffusion/measurements/__init__.py"),
]


def source_files() -> list[str]:
    files = [ROOT / "sample_condition.py", *(f for p in PACKAGES for f in (ROOT / p).rglob("*.py"))]
    return sorted(f.relative_to(ROOT).as_posix() for f in files)


def rank(file: str) -> int:
    for pattern, value in RANKS:
        if fnmatch(file, pattern):
            return value
    raise AssertionError(f"{file} has no rank; give it one in {Path(__file__).name}")


def file_of(module: str) -> str | None:
    """The file of a module of ours, None for the modules of others."""
    path = ROOT / Path(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file.relative_to(ROOT).as_posix()
    return None


def imports(tree: ast.AST) -> set[str]:
    """Files of ours that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name if file_of(name) else node.module for name in submodules]
        else:
            continue
        found |= {file for module in modules if (file := file_of(module))}
    return found


def violations(importer: str, tree: ast.AST) -> list[str]:
    problems = []
    for imported in sorted(imports(tree)):
        if rank(imported) >= rank(importer):
            problems.append(f"{importer} (rank {rank(importer)}) imports {imported} (rank {rank(imported)})")
        if any(fnmatch(importer, a) and fnmatch(imported, b) for a, b in ALLOWED):
            continue
        problems += [f"{importer} imports {imported}, but {why}" for a, b, why in FORBIDDEN
                     if fnmatch(importer, a) and fnmatch(imported, b)]
    return problems


@pytest.mark.parametrize("file", source_files())
def test_imports_go_down(file: str):
    problems = violations(file, ast.parse((ROOT / file).read_text(encoding="utf-8")))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("importer, code, imported", [
    ("util/config.py", "from guided_diffusion.unet import create_model", "guided_diffusion/unet.py"),
    ("util/registry.py", "import util.config", "util/config.py"),
    ("data/dataloader.py", "def f():\n    from util import run_dir", "util/run_dir.py"),
    ("guided_diffusion/gaussian_diffusion.py", "from guided_diffusion.measurements.base import Operator",
     "guided_diffusion/measurements/base.py"),
])
def test_a_wrong_import_is_named_with_both_files(importer: str, code: str, imported: str):
    problems = violations(importer, ast.parse(code))
    assert problems
    assert importer in problems[0]
    assert imported in problems[0]


def calls(tree: ast.AST, name: str) -> list[int]:
    return [node.lineno for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name]


@pytest.mark.parametrize("file", source_files())
def test_nothing_prints_or_guesses_attributes(file: str):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for name in ("print", "hasattr", "eval", "exec"):
        assert not calls(tree, name), f"{file} calls {name} in line {calls(tree, name)[0]}"
