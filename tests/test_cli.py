"""The command line as a user runs it: what it writes, samples, batches and seeds, tasks and kinds of images."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import sample_condition
from tests.command_line import launch, pictures, rows
from tests.helpers import picture
from util.config.config import DEMO, REPOSITORY, load_config


def test_what_the_network_refuses_deletes_nothing(run):
    assert run("--limit", "1")[0] == 0
    before = {path: path.read_bytes() for path in Path("results").rglob("*.png")}
    status, _, err = run("--limit", "1", "--overwrite", "--tile", "3")
    assert status == 2 and "--tile 3: the network takes multiples of" in err and before
    assert {path: path.read_bytes() for path in Path("results").rglob("*.png")} == before


def test_the_config_of_a_run_repeats_it(run, workplace, capsys):
    given = "--limit", "1", "--seed", "3", "--num_samples", "2"
    assert run(*given, "--set", "conditioning.params.scale=0.4")[0] == 0
    repeat = "--task_config", "results/super_resolution/dpps/config.yaml", "--save_dir"
    assert sample_condition.main([*given, *repeat, "same"]) == 0
    assert "repeated" not in capsys.readouterr().err
    assert pictures(Path("same")) == pictures(Path("results")) != {}
    assert sample_condition.main(["--limit", "1", *repeat, "other", "--set", "diffusion.timestep_respacing=2"]) == 0
    said, = (line for line in capsys.readouterr().err.splitlines() if "repeated" in line)
    assert said == (f"warning: {repeat[1]} is repeated but for diffusion.timestep_respacing (3 there, 2 now), "
                    "seed (3 there, 0 now), num_samples (2 there, 1 now)")
    origins = load_config(None, DEMO["diffusion"], repeat[1]).origins
    assert origins["model", "image_size"] == origins["conditioning", "method"] == repeat[1]
    assert origins["diffusion", "sampler"] == DEMO["diffusion"]


def test_a_user_restores_three_photographs_from_any_folder(prior, workplace):
    process = launch(prior, "--num_samples", "2", "--progress", "2")
    out, err = process.communicate()
    assert process.returncode == 0, err
    folder = workplace / "results/super_resolution/dpps"
    names = ["astronaut", "chelsea", "coffee"]
    for name in names:
        assert (folder / "input" / f"{name}.png").is_file()
        assert (folder / "label" / f"{name}.png").is_file()
        assert {f.stem for f in (folder / "recon").glob(f"{name}*.png")} == {f"{name}_{s}" for s in ("0", "1", "mean")}
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
    for batch_size in ("4", "1", "3"):
        assert run("--num_samples", "2", "--limit", "2", "--save_dir", batch_size, "--batch_size", batch_size, "--set",
                   "diffusion.timestep_respacing=2")[0] == 0
    first = rows("4/super_resolution/dpps")
    assert len(first) == 6
    for batch_size in ("1", "3"):
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
    status, out, err = run("--limit", "1", *(part for s in settings for part in ("--set", s)))
    assert status == 0, err
    assert "astronaut" in out


def test_a_folder_with_every_kind_of_image_is_restored(run):
    folder = Path("photos")
    picture(folder / "wide.png", 1, (30, 90))
    picture(folder / "sub/large.jpg", 2, (300, 200))
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
        picture(Path(f"photos/{i:02d}.png"), i)
    status, out, _ = run("--data", "photos", "--set", "diffusion.timestep_respacing=1")
    assert status == 0
    assert "\n19 " in out and "\n20 " not in out
    assert "mean of 23" in out and "(3 more images are in metrics.csv)" in out
    interval = json.loads(next(Path("results").rglob("summary.json")).read_text())["metrics"]["psnr"]["ci95"]
    line, = (line for line in out.splitlines() if line.startswith("95 % interval"))
    assert line.split()[4] == "-".join(f"{bound:.2f}" for bound in interval)


def test_all_options_of_dps_and_ours_have_defaults():
    args = sample_condition.parse_arguments([])
    assert args.task_config and args.save_dir
    assert args.model_config is args.diffusion_config is None                   # what the task names, or the demo's
    assert {"gpu", "data", "overrides", "seed", "batch_size", "num_samples", "limit", "precision"} <= set(vars(args))
    assert all((REPOSITORY / file).is_file() for file in (args.task_config, *DEMO.values()))
