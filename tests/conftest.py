"""What several test files share: one thread, golden numbers, programs run in this process, KernelWizard weights."""

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import sample_condition
from guided_diffusion.priors import load
from guided_diffusion.restoration import check
from guided_diffusion.unet import create_model
from tests.command_line import MODEL, TASK, arguments
from tests.fake_weights import ChannelMeans, MeanDifference, kernel_wizard_weights
from tests.forks import Forked, nursery
from tests.report_pages import Page
from util import img_utils
from util.metrics import perceptual, scores
from util.metrics import weights as metric_weights
from util.report.__main__ import main as write_report
from util.reproduce_table import job

os.environ["OMP_NUM_THREADS"] = "1"                 # of the programs that tests start
torch.set_num_threads(1)                            # networks of a few pixels: threads would wait for each other

SHIPPED = Path(__file__).parent / "golden"
BESIDE_CHECKOUT = Path(__file__).parents[2] / "shared" / "golden"


def golden_path(name: str) -> Path:
    """The golden file `name`, shipped or in the folder of reference numbers; skips the test where it is absent."""
    folders = [SHIPPED, Path(os.environ.get("DPS_GOLDEN", BESIDE_CHECKOUT))]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"{name} is not in {folders[1]}; set DPS_GOLDEN to the folder of golden numbers")


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """golden(name) -> the arrays of a golden .npz file, "operators" or "operators.npz"."""
    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(golden_path(name if name.endswith(".npz") else f"{name}.npz")) as arrays:
            return dict(arrays)
    return load


@pytest.fixture(scope="session")
def prior(tmp_path_factory) -> Path:
    """A folder with the tiny network: tiny.pt and model.yaml, and task.yaml."""
    folder = tmp_path_factory.mktemp("prior")
    torch.manual_seed(0)
    network = create_model(**MODEL)
    with torch.no_grad():
        for parameter in network.parameters():      # the last layers of a new network are zero
            parameter.add_(0.02 * torch.randn_like(parameter))
    torch.save(network.state_dict(), folder / "tiny.pt")
    (folder / "model.yaml").write_text(yaml.safe_dump({**MODEL, "model_path": str(folder / "tiny.pt")}))
    (folder / "task.yaml").write_text(yaml.safe_dump(TASK))
    return folder


@pytest.fixture(scope="session", autouse=True)
def networks_once() -> Iterator[None]:
    """A file's network is built once for all runs of this process: frozen, it is the same for each of them."""
    built = {}

    def build(**parameters) -> nn.Module:
        file = Path(parameters["model_path"]).resolve()
        key = file, file.stat().st_mtime_ns, repr(sorted(parameters.items()))
        if key not in built:
            built[key] = create_model(**parameters)
        return built[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(load, "create_model", build)
        yield


@pytest.fixture(scope="session", autouse=True)
def frozen_imports() -> None:
    """What torch and the tests consist of is no garbage: looking through it takes a quarter of a second each time."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def small_grids() -> Iterator[None]:
    """Pictures of 64 pixels in grid.png: most of them nobody looks at, and their encoding takes a fifth of a run."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(img_utils, "GRID_CELL", 64)
        yield


@pytest.fixture(scope="session", autouse=True)
def before_all(small_grids) -> Iterator[ProcessPoolExecutor | None]:
    """The process that tests fork programs from, before one of them follows a gradient; None where there is no fork."""
    if sys.platform != "linux":
        yield None
        return
    with nursery() as pool:
        yield pool


@pytest.fixture
def fork(before_all, tmp_path_factory) -> Iterator[Callable[..., Forked]]:
    """fork(work, *given) -> the process that does it."""
    if before_all is None:
        pytest.skip("processes are forked")
    started = []

    def fork(work: Callable[..., int], *given: object) -> Forked:
        started.append(Forked(before_all, tmp_path_factory.mktemp("told"), work, *given))
        return started[-1]

    yield fork
    for process in started:
        process.end()


@pytest.fixture
def offline(tmp_path, monkeypatch) -> None:
    """Neither network nor GPU, here and in programs that are started: a proxy that refuses, no weights in folders."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "root" / "models").mkdir(parents=True)
    monkeypatch.setattr(metric_weights, "REPOSITORY", tmp_path / "root")
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def workplace(offline, tmp_path, monkeypatch) -> Path:
    """An empty working directory, no GPU, no network, and a fast network for ST-LPIPS."""
    monkeypatch.chdir(tmp_path)
    title, file, _ = perceptual.NETWORKS["st_lpips"]
    monkeypatch.setitem(perceptual.NETWORKS, "st_lpips", (title, file, MeanDifference))
    return tmp_path


@pytest.fixture
def run(prior, workplace, capsys):
    """run(*arguments) -> (exit status, standard output, standard error) of the program in this process."""
    def run(*more: str) -> tuple[int, str, str]:
        status = sample_condition.main(arguments(prior, *more))
        return status, *capsys.readouterr()
    return run


@pytest.fixture
def in_process(monkeypatch, capsys) -> list[list[str]]:
    """Programs that tests start by util.reproduce_table.job run in this process; the list of their command lines."""
    commands = []

    def launch(command, advance=lambda done, total: None, log=lambda line: None):
        commands.append(command)
        before = capsys.readouterr()
        status = sample_condition.main(command[2:])
        out, err = capsys.readouterr()
        sys.stdout.write(before.out)
        sys.stderr.write(before.err)
        lines = [line for line in (out + err).splitlines() if line.strip()]
        for line in lines:
            log(line)
        return status, lines

    monkeypatch.setattr(job, "launch", launch)
    monkeypatch.setattr("util.reproduce_table.__main__.ask",
                        lambda questions: check.answer(json.loads(json.dumps(questions))))
    return commands


@pytest.fixture
def interrupted(in_process, monkeypatch) -> list[tuple]:
    """The second program that util.reproduce_table.job starts is interrupted; the list of the calls."""
    working, started = job.launch, []

    def launch(*arguments):
        started.append(arguments)
        if len(started) == 2:
            raise KeyboardInterrupt
        return working(*arguments)

    monkeypatch.setattr(job, "launch", launch)
    return started


@pytest.fixture
def tiny_inception(monkeypatch) -> None:
    """ChannelMeans in place of Inception, and no network for LPIPS."""
    monkeypatch.setattr(scores, "load_networks",
                        lambda names, *_: {"inception": ChannelMeans()} if "inception" in names else {})


@pytest.fixture(scope="session")
def official_shapes() -> dict[str, list[int]]:
    """Names and shapes of GOPRO_wVAE.pth, in its order."""
    return json.loads(golden_path("kernelwizard_keys.json").read_text())["state_dict"]


@pytest.fixture(scope="session", name="weights")
def wizard_weights(official_shapes) -> dict[str, Tensor]:
    """A state dict of the KernelWizard, as kernel_wizard_weights fills it."""
    return kernel_wizard_weights(official_shapes)


@pytest.fixture(scope="session")
def checkpoint(weights, tmp_path_factory) -> str:
    """The path of a file of these weights."""
    file = tmp_path_factory.mktemp("wizard") / "GOPRO_wVAE.pth"
    torch.save(weights, file)
    return str(file)


@pytest.fixture
def report(tmp_path, capsys):
    """report(*options) -> (exit status, the page or None, standard output and error)."""
    def report(*options: str) -> tuple[int, Page | None, str]:
        status = write_report([str(tmp_path), *options])
        streams = capsys.readouterr()
        file = tmp_path / "report.html"
        return status, Page(file.read_text(encoding="utf-8")) if file.exists() else None, streams.out + streams.err
    return report
