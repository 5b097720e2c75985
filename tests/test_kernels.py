"""Gaussian kernels to the last digit, motion kernels stroke by stroke and in distribution."""

import json

import numpy as np
import pytest

from guided_diffusion.measurements.kernels import (
    gaussian_kernel,
    motion_kernel,
    motion_path,
    rasterise,
    reflected_filter_matrix,
)
from tests.conftest import golden_path


@pytest.mark.parametrize(("size", "sigma", "name"), [
    (61, 3.0, "gaussian_kernel_f64"), (9, 1.0, "gaussian_kernel_9_1p0"), (7, 1.5, "gaussian_kernel_7_1p5"),
    (5, 3.0, "gaussian_kernel_5_3p0"), (31, 0.5, "gaussian_kernel_31_0p5"), (8, 1.0, "gaussian_kernel_8_1p0")])
def test_gaussian_kernel(golden, size, sigma, name):
    np.testing.assert_allclose(gaussian_kernel(size, sigma), golden("operators")[name], rtol=0, atol=1e-15)


def test_reflected_filter_matrix_is_correlation_after_reflection():
    rng = np.random.default_rng(0)
    profile, x = rng.random(5), rng.random(7)
    expected = np.correlate(np.pad(x, 2, mode="reflect"), profile, mode="valid")
    np.testing.assert_allclose(reflected_filter_matrix(profile, 7) @ x, expected, atol=1e-14)


def test_rasteriser_draws_the_stored_paths(golden):
    arrays = golden("motion_kernels")
    kernels = arrays["kernels"].reshape(-1, 61, 61)
    bounds = arrays["path_offsets"]
    for kernel, start, end in zip(kernels, bounds[:-1], bounds[1:], strict=True):
        np.testing.assert_allclose(rasterise(arrays["path_xy"][start:end], 61), kernel, rtol=0, atol=1e-7)


def statistics(path: np.ndarray) -> dict[str, float]:
    kernel = rasterise(path, 61)
    row, column = np.mgrid[:61, :61]
    centre = (kernel * row).sum(), (kernel * column).sum()
    var_row, var_column = (kernel * (row - centre[0]) ** 2).sum(), (kernel * (column - centre[1]) ** 2).sum()
    covariance = (kernel * (row - centre[0]) * (column - centre[1])).sum()
    minor, major = np.linalg.eigvalsh([[var_row, covariance], [covariance, var_column]])
    return {"num_steps": len(path), "support": (kernel > 0).sum(), "peak": kernel.max(), "centroid_row": centre[0],
            "centroid_col": centre[1], "total_second_moment": var_row + var_column,
            "minor_over_major_eigenvalue": minor / major}


@pytest.mark.parametrize("intensity", [0.0, 0.5, 0.9])
def test_distribution_of_motion_kernels(intensity):
    """Against 1000 reference draws: equal means, and equal shares below their 5, 50 and 95 % points.

    The tolerances are four standard errors of a difference between two samples of 1000.
    """
    reference = json.loads(golden_path("motion_kernels.json").read_text())["per_intensity_1000"][str(intensity)]
    rng = np.random.default_rng(3)
    drawn = [statistics(motion_path(61, intensity, rng)) for _ in range(1000)]
    for name in drawn[0]:
        values, expected = np.array([d[name] for d in drawn]), reference[name]
        assert abs(values.mean() - expected["mean"]) < 4 * expected["std"] / np.sqrt(500), name
        for share in (0.05, 0.5, 0.95):
            point = expected[f"q{100 * share:02.0f}"]
            below = ((values < point).mean() + (values <= point).mean()) / 2
            assert abs(below - share) < 4 * np.sqrt(share * (1 - share) / 500), (name, share, below)


@pytest.mark.parametrize("size", range(3, 102, 2))
def test_motion_kernels_of_every_size_are_kernels(size):
    rng = np.random.default_rng(size)
    for intensity in (0.0, 0.3, 0.7, 1.0):
        kernel = motion_kernel(size, intensity, rng)
        assert kernel.shape == (size, size) and np.isfinite(kernel).all() and (kernel >= 0).all()
        assert abs(kernel.sum() - 1) < 1e-12


def test_intensity_zero_is_a_straight_stroke():
    path = motion_path(31, 0.0, np.random.default_rng(0))
    steps = np.diff(path, axis=0)
    np.testing.assert_allclose(steps[0, 0] * steps[:, 1], steps[0, 1] * steps[:, 0], atol=1e-9)
    np.testing.assert_allclose(path.mean(0), [31, 31])


def test_same_stream_same_kernel():
    first, again, other = (motion_kernel(21, 0.5, np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
