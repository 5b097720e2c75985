"""The command line as a user runs it, with a tiny network that the tests make themselves."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import sample_condition
from guided_diffusion.measurements import Measurement
from guided_diffusion.unet import create_model
from util.config import REPOSITORY

MODEL = {"image_size": 32, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,1", "learn_sigma": True,
         "attention_resolutions": "16", "num_heads": 1, "use_scale_shift_norm": True}
TASK = {"conditioning": {"method": "dpps", "params": {"scale": 1.0}},
        "data": {"name": "skimage"},
        "measurement": {"operator": {"name": "super_resolution", "scale_factor": 4},
                        "noise": {"name": "gaussian", "sigma": 0.05}}}


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


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """An empty working directory, without GPU and network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


def arguments(prior: Path, *more: str) -> list[str]:
    return ["--model_config", str(prior / "model.yaml"), "--task_config", str(prior / "task.yaml"),
            "--set", "diffusion.timestep_respacing=3", *more]


@pytest.fixture
def run(prior, workplace, capsys):
    """run(*arguments) -> (exit status, standard output, standard error) of the program in this process."""
    def run(*more: str) -> tuple[int, str, str]:
        status = sample_condition.main(arguments(prior, *more))
        return status, *capsys.readouterr()
    return run


def rows(folder: str = "results/super_resolution/dpps") -> list[dict[str, str]]:
    with open(f"{folder}/metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def pictures(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*.png"))}


def save_image(path: Path, seed: int = 0, size: tuple[int, int] = (40, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def launch(prior: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(REPOSITORY / "sample_condition.py"), *arguments(prior, *more)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_user_restores_three_photographs_from_any_folder(prior, workplace):
    process = launch(prior, "--num_samples", "2", "--progress", "2")
    out, err = process.communicate()
    assert process.returncode == 0, err
    folder = workplace / "results/super_resolution/dpps"
    names = ["astronaut", "chelsea", "coffee"]
    for name in names:
        assert (folder / "input" / f"{name}.png").is_file()
        assert (folder / "label" / f"{name}.png").is_file()
        assert {f.name for f in (folder / "recon").glob(f"{name}*")} == {f"{name}_{s}.png" for s in ("0", "1", "mean")}
        assert {f.name for f in (folder / "progress" / f"{name}_0").iterdir()} == {
            f"{x}_{i:04d}.png" for x in ("x", "x0_hat") for i in (0, 2)}
        assert name in out
    table = rows(str(folder))
    assert [(r["image"], r["sample"]) for r in table] == [(n, s) for n in names for s in ("0", "1", "mean")]
    assert all(float(r["seconds"]) > 0 and float(r["distance"]) > 0 and r["chi_square"] for r in table)
    assert all(r["lpips_vgg"] == "" for r in table)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["images"], summary["samples"], summary["network_evaluations"], summary["seed"]) == (3, 6, 18, 0)
    assert summary["peak_memory_bytes"] > 0
    assert {"device", "versions", "seconds", "metrics", "metrics_of_sample_means"} <= set(summary)
    for name in names:
        steps, final = (folder / "trajectories" / f"{name}.csv").read_text().splitlines(), table[3 * names.index(name)]
        assert steps[0] == "step,0,1" and [line.split(",")[0] for line in steps[1:]] == ["2", "1", "0"]
        before = float(steps[-1].split(",")[1])     # of the last x0_hat; `final` has what the last guidance made of it
        assert 0.2 < before / float(final["distance"]) < 5
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["diffusion"]["timestep_respacing"] == 3
    assert config["measurement"]["operator"] == {"name": "super_resolution", "scale_factor": 4}
    assert Image.open(folder / "grid.png").width == 4 * 256 + 5 * 12
    assert "results/super_resolution/dpps" in out
    assert out.count("\n") < 15
    assert err.count("warning") == 1 and "LPIPS" in err                 # nothing else complains
    assert "18/18" in err


def test_the_mean_of_the_samples_is_their_mean(run):
    assert run("--num_samples", "3", "--limit", "1")[0] == 0
    recon = Path("results/super_resolution/dpps/recon")
    images = [np.asarray(Image.open(recon / f"astronaut_{s}.png")).astype(float) for s in ("0", "1", "2", "mean")]
    assert np.abs(images[0] - images[1]).max() > 5                      # samples differ
    unclamped = np.all([(image > 0) & (image < 255) for image in images[:3]], axis=0)
    assert unclamped.sum() > 10
    assert np.abs(np.mean(images[:3], axis=0) - images[3])[unclamped].max() <= 1       # up to rounding


def test_results_do_not_depend_on_batches(run):
    for batch_size in ("6", "1", "2", "5"):
        assert run("--num_samples", "2", "--save_dir", batch_size, "--batch_size", batch_size)[0] == 0
    first = rows("6/super_resolution/dpps")
    assert len(first) == 9
    for batch_size in ("1", "2", "5"):
        for a, b in zip(first, rows(f"{batch_size}/super_resolution/dpps"), strict=True):
            assert (a["image"], a["sample"]) == (b["image"], b["sample"])
            for column in ("psnr", "ssim", "distance", "chi_square"):
                assert float(a[column]) == pytest.approx(float(b[column]), rel=1e-3, abs=1e-3), batch_size


def test_the_seed_decides_and_zero_is_a_seed(run):
    for folder, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert run("--limit", "1", "--seed", seed, "--save_dir", folder)[0] == 0
    a, b, c = (pictures(Path(folder)) for folder in "abc")
    recon = "super_resolution/dpps/recon/astronaut.png"
    assert a == b
    assert a[recon] != c[recon]


def test_two_methods_see_the_same_measurement(run):
    assert run("--limit", "1")[0] == 0
    assert run("--limit", "1", "--set", "conditioning.method=ps")[0] == 0
    folder = Path("results/super_resolution")
    assert (folder / "dpps/input/astronaut.png").read_bytes() == (folder / "ps/input/astronaut.png").read_bytes()
    assert (folder / "dpps/recon/astronaut.png").read_bytes() != (folder / "ps/recon/astronaut.png").read_bytes()


def test_a_stopped_run_continues_and_ends_as_if_it_had_not_been_stopped(run):
    assert run("--save_dir", "whole")[0] == 0
    assert run("--save_dir", "parts", "--limit", "1")[0] == 0
    before = rows("parts/super_resolution/dpps")
    status, out, _ = run("--save_dir", "parts")
    assert status == 0 and "1 finished before" in out
    assert rows("parts/super_resolution/dpps")[0] == before[0]
    whole, parts = (pictures(Path(folder)) for folder in ("whole", "parts"))
    assert whole == parts
    modified = Path("parts/super_resolution/dpps/recon/coffee.png").stat().st_mtime_ns
    status, out, err = run("--save_dir", "parts")
    assert status == 0 and "3 finished before" in out and "coffee" in out
    assert err == ""
    assert Path("parts/super_resolution/dpps/recon/coffee.png").stat().st_mtime_ns == modified


def test_a_changed_setting_is_refused_until_it_may_overwrite(run):
    assert run("--limit", "1")[0] == 0
    status, _, err = run("--limit", "1", "--set", "measurement.noise.sigma=0.1", "--seed", "5")
    assert status == 2
    assert "measurement.noise.sigma (0.05 there, 0.1 now)" in err and "seed (0 there, 5 now)" in err
    assert run("--limit", "1", "--seed", "5", "--overwrite")[0] == 0
    assert yaml.safe_load(Path("results/super_resolution/dpps/config.yaml").read_text())["seed"] == 5


@pytest.mark.parametrize("settings", [
    ["measurement.operator={name: inpainting}", "measurement.mask_opt={mask_type: random, mask_prob_range: [0.3, 0.7]}",
     "conditioning.method=ps"],
    ["measurement.operator={name: gaussian_blur, kernel_size: 9, intensity: 1.0}", "measurement.noise={name: clean}"],
    ["measurement.operator={name: motion_blur, kernel_size: 9, intensity: 0.5}", "conditioning.method=mcg"],
    ["measurement.operator={name: noise}", "measurement.noise={name: poisson, rate: 1.0}",
     "conditioning={method: vanilla}"],
    ["diffusion.sampler=ddim", "diffusion.eta=0.5", "conditioning.method=ps+"],
])
def test_tasks_and_methods_are_switched_by_set(run, settings):
    status, out, err = run("--limit", "2", *(part for s in settings for part in ("--set", s)))
    assert status == 0, err
    assert "chelsea" in out


def test_a_folder_with_every_kind_of_image_is_restored(run):
    folder = Path("photos")
    save_image(folder / "wide.png", 1, (30, 90))
    save_image(folder / "sub/large.jpg", 2, (300, 200))
    Image.new("RGB", (1, 1), "red").save(folder / "dot.png")
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16).save(folder / "deep.png")
    Image.open(folder / "wide.png").convert("RGBA").save(folder / "alpha.png")
    Image.open(folder / "wide.png").convert("P").save(folder / "palette.gif.png", format="png")
    Image.open(folder / "wide.png").convert("L").save(folder / "grey.png")
    (folder / "notes.txt").write_text("no image")
    status, out, err = run("--data", "photos")
    assert status == 0, err
    assert [r["image"] for r in rows()] == ["alpha", "deep", "dot", "grey", "palette.gif", "sub__large", "wide"]
    assert "7 images" in out


def test_images_may_be_larger_than_those_of_the_training(run):
    assert run("--limit", "1", "--set", "data.image_size=64")[0] == 0
    assert Image.open("results/super_resolution/dpps/recon/astronaut.png").size == (64, 64)
    status, _, err = run("--set", "data.image_size=65", "--set", "measurement.operator={name: noise}")
    assert status == 2 and "65 x 65 do not fit the network" in err


def test_the_table_of_many_images_is_short(run):
    for i in range(23):
        save_image(Path(f"photos/{i:02d}.png"), i)
    status, out, _ = run("--data", "photos", "--set", "diffusion.timestep_respacing=1")
    assert status == 0
    assert "\n19 " in out and "\n20 " not in out
    assert "mean of 23" in out and "(3 more images are in metrics.csv)" in out
    interval = json.loads(next(Path("results").rglob("summary.json")).read_text())["metrics"]["psnr"]["ci95"]
    line, = (line for line in out.splitlines() if line.startswith("95 % interval"))
    assert line.split()[4] == "-".join(f"{bound:.2f}" for bound in interval)


def test_unreadable_images_are_passed_over_and_counted(run):
    for i in range(3):
        save_image(Path(f"photos/good{i}.png"), i)
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
    (["--set", "diffusion.timestep_respacing=5000"], ["5000"]),
    (["--set", "diffusion.sampler=ddmp"], ["'ddmp'", "did you mean 'ddpm'"]),
    (["--set", "diffusion.noise_schedule=linaer"], ["'linaer'", "did you mean 'linear'"]),
    (["--set", "diffusion.model_var_type=fixed_small"], ["learn_sigma: false", "fixed_small"]),
    (["--set", "model.learn_sigma=false"], ["learn_sigma: true", "learned_range"]),
    (["--set", "model.class_cond=true"], ["class_label is missing", "0 to 999"]),
    (["--set", "measurement.operator.in_shape=[1, 3, 256, 256]"], ["in_shape is [1, 3, 256, 256]", "data.image_size"]),
    (["--set", "model.num_chanels=3"], ["'num_chanels'", "did you mean 'num_channels'"]),
    (["--set", "model.image_size=33"], ["33"]),
    (["--set", "model.image_size=0"], ["image_size is 0"]),
    (["--set", "model.model_path=models/none.pt"], ["models/none.pt not found", "models/README.md"]),
    (["--set", "model.model_path="], ["model_path is missing"]),
    (["--set", "model.num_channels=64"], ["tiny.pt", "shape"]),
    (["--set", "conditioning.method=dps"], ["conditioning method 'dps'", "dpps", "ps"]),
    (["--set", "conditioning.params.scael=9"], ["'scael'", "did you mean 'scale'"]),
    (["--set", "conditioning.method=vanilla"], ["'vanilla'", "'scale'", "conditioning.params={}"]),
    (["--set", "measurement.operator.name=inpainting"], ["'scale_factor'", "measurement.operator={name: inpainting}"]),
    (["--task_config", "configs/inpainting_config.yaml", "--set", "measurement.operator.name=noise"],
     ["'mask_opt'", "--set measurement.mask_opt=null"]),
    (["--set", "measurement.operator.name=blurr"], ["'blurr'", "did you mean 'blur'"]),
    (["--data", "file"], ["file is no image file"]),
    (["--set", "measurement.operator.scale_factor=5"], ["5", "32"]),
    (["--set", "measurement.operator.in_shape=[1,3,256,256]"], ["256", "32"]),
    (["--set", "measurement.noise.name=gausian"], ["'gausian'", "did you mean 'gaussian'"]),
    (["--set", "measurement.noise.sigma=-1"], ["sigma", "-1"]),
    (["--set", "measurement.noise.sigma=much"], ["sigma is 'much'"]),
    (["--set", "data.images=[cofee]"], ["'cofee'", "did you mean 'coffee'"]),
    (["--set", "data.name=imagnet"], ["'imagnet'", "did you mean 'imagenet'"]),
    (["--set", "data=!!python/object/apply:os.mkdir [mark]"], ["refused"]),
    (["--set", f"data.image_size={10 ** 22}"], ["image_size", "an integer", "at most 2147483647"]),
    (["--num_samples", "999999999"], ["--num_samples", "more than 10000"]),
    (["--set", "model.num_channels=2000000000"], ["num_channels is 2000000000", "8192 at most"]),
    (["--set", "model.num_res_blocks=2000000"], ["num_res_blocks is 2000000", "100 at most"]),
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


def test_a_mistake_in_a_real_process_has_status_2_and_no_traceback(prior, workplace):
    process = launch(prior, "--set", "conditioning.params.scael=9")
    out, err = process.communicate()
    assert process.returncode == 2
    assert "Traceback" not in err and "did you mean 'scale'" in err
    assert out == ""


def test_results_that_hold_no_finished_image_do_not_bind(run):
    assert run("--set", "model.num_channels=64")[0] == 2                # found when the checkpoint is loaded
    assert run("--limit", "1")[0] == 0


def test_interrupting_keeps_what_is_finished(prior, workplace):
    for i in range(40):
        save_image(workplace / "photos" / f"{i:02d}.png", i)
    options = ["--data", "photos", "--batch_size", "1", "--set", "diffusion.timestep_respacing=25"]
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)             # as a shell starts a background job
    process = launch(prior, *options)
    signal.signal(signal.SIGINT, previous)
    table = workplace / "results/super_resolution/dpps/metrics.csv"
    deadline = time.monotonic() + 120
    while not table.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    done = rows(str(table.parent))
    assert 1 <= len(done) < 40
    message, = [line for line in err.splitlines() if line.startswith("error: ")]
    assert f"{len(done)} of 40 images are finished and kept" in message and "same command continues" in message
    assert not list(table.parent.rglob("*.tmp"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see when signals are minded")
def test_an_interrupt_during_the_imports_has_status_130(prior, workplace):
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)             # ignored until the program minds it
    process = launch(prior)
    signal.signal(signal.SIGINT, previous)
    while process.poll() is None:
        ignored = re.search(r"^SigIgn:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
        if not int(ignored[1], 16) >> (signal.SIGINT - 1) & 1:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.01)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "error: interrupted before the first image\n"


def test_an_interrupt_before_sampling_is_no_traceback(run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sample_condition, "load_config", interrupt)
    status, _, err = run()
    assert status == 130 and len(err.splitlines()) == 1


def test_running_out_of_gpu_memory_is_explained(run, monkeypatch):
    def exhausted(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Measurement, "simulate", exhausted)
    status, _, err = run()
    assert status == 2 and "--batch_size" in err and "Traceback" not in err


def test_all_options_of_dps_and_ours_have_defaults():
    args = sample_condition.parse_arguments([])
    for option in ("model_config", "diffusion_config", "task_config", "save_dir"):
        assert getattr(args, option)
    assert {"gpu", "data", "overrides", "seed", "batch_size", "num_samples", "limit", "precision"} <= set(vars(args))
    assert all((REPOSITORY / getattr(args, f"{k}_config")).is_file() for k in ("model", "diffusion", "task"))


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
