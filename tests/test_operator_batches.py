"""Forward models of batches: every image as if alone, candidates, channels, random parameters of each image."""

import pytest
import torch
from torch import Tensor

from guided_diffusion.measurements import Measurement, get_noise, get_operator
from tests.helpers import NAMES, normal, relative
from tests.operator_cases import CASES, every_operator, inpainting, prepared
from util.seeding import ImageRandomness


@every_operator
def test_batch_equals_singles(name, params, size):
    batch = prepared(name, params, size)
    x = normal(3, 3, *size)
    y = batch(x)
    inverse = batch.pinv(y)
    for i, image in enumerate(NAMES):
        single = prepared(name, params, size, [image])
        part = slice(i, i + 1)
        torch.testing.assert_close(single(x[part]), y[part])
        torch.testing.assert_close(single.transpose(y[part]), batch.transpose(y)[part])
        assert relative(single.pinv(y[part]), inverse[part]) < 1e-6
        torch.testing.assert_close(single.lift(y[part]), batch.lift(y)[part])


@every_operator
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_forward_many_equals_a_loop(name, params, size, channels):
    operator = prepared(name, params, size, channels=channels)
    x = normal(5, 3, channels, *size)
    torch.testing.assert_close(operator.forward_many(x), torch.stack([operator(candidate) for candidate in x]))


@every_operator
def test_channels_are_treated_alike(name, params, size):
    operator = prepared(name, params, size)
    y = operator(normal(3, 1, *size).expand(-1, 3, -1, -1))
    if y.shape[1] == 1:                         # one measurement of all channels
        permuted = normal(3, 3, *size)
        torch.testing.assert_close(operator(permuted.flip(1)), operator(permuted))
        return
    torch.testing.assert_close(y[:, 0], y[:, 1])
    torch.testing.assert_close(y[:, 0], y[:, 2])


@pytest.mark.parametrize("case", ["box", "random", "both", "extreme", "motion_fft", "dct"])
def test_random_parameters_belong_to_the_image(case):
    """Same name, same mask or kernel, whatever the batch; other names and other seeds, other ones."""
    (name, params), _ = CASES[case]
    attribute = {"motion_blur": "kernel", "compressed_sensing": "index"}.get(name, "mask")

    def drawn(names: list[str], seed: int = 0) -> Tensor:
        return getattr(prepared(name, params, (32, 32), names, seed=seed), attribute)

    batch = drawn(NAMES)
    assert len(batch) == 3
    for i, image in enumerate(NAMES):
        assert torch.equal(drawn([image])[0], batch[i])
    assert torch.equal(drawn(NAMES[::-1]), batch.flip(0))
    assert not torch.equal(batch[0], batch[1]) and not torch.equal(drawn(NAMES, seed=1), batch)


@every_operator
def test_the_draw_is_kept(name, params, size):
    operator = prepared(name, params, size)
    x = normal(3, 3, *size)
    assert torch.equal(operator(x), operator(x))


@every_operator
def test_guesses_have_the_image_shape(name, params, size):
    operator = prepared(name, params, size)
    y = operator(normal(3, 3, *size))
    assert operator.initial_guess(y).shape == operator.lift(y).shape == (3, 3, *size)
    assert operator.informative(y).shape == y.shape


def test_noise_on_missing_pixels_is_kept_unless_asked():
    x, noise = torch.zeros(3, 3, 16, 16), get_noise("gaussian", sigma=0.1)
    measured = {}
    for observed_only in (False, True):
        name, params = inpainting("random")
        operator = get_operator(name, **params, observed_only=observed_only)
        measured[observed_only] = Measurement.simulate(operator, noise, x, ImageRandomness(0, NAMES))
    mask = measured[True].operator.mask.expand(-1, 3, -1, -1)
    assert (measured[False].y != 0).all()
    assert torch.equal(measured[True].y, mask * measured[False].y)
    assert torch.equal(measured[False].operator.informative(x), mask)
    torch.testing.assert_close(measured[True].chi_square(x), measured[False].chi_square(x))
    assert (measured[True].distance(x) < measured[False].distance(x)).all()
