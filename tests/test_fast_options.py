"""The options that make runs faster: --batch_size auto, --precision and --compile, and where noise is drawn."""

from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

import sample_condition
from guided_diffusion.priors.compiled import compiled
from guided_diffusion.priors.tiling import TiledPrior
from guided_diffusion.restoration import plan
from guided_diffusion.unet import create_model
from tests.command_line import MODEL, rows
from tests.helpers import fill_network
from util.seeding import ImageRandomness

CPU = torch.device("cpu")
TWO_STEPS = ["--set", "diffusion.timestep_respacing=2"]
ONE_STEP = ["--limit", "1", "--set", "diffusion.timestep_respacing=1"]


@pytest.mark.parametrize("rates, most, best, tried", [
    ({1: 1.0, 2: 1.8, 4: 3.0, 8: 3.01, 16: 9.0}, 100, 8, [1, 2, 4, 8]),         # stops where doubling gains too little
    ({1: 1.0, 2: 0.9}, 100, 1, [1, 2]),
    ({1: 1.0, 2: 1.5, 4: None}, 100, 2, [1, 2, 4]),                             # memory ends
    ({1: None}, 100, 1, [1]),
    ({1: 1.0, 2: 2.0, 3: 3.0}, 3, 3, [1, 2, 3]),                                # no more than there are images
    ({1: 1.0}, 1, 1, [1]),
])
def test_batch_size_doubles_while_it_pays(rates, most, best, tried, monkeypatch, capsys):
    seen = []

    def rate(task, network, shape, device):
        seen.append(shape[0])
        return rates[shape[0]]

    monkeypatch.setattr(plan, "_rate", rate)
    assert plan.best_batch_size(None, lambda: None, 32, CPU, most) == best
    assert seen == tried
    assert f"--batch_size auto: {best} " in capsys.readouterr().out


def test_auto_restores_the_same_images(run):
    status, out, _ = run("--batch_size", "auto", "--limit", "2", "--save_dir", "auto")
    assert status == 0
    assert "--batch_size auto: " in out
    assert run("--batch_size", "1", "--limit", "2", "--save_dir", "one")[0] == 0
    ours, theirs = (rows(f"{folder}/super_resolution/dpps") for folder in ("auto", "one"))
    for a, b in zip(ours, theirs, strict=True):
        assert float(a["psnr"]) == pytest.approx(float(b["psnr"]), abs=1e-3)
    status, out, _ = run("--batch_size", "auto", "--limit", "2", "--save_dir", "auto")     # goes on where it was
    assert status == 0
    assert len(rows("auto/super_resolution/dpps")) == 2


def test_search_when_memory_ends(run, monkeypatch):
    original = plan._seconds_per_step

    def limited(task, network, shape, device):
        if shape[0] > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return original(task, network, shape, device)

    monkeypatch.setattr(plan, "_seconds_per_step", limited)
    status, out, _ = run("--batch_size", "auto", *ONE_STEP, "--limit", "2")
    assert status == 0
    assert "--batch_size auto: 1 " in out
    assert "then memory ends" in out


@pytest.mark.parametrize("respacing, warned", [
    ("1", True), ("ddim1", True), ("[2,0,0,0]", True), ("[2,0]", False), ("2", False)])
def test_a_start_among_nearly_clean_images_is_warned_of(run, respacing, warned):
    status, out, err = run("--limit", "1", "--set", f"diffusion.timestep_respacing={respacing}")
    assert status == 0 and ("images are nearly clean" in err) == warned
    assert ("1 image of 32 x 32, 1 step, on CPU" in out) == (respacing in ("1", "ddim1"))


@pytest.mark.parametrize("word", ["automatic", "0", "-1"])
def test_batch_sizes_that_are_none(run, word):
    status, _, err = run("--batch_size", word)
    assert status == 2
    assert word in err


@pytest.fixture(autouse=True)
def dynamo():
    """What compiling leaves behind in this process does not reach other tests."""
    with torch._dynamo.config.patch(suppress_errors=False):
        yield
    torch._dynamo.reset()


class Doubling(torch.nn.Module):
    """A network that compiles in no time."""

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 2 * x_t + t.view(-1, 1, 1, 1)


def network():
    return fill_network(create_model(**MODEL), 0).requires_grad_(False)


def test_what_cannot_be_compiled_runs_as_it_is(monkeypatch, capsys):
    def failing(model, dynamic):
        raise RuntimeError("\nno C++ compiler here\nand more")

    monkeypatch.setattr(torch, "compile", failing)
    model = network()
    assert compiled(model, 1, 32, CPU) is model
    assert "no C++ compiler here" in capsys.readouterr().err


def test_a_failure_at_the_first_call_is_one_of_compiling(monkeypatch, capsys):
    def call(x_t, t):
        raise RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: gcc is gone")

    monkeypatch.setattr(torch, "compile", lambda model, dynamic: call)
    model = network()
    assert compiled(model, 1, 32, CPU) is model
    assert "gcc is gone" in capsys.readouterr().err


def test_compiling_is_done_before_the_restoration(monkeypatch, capsys):
    """A forward pass and a gradient in the shape of the batches; shapes are static."""
    seen = []

    class Compiled(torch.nn.Module):
        def forward(self, x_t, t):
            x_t.register_hook(lambda gradient: seen.append("gradient"))
            seen.append(tuple(x_t.shape))
            return 2 * x_t

    def compile(model, dynamic):
        assert dynamic is False
        return Compiled()

    monkeypatch.setattr(torch, "compile", compile)
    assert isinstance(compiled(network(), 2, 32, CPU), Compiled)
    assert seen == [(2, 3, 32, 32), "gradient"]
    assert not capsys.readouterr().err


def test_what_cannot_be_compiled_later_runs_as_it_is(monkeypatch, capsys):
    """The last batch may be smaller: a compiler that fails there does not end the run."""
    shapes, compile = [], torch.compile

    def backend(graph, inputs):
        shapes.append([tuple(x.shape) for x in inputs if x.dim() == 4])
        if len(shapes) > 1:
            raise RuntimeError("no compiler any more")
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(compile, backend=backend))
    fast = compiled(Doubling(), 2, 4, CPU)
    assert shapes == [[(2, 3, 4, 4)]] and not capsys.readouterr().err
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(fast(x, torch.ones(1, dtype=torch.int64)), 2 * x + 1)
    assert len(shapes) > 1


@pytest.mark.parametrize("image_size, window", [(48, 32), (16, 16), (None, 32)])
def test_of_a_tiled_prior_the_windows_are_compiled(monkeypatch, image_size, window):
    """Compiled once, for a window and not for all of them together; predictions and gradients stay as they are."""
    shapes, compile = [], torch.compile

    def backend(graph, inputs):
        shapes.extend(tuple(x.shape) for x in inputs if x.dim() == 4)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(compile, backend=backend))
    side, t = image_size or 48, torch.tensor([3])
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0), requires_grad=True)
    plain, fast = TiledPrior(Doubling(), 32), compiled(TiledPrior(Doubling(), 32), 1, image_size, CPU)
    expected, found = ((out := tiled(x, t), torch.autograd.grad(out.square().sum(), x)[0]) for tiled in (plain, fast))
    torch.testing.assert_close(found, expected)
    assert shapes == [(1, 3, window, window)]


def test_images_of_any_size_are_not_compiled_and_it_is_said(capsys):
    model = network()
    assert compiled(model, 1, None, CPU) is model
    assert "these images may have several" in capsys.readouterr().err


def test_compile_option(run, monkeypatch):
    asked = []

    def compile(model, dynamic):
        asked.append(model)
        return model

    monkeypatch.setattr(torch, "compile", compile)
    seen, compiled = [], sample_condition.compiled
    monkeypatch.setattr(sample_condition, "compiled",
                        lambda model, *given: seen.append(given) or compiled(model, *given))
    assert run(*ONE_STEP, "--compile", "--batch_size", "8")[0] == 0
    assert len(asked) == 1 and seen == [(1, 32, CPU)]       # for the batch that there is
    assert len(rows()) == 1


@pytest.mark.parametrize("options, allowed", [
    ([], True), (["--precision", "tf32"], True), (["--precision", "fp32"], False), (["--precision", "bf16"], False)])
def test_tf32_is_for_convolutions_and_only_where_it_is_asked_for(run, monkeypatch, options, allowed):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not allowed)
    assert run(*options, *ONE_STEP, "--save_dir", "out")[0] == 0
    assert torch.backends.cudnn.allow_tf32 == allowed
    assert not torch.backends.cuda.matmul.allow_tf32                    # operators multiply matrices in float32
    config = yaml.safe_load(Path("out/super_resolution/dpps/config.yaml").read_text())
    assert config["precision"] == (options[1] if options else "tf32")


@pytest.mark.parametrize("options, dtype", [
    ([], torch.float16), (["--precision", "fp32"], None), (["--precision", "bf16"], torch.bfloat16)])
def test_use_fp16_of_the_model_config_gives_way_to_the_option(run, monkeypatch, options, dtype):
    made, load = [], sample_condition.load_prior
    monkeypatch.setattr(sample_condition, "load_prior", lambda *given: made.append(load(*given)) or made[0])
    assert run(*options, *ONE_STEP, "--set", "model.use_fp16=true")[0] == 0
    assert made[0].autocast_dtype == dtype


def test_half_precision_changes_the_gradient_little():
    """Relative to float32: float16 has 3 more bits than bfloat16, and the guidance does not underflow in it."""
    model = network()
    errors, gradients = {}, {}
    for dtype in (None, torch.bfloat16, torch.float16):
        model.autocast_dtype = dtype
        x = torch.randn(1, 3, 32, 32, generator=torch.manual_seed(0)).requires_grad_()
        gradients[dtype], = torch.autograd.grad(model(x, torch.tensor([500])).norm(), x)
        errors[dtype] = ((gradients[dtype] - gradients[None]).norm() / gradients[None].norm()).item()
    assert 0 < errors[torch.float16] < 0.01
    assert errors[torch.float16] < errors[torch.bfloat16] < 0.05


def test_sampling_noise_is_drawn_on_the_device_of_the_run(run, monkeypatch):
    """Masks and measurement noise stay on the CPU, so that they are the same on every machine."""
    made = []

    class Watched(ImageRandomness):
        def __init__(self, seed, names, samples=None, purpose="sampling", device="a default"):
            made.append(device)
            super().__init__(seed, names, samples, purpose, device)

    monkeypatch.setattr(sample_condition, "ImageRandomness", Watched)
    assert run(*ONE_STEP)[0] == 0
    assert made == [CPU]
    streams = ImageRandomness(0, ["a"], device=torch.device("meta"))
    assert streams.for_purpose("operator").device == streams.for_purpose("noise").device == CPU


def config(folder: str) -> dict:
    return yaml.safe_load(Path(f"{folder}/super_resolution/dpps/config.yaml").read_text())


def test_a_continued_run_keeps_the_batch_size_that_was_chosen(run, monkeypatch):
    """Timings differ from run to run; the batches, on which last digits depend, do not."""
    asked = []

    def search(best, *given):
        asked.append(given[-1])
        return best

    monkeypatch.setattr(plan, "best_batch_size", partial(search, 2))
    assert run("--batch_size", "2", "--save_dir", "whole", *TWO_STEPS)[0] == 0
    assert "batch_size" not in config("whole")
    assert run("--batch_size", "auto", "--save_dir", "parts", "--limit", "1", *TWO_STEPS)[0] == 0
    assert asked == [1] and config("parts")["batch_size"] == 2
    monkeypatch.setattr(plan, "best_batch_size", partial(search, 1))
    status, out, _ = run("--batch_size", "auto", "--save_dir", "parts", *TWO_STEPS)
    assert status == 0 and "--batch_size auto: 2, as chosen when this run began" in out
    assert asked == [1]
    for name in ("astronaut", "chelsea", "coffee"):
        whole, parts = (Path(f"{folder}/super_resolution/dpps/recon/{name}.png") for folder in ("whole", "parts"))
        assert whole.read_bytes() == parts.read_bytes()
    assert run("--save_dir", "parts", *TWO_STEPS)[0] == 0               # finished: nothing to lose
    assert config("parts")["batch_size"] == 2
    status, out, _ = run("--batch_size", "auto", "--save_dir", "parts", "--overwrite", *TWO_STEPS)
    assert status == 0 and asked == [1, 3] and config("parts")["batch_size"] == 1
