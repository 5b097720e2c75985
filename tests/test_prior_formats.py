"""Priors of other formats: folders of the diffusers library against its own steps, EDM's parametrisation against the
closed form."""

import json
import pickle
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import sample_condition
from guided_diffusion.condition_methods import get_conditioning_method
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.nn import Network
from guided_diffusion.notebook import degrade, restore
from guided_diffusion.notebook import load_prior as load_for_notebook
from guided_diffusion.priors.analytic import AnalyticPrior
from guided_diffusion.priors.diffusers import DiffusersFolder
from guided_diffusion.priors.edm import EDMPrior
from guided_diffusion.priors.edm_networks import NETWORKS
from guided_diffusion.priors.gaussians import StationaryGaussian
from guided_diffusion.priors.load import create_process, load_prior
from guided_diffusion.unet import create_model
from tests.command_line import rows
from tests.helpers import NAMES, ReplayedRandomness, fill_network, normal, picture
from util.errors import UserError
from util.seeding import ImageRandomness

SIZE, CPU = 16, torch.device("cpu")
NETWORK = {"num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,1", "attention_resolutions": "",
           "use_scale_shift_norm": True}


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


def save_folder(library, folder: Path, channels: int = 3, outputs: int | None = None, safetensors: bool = True,
                pipeline: bool = False, more: dict | None = None, **scheduler) -> tuple[nn.Module, object, dict]:
    """A tiny network and its scheduler, saved by the library; and the model config for the folder."""
    network = library.UNet2DModel(
        sample_size=SIZE, in_channels=channels, out_channels=outputs or channels, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1, norm_num_groups=4, attention_head_dim=8, **more or {})
    fill_network(network, salt=7000)
    scheduler = library.DDPMScheduler(**scheduler)
    network.save_pretrained(folder / "unet" if pipeline else folder, safe_serialization=safetensors)
    scheduler.save_pretrained(folder / "scheduler" if pipeline else folder)
    return network, scheduler, {"format": "diffusers", "model_path": str(folder)}


def in_float64(scheduler):
    """The scheduler with products of its betas in double precision: in single, they alone cost up to 2e-4 of a step."""
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    return scheduler


CASES = {
    "epsilon": dict(safetensors=True, beta_schedule="linear"),
    "v_prediction": dict(safetensors=False, beta_schedule="scaled_linear", variance_type="fixed_large", pipeline=True),
    "sample": dict(safetensors=True, beta_schedule="squaredcos_cap_v2"),
    "learned": dict(safetensors=False, outputs=6, variance_type="learned_range", prediction_type="epsilon"),
}


def test_a_scheduler_of_samplers_without_a_variance_will_do(diffusers, tmp_path):
    """As DPMSolverMultistepScheduler saves it: variance_type null."""
    _, _, model = save_folder(diffusers, tmp_path / "net")
    diffusers.DPMSolverMultistepScheduler().save_pretrained(tmp_path / "net")
    process = DiffusersFolder(model["model_path"]).process({})
    assert (process["steps"], process["model_mean_type"], process["model_var_type"]) == (1000, "epsilon", "fixed_small")


@pytest.mark.parametrize("case", CASES)
def test_a_folder_steps_as_the_library_does(case, diffusers, tmp_path):
    network, scheduler, model = save_folder(diffusers, tmp_path / "net", **{"prediction_type": case, **CASES[case]})
    x_t, noise = normal(2, 3, SIZE, SIZE, dtype=torch.float32), torch.randn(
        2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    sampler = create_process(model, {})
    prior = load_prior(model, SIZE, None, "fp32", CPU, sampler)
    for t in (999, 700, 20, 0):
        step = sampler.step(prior, x_t, t, ReplayedRandomness([noise]))
        with torch.no_grad():
            output = network(x_t, t).sample
        expected = in_float64(scheduler).step(output, t, x_t, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(step.sample(), expected.prev_sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", [name for name in CASES if name != "learned"])
def test_a_folder_makes_the_library_s_ddim_steps(case, diffusers, tmp_path):
    network, scheduler, model = save_folder(diffusers, tmp_path / "net", **{"prediction_type": case, **CASES[case]})
    ddim = in_float64(diffusers.DDIMScheduler.from_config(scheduler.config))
    ddim.set_timesteps(50)
    sampler = create_process(model, {"sampler": "ddim", "timestep_respacing": "ddim50"})
    prior, x_t = load_prior(model, SIZE, None, "fp32", CPU, sampler), normal(2, 3, SIZE, SIZE, dtype=torch.float32)
    for index in (49, 20, 1):
        step = sampler.step(prior, x_t, index, ReplayedRandomness([torch.zeros_like(x_t)]))
        with torch.no_grad():
            output = network(x_t, 20 * index).sample
        # the library does not correct the noise for what clipping has changed, unless it is told
        expected = ddim.step(output, 20 * index, x_t, use_clipped_model_output=True).prev_sample
        torch.testing.assert_close(step.sample(), expected, atol=1e-5, rtol=1e-5)


def test_a_grey_network_sees_each_channel_as_an_image(diffusers, tmp_path):
    network, _, model = save_folder(diffusers, tmp_path / "net", channels=1, outputs=2, variance_type="learned_range")
    x_t, t = normal(2, 3, SIZE, SIZE, dtype=torch.float32), torch.tensor([5, 900])
    output = load_prior(model, SIZE, None, "fp32", CPU)(x_t, t)
    for channel in range(3):
        with torch.no_grad():
            mean, variance = network(x_t[:, channel:channel + 1], t).sample.unbind(1)
        torch.testing.assert_close(output[:, channel], mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(output[:, 3 + channel], variance, atol=1e-5, rtol=1e-5)


def test_old_names_classes_tiles_padding_and_half_precision(diffusers, tmp_path):
    """Attention as the library named it before, a network with classes, and images that no side of fits."""
    network, _, model = save_folder(diffusers, tmp_path / "net", safetensors=False, more={"num_class_embeds": 4})
    file = tmp_path / "net/diffusion_pytorch_model.bin"
    new, renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}, {}
    for name, tensor in torch.load(file).items():
        for now, before in new.items():
            name = name.replace(f".{now}.", f".{before}.")
        renamed[name] = tensor
    assert sum(".query." in name for name in renamed) > 2
    torch.save(renamed, file)
    with pytest.raises(UserError, match="num_class_embeds 4.*class_label None"):
        load_prior(model, SIZE, None, "fp32", CPU)
    model["class_label"] = 3
    x_t, t = normal(2, 3, SIZE, SIZE, dtype=torch.float32), torch.tensor([5, 900])
    with torch.no_grad():
        expected = network(x_t, t, torch.tensor([3, 3])).sample
    torch.testing.assert_close(load_prior(model, SIZE, None, "fp32", CPU)(x_t, t), expected, atol=1e-5, rtol=1e-5)
    half = load_prior({**model, "use_fp16": False}, SIZE, None, "bf16", CPU)(x_t, t)
    assert half.dtype == torch.float32 and 1e-4 < (half - expected).abs().max() < 0.2
    odd = normal(1, 3, 19, 41, dtype=torch.float32)
    assert load_prior(model, None, None, "fp32", CPU)(odd, t[:1]).shape == odd.shape
    assert load_prior(model, 32, SIZE, "fp32", CPU)(normal(1, 3, 32, 32, dtype=torch.float32), t[:1]).shape[2] == 32
    with pytest.raises(UserError, match="multiples of 2"):
        load_prior(model, 19, None, "fp32", CPU)


def edit(file: Path, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("break_it, diffusion, words", [
    (lambda f: (f / "config.json").unlink(), {}, "holds no config.json"),
    (lambda f: (f / "scheduler_config.json").unlink(), {}, "holds no scheduler/scheduler_config.json or"),
    (lambda f: (f / "diffusion_pytorch_model.safetensors").unlink(), {}, "holds no diffusion_pytorch_model"),
    (lambda f: (f / "config.json").write_text("{"), {}, "cannot be read as JSON"),
    (lambda f: edit(f / "config.json", _class_name="UNet2DConditionModel"), {}, "expected a UNet2DModel"),
    (lambda f: edit(f / "config.json", in_channels=4), {}, "4 channels, expected 1 .grey. or 3"),
    (lambda f: edit(f / "config.json", out_channels=5), {}, "3 channels in and 5 out"),
    (lambda f: edit(f / "config.json", time_embedding_type="fourier"), {}, "expected positional"),
    (lambda f: edit(f / "config.json", block_out_channels=[8, 20]), {}, "does not fit the model config"),
    (lambda f: edit(f / "config.json", sample_size=[16, 32]), {}, "set image_size"),
    (lambda f: edit(f / "scheduler_config.json", prediction_type="flow"), {}, "prediction_type flow, expected one of"),
    (lambda f: edit(f / "scheduler_config.json", variance_type="learned"), {}, "variance_type learned"),
    (lambda f: edit(f / "scheduler_config.json", rescale_betas_zero_snr=True), {}, "expected betas below 1"),
    (lambda f: edit(f / "scheduler_config.json", beta_schedule="steep"), {}, "no scheduler that diffusers knows"),
    (lambda f: (f / "scheduler_config.json").write_text('{"_class_name": "Flow"}'), {}, "Flow, which has no betas"),
    (lambda f: None, {"noise_schedule": "cosine"}, "noise_schedule is 'cosine', but the prior's is of other betas"),
    (lambda f: None, {"model_mean_type": "start_x"}, "model_mean_type is 'start_x', but the prior's is epsilon"),
    (lambda f: None, {"steps": 500}, "steps is 500, but the prior's is 100"),
    (lambda f: None, {"model_var_type": "learned_range"}, "3 output channels"),
    (lambda f: None, {"timestep_respacing": 250}, "250 of the 100 timesteps"),
])
def test_what_is_wrong_with_a_folder_is_said(break_it, diffusion, words, diffusers, tmp_path, prior, workplace, capsys):
    """By the program, before any restoration."""
    *_, model = save_folder(diffusers, tmp_path / "net", num_train_timesteps=100)
    break_it(tmp_path / "net")
    Path("model.yaml").write_text(yaml.safe_dump(model))
    Path("diffusion.yaml").write_text(yaml.safe_dump({"timestep_respacing": 3, **diffusion}))
    status = sample_condition.main(["--model_config", "model.yaml", "--diffusion_config", "diffusion.yaml",
                                    "--task_config", str(prior / "task.yaml"), "--limit", "1"])
    assert status == 2
    error, = capsys.readouterr().err.strip().splitlines()[-1:]
    assert re.search(words, error), error


def test_a_folder_restores_by_the_program_and_in_a_notebook(diffusers, tmp_path, prior, workplace, capsys):
    *_, model = save_folder(diffusers, tmp_path / "net", prediction_type="v_prediction", beta_schedule="scaled_linear")
    Path("model.yaml").write_text(yaml.safe_dump(model))
    command = ["--model_config", "model.yaml", "--task_config", str(prior / "task.yaml"), "--diffusion_config",
               "configs/prior_diffusion_config.yaml", "--set", "diffusion.timestep_respacing=3", "--limit", "1"]
    assert sample_condition.main(command) == 0, capsys.readouterr().err
    settings = next(Path("results").rglob("config.yaml")).read_text()
    assert "scheduler_config.json" in settings
    edit(tmp_path / "net/scheduler_config.json", beta_end=0.03)
    assert sample_condition.main(command) == 2
    network = load_for_notebook(model)
    degraded = degrade(torch.zeros(3, SIZE, SIZE), "noise", 0.1)
    with pytest.raises(UserError, match="noise_schedule is 'linear', but the prior's is of other betas"):
        restore(degraded, network, progress=False)
    assert restore(degraded, network, diffusion={"timestep_respacing": 3}, progress=False).mean.isfinite().all()


def test_the_library_is_asked_for_by_name(tmp_path, monkeypatch):
    (tmp_path / "scheduler_config.json").write_text('{"beta_schedule": "linear"}')
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match="pip install diffusers"):
        create_process({"format": "diffusers", "model_path": str(tmp_path)}, {})


def test_an_unknown_format_is_an_error():
    with pytest.raises(UserError, match="unknown format 'difusers'; did you mean 'diffusers'"):
        create_process({"format": "difusers"}, {})


# EDM

class GaussianUnderEDM(nn.Module):
    """F of the exact denoiser D of a stationary Gaussian: F = (D(x) - c_skip x) / c_out, with x = input / c_in."""

    def __init__(self, spectrum: torch.Tensor, mean: float, s: float):
        super().__init__()
        self.spectrum, self.mean, self.s = spectrum, mean, s

    def forward(self, x, c_noise):
        sigma = (4 * c_noise.double()).exp().view(-1, 1, 1, 1)
        total = sigma ** 2 + self.s ** 2
        x = x.double() * total.sqrt()
        wiener = self.spectrum / (self.spectrum + sigma ** 2)
        denoised = self.mean + torch.fft.ifft2(wiener * torch.fft.fft2(x - self.mean)).real
        return ((denoised - self.s ** 2 / total * x) * total.sqrt() / (sigma * self.s)).float()


@pytest.mark.parametrize("process", [{"noise_schedule": "linear"}, {"noise_schedule": "cosine", "steps": 400},
                                     {"noise_schedule": "linear", "rescale_timesteps": True, "steps": 500}])
def test_a_gaussian_under_edm_restores_as_the_exact_prior(process):
    f = torch.fft.fftfreq(SIZE).double()
    spectrum = 0.3 / (1 + 100 * (f[:, None] ** 2 + f ** 2))
    sampler = create_sampler(**process, model_var_type="fixed_small", clip_denoised=False, timestep_respacing="30")
    measurement = Measurement.simulate(get_operator("super_resolution", scale_factor=4),
                                       get_noise("gaussian", sigma=0.05), 0.3 * normal(2, 3, SIZE, SIZE).float(),
                                       ImageRandomness(0, NAMES[:2]))
    restored = [get_conditioning_method("ps", scale=0.3).restore(prior, sampler, measurement,
                                                                 ImageRandomness(1, NAMES[:2]), lambda *_: None)
                for prior in (AnalyticPrior(sampler.schedule, StationaryGaussian(spectrum, 0.2)),
                              EDMPrior(GaussianUnderEDM(spectrum, 0.2, 0.5), sampler.schedule, 0.5))]
    torch.testing.assert_close(restored[1], restored[0], atol=1e-4, rtol=0)


@pytest.fixture
def edm(tmp_path):
    """A model config, and the network of its weights."""
    network = fill_network(create_model(image_size=SIZE, **NETWORK), salt=8000)
    torch.save(network.state_dict(), tmp_path / "net.pt")
    return {"format": "edm", "network": {"name": "adm", "image_size": SIZE, **NETWORK},
            "model_path": str(tmp_path / "net.pt"), "sigma_data": 0.4}, network


def test_edm_brings_its_noise_levels(edm):
    """sigma_i of Karras et al., eq. 5; D by table 1 at x = x_t / sqrt(alpha_bar) gives the eps."""
    model, network = edm
    sampler = create_process(model, {"timestep_respacing": "10"})
    prior = load_prior(model, SIZE, None, "fp32", CPU, sampler)
    for index, timestep in enumerate(sampler.schedule.timesteps):
        sigma = (0.002 ** (1 / 7) + timestep / 999 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
        ab = sampler.schedule.alphas_cumprod[index]
        np.testing.assert_allclose(ab, 1 / (1 + sigma ** 2))
        x_t, s = normal(2, 3, SIZE, SIZE, dtype=torch.float32), 0.4
        x, total = x_t / ab ** 0.5, sigma ** 2 + s ** 2
        with torch.no_grad():
            output = network((x / total ** 0.5).float(), torch.full((2,), np.log(sigma) / 4))
        denoised = s ** 2 / total * x + sigma * s / total ** 0.5 * output
        eps = prior(x_t, sampler.schedule.model_timestep(index, x_t))
        torch.testing.assert_close(sigma * eps.double(), (x - denoised).double(), atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("change, diffusion, words", [
    ({}, {"noise_schedule": "linear"}, "sigma 0.01 to 157.4, but the network knows 0.002 to 80"),
    ({"sigma_min": 0.02, "sigma_max": 200.0}, {"noise_schedule": "linear"}, "knows 0.02 to 200"),
    ({"sigma_min": 90.0}, {}, "expected less and more"),
    ({}, {"model_mean_type": "start_x"}, "but the prior's is epsilon"),
    ({"network": {"name": "adm", "image_size": SIZE, **NETWORK, "learn_sigma": True}}, {}, "learn_sigma or model_path"),
    ({"network": {"name": "adm", "image_size": SIZE, **NETWORK, "num_chanels": 3}}, {}, "num_chanels"),
    ({"network": {"name": "adm", "image_size": SIZE, **NETWORK, "num_channels": 64}}, {}, "does not fit the model"),
    ({"network": {"image_size": SIZE, **NETWORK}}, {}, "has no name.*DhariwalUNet, SongUNet, adm"),
    ({"sigma": 1}, {}, "unknown key 'sigma'"),
])
def test_what_is_wrong_with_edm_is_said(change, diffusion, words, edm):
    model = {**edm[0], **change}
    with pytest.raises(UserError, match=words):
        load_prior(model, SIZE, None, "fp32", CPU, create_process(model, diffusion))


def test_a_pickle_of_nvidia_s_is_refused_with_the_way_out(edm, tmp_path):
    model, network = edm
    Path(model["model_path"]).write_bytes(pickle.dumps({"ema": network}))
    with pytest.raises(UserError, match=r"refused and nothing in it was run.*the state dict of its entry 'ema'"):
        load_prior(model, SIZE, None, "fp32", CPU)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_v_prediction_is_edm_with_images_of_unit_variance(sigma):
    """With s = 1, c_skip = alpha_bar, c_out = sqrt(1 - alpha_bar) and c_in x = x_t, so F = -v."""
    sampler = create_sampler(noise_schedule=[sigma ** 2 / (1 + sigma ** 2)], steps=1, model_mean_type="v_prediction",
                             model_var_type="fixed_small", clip_denoised=False)
    x_t, weight, t = normal(2, 3, SIZE, SIZE).float(), normal(3, 3, 1, 1, seed=1).float(), torch.tensor([0, 0])
    prior = EDMPrior(lambda x, c_noise: nn.functional.conv2d(x, weight) + c_noise.view(-1, 1, 1, 1),
                     sampler.schedule, sigma_data=1)
    v = -nn.functional.conv2d(x_t, weight) - np.log(sigma) / 4
    x0_hat = sampler.step(lambda x, t: v, x_t, 0, ReplayedRandomness([x_t])).x0_hat
    root = (1 + sigma ** 2) ** 0.5                  # 1 / sqrt(alpha_bar)
    torch.testing.assert_close(root * x_t - sigma * prior(x_t, t), x0_hat, atol=1e-4, rtol=1e-5)


def test_edm_in_a_notebook(edm):
    degraded = degrade(torch.zeros(3, SIZE, SIZE), "noise", 0.1)
    restored = restore(degraded, load_for_notebook(edm[0]), diffusion={"timestep_respacing": 2}, progress=False)
    assert restored.mean.isfinite().all()


# the options of the program, for every format

OBSERVED = "measurement={observed: true, operator: {name: noise}, noise: {name: gaussian, sigma: 0.1}}"
OPTIONS = {                                         # option, and the batches that the network then sees
    "tile": (["--tile", "16", "--set", "data.image_size=24"], {(1, 3, 16, 16)}),
    "padding": (["--data", "odd", "--set", OBSERVED], {(1, 3, 22, 38)}),
    "bf16": (["--precision", "bf16"], {(1, 3, 16, 16)}),
    "auto": (["--batch_size", "auto", "--limit", "2"], {(1, 3, 16, 16), (2, 3, 16, 16)}),
    "compile": (["--compile", "--batch_size", "2", "--limit", "2"], {(2, 3, 16, 16)}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """model(format) -> model config of a tiny network."""
    def model(name: str) -> dict:
        folder = tmp_path_factory.mktemp("prior")
        if name == "diffusers":
            return save_folder(pytest.importorskip("diffusers"), folder, prediction_type="v_prediction")[-1]
        network = {"name": "SongUNet", "image_size": SIZE, "model_channels": 16, "channel_mult": [1, 2],
                   "num_blocks": 1, "attn_resolutions": [8]}
        torch.save(fill_network(NETWORKS.make(network), salt=900).state_dict(), folder / "net.pt")
        return {"format": "edm", "network": network, "model_path": str(folder / "net.pt")}
    return model


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["diffusers", "edm"])
def test_options_of_the_program_work_for_every_format(name, option, models, prior, workplace, monkeypatch, capsys):
    given, expected = OPTIONS[option]
    seen, dtypes, graphs, forward, compile = set(), set(), [], Network.forward, torch.compile

    def watched(self, x, timesteps, y=None):
        seen.add(tuple(x.shape))
        dtypes.add(self.autocast_dtype)
        return forward(self, x, timesteps, y)

    if option != "compile":
        monkeypatch.setattr(Network, "forward", watched)
    monkeypatch.setattr(torch, "compile", partial(compile, backend=lambda graph, inputs: graphs.append(
        [tuple(x.shape) for x in inputs if x.dim() == 4 and x.shape[1] == 3 and x.shape[0] < 3]) or graph.forward))
    picture(Path("odd/a.png"), size=(21, 37))
    Path("model.yaml").write_text(yaml.safe_dump(models(name)))
    status = sample_condition.main(["--model_config", "model.yaml", "--diffusion_config",
                                    "configs/prior_diffusion_config.yaml", "--set", "diffusion.timestep_respacing=2",
                                    "--task_config", str(prior / "task.yaml"), "--limit", "1", *given])
    out, err = capsys.readouterr()
    assert status == 0, err
    table, = Path("results").rglob("metrics.csv")
    assert all(row["status"] == "ok" for row in rows(str(table.parent)))
    if option == "compile":                         # one graph, and no part of it by hand
        assert expected <= set(graphs[0]) and "as it is" not in err and len(graphs) == 1
    else:
        assert seen == expected and dtypes == {torch.bfloat16 if option == "bf16" else None}
    assert ("--batch_size auto: " in out) == (option == "auto")
