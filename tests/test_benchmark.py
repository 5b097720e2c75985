"""The benchmark: what it counts and compares, and the command as a user runs it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample_condition
from guided_diffusion.benchmark import __main__ as benchmark
from guided_diffusion.benchmark.__main__ import Bench, Case, lines_of, measure_all
from guided_diffusion.benchmark.arguments import SETTINGS, parse_arguments
from guided_diffusion.benchmark.official import as_released
from guided_diffusion.unet import UNetModel, create_model
from util.errors import UserError

TINY = dict(image_size=32, num_channels=32, num_res_blocks=1, channel_mult="1,2", attention_resolutions="16",
            num_head_channels=16, use_scale_shift_norm=True, learn_sigma=True)


@pytest.fixture
def config(workplace):
    """A model config whose checkpoint is not there."""
    Path("model.yaml").write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in TINY.items())
                                  + "\nmodel_path: nowhere.pt\n")
    return ["--model_config", "model.yaml", "--steps", "3"]


@pytest.fixture
def programs(monkeypatch, capsys):
    """Runs that the benchmark starts are carried out in this process; what weights in them had a gradient."""
    graphs, forward = [], UNetModel.forward

    def spy(self, *inputs):
        graphs.append({parameter.requires_grad for parameter in self.parameters()})
        return forward(self, *inputs)

    def launch(command):
        if official := command[1] == "-m":
            with as_released():
                status = sample_condition.main(command[3:])
        else:
            status = sample_condition.main(command[2:])
        graphs.append(official)
        return status, capsys.readouterr().err.splitlines()

    monkeypatch.setattr(UNetModel, "forward", spy)
    monkeypatch.setattr(benchmark, "launch", launch)
    return graphs


@pytest.mark.parametrize("method, task", [("ps", "gaussian_deblur"), ("dpps", "super_resolution")])
def test_the_habits_of_the_released_code_give_the_same_restorations(config, programs, tmp_path, method, task):
    network = create_model(**TINY)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.005 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    torch.save(network.state_dict(), "tiny.pt")
    bench = Bench(parse_arguments([*config, "--task_config", f"configs/demo_{task}_config.yaml", "--batch_sizes", "1"]),
                  tmp_path, 32, "tiny.pt")
    restored = {}
    for setting in SETTINGS:
        bench.measure(case := Case(setting, method, 1))
        assert case.per_image > 0 and case.besides_seconds[0] > 0
        restored[setting] = np.stack([np.asarray(Image.open(file)).astype(float) for file in sorted(
            tmp_path.glob("results/*/*/recon/*.png"))])
        assert programs[-1] is (setting == "official-like")
        assert {True} in programs[:-1] if setting == "official-like" else programs[:-1] == [{False}] * 6
        programs.clear()
    assert restored["fast"].shape == (2, 32, 32, 3)
    np.testing.assert_allclose(restored["official-like"], restored["fast"], atol=1)


def test_figures_are_medians_over_runs_and_ratios_of_an_image():
    official, fast, alone = lines_of([Case("official-like", "ps", 1, [3.0, 1.0, 2.0], [9.0] * 3), Case(
        "fast", "ps", 4, [4.0, 4.0], [9.0] * 2), Case("fast", "dpps", 1, [1.0], [9.0])])
    assert (official["seconds_per_image_step"], official["x_official"]) == (2, 1)
    assert (fast["seconds_per_image_step"], fast["x_official"]) == (1, 2)
    assert fast["images_per_second_of_1000_steps"] == 1e-3 and alone["x_official"] is None


def test_a_case_that_fails_is_left_out(capsys):
    class Broken:
        def measure(self, case):
            if case.batch == 2:
                raise UserError("no memory")
            case.step_seconds.append(1.0)

    found = measure_all(Broken(), [Case("fast", "ps", 1), Case("fast", "ps", 2)], 3)
    assert [(case.batch, case.step_seconds) for case in found] == [(1, [1.0] * 3)]
    assert "no memory; left out" in capsys.readouterr().err


def test_command(config, programs, capsys):
    assert benchmark.main([*config, "--methods", "ps,ps", "--batch_sizes", "2,2", "--repeats", "1"]) == 0
    shown = capsys.readouterr().out
    rows = [line.split()[:3] for line in shown.splitlines() if line.startswith(("official-like ", "fast "))]
    assert rows == [["official-like", "ps", "1"], ["fast", "ps", "2"]]
    figures = json.loads(Path("benchmark.json").read_text())
    assert figures["random_weights"] and figures["operator"] == "gaussian_blur"
    assert [len(line["step_seconds"]) for line in figures["results"]] == [1, 1]
    assert all(line["x_official"] > 0 and line["peak_bytes"] > 0 for line in figures["results"])


@pytest.mark.parametrize("argv, message", [
    (["--batch_sizes", "1,x"], "batch_sizes"),
    (["--settings", "fast,quick"], "official-like"),
    (["--image_size", "100"], "multiples of 8"),
    (["--model_config", "configs/no_config.yaml"], "no_config"),
    (["--model_config", "configs/exact_gaussian_model_config.yaml"], "no network of this repository"),
    (["--model_config", "configs/edm_model_config.yaml"], "no network of this repository"),
    (["--bach_sizes", "1"], "did you mean '--batch_sizes'"),
    (["--out", "/proc/self/x.json"], "--out /proc/self/x.json cannot be written"),
    (["--out", "mine.yaml"], "mine.yaml is there already and holds no benchmark"),
])
def test_mistakes(argv, message, capsys, workplace, monkeypatch):
    """Found before anything is measured."""
    Path("mine.yaml").write_text("a: 1")
    monkeypatch.setattr(benchmark, "measure_all", lambda *_: pytest.fail("measured"))
    assert benchmark.main(argv) == 2
    assert message in capsys.readouterr().err
