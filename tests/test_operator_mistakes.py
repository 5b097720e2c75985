"""Parameters and files that operators refuse, and the kernels that they read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.signal import convolve2d

from guided_diffusion.measurements import get_operator
from tests.helpers import NAMES, normal
from tests.operator_cases import inpainting, prepared
from util.errors import UserError

BAD = {
    "factor 0": ("super_resolution", {"scale_factor": 0}, (16, 16), "scale_factor"),
    "factor 3": ("super_resolution", {"scale_factor": 3}, (16, 16), "does not divide"),
    "factor text": ("super_resolution", {"scale_factor": "4"}, (16, 16), "an integer"),
    "average 0": ("sr_average", {"scale_factor": 0}, (16, 16), "expected an integer, 1 or more"),
    "average 3": ("sr_average", {"scale_factor": 3}, (15, 16), "3 does not divide the image size 15x16"),
    "ratio 0": ("compressed_sensing", {"ratio": 0.0}, (16, 16), "ratio is 0.0"),
    "ratio 2": ("compressed_sensing", {"ratio": 2}, (16, 16), "at most 1"),
    "hadamard": ("compressed_sensing", {"ratio": 0.5}, (16, 24), "found 16x24; use transform: dct"),
    "exposure": ("hdr", {"scale": 0.0}, (16, 16), "more than 0"),
    "quality 0": ("jpeg", {"quality": 0}, (16, 16), "1 to 100"),
    "subsampling": ("jpeg", {"quality": 9, "subsampling": 411}, (16, 16), "one of 420, 444"),
    "no chain": ("composite", {"operators": 3}, (16, 16), "list of two or more"),
    "chain of one": ("composite", {"operators": [{"name": "noise"}]}, (16, 16), "list of two or more"),
    "chain of words": ("composite", {"operators": ["hdr", "jpeg"]}, (16, 16), "list of two or more"),
    "link name": ("composite", {"operators": [{"name": "noise"}, {"quality": 3}]}, (16, 16),
                  "operators\\[1\\]: 'name' is missing; found quality"),
    "link unknown": ("composite", {"operators": [{"name": "noise"}, {"name": "jpg"}]}, (16, 16),
                     "operators\\[1\\]: unknown operator 'jpg'; did you mean 'jpeg'"),
    "link key": ("composite", {"operators": [{"name": "hdr", "scael": 2}, {"name": "noise"}]}, (16, 16),
                 "operators\\[0\\]: operator 'hdr': unknown key 'scael'"),
    "link size": ("composite", {"operators": [{"name": "sr_average", "scale_factor": 2},
                                              {"name": "super_resolution", "scale_factor": 16}]}, (16, 16),
                  "operators\\[1\\]: super_resolution: scale_factor 16 does not divide the image size 8x8"),
    "link of vectors": ("composite", {"operators": [{"name": "compressed_sensing", "ratio": 0.5}, {"name": "hdr"}]},
                        (16, 16), "put that operator last"),
    "in_shape": ("super_resolution", {"scale_factor": 4, "in_shape": [1, 3, 256, 256]}, (16, 16), "leave in_shape out"),
    "in_shape of 2": ("super_resolution", {"scale_factor": 4, "in_shape": [256, 256]}, (16, 16), "a list of 4, each"),
    "even kernel": ("gaussian_blur", {"kernel_size": 8, "intensity": 1.0}, (16, 16), "use 9"),
    "kernel 1": ("motion_blur", {"kernel_size": 1, "intensity": 0.5}, (16, 16), "an integer, 3 or more"),
    "wide kernel": ("gaussian_blur", {"kernel_size": 33, "intensity": 1.0}, (16, 20), "at most 31"),
    "sigma 0": ("gaussian_blur", {"kernel_size": 9, "intensity": 0.0}, (16, 16), "more than 0"),
    "shakiness 2": ("motion_blur", {"kernel_size": 9, "intensity": 2.0}, (16, 16), "a finite number, 0 to 1"),
    "convolution": ("motion_blur", {"kernel_size": 9, "intensity": 0.5, "convolution": "ftt"}, (16, 16), "'fft'"),
    "rcond": ("gaussian_blur", {"kernel_size": 9, "intensity": 1.0, "rcond": 0.0}, (16, 16),
              "more than 0 and less than 1 or null; leave it out"),
    "mask key": ("inpainting", {"mask_opt": {"mask_typ": "box"}}, (16, 16), "did you mean 'mask_type'"),
    "mask type": ("inpainting", {"mask_opt": {"mask_type": "randm"}}, (16, 16), "did you mean 'random'"),
    "mask needs": ("inpainting", {"mask_opt": {"mask_type": "box"}}, (16, 16), "mask_len_range"),
    "mask range": (*inpainting("box", mask_len_range=[9, 4]), (16, 16), "lower end first"),
    "mask probability": (*inpainting("random", mask_prob_range=[0.3, 1.7]), (16, 16), "each a finite number, 0 to 1"),
    "mask of nothing": (*inpainting("random", mask_prob_range=[1, 1]), (16, 16), "leaves no pixel; it is the share"),
    "link keep_known": ("composite", {"operators": [{"name": "noise"}, {
        "name": "inpainting", "mask_opt": {}, "keep_known": True}]}, (16, 16), "keep_known is for an operator alone"),
    "mask margin": (*inpainting("box", margin=[-1, 0]), (16, 16), "margin"),
    "mask fit": (*inpainting("box", margin=[16, 16]), (32, 32), "lower mask_len_range or margin"),
    "mask too long": ("inpainting", {"mask_opt": {"mask_type": "box", "mask_len_range": [8, 18]}}, (32, 16),
                      "up to 17 pixels .* 32x16; lower mask_len_range"),
    "mask size": (*inpainting("random", image_size=256), (16, 16), "leave image_size out"),
    "mask file": ("inpainting", {"mask_opt": {"mask_type": "file", "file": "nowhere.png"}}, (16, 16), "not found"),
    "mask file unused": (*inpainting("box", file="mask.png"), (16, 16), "set mask_type: file"),
}


@pytest.mark.parametrize(("name", "params", "size", "message"), BAD.values(), ids=BAD)
def test_bad_inputs_are_named(name, params, size, message):
    with pytest.raises(UserError, match=message):
        prepared(name, params, size)


def kernel_file(folder: Path, values: np.ndarray, name: str = "kernel.npy") -> str:
    np.save(folder / name, values)
    return str(folder / name)


@pytest.mark.parametrize(("values", "message"), [
    (np.ones((4, 4)), "is 4x4, expected a square with an odd side"), (np.ones((3, 5)), "is 3x5"),
    (np.ones((1, 1)), "1x1"), (np.ones(9), "is 9,"), (-np.ones((3, 3)), "from -1 to -1"), (np.zeros((3, 3)), "zero"),
    (np.full((3, 3), np.nan), "finite"), (np.full((3, 3), np.inf), "finite"), (np.full((3, 3), "a"), "real numbers"),
    (np.ones((33, 33)), "at most 31"), (np.ones((3, 3)) * 1j, "real numbers")])
def test_bad_kernels_are_named(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        prepared("blur", {"kernel": kernel_file(tmp_path, values)}, (16, 16))


def test_kernels_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="kernel 'nowhere.npy' not found"):
        get_operator("blur", kernel="nowhere.npy")
    for name in ("kernel.npy", "kernel.png"):
        (tmp_path / name).write_bytes(b"no kernel")
        with pytest.raises(UserError, match="cannot be read") as error:
            get_operator("blur", kernel=str(tmp_path / name))
        assert "pickle" not in str(error.value) and "unsafe" not in str(error.value)


def test_a_kernel_is_normalised_with_a_warning(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr("guided_diffusion.measurements.blur.logger.warning", warnings.append)
    values = np.array([[0.0, 1, 0], [1, 3, 1], [0, 1, 0.5]])
    normalised = get_operator("blur", kernel=kernel_file(tmp_path, values / values.sum()))
    assert not warnings
    other = get_operator("blur", kernel=kernel_file(tmp_path, values))
    assert len(warnings) == 1 and "sums to 7.5, not 1; it was divided by its sum" in warnings[0]
    np.testing.assert_allclose(other.values, normalised.values)
    Image.fromarray((values * 80).astype(np.uint8)).save(tmp_path / "kernel.png")
    np.testing.assert_allclose(get_operator("blur", kernel=str(tmp_path / "kernel.png")).values, other.values)
    assert len(warnings) == 2


def test_a_point_spread_function_is_convolved(tmp_path):
    psf = np.zeros((5, 5))
    psf[2, 4] = psf[1, 0] = 0.5
    x = normal(1, 1, 11, 11).double()
    blur = prepared("blur", {"kernel": kernel_file(tmp_path, psf), "flip": True}, (11, 11), NAMES[:1])
    found = blur(x.expand(1, 3, 11, 11))
    wanted = convolve2d(x[0, 0].numpy(), psf, mode="same")
    np.testing.assert_allclose(found[0, 0, 2:-2, 2:-2], wanted[2:-2, 2:-2], atol=1e-6)


def test_a_drawn_kernel_from_a_file_is_the_same_blur(tmp_path):
    drawn = prepared("motion_blur", {"kernel_size": 9, "intensity": 0.5}, (16, 16), NAMES[:1])
    read = prepared("blur", {"kernel": kernel_file(tmp_path, drawn.kernel[0, 0].numpy())}, (16, 16), NAMES[:1])
    x = normal(1, 3, 16, 16)
    torch.testing.assert_close(read(x), drawn(x))
