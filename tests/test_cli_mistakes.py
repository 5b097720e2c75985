"""Mistakes on the command line, unreadable images and other trouble: a status, a line that helps, no traceback."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from guided_diffusion.restoration.build import Task
from tests.command_line import arguments, rows
from tests.forks import program
from tests.helpers import picture
from util.config.config import REPOSITORY


def test_unreadable_images_are_passed_over_and_counted(run):
    for i in range(3):
        picture(Path(f"photos/good{i}.png"), i)
    Path("photos/empty.png").write_bytes(b"")
    Path("photos/half.png").write_bytes(Path("photos/good0.png").read_bytes()[:1000])
    Path("photos/text.jpg").write_text("hello")
    status, out, err = run("--data", "photos")
    assert status == 1
    assert [r["image"] for r in rows()] == ["good0", "good1", "good2"]
    for name in ("empty.png", "half.png", "text.jpg"):
        assert len(re.findall(rf"^.*warning: cannot read image photos/{name}: .*$", err, re.M)) == 1
    assert "3 of 6 images could not be read" in err
    assert "good2" in out


@pytest.mark.parametrize("options, words", [
    (["--taks_config", "x"], ["'--taks_config'", "did you mean '--task_config'"]),
    (["--model"], ["'--model'", "did you mean '--model_config'"]),
    (["photos"], ["unknown argument 'photos'"]),
    (["--nope"], ["unknown argument '--nope'; choose from --batch_size"]),
    (["--seed", "one"], ["--seed", "one"]),
    (["--limit", "0"], ["--limit", "whole number of 1 or more"]),
    (["--batch_size", "-3"], ["--batch_size"]),
    (["--precision", "fp8"], ["--precision", "fp32"]),
    (["--seed"], ["--seed", "expected one argument"]),
    (["--gpu", "0"], ["--gpu 0", "no GPU"]),
    (["--gpu", "-1"], ["--gpu -1"]),
    (["--task_config", "configs/super_resolution.yaml"],
     ["configs/super_resolution.yaml not found", "did you mean 'configs/super_resolution_config.yaml'"]),
    (["--data", "nowhere"], ["'nowhere' not found", "--data skimage"]),
    (["--data", "empty"], ["holds no images", "png"]),
    (["--set", "diffusion.timestep_respacng=5"], ["'timestep_respacng'", "did you mean 'timestep_respacing'"]),
    (["--set", "diffusion.steps=many"], ["steps is 'many'", "integer"]),
    (["--set", "diffusion.timestep_respacing=5000"], ["timestep_respacing 5000", "expected at most 1000"]),
    (["--set", "diffusion.sampler=ddmp"], ["'ddmp'", "did you mean 'ddpm'"]),
    (["--set", "diffusion.noise_schedule=linaer"], ["'linaer'", "did you mean 'linear'"]),
    (["--set", "diffusion.model_var_type=fixed_small"], ["learn_sigma: false", "fixed_small"]),
    (["--set", "model.learn_sigma=false"], ["learn_sigma: true", "learned_range"]),
    (["--set", "model.class_cond=true"], ["class_label is missing", "0 to 999"]),
    (["--set", "measurement.operator.in_shape=[1, 3, 256, 256]"],
     ["in_shape is [1, 3, 256, 256], but the images are [3, 32, 32]", "leave in_shape out", "data.image_size"]),
    (["--set", "model.num_chanels=3"], ["'num_chanels'", "did you mean 'num_channels'"]),
    (["--set", "model.image_size=33"], ["scale_factor 4 does not divide the image size 33x33", "another image size"]),
    (["--set", "model.image_size=0"], ["image_size is 0"]),
    (["--set", "model.model_path=models/none.pt"], ["models/none.pt not found", "models/README.md"]),
    (["--set", "model.model_path="], ["model_path is missing"]),
    (["--set", "model.num_channels=64"], ["tiny.pt", "shape"]),
    (["--set", "conditioning.method=dps"], ["conditioning method 'dps'", "dpps", "ps"]),
    (["--set", "conditioning.params.scael=9"], ["'scael'", "did you mean 'scale'"]),
    (["--set", "conditioning.method=vanilla"], ["'vanilla'", "'scale'", "conditioning.params={}"]),
    (["--task_config", "configs/demo_task_config.yaml", "--set", "conditioning.method=ps",
      "--set", "conditioning.params.max_candidates=8"],
     ["'max_candidates'", "replace them by --set 'conditioning.params={}'"]),
    (["--task_config", "configs/demo_task_config.yaml", "--set", "conditioning.method=ps",
      "--set", "conditioning.params.scale=-1"], ["scale is -1", "replace them by --set 'conditioning.params={}'"]),
    (["--set", "conditioning={method: dsg}", "--set", "diffusion.sampler=ddim"],
     ["would guide none of", "ddim with eta: 1"]),
    (["--set", "measurement.operator={name: compressed_sensing, ratio: 0.5}",
      "--set", "measurement.noise={name: quantization, bits: 4}"],
     ["noise 'quantization' is that of pictures", "use gaussian or clean"]),
    (["--set", "measurement.operator.name=inpainting"], ["'scale_factor'", "measurement.operator={name: inpainting}"]),
    (["--task_config", "configs/inpainting_config.yaml", "--set", "measurement.operator.name=noise"],
     ["'mask_opt'", "--set measurement.mask_opt=null"]),
    (["--task_config", "configs/inpainting_config.yaml", "--set", "measurement.operator={name: noise}"],
     ["'mask_opt'", "(mask_opt) still apply; replace them by --set measurement.mask_opt=null"]),
    (["--set", "measurement.operator.name=blurr"], ["'blurr'", "did you mean 'blur'"]),
    (["--data", "file"], ["file is no image file"]),
    (["--set", "measurement.operator.scale_factor=5"], ["scale_factor 5 does not divide the image size 32x32"]),
    (["--set", "measurement.noise.name=gausian"], ["'gausian'", "did you mean 'gaussian'"]),
    (["--set", "measurement.noise.sigma=-1"], ["sigma is -1, expected a finite number, 1e-15"]),
    (["--set", "measurement.noise.sigma=much"], ["sigma is 'much'"]),
    (["--set", "data.images=[cofee]"], ["'cofee'", "did you mean 'coffee'"]),
    (["--set", "data.name=imagnet"], ["'imagnet'", "did you mean 'imagenet'"]),
    (["--set", "data=!!python/object/apply:os.mkdir [mark]"], ["refused"]),
    (["--set", f"data.image_size={10 ** 22}"], ["image_size", "an integer", "at most 2147483647"]),
    (["--num_samples", "999999999"], ["--num_samples", "more than 10000"]),
    (["--set", "model.num_channels=2000000000"], ["num_channels is 2000000000", "1 to 8192"]),
    (["--set", "model.num_res_blocks=2000000"], ["num_res_blocks is 2000000", "1 to 100"]),
    (["--task_config", "/dev/null"], ["/dev/null is a device, expected a file"]),
    (["--set", "data.image_size=100000"], ["image_size is 100000", "8192"]),
    (["--set", "model.image_size=2000000000"], ["image_size is 2000000000", "8192"]),
    (["--set", f"diffusion.steps={10 ** 22}"], ["steps", "at most 2147483647"]),
    (["--set", "measurement.noise.sigma=1e22"], ["sigma is 1e+22", "1e-15 to 1e+15"]),
    (["--set", "diffusion.steps=2000000000"], ["steps is 2000000000", "1000000"]),
    (["--set", f"measurement.noise.sigma={'9' * 400}"], ["sigma", "a finite number"]),
    (["--set", "measurement.noise.sigma=!!int ''"], ["--set", "some value is not of its type"]),
    (["--set", "measurement.operator={name: phase_retrieval, oversample: 2000000000}"], ["oversample", "0 to 100"]),
    (["--task_config", "configs/inpainting_config.yaml", "--set", "measurement.operator.mask_opt={mask_type: box}"],
     ["measurement.mask_opt and measurement.operator.mask_opt are both set"]),
    (["--save_dir", "file"], ["cannot write to file", "--save_dir"]),
    *(([option, path], ["is no path", word]) for path, word in (("\0", "null"), ("x" * 5000, "too long"),
                                                                ("~no such user/x", "home"), ("x/" * 3000, "too long"))
      for option in ("--save_dir", "--data", "--task_config", "--load_measurements")),
])
def test_mistakes_end_with_status_2_and_a_line_that_helps(run, options, words):
    Path("file").write_text("in the way")
    Path("empty").mkdir()
    status, out, err = run(*options)
    assert status == 2, out + err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and len(err.splitlines()) <= 2, err
    for word in words:
        assert word in errors[0], err
    assert "Traceback" not in err
    assert not Path("mark").exists()
    assert not list(Path().rglob("recon/*.png"))


def test_a_mistake_in_a_real_process_has_status_2_and_no_traceback(fork, prior, workplace):
    process = fork(program, REPOSITORY / "sample_condition.py",
                   *arguments(prior, "--set", "conditioning.params.scael=9"))
    out, err = process.communicate()
    assert process.returncode == 2
    assert "Traceback" not in err and "did you mean 'scale'" in err
    assert out == ""


def test_running_out_of_gpu_memory_is_explained(run, monkeypatch):
    def exhausted(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Task, "measure", exhausted)
    status, _, err = run()
    assert status == 2 and "--batch_size" in err and "Traceback" not in err


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_found_before_sampling(run):
    Path("locked").mkdir(mode=0o555)
    status, _, err = run("--save_dir", "locked")
    assert status == 2 and "cannot write to locked" in err


@pytest.mark.parametrize("noise", [{"name": "gaussian", "sigma": 10 ** 15}, {"name": "poisson", "rate": 2 * 10 ** 9},
                                   {"name": "poisson", "rate": 10 ** 15}, {"name": "speckle", "sigma": 10 ** 15}])
def test_numbers_without_sense_are_no_traceback(run, noise):
    status, _, err = run("--limit", "1", "--set", f"measurement.noise={json.dumps(noise)}")
    assert status in (0, 1) and "Traceback" not in err
