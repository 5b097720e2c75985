"""Values of the forward models: golden numbers, one result of all ways to convolve, nearest against bicubic."""

import numpy as np
import pytest
import torch
from torch import Tensor

from guided_diffusion.measurements import LinearOperator
from tests.helpers import NAMES, deterministic, normal
from tests.operator_cases import inpainting, prepared


def photograph(arrays: dict) -> Tensor:
    """The golden photograph, (1, 3, 256, 256) in [-1, 1]."""
    return torch.from_numpy((arrays["image_u8"].astype(np.float32) / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]


def golden_operator(case: str, arrays: dict) -> LinearOperator:
    if case.startswith("sr"):
        return prepared("super_resolution", {"scale_factor": int(case[2:])}, (256, 256), NAMES[:1])
    if case in ("gaussian", "motion"):
        params = {"kernel_size": 61, "intensity": 3.0 if case == "gaussian" else 0.5}
        operator = prepared(f"{case}_blur", params, (256, 256), NAMES[:1])
        if case == "motion":
            operator.kernel = torch.from_numpy(arrays["motion_kernel"])[None, None].double()
        return operator
    operator = prepared(*inpainting("random"), (256, 256), NAMES[:1])
    operator.mask = torch.from_numpy(arrays[case.replace("inpaint", "mask")]).float()[None, None]
    return operator


PARTS = {"": np.s_[0], "_crop": np.s_[0, :, 96:160, 96:160], "_edge": np.s_[0, :, :32, -32:]}
GOLDEN = {"sr2": (2, 2e-6), "sr4": (4, 2e-6), "sr8": (8, 2e-6), "gaussian": (31, 5e-6), "motion": (32, 5e-6),
          "inpaint_random": (33, 2e-6), "inpaint_box": (33, 2e-6)}         # case -> (index of u, tolerance)


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_forward_and_true_adjoint(golden, case):
    """A(image), A(z) and A^T u; the adjoint is the stored true one, not the reference's `transpose`."""
    arrays = golden("operators")
    index, atol = GOLDEN[case]
    operator = golden_operator(case, arrays)
    y = operator(photograph(arrays))
    adjoint = operator.transpose(torch.from_numpy(deterministic(20000 + index, tuple(y.shape))).float())
    yz = operator(torch.from_numpy(deterministic(20000, (1, 3, 256, 256))).float())
    compared = 0
    for array, result in (("y", y), ("adjoint", adjoint)):
        for suffix, part in PARTS.items():
            if f"{case}_{array}{suffix}" in arrays:
                expected = torch.from_numpy(arrays[f"{case}_{array}{suffix}"])
                torch.testing.assert_close(result[part], expected, rtol=0, atol=atol)
                compared += 1
    torch.testing.assert_close(yz[0, :, :48, :48], torch.from_numpy(arrays[f"{case}_yz_crop"]), rtol=0, atol=atol)
    assert compared >= 3


@pytest.mark.parametrize(("name", "size"), [("motion_blur", 33), ("motion_blur", 7), ("gaussian_blur", 3)])
def test_fft_equals_direct_convolution(name, size):
    x = normal(3, 3, 40, 33, dtype=torch.float32).clamp(-1, 1)
    direct, fft = (prepared(name, {"kernel_size": size, "intensity": 0.8, "convolution": method}, (40, 33))
                   for method in ("direct", "fft"))
    assert direct.direct and not fft.direct
    torch.testing.assert_close(fft(x), direct(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(fft.transpose(x), direct.transpose(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel_size", [3, 33])
def test_one_matrix_per_axis_equals_direct_convolution(kernel_size):
    x = normal(3, 3, 40, 33)
    direct, separable, tall = (
        prepared("gaussian_blur", {"kernel_size": kernel_size, "intensity": 1.5, "convolution": method}, size)
        for method, size in (("direct", (40, 33)), ("auto", (40, 33)), ("auto", (260, 33))))
    assert separable.separable and not direct.separable and not tall.separable
    torch.testing.assert_close(separable(x), direct(x), rtol=0, atol=1e-13)
    torch.testing.assert_close(separable.transpose(x), direct.transpose(x), rtol=0, atol=1e-13)
    torch.testing.assert_close(separable.forward_many(torch.stack([x, 2 * x]))[1], 2 * direct(x), rtol=0, atol=1e-13)


def test_auto_takes_the_fft_for_all_but_small_kernels():
    chosen = [prepared("motion_blur", {"kernel_size": k, "intensity": 0.5}, (64, 64)).direct for k in (3, 5, 7, 61)]
    assert chosen == [True, True, False, False]


def test_nearest_upsampling_is_not_the_adjoint():
    """The rows of A sum to one, so <A 1, y> = sum y = sum A^T y; the reference's `transpose` gives 64 times that."""
    operator = prepared("super_resolution", {"scale_factor": 8}, (64, 64), NAMES[:1])
    y = torch.ones(1, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(operator.transpose(y).sum(), y.sum())
    assert operator.initial_guess(y).sum() == 64 * y.sum()


def test_super_resolution_starts_from_nearest_and_shows_bicubic():
    operator = prepared("super_resolution", {"scale_factor": 4}, (16, 24))
    y = normal(3, 3, 4, 6)
    expected = torch.nn.functional.interpolate(y, scale_factor=4, mode="nearest")
    torch.testing.assert_close(operator.initial_guess(y), expected)
    ramp = torch.arange(6.0).expand(3, 3, 4, 6)
    inside = operator.lift(ramp)[..., 8:-8]
    torch.testing.assert_close(inside.diff(dim=-1), torch.full_like(inside[..., 1:], 0.25))
