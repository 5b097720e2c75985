"""The laws of the house: imports run downwards from room to room; `util` and `data` know nothing of diffusion."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[1]
HOUSE = [                                           # the floors, from the top; rooms of one floor do not see each other
    ["sample_condition.py"],
    ["guided_diffusion/benchmark/", "guided_diffusion/tune/", "guided_diffusion/posterior_benchmark/",
     "guided_diffusion/validate.py", "guided_diffusion/notebook.py"],
    ["guided_diffusion/train.py"],
    ["guided_diffusion/restoration/", "guided_diffusion/training/"],
    ["guided_diffusion/solvers/"],
    ["guided_diffusion/condition_methods/"],
    ["guided_diffusion/priors/"],
    ["guided_diffusion/"],                          # the files beside the rooms: the process and its network
    ["guided_diffusion/measurements/"],
    ["util/reproduce_table/", "util/report/", "util/compute_metric.py", "util/fetch.py"],
    ["data/"],
    ["util/run/"],
    ["util/metrics/"],
    ["util/config/"],
    ["util/"],                                      # the ground
]
FLOORS = {room: floor for floor, rooms in enumerate(HOUSE) for room in rooms}


def source_files() -> list[str]:
    packages = ("data", "guided_diffusion", "util")
    files = [ROOT / "sample_condition.py", *(file for name in packages for file in (ROOT / name).rglob("*.py"))]
    return sorted(f.relative_to(ROOT).as_posix() for f in files)


def room(file: str) -> str:
    """The room that a file is in: the longest name in HOUSE that it begins with."""
    return max((name for name in FLOORS if file.startswith(name)), key=len)


@cache
def file_of(module: str) -> str | None:
    """The file of a module of ours, None for the modules of others."""
    path = ROOT / Path(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file.relative_to(ROOT).as_posix()
    return None


def imports(tree: ast.AST) -> Iterator[str]:
    """Files of ours that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name if file_of(name) else node.module for name in submodules]
        else:
            continue
        yield from filter(None, map(file_of, modules))


def violations(importer: str, tree: ast.AST) -> list[str]:
    here = room(importer)
    return [f"{importer} ({here}, floor {FLOORS[here]}) imports {imported} ({room(imported)}, floor "
            f"{FLOORS[room(imported)]}), which is not below it"
            for imported in sorted(set(imports(tree)))
            if room(imported) != here and FLOORS[room(imported)] <= FLOORS[here]]


def parse(file: str) -> ast.AST:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", source_files())
def test_imports_run_downwards(file: str):
    problems = violations(file, parse(file))
    assert not problems, "\n".join(problems)


def test_no_imports_run_in_circles():
    TopologicalSorter({file: set(imports(parse(file))) - {file} for file in source_files()}).prepare()


@pytest.mark.parametrize("importer, code, imported", [
    ("util/config/config.py", "from guided_diffusion.unet import create_model", "guided_diffusion/unet.py"),
    ("data/dataloader.py", "def f():\n    import guided_diffusion.schedule", "guided_diffusion/schedule.py"),
    ("util/errors.py", "from util.config import registry", "util/config/registry.py"),
    ("util/report/page.py", "from util.reproduce_table import job", "util/reproduce_table/job.py"),
    ("guided_diffusion/gaussian_diffusion.py", "from guided_diffusion.priors.load import load_prior",
     "guided_diffusion/priors/load.py"),
    ("guided_diffusion/measurements/base.py", "from guided_diffusion.schedule import Schedule",
     "guided_diffusion/schedule.py"),
    ("guided_diffusion/condition_methods/mcg.py", "from guided_diffusion.solvers import Wiener",
     "guided_diffusion/solvers/__init__.py"),
])
def test_a_wrong_import_is_named_with_both_files(importer: str, code: str, imported: str):
    problem, = violations(importer, ast.parse(code))
    assert importer in problem
    assert imported in problem


def calls(tree: ast.AST, name: str) -> list[int]:
    return [node.lineno for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name]


@pytest.mark.parametrize("file", source_files())
def test_nothing_prints_or_guesses_attributes(file: str):
    tree = parse(file)
    for name in ("print", "hasattr", "eval", "exec"):
        assert not calls(tree, name), f"{file} calls {name} in line {calls(tree, name)[0]}"


@pytest.mark.parametrize("file", source_files())
def test_no_name_is_newer_than_the_oldest_python(file: str):
    """README promises 3.10, of whose `typing` these are no part."""
    newer = {"LiteralString", "Never", "NotRequired", "Required", "Self", "TypeAliasType", "TypeVarTuple", "Unpack",
             "assert_never", "dataclass_transform", "override", "reveal_type"}
    imported = {alias.name for node in ast.walk(parse(file)) if isinstance(node, ast.ImportFrom)
                and node.module == "typing" for alias in node.names}
    assert not imported & newer


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.words)
def test_every_fault_of_the_list_can_be_planted(fault: Fault):
    assert fault.right in (ROOT / fault.file).read_text(encoding="utf-8")
