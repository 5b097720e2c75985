"""Undersampled Fourier measurements: the transform against NumPy's, masks of the stated density, real images."""

import numpy as np
import pytest
import torch

from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.measurements.fourier import mirrored
from tests.helpers import NAMES, normal
from tests.operator_cases import prepared
from util.errors import UserError
from util.seeding import ImageRandomness

SAMPLINGS = ["cartesian", "radial", "random"]


def masks(size: tuple[int, int], names: list[str] = NAMES, **params) -> np.ndarray:
    return prepared("fourier", params, size, names).mask[:, 0].numpy()


@pytest.mark.parametrize("size", [(8, 10), (7, 9)])
def test_the_centred_transform_is_numpys(size):
    operator, x = prepared("fourier", {"acceleration": 1.0}, size), normal(3, 3, *size)
    axes = (-2, -1)
    expected = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x, axes), norm="ortho"), axes)
    np.testing.assert_allclose(torch.view_as_complex(operator(x)).numpy(), expected, atol=1e-12)
    mean = operator(torch.ones_like(x))[..., size[0] // 2, size[1] // 2, :]
    torch.testing.assert_close(mean, torch.tensor([np.sqrt(np.prod(size)), 0.0]).double().expand_as(mean))
    torch.testing.assert_close(operator.pinv(operator(x)), x)
    conjugate = mirrored(torch.as_tensor(expected)).numpy()             # of a real image
    np.testing.assert_allclose(conjugate, expected.conj(), atol=1e-12)


@pytest.mark.parametrize("size", [(128, 128), (96, 130)])
@pytest.mark.parametrize("acceleration, centre", [(4.0, 0.08), (8.0, 0.04), (2.0, 0.0), (5.0, 0.2)])
def test_densities_and_centres_of_the_masks(size, acceleration, centre):
    (height, width), pixels = size, size[0] * size[1]
    for sampling in SAMPLINGS:
        drawn = masks(size, sampling=sampling, acceleration=acceleration, centre=centre)
        assert set(np.unique(drawn)) == {0, 1}
        assert not np.array_equal(drawn[0], drawn[1]) or centre == 1 / acceleration
        share = drawn.mean(axis=(1, 2))
        if sampling == "cartesian":
            assert (drawn == drawn[:, :1]).all() and (drawn[:, 0].sum(1) == round(width / acceleration)).all()
            band = drawn[:, :, width // 2 - int(centre * width / 2) + 1:width // 2 + int(centre * width / 2)]
            assert (band == 1).all()
            continue
        if sampling == "random":
            assert (drawn.sum((1, 2)) == round(pixels / acceleration)).all()
        else:                                       # within one spoke
            assert ((share - 1 / acceleration > -1e-4) & (share - 1 / acceleration < 2 * max(size) / pixels)).all()
        rows, columns = np.mgrid[:height, :width]
        squares = ((rows - height // 2) / height) ** 2 + ((columns - width // 2) / width) ** 2
        assert (drawn[:, np.pi * squares < 0.9 * centre] == 1).all()


def test_spokes_pass_through_zero_and_lie_at_the_golden_angle():
    drawn = masks((65, 65), NAMES[:1], sampling="radial", acceleration=40.0, centre=0.0)[0]
    assert drawn[32, 32] == 1
    assert np.array_equal(drawn, drawn[::-1, ::-1])                     # symmetric: A^+ = A^T
    rows, columns = np.nonzero(drawn)
    radius = np.hypot(rows - 32, columns - 32)
    angles = np.sort(np.degrees(np.arctan2(rows - 32, columns - 32)[radius > 25]) % 180)
    gaps = np.diff(np.concatenate((angles, angles[:1] + 180)))
    np.testing.assert_allclose(np.sort(gaps)[-2:], [180 - 111.25, 111.25], atol=3)          # two spokes


def test_the_adjoint_is_the_pseudo_inverse_of_a_symmetric_mask_alone():
    y = normal(3, 3, 15, 15, 2)
    radial, random = (prepared("fourier", {"sampling": name, "centre": 0.0}, (15, 15)) for name in ("radial", "random"))
    torch.testing.assert_close(radial.pinv(y), radial.transpose(y))
    assert (random.pinv(y) - random.transpose(y)).norm() > 0.1 * random.pinv(y).norm()


def test_a_measurement_has_noise_where_it_was_sampled_alone():
    operator, x = get_operator("fourier", acceleration=4.0), normal(3, 3, 64, 64, dtype=torch.float32).clamp(-1, 1)
    measurement = Measurement.simulate(operator, get_noise("gaussian", sigma=0.1), x, ImageRandomness(0, NAMES))
    sampled = measurement.operator.informative(measurement.y)
    assert measurement.y.shape == (3, 3, 64, 64, 2) and ((measurement.y != 0) == sampled.bool()).all()
    assert ((measurement.chi_square(x) - 1).abs() < 4 * (2 / sampled[0].sum()) ** 0.5).all()
    assert measurement.lift().shape == x.shape


@pytest.mark.parametrize("params, message", [
    ({"acceleration": 0.5}, "acceleration is 0.5, expected a finite number, 1 or more"),
    ({"acceleration": 4.0, "centre": 0.3}, "centre of 0.3 is more than the share 1/4 that is sampled; lower centre"),
    ({"sampling": "spiral"}, "one of 'cartesian', 'radial', 'random'")])
def test_bad_parameters(params, message):
    with pytest.raises(UserError, match=message):
        get_operator("fourier", **params)
