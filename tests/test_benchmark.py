"""The benchmark: its clock, its settings, what it counts, and the command as a user runs it."""

import json
import math
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from guided_diffusion.benchmark import __main__ as benchmark
from guided_diffusion.benchmark.clock import (
    BACKWARD,
    CANDIDATES,
    FORWARD,
    OPERATOR,
    OTHER,
    PHASES,
    StepClock,
    TimedSelection,
)
from guided_diffusion.benchmark.runs import (
    Case,
    Result,
    Setting,
    build_method,
    count_flops,
    measure,
    measure_task,
    network_of,
    peak_memory,
    reset_peak_memory,
    run_case,
    sampler_through,
)
from guided_diffusion.benchmark.saving import Keeping, measure_keeping
from guided_diffusion.benchmark.tables import growth_row
from guided_diffusion.condition_methods.likelihoods import ITERATIONS
from guided_diffusion.measurements.super_resolution import SuperResolutionOperator
from guided_diffusion.unet import create_model
from tests.helpers import fill_network
from util.metrics.scores import Metrics
from util.run import directory
from util.run.rows import RowStore

CPU = torch.device("cpu")
OFFICIAL = Setting("official-like", as_official=True)
FAST = Setting("fast", "bf16")
TINY = dict(image_size=32, num_channels=32, num_res_blocks=1, channel_mult="1,2", attention_resolutions="16",
            num_head_channels=16, use_scale_shift_norm=True, learn_sigma=True)


@dataclass
class Level:
    """All that the number of candidates depends on."""

    alpha_bar: float


@pytest.fixture(scope="module")
def model():
    return fill_network(create_model(**TINY), 0).requires_grad_(False)


def test_clock_gives_every_second_to_the_phase_that_was_switched_to():
    readings = iter([0, 1, 3, 6, 10, 15, 21])
    clock = StepClock(CPU)
    clock._read = lambda: next(readings)
    clock.finish_step()                             # 0: what came before is no step
    clock.switch(FORWARD)                           # 1
    clock.switch(BACKWARD)                          # 3
    clock.finish_step()                             # 6
    clock.switch(FORWARD)                           # 10
    clock.switch(FORWARD)                           # 15
    clock.finish_step()                             # 21
    first, second = clock.steps()
    assert first == {FORWARD: 2, BACKWARD: 3, OPERATOR: 0, CANDIDATES: 0, OTHER: 1}
    assert second == {FORWARD: 11, BACKWARD: 0, OPERATOR: 0, CANDIDATES: 0, OTHER: 4}


@pytest.mark.parametrize("setting, applications", [
    (OFFICIAL, 1), (FAST, 1), (Setting("fast", "bf16", likelihood="gaussian"), 2 + ITERATIONS)])
@pytest.mark.parametrize("method", ["ps", "dpps"])
def test_phases_have_the_time_of_what_they_name(model, method, setting, applications, monkeypatch):
    """On a clock that the network's forward pass advances by 1, its backward pass by 2, and the operator by 10."""
    now = [0]

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            now[0] += 1
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            now[0] += 2
            return gradient

    def operate(self, x):
        now[0] += 10
        return x[..., ::4, ::4]

    network = create_model(**TINY).requires_grad_(False)
    monkeypatch.setattr(network, "_forward", lambda x, t, y: model._forward(Slow.apply(x), t, y))
    monkeypatch.setattr(SuperResolutionOperator, "forward", operate)
    clock = StepClock(CPU)
    clock._read = lambda: now[0]
    steps = run_case(network, Case(setting, method, "super_resolution", 32, 2), 2, clock)
    full = sampler_through(2, False).schedule.alphas_cumprod[2:0:-1]
    for step, alpha_bar in zip(steps, full, strict=True):
        calls = TimedSelection(clock, 1.0).num_candidates(Level(alpha_bar)) if setting is OFFICIAL else 2
        assert step == {FORWARD: 1, BACKWARD: 2, OPERATOR: 10 * applications,
                        CANDIDATES: 10 * calls if method == "dpps" else 0, OTHER: 0}


def test_official_like_chooses_the_same_candidates(model):
    """The slow ways compute the same restoration as the fast ones."""
    restored = []
    for setting in (OFFICIAL, Setting("fast", "fp32")):
        case = Case(setting, "dpps", "gaussian_blur", 32, 2)
        clock = StepClock(CPU)
        measurement, randomness = measure_task(case, CPU)
        assert measurement.operator.direct == setting.as_official
        with network_of(model, setting) as network:
            restored.append(build_method(case, clock).restore(
                network, sampler_through(3, True), measurement, randomness))
    torch.testing.assert_close(*restored, atol=1e-3, rtol=0)


def test_settings_are_put_back(model):
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with network_of(model, Setting("x", "bf16", as_official=True, tf32=True)) as network:
        assert network.autocast_dtype == torch.bfloat16
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
        assert all(p.requires_grad for p in network.parameters())
        assert network.out[2].weight.is_contiguous()
    assert model.autocast_dtype is None
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == flags
    assert not any(p.requires_grad for p in model.parameters())
    assert model.out[2].weight.is_contiguous(memory_format=torch.channels_last)


def test_mean_number_of_candidates_is_that_of_the_full_process():
    """Over the visited levels as over all 1000 of the linear schedule."""
    method = TimedSelection(StepClock(CPU), 1.0)
    full = sampler_through(1000 - 2, False).schedule.alphas_cumprod[1:]
    expected = sum(method.num_candidates(Level(a)) for a in full) / len(full)
    for levels in (3, 4, 8):
        visited = sampler_through(levels, False).schedule.alphas_cumprod[1:-1]
        assert len(visited) == levels
        assert sum(method.num_candidates(Level(a)) for a in visited) / levels == pytest.approx(expected, rel=0.1)


def test_flops_are_those_of_the_convolutions():
    """Those of two more residual blocks."""
    options = {**TINY, "channel_mult": "1", "attention_resolutions": ""}
    short, long = (create_model(**{**options, "num_res_blocks": n}) for n in (1, 2))
    # one more on the way down and one on the way up: 3x3 of 32->32 three times, 3x3 of 64->32, and 1x1 of 64->32
    forward = 2 * 32 * 32 * (9 * (32 * 32 * 3 + 64 * 32) + 64 * 32)
    embeddings = 2 * 2 * 128 * 64
    assert count_flops(long, 32) - count_flops(short, 32) == 2 * forward + embeddings


def test_published_network_has_the_flops_of_the_literature():
    """388 GFLOP forward for the FFHQ network at 256 x 256, and as much again for the gradient."""
    with torch.device("meta"):
        network = create_model(256, 128, 1, learn_sigma=True, attention_resolutions=16, num_head_channels=64,
                               use_scale_shift_norm=True, resblock_updown=True)
    assert count_flops(network, 256) == pytest.approx(2 * 388e9, rel=0.01)


def test_result_takes_medians_of_repetitions_and_means_of_levels():
    levels = [[{**dict.fromkeys(PHASES, 0.0), FORWARD: a}, {**dict.fromkeys(PHASES, 0.0), FORWARD: b, CANDIDATES: 1.0}]
              for a, b in ((1, 10), (3, 50), (2, 20))]
    result = Result(Case(FAST, "dpps", "inpainting", 32, 1), levels)
    assert result.phase(FORWARD) == 11
    assert result.step == 11.5
    assert result.selection_share == pytest.approx(0.5 / 11)
    assert result.level_steps() == [2, 21]


def test_growth_is_compared_with_linear_growth():
    assert growth_row("images", 4, 0.3, 2, 0.2) == ["images", "4", "300.0", "x 2", "x 1.50", "0.75"]


def test_what_does_not_fit_is_left_out(model, monkeypatch):
    def run(model, case, levels, clock):
        if case.batch == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return [dict.fromkeys(PHASES, 1.0)]

    monkeypatch.setattr("guided_diffusion.benchmark.runs.run_case", run)
    cases = [Case(FAST, "ps", "inpainting", 32, batch) for batch in (1, 2)]
    results = measure(model, cases, 1, 2, lambda: StepClock(CPU), lambda case: None)
    assert [r.case.batch for r in results] == [1]
    assert len(results[0].levels) == 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back when asked to")
def test_peak_memory_is_not_that_of_an_earlier_run():
    pieces = [torch.ones(2 ** 12) for _ in range(2 ** 14)]          # 256 MiB in pieces that the allocator keeps
    reset_peak_memory(CPU)
    before, last = peak_memory(CPU), pieces[-1:]
    del pieces
    reset_peak_memory(CPU)
    assert len(last) == 1
    assert peak_memory(CPU) < before - 2 ** 27


def test_command(tmp_path, capsys):
    config = tmp_path / "model.yaml"
    config.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in TINY.items())
                      + "\nmodel_path: nowhere.pt\n")
    out = tmp_path / "figures.json"
    status = benchmark.main(["--model_config", str(config), "--steps", "1", "--repeats", "1", "--batch_sizes", "1,2",
                             "--sizes", "16,32", "--precision", "fp32", "--likelihood", "gaussian", "--out", str(out)])
    shown = capsys.readouterr().out
    assert status == 0
    assert "fast: fp32, channels_last, likelihood gaussian;" in shown
    assert "random weights" in shown
    assert "extrapolated" in shown
    growth = [line.split() for line in shown.partition("Growth")[2].splitlines()[2:7]]
    assert [line[:2] for line in growth] == [
        ["images", "1"], ["images", "2"], ["steps", "1"], ["pixels", "256"], ["pixels", "1024"]]
    share = float(re.search(r"([\d.]+)% of 1000 steps of fast, ps, batches of 2", shown).group(1)) / 100
    figures = json.loads(out.read_text())
    lines = {(r["setting"], r["method"], r["task"], r["size"], r["batch"]): r for r in figures["results"]}
    assert {key[:2] + key[4:] for key in lines if key[2] == "gaussian_blur"} == {
        (setting, method, batch) for method in ("ps", "dpps")
        for setting, batch in (("official-like", 1), ("fast", 1), ("fast", 2))}
    assert {key[3] for key in lines} == {16, 32}
    for line in lines.values():
        seconds = line["seconds_per_step"]
        assert seconds["step"] == pytest.approx(sum(seconds[name] for name in PHASES))
        assert line["images_per_second"] == pytest.approx(line["batch"] / seconds["step"] / 1000)
        assert 0 < line["share_of_floor"] < 1.5
        assert all(math.isfinite(value) for value in seconds.values())
    kept = figures["seconds_to_keep_an_image"]
    assert kept["total"] == pytest.approx(sum(kept[part] for part in ("files", "scores", "bookkeeping", "end")))
    assert share == pytest.approx(kept["total"] * lines["fast", "ps", "gaussian_blur", 32, 2]["images_per_second"],
                                  abs=1e-6)


def test_the_cost_of_keeping_an_image_is_divided_among_what_it_is_for(monkeypatch):
    """On a clock that scores advance by 1, pictures by 10, tables of rows by 100 and the end of the run by 1000."""
    now = [0]

    def advance(seconds, original):
        def advanced(*args, **kwargs):
            now[0] += seconds
            return original(*args, **kwargs)
        return advanced

    monkeypatch.setattr("util.run.directory.save_image", advance(10, directory.save_image))
    monkeypatch.setattr(RowStore, "add", advance(100, RowStore.add))
    monkeypatch.setattr(directory.RunDirectory, "write_grid", advance(1000, directory.RunDirectory.write_grid))

    class OneSecond(Metrics):
        __call__ = advance(1, Metrics.__call__)

    kept = measure_keeping(32, 3, 1, OneSecond(networks=()), lambda: now[0])
    assert kept == Keeping(4, (), files=30, scores=2, bookkeeping=100, end=250)
    assert kept.total == 382


@pytest.mark.parametrize("argv, message", [
    (["--batch_sizes", "1,x"], "batch_sizes"),
    (["--batch_sizes", "0"], "1 or more"),
    (["--settings", "fast,quick"], "official-like"),
    (["--image_size", "64,128"], "expected one"),
    (["--image_size", "100"], "multiples of 8"),
    (["--model_config", "configs/no_config.yaml"], "no_config"),
    (["--bach_sizes", "1"], "did you mean '--batch_sizes'"),
    (["--out", "/proc/self/x.json"], "--out /proc/self/x.json cannot be written"),
    (["--out", "mine.yaml"], "mine.yaml is there already and holds no benchmark"),
    (["--weights_dir", "nowhere"], "'nowhere' not found"),
])
def test_mistakes(argv, message, capsys, tmp_path, monkeypatch):
    """Found before anything is measured."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("a: 1")
    monkeypatch.setattr(benchmark, "matmul_peak", lambda *_: pytest.fail("measured"))
    assert benchmark.main(argv) == 2
    assert message in capsys.readouterr().err
