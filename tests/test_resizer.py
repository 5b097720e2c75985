"""Resizing as one matrix per axis: golden numbers and the identities that define it."""

import numpy as np
import pytest
import torch

from util.resizer import apply_matrices, resize, resize_matrix

SCALES = {"half": 0.5, "double": 2.0, "threequarter": 0.75}


def photograph(arrays: dict) -> torch.Tensor:
    """The golden photograph, (3, 256, 256) in [-1, 1]."""
    return torch.from_numpy((arrays["image_u8"].astype(np.float32) / 255 - 0.5) / 0.5).permute(2, 0, 1)


@pytest.mark.parametrize("scale", SCALES)
def test_scales(golden, scale):
    arrays = golden("operators")
    y = resize(torch.from_numpy(arrays["resizer_input"]), scale=SCALES[scale])
    torch.testing.assert_close(y, torch.from_numpy(arrays[f"resizer_cubic_{scale}"]), rtol=0, atol=2e-6)


def test_size_is_rounded_up(golden):
    arrays = golden("operators")
    y = resize(photograph(arrays), scale=1 / 3)
    torch.testing.assert_close(y, torch.from_numpy(arrays["resize_third_y"]), rtol=0, atol=2e-6)
    assert [len(resize_matrix(n, scale=s)) for n, s in ((256, 1 / 3), (70, 0.1), (30, 0.1), (3, 0.1))] == [86, 7, 3, 1]


@pytest.mark.parametrize("factor", [4, 8])
def test_matrix_has_the_reference_weights(golden, factor):
    arrays = golden("operators")
    weights, source = arrays[f"sr{factor}_weights"], arrays[f"sr{factor}_fov"]
    expected = np.zeros((256 // factor, 256))
    np.add.at(expected, (np.broadcast_to(np.arange(256 // factor), source.shape), source), weights)
    np.testing.assert_allclose(resize_matrix(256, scale=1 / factor).numpy(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("n_in", "n_out"), [(7, 3), (7, 1), (1, 5), (6, 13), (9, 9), (2, 1), (40, 3)])
def test_a_constant_stays_constant(n_in, n_out):
    matrix = resize_matrix(n_in, n_out)
    assert matrix.shape == (n_out, n_in) and matrix.dtype == torch.float64
    torch.testing.assert_close(matrix.sum(1), torch.ones(n_out, dtype=torch.float64))


def test_scale_one_is_the_identity():
    torch.testing.assert_close(resize_matrix(6, scale=1.0), torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-12)


def test_height_and_width_are_not_swapped():
    x = torch.rand(2, 3, 8, 12)
    y = resize(x, scale=0.5)
    assert y.shape == (2, 3, 4, 6)
    torch.testing.assert_close(y.mT, resize(x.mT, scale=0.5))
    torch.testing.assert_close(y, apply_matrices(x, resize_matrix(8, 4), resize_matrix(12, 6)))


def test_a_ramp_stays_a_ramp_inside():
    """At scale 2 output j lies at input coordinate (j + 1/2)/2 - 1/2."""
    y = resize_matrix(10, scale=2.0) @ torch.arange(10, dtype=torch.float64)
    torch.testing.assert_close(y[3:-3], (torch.arange(3, 17, dtype=torch.float64) + 0.5) / 2 - 0.5)


def test_a_shrinking_kernel_is_stretched():
    assert (resize_matrix(16, 4) != 0).sum(1).max() > 8 > (resize_matrix(4, 16) != 0).sum(1).max()
