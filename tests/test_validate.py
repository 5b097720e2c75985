"""`python -m guided_diffusion.validate`: closed forms of the loss and of the denoising, crops, the command."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from data.dataloader import get_dataset
from guided_diffusion import validate
from guided_diffusion.schedule import Schedule
from guided_diffusion.unet import create_model
from guided_diffusion.validate import (
    SIGMAS,
    Crops,
    candidates,
    centre_crops,
    classical_denoiser,
    denoising,
    fractional_timestep,
    noisy,
    prior_denoiser,
    psnrs,
    validation_loss,
)
from tests.helpers import fill_network
from util.errors import UserError
from util.img_utils import load_image, save_image
from util.metrics.statistics import describe

CPU = torch.device("cpu")
SCHEDULE = Schedule.create("linear", 1000)
MODEL = {"image_size": 16, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1", "learn_sigma": True,
         "attention_resolutions": "", "num_heads": 1, "use_scale_shift_norm": True}


def crops(names=("astronaut", "coffee"), side=16):
    return centre_crops(get_dataset("skimage", images=list(names)), side)


def zero(x_t, t):
    """eps = 0 and the smallest variance, whatever comes in."""
    return torch.cat([torch.zeros_like(x_t), -torch.ones_like(x_t)], dim=1)


# ---- data ------------------------------------------------------------------------------------------------------------

def test_crops_are_the_centre_at_the_images_own_resolution(tmp_path, capsys):
    image = torch.rand(3, 21, 30, generator=torch.manual_seed(0)) * 2 - 1
    save_image(tmp_path / "wide.png", image)
    save_image(tmp_path / "small.png", image[:, :9])
    (tmp_path / "damaged.png").write_bytes((tmp_path / "wide.png").read_bytes()[:200])
    found = centre_crops(get_dataset("folder", root=str(tmp_path)), 10)
    assert found.names == ("wide",)
    told = capsys.readouterr().err
    assert "small is 9x30" in told and "damaged.png: " in told and told.count("passed over") == 2
    torch.testing.assert_close(found.images[0], load_image(tmp_path / "wide.png")[:, 5:15, 10:20])
    with pytest.raises(UserError, match="no image is as large as --crop 22"):
        centre_crops(get_dataset("folder", root=str(tmp_path)), 22)


# ---- the loss --------------------------------------------------------------------------------------------------------

def test_a_network_that_predicts_nothing_has_the_noises_variance_as_its_loss():
    flat = Crops(("a", "b"), torch.zeros(2, 3, 16, 16))
    levels = validation_loss(zero, SCHEDULE, flat, draws=3, seed=0, batch_size=2, device=CPU)
    assert (levels[0].first, levels[0].last) == (0, 0) and len(levels) == 11
    covered = [t for level in levels for t in range(level.first, level.last + 1)]
    assert covered == list(range(1000))
    for level in levels:
        assert level.eps_mse["mean"] == pytest.approx(1, abs=0.08) and level.eps_mse["count"] == 6


def test_the_bound_of_a_network_that_knows_the_noise():
    """x_0 = 0, so eps = x_t / sqrt(1 - alpha_bar): with the smallest variance every KL term is zero, and step 0 costs
    the entropy of 8-bit levels under N(0, beta~_1)."""
    sigma = torch.from_numpy(SCHEDULE.sqrt_one_minus_alphas_cumprod)

    def knows(x_t, t):
        eps = x_t / sigma[t].float().view(-1, 1, 1, 1)
        return torch.cat([eps, -torch.ones_like(eps)], dim=1)

    levels = validation_loss(knows, SCHEDULE, Crops(("a",), torch.zeros(1, 3, 8, 8)), 2, 0, 8, CPU)
    std = math.sqrt(SCHEDULE.posterior_variance[1])
    cost = -math.log2(math.erf(1 / 255 / std / math.sqrt(2)))
    assert levels[0].bits["mean"] == pytest.approx(cost, rel=1e-3)
    for level in levels[1:]:
        assert level.bits["mean"] == pytest.approx(0, abs=1e-3) and level.eps_mse["mean"] == pytest.approx(0, abs=1e-9)


def test_terms_are_weighted_by_the_timesteps_that_they_stand_for():
    flat = Crops(("a",), torch.zeros(1, 3, 8, 8))
    level = validation_loss(zero, SCHEDULE, flat, draws=1, seed=0, batch_size=1, device=CPU)[5]
    loss = validate.HybridLoss(SCHEDULE, 0.0)
    noise = torch.ones(1, 3, 8, 8)
    one = [float(loss.terms(zero, flat.images, torch.tensor([t]), noise)[1]) for t in (level.first, level.last)]
    width = level.last - level.first + 1
    assert min(one) * width * 0.5 < level.bits["mean"] < max(one) * width * 2


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_loss_depends_on_the_seed_and_the_names_alone(batch_size):
    both, alone = crops(), crops(["coffee"])
    first = validation_loss(zero, SCHEDULE, both, 2, 3, batch_size, CPU)
    single = validation_loss(zero, SCHEDULE, alone, 2, 3, 2, CPU)
    astronaut = validation_loss(zero, SCHEDULE, crops(["astronaut"]), 2, 3, 2, CPU)
    for a, b, c in zip(first, single, astronaut, strict=True):
        assert a.eps_mse["mean"] == pytest.approx((b.eps_mse["mean"] + c.eps_mse["mean"]) / 2, rel=1e-6)
    assert validation_loss(zero, SCHEDULE, both, 2, 4, 2, CPU)[3].eps_mse["mean"] != first[3].eps_mse["mean"]


# ---- denoising -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_fractional_timestep_has_the_noise_level(sigma):
    t = fractional_timestep(SCHEDULE, sigma)
    below, levels = math.floor(t), SCHEDULE.sqrt_recipm1_alphas_cumprod
    assert levels[below] <= sigma <= levels[below + 1]
    assert math.exp((1 - t + below) * math.log(levels[below]) + (t - below) * math.log(levels[below + 1])
                    ) == pytest.approx(sigma, rel=1e-9)
    assert fractional_timestep(SCHEDULE, float(levels[300])) == pytest.approx(300, abs=1e-6)


def test_noise_levels_that_the_process_does_not_have():
    with pytest.raises(UserError, match=r"sigma 0\.001 is outside"):
        fractional_timestep(SCHEDULE, 0.001)


@pytest.mark.parametrize("rescale, steps", [(False, 1000), (True, 500)])
def test_the_prior_is_asked_at_the_state_and_time_of_its_process(rescale, steps):
    schedule, asked = Schedule.create("linear", steps, None, rescale), []
    y = torch.randn(5, 3, 8, 8, generator=torch.manual_seed(0))

    def model(x_t, t):
        asked.append((x_t, t))
        return torch.full((len(x_t), 6, 8, 8), 0.25)

    x0 = prior_denoiser(model, schedule, 2, CPU)(y, 0.2)
    torch.testing.assert_close(x0, y - 0.2 * 0.25)
    torch.testing.assert_close(torch.cat([x for x, _ in asked]), y / math.sqrt(1.04))
    t = torch.cat([t for _, t in asked])
    expected = fractional_timestep(schedule, 0.2) * (2 if rescale else 1)
    torch.testing.assert_close(t, torch.full((5,), expected))
    assert t[0] % 1 and [len(x) for x, _ in asked] == [2, 2, 1]


def test_a_perfect_prior_is_better_than_the_tuned_references():
    truth, reference = crops(side=32), crops(["rocket"], side=32)
    table = denoising(lambda y, sigma: truth.images + 1e-3, truth, reference, seed=0)
    assert list(table) == ["0.05", "0.1", "0.2", "0.5"]
    for sigma, row in table.items():
        unclipped = -20 * math.log10(float(sigma) / 2)
        assert unclipped - 0.2 < row["noisy"]["mean"] < unclipped + 2
        assert row["noisy"]["mean"] < min(row["total variation"]["mean"], row["non-local means"]["mean"])
        assert row["prior"]["mean"] == pytest.approx(66.02, abs=0.1)


def test_references_are_tuned_on_the_other_images():
    """The parameters are those that are best on `reference`, whatever they do to the images that are judged."""
    truth, reference = crops(side=32), Crops(("rough",), torch.randn(
        1, 3, 32, 32, generator=torch.manual_seed(0)).clamp(-0.9, 0.9))
    row = denoising(lambda y, sigma: y, truth, reference, seed=0)["0.1"]
    y, y_rough = noisy(truth, 0.1, 0), noisy(reference, 0.1, 0)
    scores = [(np.mean(psnrs(classical_denoiser(r)(y_rough, 0.1), reference.images)),
               np.mean(psnrs(classical_denoiser(r)(y, 0.1), truth.images)))
              for r in candidates(0.1)["total variation"]]
    assert row["total variation"]["mean"] == pytest.approx(max(scores)[1])
    assert max(scores)[1] < max(score for _, score in scores) - 0.5


def test_noise_has_its_standard_deviation_and_is_each_images_own():
    both = crops(side=64)
    noise = (noisy(both, 0.2, 0) - both.images) / 0.2
    assert noise.std() == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(noisy(crops(["coffee"], 64), 0.2, 0)[0], noisy(both, 0.2, 0)[1])
    assert describe(psnrs(both.images + 0.2 * noise, both.images), both.names)["count"] == 2


# ---- the command -----------------------------------------------------------------------------------------------------

@pytest.fixture
def run(workplace, capsys):
    """run(*arguments) -> (exit status, standard output, standard error), with a tiny network."""
    torch.save(fill_network(create_model(**MODEL), salt=7).state_dict(), "tiny.pt")
    Path("model.yaml").write_text(yaml.safe_dump({**MODEL, "model_path": "tiny.pt"}))

    def run(*more: str) -> tuple[int, str, str]:
        status = validate.main(["--model_config", "model.yaml", "--crop", "16", "--limit", "2", "--draws", "1", *more])
        return status, *capsys.readouterr()
    return run


def test_a_prior_is_judged_from_a_fresh_clone(run, monkeypatch):
    monkeypatch.setattr(validate, "SIGMAS", SIGMAS[:2])
    status, out, err = run()
    assert status == 0, err
    result = json.loads(Path("results/validate/validation.json").read_text())
    assert result["images"] == ["astronaut", "chelsea"] and len(result["loss"]) == 11
    assert {"noisy", "prior", "total variation", "non-local means"} <= set(result["denoising_psnr"]["0.05"])
    text = Path("results/validate/validation.md").read_text()
    assert text in out and "tiny.pt on 2 centre crops of 16 x 16" in text and "sigma on [-1, 1]" in text
    assert f"| {sum(level['bits']['mean'] for level in result['loss']):.3f} |" in text
    assert run("--out", "again")[0] == 0
    assert Path("again/validation.json").read_bytes() == Path("results/validate/validation.json").read_bytes()
    torch.save(fill_network(create_model(**MODEL), salt=70).state_dict(), "other.pt")       # and of another checkpoint
    assert run("--checkpoint", "other.pt", "--out", "other")[0] == 0
    other = json.loads(Path("other/validation.json").read_text())
    assert other["checkpoint"] == "other.pt"
    assert other["loss"][3]["eps_mse"]["mean"] != result["loss"][3]["eps_mse"]["mean"]
    assert other["denoising_psnr"]["0.1"]["total variation"] == result["denoising_psnr"]["0.1"]["total variation"]


@pytest.mark.parametrize("name", ["validation.md", "validation.json"])
def test_figures_are_replaced_with_overwrite_only(run, monkeypatch, name):
    monkeypatch.setattr(validate, "candidates", lambda sigma: {})                # the classical denoisers take long
    file = Path("results/validate") / name
    file.parent.mkdir(parents=True)
    file.write_text("of another checkpoint")
    status, out, err = run()
    assert status == 2 and not out and f"--out results/validate holds {name} already" in err and "--overwrite" in err
    assert file.read_text() == "of another checkpoint"
    assert run("--overwrite")[0] == 0 and file.read_text() != "of another checkpoint"


@pytest.mark.parametrize("options, words", [
    (["--checkpoint", "none.pt"], ["none.pt not found"]),
    (["--data", "nowhere"], ["'nowhere' not found"]),
    (["--crop", "4096"], ["no image is as large as --crop 4096"]),
    (["--crop", "0"], ["--crop", "whole number"]),
    (["--out", "start.yaml"], ["--out start.yaml cannot be written"]),
    (["--model_confg", "x"], ["did you mean '--model_config'"]),
    (["--gpu", "0"], ["no GPU"]),
    (["--diffusion_config", "start.yaml"], ["model_mean_type is 'start_x', expected 'epsilon'"]),
    (["--model_config", "narrow.yaml"], ["learn_sigma: true"]),
])
def test_mistakes_end_with_status_2(run, options, words):
    Path("start.yaml").write_text("model_mean_type: start_x\n")
    torch.save(create_model(**{**MODEL, "learn_sigma": False}).state_dict(), "narrow.pt")
    Path("narrow.yaml").write_text(yaml.safe_dump({**MODEL, "learn_sigma": False, "model_path": "narrow.pt"}))
    status, _, err = run(*options)
    assert status == 2 and "Traceback" not in err and not Path("results").exists()
    assert all(word in err for word in words), err
