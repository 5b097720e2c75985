"""Measurements on disk: what other programs find in them, and that exactly those are restored."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.measurements.sources import to_store
from tests.helpers import NOISE_EXAMPLES, OPERATOR_EXAMPLES, picture
from util.errors import UserError
from util.run.measurements import MeasurementFolder, read_measurement, write_measurement
from util.seeding import ImageRandomness

RESULTS = "super_resolution/dpps"
INPAINTING = ["--set", "measurement.operator={name: inpainting}", "--set",
              "measurement.mask_opt={mask_type: random, mask_prob_range: [0.3, 0.7]}"]
ONE_STEP = ["--set", "diffusion.timestep_respacing=1"]
MOTION = ["--set", "measurement.operator={name: motion_blur, kernel_size: 9, intensity: 0.5}"]


def rows(folder: str) -> list[dict[str, str]]:
    with open(f"{folder}/metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def pictures(folder: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


@pytest.mark.parametrize("name", sorted(OPERATOR_EXAMPLES))
@pytest.mark.parametrize("noise", ["gaussian", "poisson"])
def test_a_stored_measurement_comes_back_to_an_operator_that_drew_something_else(tmp_path, name, noise):
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    names = ["a", "b", "c"]
    operator, noiser = get_operator(name, **OPERATOR_EXAMPLES[name]), get_noise(noise, **NOISE_EXAMPLES[noise])
    measurement = Measurement.simulate(operator, noiser, x, ImageRandomness(0, names))
    settings = {"name": name, **OPERATOR_EXAMPLES[name]}
    for b, image in enumerate(names):
        stored = to_store(measurement, b, settings, {"name": noise, **NOISE_EXAMPLES[noise]}, 0, False)
        write_measurement(tmp_path / f"{image}.npz", stored)
    folder = MeasurementFolder(str(tmp_path))
    assert folder.names == names and folder.settings["operator"] == json.loads(json.dumps(settings))

    other = get_operator(name, **OPERATOR_EXAMPLES[name])
    chosen = [folder.read(image) for image in ("c", "a")]
    drawn = {key: torch.from_numpy(np.stack([entry.drawn[key] for entry in chosen])) for key in chosen[0].drawn}
    y = torch.from_numpy(np.stack([entry.y for entry in chosen]))
    assert torch.equal(y, measurement.y[[2, 0]])
    again = Measurement.stored(other, noiser, y, (2, *chosen[0].image_shape), drawn, ImageRandomness(9, ["p", "q"]))
    torch.testing.assert_close(again.operator(x[[2, 0]]), measurement.operator(x)[[2, 0]], rtol=0, atol=1e-6)
    torch.testing.assert_close(again.distance(x[[2, 0]]), measurement.distance(x)[[2, 0]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["inpainting", "motion_blur", "gopro_blur", "compressed_sensing"])
def test_whatever_is_random_is_declared_as_drawn(name):
    operator = get_operator(name, **{**OPERATOR_EXAMPLES[name], **({"intensity": 0.5, "kernel_size": 7}
                                                                   if name == "motion_blur" else {})})
    first, second = (operator.prepare((1, 3, 16, 16), ImageRandomness(seed, ["a"], purpose="operator"))
                     for seed in (0, 1))
    x = torch.rand(1, 3, 16, 16)
    assert not torch.equal(second(x), first(x))
    second.restore_drawn(first.drawn())
    torch.testing.assert_close(second(x), first(x))


def test_the_parts_of_a_composite_are_stored_under_their_paths():
    operator = get_operator("composite", operators=[{"name": "motion_blur", "kernel_size": 5, "intensity": 0.5},
                                                    {"name": "compressed_sensing", "ratio": 0.5}])
    first, second = (operator.prepare((2, 3, 16, 16), ImageRandomness(seed, ["a", "b"], purpose="operator"))
                     for seed in (0, 5))
    drawn = first.drawn()
    assert {name: tuple(values.shape) for name, values in drawn.items()} == {
        "operators.0.kernel": (2, 1, 5, 5), "operators.1.index": (2, 128)}
    x = torch.rand(2, 3, 16, 16)
    second.restore_drawn(drawn)
    torch.testing.assert_close(second(x), first(x))
    with pytest.raises(UserError, match=r"'composite' needs operators.0.kernel of shape \[1, 5, 5\], found none"):
        second.restore_drawn({})
    with pytest.raises(UserError, match=r"found shape \[1, 7, 7\]"):
        second.restore_drawn({**drawn, "operators.0.kernel": torch.zeros(2, 1, 7, 7)})


@pytest.mark.parametrize("task, names, sample", [
    ([], (), "_0"), (INPAINTING, ("mask",), ""), (MOTION, ("kernel",), "")])
def test_saved_measurements_are_restored_exactly(run, task, names, sample):
    samples = ["--num_samples", "2" if sample else "1", "--batch_size", "2", *ONE_STEP]
    assert run(*task, "--save_measurements", "--save_dir", "a", *samples, "--limit", "2")[0] == 0
    folder, = Path("a").glob("*/dpps/measurements")
    assert sorted(file.name for file in folder.iterdir()) == ["astronaut.npz", "chelsea.npz"]
    with np.load(folder / "chelsea.npz", allow_pickle=False) as file:
        assert set(file) == {"y", "operator", "noise", "image_shape", "seed", "observed", *names}
        assert json.loads(str(file["noise"])) == {"name": "gaussian", "sigma": 0.05}
        assert file["image_shape"].tolist() == [3, 32, 32] and file["y"].dtype == np.float32
        for name in names:
            assert file[name].shape == {"mask": (1, 32, 32), "kernel": (1, 9, 9)}[name]
    # neither the task's operator nor its noise, nor the seed of what was drawn, play a part
    status, _, err = run("--load_measurements", str(folder), "--save_dir", "b", *samples)
    assert status == 0, err
    assert [*Path("b").glob("*/dpps")] == [Path("b", folder.parts[1], "dpps")]
    first, second = (str(folder.parent).replace("a/", f"{x}/", 1) for x in "ab")
    for kind in ("recon", "input", "label"):
        assert pictures(f"{first}/{kind}") == pictures(f"{second}/{kind}")
    for a, b in zip(rows(first), rows(second), strict=True):
        measured = b["source"][:16]                     # ahead of the photograph, which is the truth
        assert len(measured) == 16 and a["source"] == b["source"][16:]
        assert {**a, "seconds": "", "source": ""} == {**b, "seconds": "", "source": ""}
    status, _, err = run("--load_measurements", str(folder), "--save_dir", "c", "--seed", "3", "--limit", "1",
                         *ONE_STEP)
    assert status == 0, err
    third = first.replace("a/", "c/", 1)
    assert pictures(f"{third}/input")["astronaut.png"] == pictures(f"{first}/input")["astronaut.png"]
    assert pictures(f"{third}/recon")["astronaut.png"] != pictures(f"{first}/recon")[f"astronaut{sample}.png"]


def test_another_method_restores_the_same_measurements(run):
    assert run("--save_measurements", "--limit", "1")[0] == 0
    folder = f"results/{RESULTS}/measurements"
    assert run("--load_measurements", folder, "--set", "conditioning.method=ps")[0] == 0
    assert pictures("results/super_resolution/ps/input") == pictures(f"results/{RESULTS}/input")
    assert rows("results/super_resolution/ps")[0]["psnr"]


def test_without_ground_truth_nothing_is_scored(run):
    picture(Path("photos/a.png"))
    assert run("--data", "photos", "--save_measurements", "--save_dir", "a")[0] == 0
    loading = ["--load_measurements", f"a/{RESULTS}/measurements"]
    for k, more in enumerate(([], ["--set", "data={name: folder, root: nowhere}"])):
        status, out, err = run(*loading, "--save_dir", f"b{k}", *more)
        assert status == 0, err
        row, = rows(f"b{k}/{RESULTS}")
        assert row["psnr"] == row["psnr_input"] == "" and float(row["chi_square"]) > 0
        assert "chi-square" in out and "PSNR" not in out and "LPIPS" not in err
    assert "without ground truth" in err and "nowhere" in err
    status, out, err = run(*loading, "--save_dir", "c", "--data", "photos")
    assert status == 0 and float(rows(f"c/{RESULTS}")[0]["psnr"]) == pytest.approx(
        float(rows(f"a/{RESULTS}")[0]["psnr"]), rel=1e-5)
    status, _, err = run(*loading, "--save_dir", "d", "--data", "nowhere")
    assert status == 2 and "'nowhere' not found" in err


def test_some_images_may_have_a_truth_and_others_not(run):
    for k, name in enumerate("ab"):
        picture(Path(f"photos/{name}.png"), k)
    assert run("--data", "photos", "--save_measurements", "--save_dir", "a")[0] == 0
    Path("photos/b.png").unlink()
    status, out, err = run("--load_measurements", f"a/{RESULTS}/measurements", "--data", "photos", "--save_dir", "b")
    assert status == 0, err
    assert [bool(row["psnr"]) for row in rows(f"b/{RESULTS}")] == [True, False]
    assert "PSNR" in out and "chi-square" in out
    assert "1 of 2 measurements restored without ground truth: the data hold no image of the same name as b" in err
    assert Path(f"b/{RESULTS}/grid.png").is_file()


def test_photographs_are_stored_as_such_and_never_taken_for_the_truth(run):
    picture(Path("photos/a.png"), 1, (18, 26))
    observed = ["--data", "photos", "--set", "measurement.observed=true", "--set", "measurement.operator={name: noise}"]
    assert run(*observed, "--save_measurements", "--save_dir", "a")[0] == 0
    loading = ["--load_measurements", "a/noise/dpps/measurements", "--data", "photos", "--save_dir", "b"]
    status, _, err = run(*loading)
    assert status == 0, err
    assert rows("b/noise/dpps")[0]["psnr"] == ""
    assert pictures("a/noise/dpps/recon") == pictures("b/noise/dpps/recon")
    with Image.open("b/noise/dpps/recon/a.png") as image:
        assert image.size == (26, 18)


def test_what_the_user_sets_stands_above_the_files(run):
    assert run("--set", "measurement.noise={name: poisson, rate: 0.5}", "--save_measurements", "--limit", "1")[0] == 0
    loading = ["--load_measurements", f"results/{RESULTS}/measurements", "--save_dir", "b"]
    assert run(*loading, "--set", "measurement.noise.likelihood=ls")[0] == 0
    assert "likelihood: ls" in Path(f"b/{RESULTS}/config.yaml").read_text()
    status, _, err = run(*loading, "--overwrite", "--set", "measurement.operator.scale_factor=2")
    assert status == 2
    assert "error: astronaut: the measurement is 3x8x8, but operator 'super_resolution' gives 3x16x16" in err


def test_a_kernel_file_is_needed_but_its_stored_kernel_counts(run):
    np.save("kernel.npy", np.full((3, 3), 1 / 9))
    task = ["--set", "measurement.operator={name: blur, kernel: kernel.npy}"]
    assert run(*task, "--save_measurements", "--limit", "1")[0] == 0
    with np.load("results/blur/dpps/measurements/astronaut.npz", allow_pickle=False) as file:
        np.testing.assert_allclose(file["kernel"], np.full((1, 3, 3), 1 / 9))
    Path("kernel.npy").unlink()
    status, _, err = run("--load_measurements", "results/blur/dpps/measurements", "--save_dir", "b")
    assert status == 2 and "kernel.npy" in err


def test_measurements_that_are_missing_are_made_again(run):
    assert run("--limit", "1")[0] == 0
    status, out, _ = run("--limit", "1", "--save_measurements")
    file = Path(f"results/{RESULTS}/measurements/astronaut.npz")
    assert status == 0 and file.is_file() and "finished before" not in out
    assert "1 finished before" in run("--limit", "1", "--save_measurements")[1]
    assert run("--limit", "1", "--overwrite")[0] == 0
    assert not file.exists()


STORED: dict[str, np.ndarray] = {}


@pytest.fixture
def stored(run) -> dict[str, np.ndarray]:
    """What the file of a measurement holds; it is made once."""
    if not STORED:
        assert run("--save_measurements", "--limit", "1", "--save_dir", "sound", *ONE_STEP)[0] == 0
        with np.load(f"sound/{RESULTS}/measurements/astronaut.npz", allow_pickle=False) as file:
            STORED.update(file)
    return STORED


@pytest.mark.parametrize("change, words", [
    ({"y": None}, ["has no 'y'", "image_shape"]),
    ({"operator": None}, ["has no 'operator'"]),
    ({"y": np.array([np.nan])}, ["y holds no finite real numbers"]),
    ({"y": np.zeros((3, 9, 9), np.float32)}, ["the measurement is 3x9x9", "gives 3x8x8 for images of 3x32x32"]),
    ({"operator": np.array("{")}, ["cannot be read"]),
    ({"operator": np.array("[1]")}, ["operator is no JSON mapping with a name"]),
    ({"operator": np.array('{"name": "inpaintin"}')}, ["'inpaintin'", "did you mean 'inpainting'"]),
    ({"operator": np.array('{"name": "motion_blur", "kernel_size": 5, "intensity": 0.5}'),
      "y": np.zeros((3, 32, 32), np.float32)}, ["needs kernel of shape [1, 5, 5], found none"]),
    ({"image_shape": np.array([3, 30, 32])}, ["scale_factor 4 does not divide the image size 30x32"]),
    ({"image_shape": np.array([3, 32])}, ["image_shape is [3, 32]"]),
    ({"image_shape": np.array([3.5, 32, 32])}, ["image_shape"]),
    ({"image_shape": np.array([3, 100000, 100000])}, ["[3, 100000, 100000], expected [3, height, width] of 1 to 8192"]),
    ({"image_shape": np.array([100000, 32, 32])}, ["expected [3, height, width]"]),
    *[({"operator": np.array('{"name": "inpainting", "mask_opt": {"mask_type": "box", "mask_len_range": [8, 9]}}'),
        "y": np.zeros((3, 32, 32), np.float32), "mask": np.full((1, 32, 32), value, np.float32)},
       [f"mask has values from {value:g} to {value:g}, expected 0 for missing and 1 for kept pixels"])
      for value in (5, 0.5)],
    *[({"operator": np.array('{"name": "compressed_sensing", "ratio": 0.25}'), "y": np.zeros((3, 256), np.float32),
        "index": np.full(256, value)}, [f"index has values from {value:g}", "whole numbers from 0 to 1023"])
      for value in (1024, -1, 0.5)],
    ({"operator": np.array('{"name": "motion_blur", "kernel_size": 5, "intensity": 0.5}'),
      "y": np.zeros((3, 32, 32), np.float32), "kernel": np.zeros((1, 5, 5))}, ["kernel", "not all zero"]),
    ({"operator": np.array('{"name": "gopro_blur", "frames": 2, "kernel_size": 5}'),
      "y": np.zeros((3, 32, 32), np.float32), "shifts": np.full((2, 2), 9.0)}, ["shifts", "pixels, -2 to 2"]),
    ({"mask": np.array(["text"])}, ["something else than real numbers"]),
    ({"y": np.array([{}], dtype=object)}, ["cannot be read"]),
])
def test_files_that_are_wrong_end_with_a_sentence(run, stored, change, words):
    np.savez("astronaut.npz", **{key: value for key, value in {**stored, **change}.items() if value is not None})
    status, _, err = run("--load_measurements", ".", "--save_dir", "b")
    assert status == 2 and "Traceback" not in err
    line, = [line for line in err.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line, line


def test_grey_levels_in_a_file_are_warned_of(run, stored):
    np.savez("astronaut.npz", **{**stored, "y": 127.5 * (stored["y"] + 1)})
    status, _, err = run("--load_measurements", ".", "--save_dir", "b")
    assert status == 0 and "astronaut: values up to 2" in err and "divide them by 127.5" in err


def test_folders_that_are_wrong_end_with_a_sentence(run):
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/a.npz").write_bytes(b"PK\x03\x04 nothing")
    assert run("--save_measurements", "--limit", "1", "--save_dir", "a")[0] == 0
    assert run("--save_measurements", "--limit", "1", "--save_dir", "b", "--set", "measurement.noise.sigma=0.1")[0] == 0
    mixed = Path(f"b/{RESULTS}/measurements")
    (mixed / "other.npz").write_bytes(Path(f"a/{RESULTS}/measurements/astronaut.npz").read_bytes())
    for folder, word in (("nowhere", "there are no .npz files"), ("empty", "there are no .npz files"),
                         ("broken", "cannot be read"),
                         (f"a/{RESULTS}", "name the folder measurements/ of a run"),
                         (str(mixed), "other.npz was made with another operator or noise than astronaut.npz")):
        status, _, err = run("--load_measurements", folder, "--save_dir", "c")
        assert status == 2 and word in err, err
        assert "Traceback" not in err


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "mark",)

    np.savez(tmp_path / "a.npz", y=np.array([Trap()], dtype=object))
    with pytest.raises(UserError, match=r"a\.npz cannot be read"):
        read_measurement(tmp_path / "a.npz")
    assert not (tmp_path / "mark").exists()
