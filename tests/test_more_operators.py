"""Operators beyond DPS's own: other codebases' numbers, Pillow's JPEG, gradients, chains."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor

from guided_diffusion.measurements import OPERATORS, LinearOperator, Measurement, Operator, get_noise, get_operator
from guided_diffusion.measurements import jpeg as jpeg_module
from tests.helpers import NEED_FILES, OPERATOR_EXAMPLES
from util.errors import UserError
from util.seeding import ImageRandomness

NAMES = ["a.png", "b.png", "c.png"]
SIZE = (16, 16)
ODD = {"noise": {}, "colorization": {}, "hdr": {}, "jpeg": {"quality": 30}, "sr_average": {"scale_factor": 3},
       "compressed_sensing": {"ratio": 0.3, "transform": "dct"}, "phase_retrieval": {},
       "composite": {"operators": [{"name": "hdr"}, {"name": "sr_average", "scale_factor": 3}]}}


def prepared(name: str, size: tuple[int, int] = SIZE, names: list[str] = NAMES, channels: int = 3,
             **params) -> Operator:
    operator = get_operator(name, **(params or OPERATOR_EXAMPLES[name]))
    return operator.prepare((len(names), channels, *size), ImageRandomness(0, names, purpose="operator"))


def uniform(*shape: int, seed: int = 0) -> Tensor:
    """Values in (-1, 1), float64."""
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def test_every_operator_has_an_example():
    assert {*OPERATOR_EXAMPLES, *NEED_FILES} == set(OPERATORS), "add a task file for the new operator"


# Every operator

@pytest.mark.parametrize(("name", "size", "params"), [
    *[pytest.param(name, SIZE, params, id=name) for name, params in OPERATOR_EXAMPLES.items()],
    *[pytest.param(name, (9, 15), params, id=f"{name}-9x15") for name, params in ODD.items()]])
def test_batch_equals_singles_and_candidates_their_batch(name, size, params):
    batch, x = prepared(name, size, **params), uniform(3, 3, *size)
    y = batch(x)
    assert y.dtype == x.dtype and len(y) == 3 and torch.equal(batch(x), y)
    assert batch.lift(y).shape == batch.initial_guess(y).shape == x.shape and batch.informative(y).shape == y.shape
    candidates = uniform(4, 3, 3, *size, seed=1)
    torch.testing.assert_close(batch.forward_many(candidates), torch.stack([batch(c) for c in candidates]))
    for i, image in enumerate(NAMES):
        single = prepared(name, size, [image], **params)
        torch.testing.assert_close(single(x[i:i + 1]), y[i:i + 1])
        torch.testing.assert_close(single.initial_guess(y[i:i + 1]), batch.initial_guess(y)[i:i + 1])
        torch.testing.assert_close(single.lift(y[i:i + 1]), batch.lift(y)[i:i + 1])


MOTION = {"kernel_size": 7, "intensity": 0.5}           # the example's strokes of 3 x 3 hardly differ
RANDOM = {"motion_blur": MOTION, "composite": {"operators": [
    {"name": "motion_blur", **MOTION}, {"name": "inpainting", **OPERATOR_EXAMPLES["inpainting"]}]}}


@pytest.mark.parametrize("name", OPERATOR_EXAMPLES)
def test_a_measurement_is_not_changed_by_the_next_one(name):
    """Neither its distance to the truth nor what was drawn for it, whatever the same operator measures next."""
    operator, noiser = get_operator(name, **RANDOM.get(name, OPERATOR_EXAMPLES[name])), get_noise("clean")
    truth, others = uniform(3, 3, *SIZE), uniform(2, 3, 32, 16, seed=1)
    before = {key: value.clone() for key, value in operator.named_buffers()}
    measurement = Measurement.simulate(operator, noiser, truth, ImageRandomness(0, NAMES))
    drawn = {key: value.clone() for key, value in measurement.operator.drawn().items()}
    for x, streams in ((uniform(3, 3, *SIZE), ImageRandomness(1, NAMES)), (others, ImageRandomness(2, NAMES[:2]))):
        other = Measurement.simulate(operator, noiser, x, streams)
        assert other.operator is not operator and other.image_shape == x.shape and (other.distance(x) == 0).all()
        again = Measurement.simulate(measurement.operator, noiser, x, streams)              # a copy of the copy
        assert torch.equal(again.y, other.y)
    assert measurement.image_shape == truth.shape and (measurement.distance(truth) == 0).all()
    assert all(torch.equal(value, drawn[key]) for key, value in measurement.operator.drawn().items())
    assert all(torch.equal(value, before[key]) for key, value in operator.named_buffers())
    with pytest.raises(UserError, match=rf"operator '{name}' is not prepared; use what its prepare\("):
        operator(truth)


@pytest.mark.parametrize("name", sorted(set(OPERATOR_EXAMPLES) - {"jpeg"}))
def test_gradient_check(name):
    operator = prepared(name, names=NAMES[:1])
    x = 0.9 * uniform(1, 3, *SIZE)
    x = torch.where((x.abs() - 0.5).abs() < 1e-3, 0.3, x)              # away from the corners of hdr
    assert torch.autograd.gradcheck(operator, x.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("name", OPERATOR_EXAMPLES)
def test_float32_in_float32_out(name):
    operator, x = prepared(name), uniform(3, 3, *SIZE).float()
    y = operator(x)
    assert y.dtype == operator.lift(y).dtype == operator.initial_guess(y).dtype == torch.float32
    if name != "jpeg":                          # where rounding may decide a coefficient
        torch.testing.assert_close(y.double(), operator(x.double()), rtol=1e-5, atol=1e-5)


# DDRM's numbers

@pytest.mark.parametrize("factor", [2, 4])
def test_block_averages_are_those_of_ddrm(golden, factor):
    arrays = golden("ddrm")
    operator = prepared("sr_average", (32, 32), NAMES[:2], scale_factor=factor)
    y = operator(torch.from_numpy(arrays["x"]))
    np.testing.assert_allclose(y.flatten(1), arrays[f"sr{factor}.y"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(operator.pinv(y).flatten(1), arrays[f"sr{factor}.pinv_y"], rtol=0, atol=5e-6)
    assert f"sr{factor}.Ht_u" in arrays


def test_hadamard_coefficients_are_those_of_ddrm(golden):
    """DDRM orders a measurement coefficient by coefficient, channels innermost."""
    arrays = golden("ddrm")
    operator = prepared("compressed_sensing", (32, 32), NAMES[:2], ratio=0.25)
    operator.index = torch.from_numpy(arrays["cs_perm"][:256]).long().expand(2, -1)
    y = operator(torch.from_numpy(arrays["x"]))
    np.testing.assert_allclose(y.mT.flatten(1), arrays["cs4.y"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(operator.pinv(y).flatten(1), arrays["cs4.pinv_y"], rtol=0, atol=5e-6)


# Definitions

def test_colorization_averages_channels():
    operator, x = prepared("colorization"), uniform(3, 3, *SIZE)
    torch.testing.assert_close(operator(x)[:, 0], (x[:, 0] + x[:, 1] + x[:, 2]) / 3)
    assert operator(x).shape == (3, 1, *SIZE)
    torch.testing.assert_close(operator.pinv(operator(x))[:, 2], operator(x)[:, 0])


@pytest.mark.parametrize("transform", ["hadamard", "dct"])
def test_compressed_sensing_is_a_part_of_an_orthonormal_transform(transform):
    x = uniform(3, 3, *SIZE)
    whole = prepared("compressed_sensing", ratio=1.0, transform=transform)
    torch.testing.assert_close(whole.pinv(whole(x)), x)
    torch.testing.assert_close(whole(x).norm(), x.norm())
    torch.testing.assert_close(whole(x)[..., 0], 16 * x.mean(dim=(-2, -1)))
    part = prepared("compressed_sensing", ratio=0.3, transform=transform)
    assert part(x).shape == (3, 3, round(0.3 * 256))
    assert len({tuple(row) for row in part.index.tolist()}) == 3 and all(len(set(r)) == 77 for r in part.index.tolist())
    torch.testing.assert_close(part(part.pinv(part(x))), part(x))
    assert prepared("compressed_sensing", ratio=1e-6, transform=transform)(x).shape == (3, 3, 1)


def test_overexposure():
    operator = prepared("hdr", scale=2.0)
    x = torch.linspace(-1, 1, 768, dtype=torch.float64).view(1, 3, *SIZE).expand(3, -1, -1, -1)
    y = operator(x)
    torch.testing.assert_close(y, (2 * x).clamp(-1, 1))
    inside = x.abs() < 0.5
    torch.testing.assert_close(operator.initial_guess(y)[inside], x[inside])
    assert torch.equal(operator.lift(y), y) and not isinstance(operator, LinearOperator)


# JPEG

def by_pillow(levels: np.ndarray, quality: int, subsampling: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=quality, subsampling={444: 0, 420: 2}[subsampling])
    return np.asarray(Image.open(file)).astype(int)


PICTURES = {"astronaut 128x128": data.astronaut()[:128, 150:278], "chelsea 91x107": data.chelsea()[100:191, 130:237],
            "coffee 33x64": data.coffee()[200:233, 250:314], "grey 50x41": data.camera()[100:150, 200:241]}


@pytest.mark.parametrize("quality", [1, 10, 30, 50, 75, 95, 100])
@pytest.mark.parametrize("subsampling", [420, 444])
@pytest.mark.parametrize("picture", PICTURES)
def test_jpeg_is_pillows(picture, subsampling, quality):
    """Within 0.3 of 255 grey levels on average: where integer arithmetic rounds a coefficient the other way, the
    pixels of its block differ."""
    levels = np.ascontiguousarray(PICTURES[picture])
    x = torch.from_numpy(levels).view(*levels.shape[:2], -1).permute(2, 0, 1)[None] / 127.5 - 1
    y = prepared("jpeg", levels.shape[:2], NAMES[:1], len(x[0]), quality=quality, subsampling=subsampling)(x)
    ours = ((y[0].permute(1, 2, 0) + 1) * 127.5).numpy().reshape(levels.shape)
    np.testing.assert_allclose(ours, np.rint(ours), rtol=0, atol=1e-3)
    expected = by_pillow(levels, quality, subsampling)
    difference = np.abs(ours - expected)
    assert difference.mean() < 0.3 and (difference > 8).mean() < 0.003
    assert quality == 100 or difference.mean() < 0.2 * np.abs(expected - levels).mean()


@pytest.mark.parametrize("width", range(1, 9))
def test_jpeg_of_narrow_pictures_is_pillows(width):
    """Random colours, whose chroma libjpeg repeats up to a width of 4, and interpolates above."""
    levels = np.random.default_rng(0).integers(0, 256, (20, width, 3), dtype=np.uint8)
    x = torch.from_numpy(levels).permute(2, 0, 1)[None] / 127.5 - 1
    y = prepared("jpeg", levels.shape[:2], NAMES[:1], quality=75)(x)
    assert np.abs(((y[0].permute(1, 2, 0) + 1) * 127.5).numpy() - by_pillow(levels, 75, 420)).mean() < 2


@pytest.mark.parametrize("params", [{"quality": 20}, {"quality": 90}, {"quality": 50, "subsampling": 444}])
def test_jpeg_gradient_is_that_of_the_operator_without_rounding(params, monkeypatch):
    """In the middle of the range nothing is clipped; at its ends the clipped values have no gradient."""
    operator = prepared("jpeg", (13, 17), NAMES[:1], **params)
    weights, x = uniform(1, 3, 13, 17, seed=1), (0.3 * uniform(1, 3, 13, 17)).requires_grad_()
    gradient = torch.autograd.grad((operator(x) * weights).sum(), x)[0]
    assert (operator(x) - x).abs().max() > 0.02 and operator(x).abs().max() < 1
    monkeypatch.setattr(jpeg_module, "round_through", lambda value: value)
    torch.testing.assert_close(gradient, torch.autograd.grad((operator(x) * weights).sum(), x)[0])
    assert torch.autograd.gradcheck(operator, x, fast_mode=True)
    if "subsampling" in params:                 # without rounding it is the identity
        torch.testing.assert_close(gradient, weights)
        torch.testing.assert_close(operator(x), x)


def test_jpeg_gradient_ends_where_values_are_clipped():
    operator = prepared("jpeg", (16, 16), NAMES[:1], channels=1, quality=95)
    x = torch.full((1, 1, 16, 16), 1.3, dtype=torch.float64, requires_grad=True)
    assert (torch.autograd.grad(operator(x).sum(), x)[0] == 0).all()
    with pytest.raises(UserError, match="found images of 4 channels"):
        prepared("jpeg", channels=4, quality=95)


# Chains

BLUR = {"name": "gaussian_blur", "kernel_size": 5, "intensity": 1.0}
CHAINS = {
    "linear": ([BLUR, {"name": "sr_average", "scale_factor": 2}, {"name": "colorization"}], True),
    "nonlinear": ([BLUR, {"name": "hdr"}, {"name": "jpeg", "quality": 40}], False),
    "nested": ([{"name": "composite", "operators": [BLUR, {"name": "colorization"}]},
                {"name": "compressed_sensing", "ratio": 0.5}], True),
    "nested nonlinear": ([BLUR, {"name": "composite", "operators": [{"name": "hdr"}, {"name": "noise"}]}], False),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_is_its_parts_in_order_and_linear_if_all_are(chain):
    operators, linear = CHAINS[chain]
    operator, x = prepared("composite", operators=operators), uniform(3, 3, *SIZE)
    assert isinstance(operator, LinearOperator) == linear and operator.name == "composite"
    expected = x
    for part in operators:
        params = {key: value for key, value in part.items() if key != "name"}
        alone = get_operator(part["name"], **params)
        expected = alone.prepare(tuple(expected.shape), ImageRandomness(0, NAMES, purpose="operator"))(expected)
    y = operator(x)
    torch.testing.assert_close(y, expected)
    assert operator.lift(y).shape == operator.initial_guess(y).shape == x.shape
    torch.testing.assert_close(operator.forward_many(x[None]), y[None])
    if linear:
        w = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
        torch.testing.assert_close((y * w).sum(), (x * operator.transpose(w)).sum())
        assert (operator(operator.pinv(y)) - y).norm() < 1e-10 * y.norm()


def test_the_parts_of_a_chain_draw_different_numbers_and_keep_them():
    mask = {"name": "inpainting", "mask_opt": {"mask_type": "random", "mask_prob_range": [0.5, 0.5]}}
    operator = prepared("composite", operators=[mask, mask])
    first, second = operator.operators
    assert not torch.equal(first.mask, second.mask)
    again = prepared("composite", operators=[mask, mask])
    assert torch.equal(again.operators[1].mask, second.mask)
    torch.testing.assert_close(operator(torch.ones(3, 3, *SIZE)), (first.mask * second.mask).expand(-1, 3, -1, -1))


def test_a_measurement_by_a_chain():
    x = uniform(3, 3, *SIZE).float()
    operator = get_operator("composite", operators=[{"name": "hdr"}, {"name": "sr_average", "scale_factor": 2}])
    measurement = Measurement.simulate(operator, get_noise("gaussian", sigma=0.05), x, ImageRandomness(0, NAMES))
    assert measurement.y.shape == (3, 3, 8, 8) and measurement.image_shape == (3, 3, *SIZE)
    assert ((measurement.chi_square(x) - 1).abs() < 0.5).all()
