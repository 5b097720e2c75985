"""Photographs that are already degraded: any size, any form, without ground truth."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from guided_diffusion.measurements import LinearOperator, Measurement, get_noise, get_operator
from tests.helpers import OPERATOR_EXAMPLES, picture
from tests.png_files import chunk, png_16_bit
from util import img_utils
from util.config.config import load_config
from util.errors import UserError
from util.img_utils import load_alpha, load_image
from util.seeding import ImageRandomness

RANDOMNESS = ImageRandomness(0, ["a"])


def observed(operator: str, *more: str) -> list[str]:
    settings = [f"measurement.operator={operator}", "measurement.observed=true", *more]
    return ["--data", "photos", *(part for s in settings for part in ("--set", s))]


def rows(folder: str) -> dict[str, dict[str, str]]:
    with open(f"{folder}/metrics.csv", newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def size(path: str) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_photographs_of_any_size_keep_it_and_are_not_scored(run):
    for name, shape in {"odd": (37, 51), "large": (70, 41), "dot": (1, 1), "fits": (32, 32)}.items():
        picture(Path(f"photos/{name}.png"), 1, shape)
    steady = "conditioning.params.likelihood={name: point, rescale: false}"                 # nothing is clamped
    options = [*observed("{name: noise}"), "--set", steady]
    status, out, err = run(*options)
    assert status == 0, err
    folder = "results/noise/dpps"
    for name, (height, width) in {"odd": (37, 51), "large": (70, 41), "dot": (1, 1), "fits": (32, 32)}.items():
        assert size(f"{folder}/recon/{name}.png") == size(f"{folder}/input/{name}.png") == (width, height)
        row = rows(folder)[name]
        assert all(row[key] == "" for key in row if key.startswith(("psnr", "ssim", "lpips", "error")))
        restored, y = (load_image(Path(f"{folder}/{kind}/{name}.png")) for kind in ("recon", "input"))
        chi_square = float((restored - y).square().mean()) / 0.05 ** 2          # up to 8 bits and clamping
        assert float(row["chi_square"]) == pytest.approx(chi_square, rel=0.3)
        assert float(row["distance"]) > 0
    assert not list(Path(folder, "label").iterdir())
    assert "LPIPS" not in err
    assert "PSNR" not in out and "chi-square" in out and "distance" in out
    assert f"{float(rows(folder)['odd']['chi_square']):.4g}" in out
    assert "(grid.png: measurement | restoration)" in out and "4 images of their own size" in out
    summary = json.loads(Path(folder, "summary.json").read_text())
    assert summary["metrics"]["psnr"]["count"] == 0 and summary["metrics"]["chi_square"]["count"] == 4
    before = Path(folder, "recon/odd.png").stat().st_mtime_ns
    assert "4 finished before" in run(*options)[1]
    assert Path(folder, "recon/odd.png").stat().st_mtime_ns == before


def test_the_grid_shows_measurement_and_restoration(run):
    picture(Path("photos/a.png"), 1, (32, 32))
    assert run(*observed("{name: noise}"))[0] == 0
    cell = img_utils.GRID_CELL
    assert size("results/noise/dpps/grid.png") == (2 * cell + 3 * 12, 2 * 12 + 30 + cell + 30)


@pytest.mark.parametrize("operator, factor", [("{name: super_resolution, scale_factor: 4}", 4),
                                              ("{name: sr_average, scale_factor: 2}", 2),
                                              ("{name: colorization}", 1), ("{name: jpeg, quality: 20}", 1),
                                              ("{name: gaussian_blur, kernel_size: 5, intensity: 1.0}", 1)])
def test_images_have_the_size_that_the_operator_says(run, operator, factor):
    picture(Path("photos/a.png"), 1, (11, 14))
    status, _, err = run(*observed(operator))
    assert status == 0, err
    folder, = Path("results").glob("*/dpps")
    assert size(f"{folder}/recon/a.png") == (14 * factor, 11 * factor)


def test_the_size_of_the_images_follows_from_the_measurement_for_every_operator():
    for name, params in OPERATOR_EXAMPLES.items():
        operator = get_operator(name, **params).prepare((1, 3, 16, 16), RANDOMNESS)
        shape = operator(torch.zeros(1, 3, 16, 16)).shape[1:]
        assert operator.image_size_of(tuple(shape)) == (None if name == "compressed_sensing" else (16, 16)), name


def test_a_kernel_and_a_mask_from_files(run):
    picture(Path("photos/a.png"), 1, (20, 26))
    np.save("kernel.npy", np.full((3, 3), 2.0))
    status, _, err = run(*observed("{name: blur, kernel: kernel.npy}"))
    assert status == 0 and "sums to 18, not 1; it was divided" in err
    mask = np.zeros((20, 26), np.uint8)
    mask[:, 5:] = 255
    Image.fromarray(mask).save("mask.png")
    task = observed("{name: inpainting}", "measurement.mask_opt={mask_type: file, file: mask.png}")
    assert run(*task)[0] == 0
    picture(Path("photos/b.png"), 2, (20, 27))
    status, _, err = run(*task)
    assert status == 2
    assert "error: b: mask_opt: the mask in file is 20x26, but the images are 20x27" in err and "Traceback" not in err
    assert size("results/inpainting/dpps/recon/a.png") == (26, 20)


def test_what_a_photograph_shows_in_missing_pixels_plays_no_part(tmp_path):
    mask = np.ones((8, 8), np.float32)
    mask[2:5] = 0
    np.save(tmp_path / "mask.npy", mask)
    operator = get_operator("inpainting", mask_opt={"mask_type": "file", "file": str(tmp_path / "mask.npy")})
    y = torch.randn(1, 3, 8, 8)
    white = torch.where(torch.from_numpy(mask) > 0, y, 1.0)
    noiser = get_noise("gaussian", sigma=0.1)
    measurements = [Measurement.from_data(operator, noiser, photograph, (1, 3, 8, 8), RANDOMNESS)
                    for photograph in (y, white)]
    assert torch.equal(measurements[0].y, measurements[1].y)
    torch.testing.assert_close(measurements[0].distance(y), torch.zeros(1))
    assert torch.equal(measurements[0].y, torch.from_numpy(mask) * y)


@pytest.mark.parametrize("layout", ["chw", "hwc", "grey"])
def test_fourier_magnitudes_come_as_arrays(run, layout):
    operator = get_operator("phase_retrieval").prepare((1, 3, 24, 30), RANDOMNESS)
    x = torch.rand(1, 1, 24, 30).expand(1, 3, 24, 30) if layout == "grey" else torch.rand(1, 3, 24, 30)
    y = operator(x)[0].numpy()
    Path("photos").mkdir()
    np.save("photos/a.npy", {"chw": y, "hwc": np.moveaxis(y, 0, -1), "grey": y[0]}[layout])
    status, _, err = run(*observed("{name: phase_retrieval}"), "--num_samples", "2")
    assert status == 0, err
    assert size("results/phase_retrieval/dpps/recon/a_0.png") == (30, 24)


def test_coefficients_are_of_images_of_the_networks_size(run):
    operator = get_operator("compressed_sensing", ratio=0.25).prepare((1, 3, 32, 32), RANDOMNESS)
    Path("photos").mkdir()
    np.save("photos/a.npy", operator(torch.rand(1, 3, 32, 32))[0].numpy())
    status, _, err = run(*observed("{name: compressed_sensing, ratio: 0.25}"))
    assert status == 0, err
    assert "draws its index at random" in err                           # nobody said which were measured
    status, _, err = run(*observed("{name: compressed_sensing, ratio: 0.5}"), "--overwrite")
    assert status == 2
    assert "error: a: the measurement is 3x256, but operator 'compressed_sensing' gives 3x512" in err


@pytest.mark.parametrize("file, array, operator, words", [
    ("a.npy", np.zeros((3, 34, 37)), "{name: phase_retrieval, oversample: 4.0}", ["a: ", "has 34x37 magnitudes"]),
    ("a.npy", np.zeros((4, 16, 16)), "{name: noise}", ["a: the measurement is 4x16x16", "gives 3x16x16"]),
    *[("a.npy", np.zeros(7), f"{{name: {name}}}", ["a: the measurement is 7, but operator", "of 3x32x32"])
      for name in ("noise", "sr_average, scale_factor: 4", "phase_retrieval")],
    ("a.png", None, "{name: phase_retrieval}", ["measures no pictures", ".npy"]),
    ("a.png", None, "{name: gaussian_blur, kernel_size: 31, intensity: 3.0}", ["a: gaussian_blur: a kernel_size"]),
])
def test_measurements_that_cannot_be_end_with_a_sentence(run, file, array, operator, words):
    Path("photos").mkdir()
    picture(Path("photos", file), 1, (12, 12)) if array is None else np.save(Path("photos", file), array)
    status, _, err = run(*observed(operator))
    assert status == 2 and "Traceback" not in err
    line, = [line for line in err.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line, line


@pytest.mark.parametrize("more, words", [
    (["data.image_size=16"], ["image_size is 16", "leave image_size out"]),
    (["measurement.observed=maybe"], ["measurement.observed is 'maybe', expected true or false"]),
    (["measurement.obsreved=true"], ["'obsreved'", "did you mean 'observed'"]),
    (["measurement.noise.sigma=0"], ["sigma is 0"]),
])
def test_wrong_settings_end_with_a_sentence(run, more, words):
    picture(Path("photos/a.png"), 1, (12, 12))
    status, _, err = run(*observed("{name: noise}", *more))
    assert status == 2
    for word in words:
        assert word in err


def test_arrays_that_are_no_measurements_are_passed_over(run):
    picture(Path("photos/a.png"), 1, (12, 12))
    np.save("photos/b.npy", np.zeros((3, 8, 8), complex))
    np.save("photos/c.npy", np.full((3, 8, 8), np.nan))
    np.save("photos/d.npy", np.array([{}], dtype=object))
    status, _, err = run(*observed("{name: noise}"))
    assert status == 1 and "3 of 4 images could not be read" in err
    assert "complex128 values, not real numbers" in err and "not finite" in err
    assert set(rows("results/noise/dpps")) == {"a"}


def test_arrays_are_no_clean_images(run):
    picture(Path("photos/a.png"))
    np.save("photos/b.npy", np.zeros((3, 32, 32)))
    assert run("--data", "photos", "--limit", "9")[0] == 0
    assert set(rows("results/super_resolution/dpps")) == {"a"}


def gradient_alpha(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1)))


@pytest.mark.parametrize("operator, factor", [("{name: noise}", 1), ("{name: super_resolution, scale_factor: 2}", 2)])
def test_alpha_is_kept_and_resized(run, operator, factor):
    picture(Path("photos/a.png"), 1, (18, 23))
    picture(Path("photos/b.png"), 1, (18, 23))
    with Image.open("photos/a.png") as image:
        image.putalpha(gradient_alpha(18, 23))
        image.save("photos/a.png")
    assert run(*observed(operator), "--num_samples", "2")[0] == 0
    folder, = Path("results").glob("*/dpps")
    for sample in ("0", "1", "mean"):
        with Image.open(folder / "recon" / f"a_{sample}.png") as image, Image.open("photos/a.png") as original:
            assert image.mode == "RGBA" and image.size == (23 * factor, 18 * factor)
            expected = original.getchannel("A").resize(image.size, Image.Resampling.BICUBIC)
            difference = np.asarray(image.getchannel("A")).astype(int) - np.asarray(expected)
            assert np.abs(difference).max() <= (0 if factor == 1 else 3)
    with Image.open(folder / "recon" / "b_0.png") as image:
        assert image.mode == "RGB"


def test_alpha_of_every_form_of_transparency(tmp_path):
    alpha = gradient_alpha(4, 5)
    Image.merge("LA", (Image.new("L", (5, 4), 7), alpha)).save(tmp_path / "grey.png")
    turned = Image.merge("RGBA", (*Image.new("RGB", (5, 4)).split(), alpha))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    palette = Image.new("P", (5, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=1)
    Image.new("RGB", (5, 4)).save(tmp_path / "opaque.png")
    (tmp_path / "deep.png").write_bytes(png_16_bit(np.full((4, 5, 4), 32768, np.uint16)))
    expected = torch.from_numpy(np.array(alpha)).float() / 255
    assert torch.equal(load_alpha(tmp_path / "grey.png"), expected)
    assert torch.equal(load_alpha(tmp_path / "turned.png"), expected.rot90(-1))
    assert torch.equal(load_alpha(tmp_path / "palette.png"), torch.zeros(4, 5))
    assert load_alpha(tmp_path / "opaque.png") is None
    torch.testing.assert_close(load_alpha(tmp_path / "deep.png"), torch.full((4, 5), 0.5), rtol=0, atol=0.01)
    with pytest.raises(UserError, match="nothing.png"):
        load_alpha(tmp_path / "nothing.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_colours_are_turned_upright(tmp_path, orientation):
    levels = np.random.default_rng(0).integers(0, 65536, (5, 8, 3), dtype=np.uint16)
    picture = Image.fromarray((levels >> 8).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "shallow.png", exif=exif)
    (tmp_path / "a.png").write_bytes(png_16_bit(levels, chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))))
    deep, shallow = load_image(tmp_path / "a.png"), load_image(tmp_path / "shallow.png")
    assert deep.shape == shallow.shape
    torch.testing.assert_close(deep, shallow, rtol=0, atol=0.01)
    values = torch.from_numpy(levels.astype(np.float32)) / 32767.5 - 1
    torch.testing.assert_close(deep.flatten().sort().values, values.flatten().sort().values, rtol=0, atol=1e-6)


def test_grey_and_alpha_of_16_bits_keep_their_depth(tmp_path):
    grey = np.random.default_rng(0).integers(0, 65536, (4, 6), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png_16_bit(np.stack([grey, np.full_like(grey, 65535)], axis=2)))
    expected = torch.from_numpy(grey.astype(np.float32)) / 32767.5 - 1
    torch.testing.assert_close(load_image(tmp_path / "a.png"), expected.expand(3, 4, 6), rtol=0, atol=1e-6)


@pytest.mark.parametrize("keep_known", [True, False])
def test_known_pixels_are_kept_to_the_last_digit_if_asked(run, keep_known):
    picture(Path("photos/a.png"), 1, (20, 26))
    mask = np.full((20, 26), 255, np.uint8)
    mask[3:9, 5:12] = 0
    Image.fromarray(mask).save("mask.png")
    task = observed(f"{{name: inpainting, keep_known: {str(keep_known).lower()}}}",
                    "measurement.mask_opt={mask_type: file, file: mask.png}")
    status, _, err = run(*task, "--num_samples", "2")
    assert status == 0 and "invert" not in err
    with Image.open("photos/a.png") as photograph:
        before = np.asarray(photograph)
    for name in ("a_0", "a_mean"):
        with Image.open(f"results/inpainting/dpps/recon/{name}.png") as image:
            restored = np.asarray(image)
        assert (restored[mask > 0] == before[mask > 0]).all() == keep_known
        assert (restored[mask == 0] != before[mask == 0]).mean() > 0.5


@pytest.mark.parametrize("top", [255, 1.5])
def test_grey_levels_in_arrays_are_warned_of(run, top):
    Path("photos").mkdir()
    np.save("photos/a.npy", np.linspace(0, top, 3 * 12 * 12).reshape(3, 12, 12))
    status, _, err = run(*observed("{name: noise}"))
    assert status == 0 and ("values up to 255, but" in err and "divide them by 127.5" in err) == (top == 255)


def test_random_operators_are_warned_of(run):
    picture(Path("photos/a.png"), 1, (12, 12))
    status, _, err = run(*observed("{name: motion_blur, kernel_size: 5, intensity: 0.5}"))
    assert status == 0 and "'motion_blur' draws its kernel at random" in err and "operator blur" in err
    status, _, err = run(*observed("{name: gaussian_blur, kernel_size: 5, intensity: 0.5}"))
    assert status == 0 and "at random" not in err


def test_observed_is_a_setting_of_the_data(prior):
    options = [prior / "model.yaml", "configs/diffusion_config.yaml", prior / "task.yaml"]
    assert not load_config(*options).observed
    config = load_config(*options, overrides=["measurement.observed=true"], data="photos")
    assert config.observed and config.data.params == {"root": "photos", "observed": True}
    assert not load_config(*options, overrides=["measurement.observed=false"]).observed


def test_an_exact_restoration_has_the_chi_square_of_its_noise():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 64, 64, generator=generator)
    operator = get_operator("super_resolution", scale_factor=2).prepare((1, 3, 64, 64), RANDOMNESS)
    assert isinstance(operator, LinearOperator)
    y = operator(x) + 0.1 * torch.randn(1, 3, 32, 32, generator=generator)
    measurement = Measurement.from_data(operator, get_noise("gaussian", sigma=0.1), y, (1, 3, 64, 64), RANDOMNESS)
    assert float(measurement.chi_square(x)) == pytest.approx(1, abs=4 * math.sqrt(2 / y.numel()))
