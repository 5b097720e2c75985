"""Forward models: golden numbers, adjoint and pseudo-inverse identities, per-image randomness, bad inputs.

The official `transpose` (the identity for blur and inpainting, nearest-neighbour upsampling for super-resolution) and
`project` (data and measurement exchanged) are defects: ours are tested against the definitions.
"""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from guided_diffusion.measurements import OPERATORS, LinearOperator, Measurement, get_noise, get_operator
from guided_diffusion.measurements.base import require_linear
from tests.helpers import deterministic
from util.errors import UserError
from util.seeding import ImageRandomness

BOX, PROB = [4, 9], [0.3, 0.7]
FOLDER = tempfile.TemporaryDirectory()
KERNEL = f"{FOLDER.name}/kernel.npy"
np.save(KERNEL, np.array([[1, 2, 1], [2, 16, 4], [1, 3, 2]]) / 32)


def inpainting(mask_type: str, **more) -> tuple[str, dict]:
    options = {"mask_type": mask_type, "mask_len_range": BOX, "mask_prob_range": PROB, "margin": [1, 2], **more}
    return "inpainting", {"mask_opt": options}


CASES = {                                       # id -> (name, parameters), sizes
    "noise": (("noise", {}), [(8, 8), (5, 7)]),
    "sr2": (("super_resolution", {"scale_factor": 2}), [(8, 8), (10, 6)]),
    "sr4": (("super_resolution", {"scale_factor": 4}), [(16, 16), (12, 20)]),
    "sr8": (("super_resolution", {"scale_factor": 8}), [(32, 16)]),
    "sr16": (("super_resolution", {"scale_factor": 16}), [(32, 16), (16, 16)]),
    "box": (inpainting("box"), [(16, 16), (13, 17)]),
    "random": (inpainting("random"), [(16, 16), (13, 17)]),
    "both": (inpainting("both"), [(16, 16), (13, 17)]),
    "extreme": (inpainting("extreme"), [(16, 16), (13, 17)]),
    "gaussian_fft": (("gaussian_blur", {"kernel_size": 9, "intensity": 1.0, "convolution": "fft"}),
                     [(16, 16), (13, 17)]),
    "gaussian_matrices": (("gaussian_blur", {"kernel_size": 9, "intensity": 1.0}), [(16, 16), (13, 17)]),
    "gaussian_direct": (("gaussian_blur", {"kernel_size": 5, "intensity": 3.0, "convolution": "direct"}),
                        [(16, 16), (3, 8)]),
    "motion_fft": (("motion_blur", {"kernel_size": 9, "intensity": 0.5, "convolution": "fft"}), [(16, 16), (13, 17)]),
    "motion_direct": (("motion_blur", {"kernel_size": 5, "intensity": 0.5, "convolution": "direct"}),
                      [(16, 16), (3, 8)]),
    "motion_wide": (("motion_blur", {"kernel_size": 25, "intensity": 0.5}), [(13, 17)]),
    "kernel": (("blur", {"kernel": KERNEL}), [(16, 16), (13, 17)]),
    "grey": (("colorization", {}), [(8, 8), (5, 7)]),
    "average2": (("sr_average", {"scale_factor": 2}), [(8, 8), (10, 6)]),
    "average3": (("sr_average", {"scale_factor": 3}), [(9, 15)]),
    "hadamard": (("compressed_sensing", {"ratio": 0.25}), [(16, 16), (8, 32)]),
    "dct": (("compressed_sensing", {"ratio": 0.4, "transform": "dct"}), [(16, 16), (13, 17)]),
    "composite": (("composite", {"operators": [
        {"name": "gaussian_blur", "kernel_size": 5, "intensity": 1.0}, {"name": "sr_average", "scale_factor": 2}]}),
        [(16, 16), (14, 10)]),
    "composite_of_masks": (("composite", {"operators": [
        {"name": "inpainting", **inpainting("random")[1]}, {"name": "colorization"},
        {"name": "inpainting", **inpainting("box")[1]}]}), [(16, 16), (13, 17)]),
}
CASES_AND_SIZES = [pytest.param(*case, size, id=f"{name}-{size[0]}x{size[1]}")
                   for name, (case, sizes) in CASES.items() for size in sizes]
ONE_SIZE = [pytest.param(*case, sizes[0], id=name) for name, (case, sizes) in CASES.items()]
every_case = pytest.mark.parametrize(("name", "params", "size"), CASES_AND_SIZES)
every_operator = pytest.mark.parametrize(("name", "params", "size"), ONE_SIZE)
NAMES = ["a.png", "b.png", "c.png"]


def prepared(name: str, params: dict, size: tuple[int, int], names: list[str] = NAMES, channels: int = 3,
             seed: int = 0) -> LinearOperator:
    operator = get_operator(name, **params)
    operator.prepare((len(names), channels, *size), ImageRandomness(seed, names, purpose="operator"))
    return operator


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_every_linear_operator_has_a_case():
    linear = {name for name in OPERATORS if issubclass(OPERATORS[name], LinearOperator)}
    assert {case[0] for case, _ in CASES.values()} >= linear


# Golden numbers

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


@pytest.mark.parametrize(("name", "size"), [("gaussian_blur", 61), ("motion_blur", 61), ("motion_blur", 7),
                                            ("gaussian_blur", 3)])
def test_fft_equals_direct_convolution(name, size):
    x = normal(3, 3, 64, 51, dtype=torch.float32).clamp(-1, 1)
    direct, fft = (prepared(name, {"kernel_size": size, "intensity": 0.8, "convolution": method}, (64, 51))
                   for method in ("direct", "fft"))
    assert direct.direct and not fft.direct
    torch.testing.assert_close(fft(x), direct(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(fft.transpose(x), direct.transpose(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel_size", [3, 61])
def test_one_matrix_per_axis_equals_direct_convolution(kernel_size):
    x = normal(3, 3, 64, 51)
    direct, separable, tall = (
        prepared("gaussian_blur", {"kernel_size": kernel_size, "intensity": 1.5, "convolution": method}, size)
        for method, size in (("direct", (64, 51)), ("auto", (64, 51)), ("auto", (260, 51))))
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


# Identities

@every_case
def test_transpose_is_the_adjoint(name, params, size):
    operator = prepared(name, params, size)
    x = normal(3, 3, *size)
    y = normal(*operator(x).shape, seed=1)
    left, right = ((operator(x) * y).sum(), (x * operator.transpose(y)).sum())
    assert abs(left - right) < 1e-10 * operator(x).norm() * y.norm()
    torch.testing.assert_close(operator.transpose(y), LinearOperator.transpose(operator, y), rtol=0, atol=1e-11)


@every_case
def test_pinv_satisfies_the_penrose_identities(name, params, size):
    """A A+ A = A and A+ A A+ = A+, with A A+ and A+ A symmetric.

    A+ divides by gains down to 1e-12, which amplifies rounding in all but the first.
    """
    operator = prepared(name, params, size)
    x, w = normal(3, 3, *size), normal(3, 3, *size, seed=2)
    y = operator(x)
    assert relative(operator(operator.pinv(y)), y) < 1e-10
    v = normal(*y.shape, seed=3)
    inverse = operator.pinv(v)
    assert relative(operator.pinv(operator(inverse)), inverse) < 1e-6
    u = normal(*y.shape, seed=4)
    for left, right in (((operator(inverse) * u).sum(), (v * operator(operator.pinv(u))).sum()),
                        ((operator.pinv(y) * w).sum(), (x * operator.pinv(operator(w))).sum())):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", ["noise", "sr2", "sr4", "box", "random", "grey", "average3", "hadamard", "dct"])
def test_pinv_agrees_with_conjugate_gradients(case):
    (name, params), sizes = CASES[case]
    operator = prepared(name, params, sizes[0])
    y = operator(normal(3, 3, *sizes[0]))
    torch.testing.assert_close(operator.pinv(y), LinearOperator.pinv(operator, y), rtol=0, atol=1e-8)


@every_case
def test_projection(name, params, size):
    """project(x, y) has the measurement y, is idempotent, and moves x by no more than it must.

    The official inpainting projection of y = m x0 is -m x instead of y + (1 - m) x.
    """
    operator = prepared(name, params, size)
    x, truth = normal(3, 3, *size), normal(3, 3, *size, seed=5)
    y = operator(truth)
    projected = operator.project(x, y)
    assert relative(operator(projected), y) < 1e-10
    assert relative(operator.project(projected, y), projected) < 1e-6
    if name == "inpainting":
        torch.testing.assert_close(projected, y + (1 - operator.mask) * x)
    assert (projected - x).norm() <= (truth - x).norm() * (1 + 1e-6)


@pytest.mark.parametrize(("case", "limit"), [("gaussian_fft", 2e-3), ("motion_fft", 5e-3)])
def test_blur_inverts_in_single_precision(case, limit):
    """In float32 the pseudo-inverse stays bounded and A A+ A = A holds to the documented precision."""
    (name, params), sizes = CASES[case]
    operator = prepared(name, params, sizes[0])
    y = operator(normal(3, 3, *sizes[0], dtype=torch.float32))
    x = operator.pinv(y)
    assert x.dtype == torch.float32 and relative(operator(x), y) < limit


def test_a_larger_rcond_amplifies_less_noise():
    noise = normal(3, 3, 32, 32)
    gains = []
    for rcond in (1e-4, 1e-2, 0.5):
        (name, params), _ = CASES["gaussian_fft"]
        operator = prepared(name, {**params, "rcond": rcond}, (32, 32))
        gains.append(float(operator.pinv(noise).norm() / noise.norm()))
        assert gains[-1] <= 1 / rcond * 1.01
    assert gains[0] > 3 * gains[1] > 9 * gains[2]


@every_case
def test_float32_follows_float64(name, params, size):
    x = normal(3, 3, *size).clamp(-1, 1)
    operator = prepared(name, params, size)
    double = get_operator(name, **params).double()
    double.prepare(operator.image_shape, ImageRandomness(0, NAMES, purpose="operator"))
    y = double(x)
    assert y.dtype == torch.float64 and operator(x.float()).dtype == torch.float32
    torch.testing.assert_close(operator(x.float()).double(), y, rtol=0, atol=2e-6)
    torch.testing.assert_close(operator(x), y, rtol=0, atol=1e-12)
    torch.testing.assert_close(operator.transpose(y.float()).double(), double.transpose(y), rtol=0, atol=2e-6)


def test_spectrum_follows_a_new_kernel_and_inference_mode():
    operator = prepared(*CASES["motion_fft"][0], (16, 16))
    x = normal(3, 3, 16, 16)
    with torch.inference_mode():
        before = operator(x).clone()
    operator.prepare(operator.image_shape, ImageRandomness(1, NAMES, purpose="operator"))
    with torch.inference_mode():
        operator(x)
    x.requires_grad_()
    after = operator(x)
    after.sum().backward()
    assert not torch.allclose(before, after)
    torch.testing.assert_close(x.grad, operator.transpose(torch.ones_like(x)))


# Batches and randomness

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
    assert operator.observed(y).shape == y.shape


def test_super_resolution_starts_from_nearest_and_shows_bicubic():
    operator = prepared("super_resolution", {"scale_factor": 4}, (16, 24))
    y = normal(3, 3, 4, 6)
    expected = torch.nn.functional.interpolate(y, scale_factor=4, mode="nearest")
    torch.testing.assert_close(operator.initial_guess(y), expected)
    ramp = torch.arange(6.0).expand(3, 3, 4, 6)
    inside = operator.lift(ramp)[..., 8:-8]
    torch.testing.assert_close(inside.diff(dim=-1), torch.full_like(inside[..., 1:], 0.25))


# Masks

def masks(options: dict, n: int, size: tuple[int, int] = (256, 256)) -> np.ndarray:
    operator = prepared("inpainting", {"mask_opt": options}, size, [f"{i}.png" for i in range(n)])
    return operator.mask[:, 0].numpy()


def boxes(hidden: np.ndarray) -> np.ndarray:
    """(n, 4): top, left, height, width of the rectangle that each (n, H, W) holds; fails if it is none."""
    found = []
    for image in hidden:
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        top, left, h, w = rows[0], columns[0], len(rows), len(columns)
        assert image[top:top + h, left:left + w].all() and image.sum() == h * w
        found.append((top, left, h, w))
    return np.array(found)


@pytest.mark.parametrize("mask_type", ["box", "extreme"])
def test_box_statistics(golden, mask_type):
    drawn = masks({"mask_type": mask_type, "mask_len_range": [32, 128], "image_size": 256}, 300)
    found = boxes(drawn == (1 if mask_type == "extreme" else 0))
    expected = golden("operators")[f"maskstat_{mask_type}_top_left_h_w"]
    assert found[:, 2:].min() >= 32 and found[:, 2:].max() <= 127
    assert found[:, :2].min() >= 16 and (found[:, :2] + found[:, 2:]).max() < 256 - 16
    tolerance = 4 * expected.std(0) * np.sqrt(1 / 300 + 1 / 200)
    assert (np.abs(found.mean(0) - expected.mean(0)) < tolerance).all()
    assert (np.abs(found.std(0) / expected.std(0) - 1) < 0.25).all()


def test_random_mask_statistics(golden):
    hidden = (masks({"mask_type": "random", "mask_prob_range": [0.3, 0.7]}, 200) == 0).sum((1, 2))
    expected = golden("operators")["maskstat_random_zero_count"]
    assert hidden.min() >= int(0.3 * 65536) and hidden.max() < 0.7 * 65536
    assert abs(hidden.mean() - expected.mean()) < 4 * expected.std() * np.sqrt(2 / 200)
    assert abs(hidden.std() / expected.std() - 1) < 0.25


def test_equal_ends_exact_counts_and_tight_fits():
    assert (boxes(masks({"mask_type": "box", "mask_len_range": [40, 40]}, 5) == 0)[:, 2:] == 40).all()
    assert (boxes(masks({"mask_type": "box", "mask_len_range": [128, 129]}, 5) == 0)[:, 2:] == 128).all()
    tight = boxes(masks({"mask_type": "box", "mask_len_range": [8, 9], "margin": [4, 4]}, 3, (16, 16)) == 0)
    assert (tight == (4, 4, 8, 8)).all()
    small = boxes(masks({"mask_type": "box", "mask_len_range": [8, 13]}, 20, (32, 20)) == 0)
    assert small[:, 0].min() >= 10 and small[:, 1].min() >= 4           # the default margin of 16 has no room
    assert ((small[:, :2] + small[:, 2:]) <= (22, 16)).all()
    whole = boxes(masks({"mask_type": "box", "mask_len_range": [16, 16]}, 1, (16, 16)) == 0)
    assert (whole == (0, 0, 16, 16)).all()
    hidden = masks({"mask_type": "random", "mask_prob_range": [0.7, 0.7]}, 2, (20, 31)) == 0
    assert (hidden.sum((1, 2)) == int(620 * 0.7)).all()


def test_both_removes_box_and_pixels():
    both = masks({"mask_type": "both", "mask_len_range": [32, 33], "mask_prob_range": [0.5, 0.5]}, 4)
    for mask in both:
        windows = np.lib.stride_tricks.sliding_window_view(mask, (32, 32))[::4, ::4]
        assert windows[:, :, ::7, ::7].sum((2, 3)).min() == 0
        assert 0.40 < mask.mean() < 0.5


def test_mask_from_a_file(tmp_path):
    kept = np.zeros((12, 10), dtype=np.uint8)
    kept[2:5, 3:9] = 255
    for mode, file in (("L", "grey.png"), ("1", "bits.png"), ("RGB", "colour.png"), ("P", "palette.png"),
                       ("RGBA", "alpha.png")):
        Image.fromarray(kept).convert(mode).save(tmp_path / file)
        mask = masks({"mask_type": "file", "file": str(tmp_path / file)}, 2, (12, 10))
        np.testing.assert_array_equal(mask, np.broadcast_to(kept > 0, (2, 12, 10)))
    np.save(tmp_path / "mask.npy", kept > 0)
    mask = masks({"mask_type": "file", "file": str(tmp_path / "mask.npy")}, 1, (12, 10))[0]
    np.testing.assert_array_equal(mask, kept > 0)
    for wrong in (np.ones(5), np.full((12, 10), np.nan)):
        np.save(tmp_path / "wrong.npy", wrong)
        with pytest.raises(UserError, match="expected finite numbers of shape"):
            masks({"mask_type": "file", "file": str(tmp_path / "wrong.npy")}, 1, (12, 10))
    with pytest.raises(UserError, match="12x10"):
        masks({"mask_type": "file", "file": str(tmp_path / "grey.png")}, 2, (10, 12))


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
    assert torch.equal(measured[False].operator.observed(x), mask)
    torch.testing.assert_close(measured[True].chi_square(x), measured[False].chi_square(x))
    assert (measured[True].distance(x) < measured[False].distance(x)).all()


# Bad inputs

BAD = {
    "factor 0": ("super_resolution", {"scale_factor": 0}, (16, 16), "scale_factor"),
    "factor 3": ("super_resolution", {"scale_factor": 3}, (16, 16), "does not divide"),
    "factor text": ("super_resolution", {"scale_factor": "4"}, (16, 16), "an integer"),
    "average 0": ("sr_average", {"scale_factor": 0}, (16, 16), "at least 1"),
    "average 3": ("sr_average", {"scale_factor": 3}, (15, 16), "3 does not divide the image size 15x16"),
    "ratio 0": ("compressed_sensing", {"ratio": 0.0}, (16, 16), "ratio is 0.0"),
    "ratio 2": ("compressed_sensing", {"ratio": 2}, (16, 16), "at most 1"),
    "hadamard": ("compressed_sensing", {"ratio": 0.5}, (16, 24), "found 16x24; use transform: dct"),
    "exposure": ("hdr", {"scale": 0.0}, (16, 16), "positive"),
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
    "in_shape of 2": ("super_resolution", {"scale_factor": 4, "in_shape": [256, 256]}, (16, 16), "leave in_shape out"),
    "even kernel": ("gaussian_blur", {"kernel_size": 8, "intensity": 1.0}, (16, 16), "use 9"),
    "kernel 1": ("motion_blur", {"kernel_size": 1, "intensity": 0.5}, (16, 16), "use 3"),
    "wide kernel": ("gaussian_blur", {"kernel_size": 33, "intensity": 1.0}, (16, 20), "at most 31"),
    "sigma 0": ("gaussian_blur", {"kernel_size": 9, "intensity": 0.0}, (16, 16), "positive"),
    "shakiness 2": ("motion_blur", {"kernel_size": 9, "intensity": 2.0}, (16, 16), "0 \\(straight\\) to 1"),
    "convolution": ("motion_blur", {"kernel_size": 9, "intensity": 0.5, "convolution": "ftt"}, (16, 16), "'fft'"),
    "rcond": ("gaussian_blur", {"kernel_size": 9, "intensity": 1.0, "rcond": 0.0}, (16, 16), "between 0 and 1"),
    "mask key": ("inpainting", {"mask_opt": {"mask_typ": "box"}}, (16, 16), "did you mean 'mask_type'"),
    "mask type": ("inpainting", {"mask_opt": {"mask_type": "randm"}}, (16, 16), "did you mean 'random'"),
    "mask needs": ("inpainting", {"mask_opt": {"mask_type": "box"}}, (16, 16), "mask_len_range"),
    "mask range": (*inpainting("box", mask_len_range=[9, 4]), (16, 16), "1 <= low <= high"),
    "mask probability": (*inpainting("random", mask_prob_range=[0.3, 1.7]), (16, 16), "<= 1"),
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


@pytest.mark.parametrize("content", [b"", b"no picture", Image.new("L", (4, 4)).tobytes()])
def test_unreadable_mask_files(tmp_path, content):
    file = tmp_path / "mask.png"
    file.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        masks({"mask_type": "file", "file": str(file)}, 1)
    Image.new("L", (4, 4)).save(file)
    with pytest.raises(UserError, match="black everywhere"):
        masks({"mask_type": "file", "file": str(file)}, 1)


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
        with pytest.raises(UserError, match="cannot be read"):
            get_operator("blur", kernel=str(tmp_path / name))


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


def test_a_drawn_kernel_from_a_file_is_the_same_blur(tmp_path):
    drawn = prepared("motion_blur", {"kernel_size": 9, "intensity": 0.5}, (16, 16), NAMES[:1])
    read = prepared("blur", {"kernel": kernel_file(tmp_path, drawn.kernel[0, 0].numpy())}, (16, 16), NAMES[:1])
    x = normal(1, 3, 16, 16)
    torch.testing.assert_close(read(x), drawn(x))


def test_require_linear_lets_linear_operators_through():
    operator = get_operator("noise")
    assert require_linear(operator, "method x") is operator
