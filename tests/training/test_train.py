"""Training of a prior: resuming, the files it leaves, mistakes."""

import importlib
import io
import signal

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data.random_crops import RandomCrops
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.train import main, plot_losses
from guided_diffusion.unet import create_model
from tests.forks import ranks
from tests.training.tiny import MODEL, PHASES
from util.checkpoint import load_state_dict
from util.config.config import load_config


def test_the_prior_it_leaves_is_a_checkpoint(tmp_path, train):
    assert train(tmp_path / "out", PHASES, save_every=2) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "state.pt", "ema.pt", "loss.csv", "loss.png", "model_config.yaml", "diffusion_config.yaml"}
    model = create_model(**MODEL, model_path=str(tmp_path / "out" / "ema.pt"))
    assert model.out[2].weight.abs().max() > 0                              # starts at zero
    rows = np.genfromtxt(tmp_path / "out" / "loss.csv", delimiter=",", names=True)
    assert rows["step"].tolist() == [1, 2, 3, 4, 5, 6] and rows["crop"].tolist() == [8] * 3 + [16] * 3


@pytest.mark.parametrize("steps, respacing", [(50, 50), (400, "12,4,2,1,1")])
def test_the_prior_restores_with_the_files_beside_it(tmp_path, train, monkeypatch, steps, respacing):
    out = tmp_path / "out"
    assert train(out, PHASES[:1], noise_schedule="cosine", diffusion_steps=steps) == 0
    monkeypatch.chdir(tmp_path)                                             # the weights are found from anywhere
    config = load_config(str(out / "model_config.yaml"), str(out / "diffusion_config.yaml"),
                         "configs/demo_task_config.yaml")
    assert torch.equal(create_model(**config.model).out[2].bias,
                       torch.load(out / "ema.pt", weights_only=True)["out.2.bias"].float())
    expected = create_sampler("renoise", steps, "cosine", timestep_respacing=respacing).schedule.alphas_cumprod
    assert create_sampler(**config.diffusion).schedule.alphas_cumprod.tolist() == expected.tolist()
    (out / "diffusion_config.yaml").write_text("mine")
    assert train(out, PHASES, noise_schedule="cosine", diffusion_steps=steps) == 0
    assert (out / "diffusion_config.yaml").read_text() == "mine"


def test_a_model_config_that_is_gone_does_not_end_a_training(tmp_path, train, monkeypatch):
    read = RandomCrops.__getitem__

    def remove(self, number):
        if number >= PHASES[0]["batch_size"]:                               # after the first step, which is saved
            (tmp_path / "model.yaml").unlink(missing_ok=True)
        return read(self, number)

    monkeypatch.setattr(RandomCrops, "__getitem__", remove)
    assert train(tmp_path / "out", PHASES, save_every=1) == 0 and not (tmp_path / "model.yaml").exists()


@pytest.mark.parametrize("name", ["model_config.yaml", "diffusion_config.yaml"])
def test_configs_of_another_training_are_not_believed(tmp_path, train, name, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("steps: 7")
    assert train(tmp_path / "out", PHASES) == 2
    assert f"holds {name} but no state.pt to continue from; choose another --out" in capsys.readouterr().err


def test_a_longer_training_leaves_a_new_prior_not_a_changed_file(tmp_path, train, capsys):
    """Whose weights safetensors takes as they are."""
    for phases in (PHASES[:1], PHASES):
        assert train(tmp_path / "out", phases) == 0
        load_state_dict(create_model(**MODEL), tmp_path / "out" / "ema.pt")
        assert "other contents" not in capsys.readouterr().err
    assert all(p.is_contiguous() for p in torch.load(tmp_path / "out" / "ema.pt", weights_only=True).values())


def test_results_are_no_photographs(train, photographs, capsys):
    assert train(photographs / "run", PHASES[:1]) == 2
    assert "run lies in --data" in capsys.readouterr().err and not (photographs / "run").exists()


def test_the_curve_of_the_losses_is_a_picture():
    history = [(step, 8 * (1 + step // 4), 2 / step, 1.0, 1e-3) for step in range(1, 8)]
    with Image.open(io.BytesIO(plot_losses(history))) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(10 ** 6)}
        assert picture.size == (1050, 600) and {(31, 119, 180), (255, 127, 14)} <= colours          # a curve per crop


def test_interrupted_equals_uninterrupted(tmp_path, train, monkeypatch):
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({**MODEL, "dropout": 0.3}))
    assert train(tmp_path / "whole", PHASES) == 0
    read, calls = RandomCrops.__getitem__, []

    def interrupt(self, number):
        calls.append(number)
        if len(calls) == 10:                                                # in the second phase
            raise KeyboardInterrupt
        return read(self, number)

    monkeypatch.setattr(RandomCrops, "__getitem__", interrupt)
    assert train(tmp_path / "parts", PHASES) == 130
    monkeypatch.setattr(RandomCrops, "__getitem__", read)
    assert 0 < len((tmp_path / "parts" / "loss.csv").read_text().splitlines()) - 1 < 6
    assert train(tmp_path / "parts", PHASES) == 0
    whole, parts = (torch.load(tmp_path / name / "ema.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert (tmp_path / "whole" / "loss.csv").read_text() == (tmp_path / "parts" / "loss.csv").read_text()


def test_resuming_with_another_network_is_refused(tmp_path, train, capsys):
    assert train(tmp_path / "out", PHASES[:1]) == 0
    state = (tmp_path / "out" / "state.pt").read_bytes()
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({**MODEL, "num_channels": 64}))
    assert train(tmp_path / "out", PHASES) == 2
    error = capsys.readouterr().err
    assert "holds another network than" in error and "Traceback" not in error
    assert (tmp_path / "out" / "state.pt").read_bytes() == state


def test_resuming_with_other_settings_is_refused(tmp_path, train, capsys):
    assert train(tmp_path / "out", PHASES[:1]) == 0
    assert train(tmp_path / "out", PHASES, ema_decay=0.5) == 2
    assert "ema_decay: 0.9 -> 0.5" in capsys.readouterr().err
    assert train(tmp_path / "out", PHASES) == 0                             # but a run may be prolonged


def test_a_run_that_diverges_goes_on_from_its_last_save_at_a_lower_rate(tmp_path, train, capsys):
    assert train(tmp_path / "out", PHASES[:1]) == 0
    state = (tmp_path / "out" / "state.pt").read_bytes()
    assert train(tmp_path / "out", PHASES, learning_rate=1e12) == 2
    assert "lower learning_rate" in (err := capsys.readouterr().err) and "Traceback" not in err
    assert (tmp_path / "out" / "state.pt").read_bytes() == state
    assert train(tmp_path / "out", PHASES, learning_rate=5e-4) == 0


def test_a_folder_that_cannot_be_written_to_is_found_before_training(tmp_path, train, capsys):
    (tmp_path / "file").write_text("in the way")
    assert train(tmp_path / "file", PHASES) == 2
    assert "file cannot be written" in (err := capsys.readouterr().err) and "step/s" not in err


@pytest.mark.parametrize("length", [0, -20, None])                       # empty, torn, another checkpoint
def test_a_damaged_state_is_kept_and_what_to_do_is_said(tmp_path, train, capsys, length):
    (tmp_path / "out").mkdir()
    state = tmp_path / "out" / "state.pt"
    torch.save({"weight": torch.zeros(1)}, state)
    content = state.read_bytes()[:length]
    state.write_bytes(content)
    assert train(tmp_path / "out", PHASES) == 2
    assert "state.pt" in (err := capsys.readouterr().err)
    assert "move its folder away to begin anew, or use another --out" in err
    assert state.read_bytes() == content


@pytest.mark.parametrize("key", ["config", "step", "model", "ema", "optimiser", "history"])
def test_a_state_of_another_program_is_refused(tmp_path, train, capsys, key):
    (tmp_path / "out").mkdir()
    state = {"config": {}, "step": 0, "model": {}, "ema": {}, "optimiser": {}, "history": []}
    torch.save({**state, key: "something else"}, tmp_path / "out" / "state.pt")
    assert train(tmp_path / "out", PHASES) == 2
    error = capsys.readouterr().err
    assert "state.pt is not the state of a training; move its folder away" in error and "Traceback" not in error


@pytest.mark.parametrize("names", [["ema.pt"], ["loss.csv", "loss.png"]])
def test_results_whose_state_is_gone_are_kept(tmp_path, train, capsys, names):
    (tmp_path / "out").mkdir()
    for name in names:
        (tmp_path / "out" / name).write_text("hours of work")
    assert train(tmp_path / "out", PHASES) == 2
    error = capsys.readouterr().err
    assert f"holds {', '.join(names)} but no state.pt" in error and "choose another --out, or move" in error
    left = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert left == dict.fromkeys(names, "hours of work")


def test_loss_falls(tmp_path, train):
    assert train(tmp_path / "out", [dict(crop=8, batch_size=8, steps=30)]) == 0
    losses = np.genfromtxt(tmp_path / "out" / "loss.csv", delimiter=",", names=True)["eps_mse"]
    assert losses[-10:].mean() < 0.6 * losses[:5].mean()


@pytest.mark.parametrize("settings, message", [
    (dict(learning_rat=1), "learning_rate"),
    (dict(precision="fp8"), "'fp32', 'bf16'"),
    (dict(phases=[]), "phases is empty"),
    (dict(phases=[dict(crop=8, batch=2, steps=1)]), "batch_size"),
    (dict(phases=[dict(crop=7, batch_size=2, steps=1)]), "multiples of 2"),
    (dict(phases=[dict(crop=8, batch_size=0, steps=1)]), "phase 1: batch_size is 0, expected an integer, 1 to 65536"),
    (dict(phases=[dict(crop=8, batch_size=10 ** 9, steps=1)]), "batch_size is 1000000000, expected an integer, 1 to 6"),
    (dict(phases=[dict(crop=10 ** 6, batch_size=1, steps=1)]), "crop is 1000000, expected an integer, 1 to 4096"),
    (dict(phases=[dict(crop=4096, batch_size=64, steps=1)]), "1073741824 pixels a step, expected 268435456 at most"),
    (dict(scales=[1.0, 0.5]), "low <= high"),
    (dict(zooms=[0.9, 1.1]), "zooms is [0.9, 1.1], expected a list of 2, each a finite number, 1 or more"),
    (dict(zooms=[1.2, 1.1]), "zooms is [1.2, 1.1], expected [low, high] with low <= high"),
    (dict(zooms=1.1), "zooms is 1.1, expected a list of 2"),
    (dict(colour_jitter=1.0), "colour_jitter is 1.0, expected a finite number, 0 or more and less than 1"),
    (dict(loss_weight="snr"), "'none', 'min_snr', 'p2'"),
    (dict(micro_batch=-1), "micro_batch is -1, expected an integer, 0 or more"),
    (dict(ema_decay=1.0), "ema_decay"),
    (dict(seed=-1), "seed is -1, expected an integer, 0 or more"),
    (dict(workers=-1), "workers is -1"),
    (dict(weight_decay=-0.1), "weight_decay"),
    (dict(vlb_weight=-1.0), "vlb_weight"),
    (dict(gradient_clip=0.0), "gradient_clip is 0.0, expected a finite number, more than 0"),
    (dict(learning_rate=1e100), "learning_rate is 1e+100, expected a finite number, more than 0 and at most 1e+12"),
    (dict(vlb_weight=10 ** 18), "vlb_weight is 1000000000000000000, expected a finite number, 0 to 1e+12"),
    (dict(warmup_steps=0), "warmup_steps is 0, expected an integer, 1 or more"),
    (dict(model_config="nowhere.yaml"), "nowhere.yaml not found"),
    (dict(diffusion_steps=0), "training file, noise_schedule and diffusion_steps: steps is 0"),
    (dict(noise_schedule="cosin"), "training file, noise_schedule and diffusion_steps: unknown noise_schedule 'cosin'"),
])
def test_mistakes_in_the_training_file(tmp_path, train, capsys, settings, message):
    assert train(tmp_path / "out", **{"phases": PHASES, **settings}) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_photograph_is_named_and_passed_over(tmp_path, train, photographs, capfd, workers):
    (photographs / "1.png").write_bytes((photographs / "1.png").read_bytes()[:60])
    assert train(tmp_path / "out", PHASES[:1], workers=workers) == 0
    error = capfd.readouterr().err
    assert "1.png" in error and "passed over" in error and "Traceback" not in error


@pytest.mark.parametrize("left", ["damaged", "nothing", "no folder"])
def test_without_photographs_nothing_is_written(tmp_path, train, photographs, capsys, left):
    for file in photographs.iterdir():
        file.write_bytes(b"no image") if left == "damaged" else file.unlink()
    if left == "no folder":
        photographs.rmdir()
    assert train(tmp_path / "out", PHASES, workers=1) == 2
    message = {"damaged": "none of the 3 images can be read", "nothing": "holds no images", "no folder": "not found"}
    assert message[left] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words, message", [
    ([], "--data"), (["--data", "x", "--confg", "y"], "did you mean '--config'?"), (["--data", "a\0b"], "is no path"),
    (["--data", "x", "--out", "a\0b"], "is no path"),
])
def test_mistakes_on_the_command_line(capsys, words, message):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) <= 2


def test_a_step_is_done_whole_or_not_at_all(tmp_path, train, monkeypatch):
    """Signals while the weights are changed: optimiser, averages and step number still belong together."""
    previous = {n: signal.signal(n, signal.default_int_handler) for n in (signal.SIGINT, signal.SIGTERM)}
    change, calls = torch.optim.AdamW.step, []

    def interrupted(self, *more):
        calls.append(self)
        if len(calls) in (2, 4):
            signal.raise_signal(signal.SIGINT if len(calls) == 2 else signal.SIGTERM)
        return change(self, *more)

    try:
        assert train(tmp_path / "whole", PHASES) == 0
        monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
        for done in (2, 4):
            assert train(tmp_path / "parts", PHASES) == 130
            assert len((tmp_path / "parts" / "loss.csv").read_text().splitlines()) == 1 + done
        assert train(tmp_path / "parts", PHASES) == 0
    finally:
        for n, handler in previous.items():
            signal.signal(n, handler)
    whole, parts = (torch.load(tmp_path / name / "ema.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def two_processes(*options: str) -> int:
    importlib.import_module("torch._dynamo")        # by optimisers, in each of them, otherwise
    return ranks(2, "guided_diffusion.train", options)


def test_two_processes_train_the_same_network(tmp_path, train, photographs, fork):
    """The crops, timesteps and noise of one process, and so its losses."""
    assert train(tmp_path / "one", PHASES[:1]) == 0
    process = fork(two_processes, "--data", str(photographs), "--config", str(tmp_path / "train.yaml"), "--out",
                   str(tmp_path / "two"))
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert (tmp_path / "two" / "ema.pt").is_file()
    one, two = (np.genfromtxt(tmp_path / name / "loss.csv", delimiter=",", names=True) for name in ("one", "two"))
    assert two["step"].tolist() == one["step"].tolist()
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
