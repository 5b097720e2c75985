"""Phase retrieval: golden numbers, the definition, trivial ambiguities, and best of four on images it must find."""

import numpy as np
import pytest
import torch

from guided_diffusion.condition_methods import get_conditioning_method
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import LinearOperator, Measurement, get_noise, get_operator
from guided_diffusion.priors.analytic import AnalyticPrior
from guided_diffusion.priors.distributions import GaussianMixture
from guided_diffusion.priors.gaussians import DiagonalGaussian
from tests.helpers import deterministic, normal
from util.errors import UserError
from util.metrics.scores import psnr
from util.seeding import ImageRandomness

RANGES = ([-1, 1], [0, 1])


def prepared(shape: tuple[int, ...], **params):
    streams = ImageRandomness(0, [str(b) for b in range(shape[0])], purpose="operator")
    return get_operator("phase_retrieval", **params).prepare(shape, streams)


def test_golden_magnitudes_and_gradient(golden):
    arrays = golden("operators")
    operator = prepared((1, 3, 256, 256))
    x = torch.from_numpy((arrays["image_u8"].astype(np.float32) / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
    x.requires_grad_()
    y = operator(x)
    assert y.shape == (1, 3, 384, 384)
    yz = operator(torch.from_numpy(deterministic(20000, (1, 3, 256, 256))).float())
    u = torch.from_numpy(deterministic(20034, tuple(y.shape))).float()
    gradient, = torch.autograd.grad((y * u).sum(), x)
    for name, found, atol in (("y_center", y[0, :, 128:256, 128:256], 2e-5), ("y_corner", y[0, :, :48, :48], 2e-5),
                              ("y_rowsum", y[0].sum(2), 2e-4), ("yz_center", yz[0, :, 176:208, 176:208], 2e-5),
                              ("vjp_crop", gradient[0, :, 96:160, 96:160], 5e-5)):
        torch.testing.assert_close(found.detach(), torch.from_numpy(arrays[f"phase_{name}"]), rtol=0, atol=atol)


@pytest.mark.parametrize("size", [(16, 24), (13, 17), (9, 8), (3, 40)])
@pytest.mark.parametrize("oversample", [0, 0.7, 1.0, 2.0, 4.0])
def test_the_definition_with_each_axis_padded_by_its_own_length(size, oversample):
    """|shift F unshift P x| / sqrt(n), with P written out."""
    x = normal(2, 3, *size)
    pad_h, pad_w = (int(oversample / 8 * side) for side in size)
    padded = torch.nn.functional.pad(x, (pad_w, pad_w, pad_h, pad_h))
    assert padded.shape[2:] == (size[0] + 2 * pad_h, size[1] + 2 * pad_w)
    expected = np.fft.fftshift(np.abs(np.fft.fft2(np.fft.ifftshift(padded.numpy(), axes=(-2, -1)))), axes=(-2, -1))
    found = prepared((2, 3, *size), oversample=oversample)(x)
    np.testing.assert_allclose(found.numpy(), expected / np.sqrt(np.prod(padded.shape[2:])), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(16, 16), (13, 16), (9, 15)])
@pytest.mark.parametrize("signal_range", RANGES)
def test_trivial_ambiguities_have_equal_measurements_and_nothing_else_does(size, signal_range):
    operator = prepared((2, 3, *size), signal_range=signal_range)
    x = normal(2, 3, *size)
    y, alternatives = operator(x), operator.ambiguities(x)
    assert alternatives[0] is x
    assert len(alternatives) == (4 if signal_range == [-1, 1] else 2)
    for image in alternatives:
        torch.testing.assert_close(operator(image), y, rtol=0, atol=1e-12)
    assert all((a - b).norm() > 1 for i, a in enumerate(alternatives) for b in alternatives[:i])
    assert ((operator(-x) - y).norm() < 1e-9) == (signal_range == [-1, 1])
    assert (operator(x.flip(-1)) - y).norm() > 1


def test_other_operators_have_no_ambiguities():
    x = normal(1, 3, 8, 8)
    alternative, = get_operator("noise").ambiguities(x)
    assert alternative is x


def test_the_range_switch_maps_to_unit_range_first():
    x = normal(2, 3, 10, 12)
    torch.testing.assert_close(prepared(x.shape, signal_range=[0, 1])(x), prepared(x.shape)((x + 1) / 2))


@pytest.mark.parametrize("signal_range", RANGES)
def test_gradient(signal_range):
    operator = prepared((2, 1, 6, 5), signal_range=signal_range)
    assert torch.autograd.gradcheck(operator, normal(2, 1, 6, 5).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1e-30, 0.5, -1.0])
def test_the_gradient_is_finite_where_magnitudes_are_zero(value, dtype):
    operator = prepared((1, 3, 8, 8), oversample=0)     # a constant image has zeros everywhere but in the mean
    x = torch.full((1, 3, 8, 8), value, dtype=dtype, requires_grad=True)
    y = operator(x)
    assert (y < 1e-6).sum() >= 63 * 3
    for loss in (y.sum(), get_noise("gaussian", sigma=0.1).distance(torch.zeros_like(y) + 1, y).sum()):
        gradient, = torch.autograd.grad(loss, x, retain_graph=True)
        assert torch.isfinite(gradient).all()


def test_a_batch_equals_its_images_and_candidates_their_batch():
    x = normal(4, 3, 3, 16, 12, dtype=torch.float32)                                    # (n, B, C, H, W)
    batch = prepared((3, 3, 16, 12))
    y = batch.forward_many(x)
    torch.testing.assert_close(y, torch.stack([batch(candidate) for candidate in x]))
    for b in range(3):
        torch.testing.assert_close(y[:1, b], prepared((1, 3, 16, 12))(x[0, b:b + 1]))


@pytest.mark.parametrize("size", [(16, 24), (13, 7)])
def test_guess_and_picture_have_the_image_shape(size):
    operator = prepared((2, 3, *size))
    white = operator(torch.ones(2, 3, *size))
    assert torch.equal(operator.initial_guess(white), torch.zeros(2, 3, *size))
    noisy = operator(normal(2, 3, *size).float()) + 0.3 * normal(2, 3, *white.shape[2:], seed=1).float()
    for y in (white, noisy, torch.zeros_like(white)):
        picture = operator.lift(y)
        assert picture.shape == (2, 3, *size)
        assert picture.min() >= -1 and picture.max() <= 1
    assert operator.lift(white).flatten(2).argmax(2).unique().tolist() == [
        size[0] // 2 * size[1] + size[1] // 2]                                          # the mean, in the centre
    assert (operator.lift(torch.zeros_like(white)) == -1).all()


def test_it_is_nonlinear_by_type_and_methods_that_need_a_linear_one_say_so():
    operator = prepared((1, 3, 16, 16))
    assert not isinstance(operator, LinearOperator)
    with pytest.raises(UserError, match="needs a linear operator, found 'phase_retrieval'"):
        get_conditioning_method("mcg").check(operator)


@pytest.mark.parametrize("params, words", [
    ({"oversample": -1}, "oversample is -1, expected a finite number, 0 to 100"),
    ({"oversample": "2"}, "oversample is '2', expected a finite number"),
    ({"signal_range": [0, 255]}, r"\[0, 255\], expected \[-1, 1\] or \[0, 1\]"),
    ({"signal_range": 1}, "signal_range is 1, expected a list of 2"),
    ({"oversampling": 2.0}, "did you mean 'oversample'"),
])
def test_bad_inputs_are_named(params, words):
    with pytest.raises(UserError, match=words):
        get_operator("phase_retrieval", **params)


@pytest.mark.parametrize("signal_range", RANGES)
def test_the_best_of_four_by_measurement_error_is_the_image_up_to_an_ambiguity(signal_range):
    """Eight images in every orientation and sign are the prior: runs end in one of them, often in a wrong one."""
    side, samples = 16, 4
    images = normal(8, 3, side, side, dtype=torch.float32)
    frequency = torch.fft.fftfreq(side)
    spectrum = 1 / (1 + 100 * (frequency[:, None] ** 2 + frequency ** 2))
    images = torch.fft.ifft2(torch.fft.fft2(images) * spectrum.sqrt()).real
    images = images / images.abs().amax((1, 2, 3), keepdim=True)
    known = torch.cat([images, images.flip(-2, -1), -images, -images.flip(-2, -1)])
    sampler = create_sampler(model_var_type="fixed_small", clip_denoised=False, timestep_respacing=100)
    truth = images[:2] + 0.05 * normal(2, 3, side, side, seed=1).float()
    randomness = ImageRandomness(0, ["a"] * samples + ["b"] * samples, [*range(samples)] * 2)
    measurement = Measurement.simulate(
        get_operator("phase_retrieval", signal_range=signal_range), get_noise("gaussian", sigma=0.02),
        truth.repeat_interleave(samples, 0), randomness)
    mixture = GaussianMixture([DiagonalGaussian(image, 0.1 ** 2) for image in known], [1 / len(known)] * len(known))
    restored = get_conditioning_method("ps", scale=0.1).restore(
        AnalyticPrior(sampler.schedule, mixture), sampler, measurement, randomness)
    distance = measurement.distance(restored).view(2, samples)
    aligned = torch.tensor([[max(psnr(image[k], truth[b]) for image in measurement.operator.ambiguities(restored))
                             for k in range(b * samples, (b + 1) * samples)] for b in range(2)])
    best = distance.argmin(1, keepdim=True)
    assert (aligned.gather(1, best) > 27).all()
    assert aligned.min() < 20                           # a single run is not enough
