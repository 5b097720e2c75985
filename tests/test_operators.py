"""Forward models: golden numbers, adjoint and pseudo-inverse identities, per-image randomness.

The official `transpose` (the identity for blur and inpainting, nearest-neighbour upsampling for super-resolution) and
`project` (data and measurement exchanged) are defects: ours are tested against the definitions.
"""

import tempfile

import numpy as np
import pytest
import torch
from torch import Tensor

from guided_diffusion.measurements import OPERATORS, LinearOperator, Measurement, get_noise, get_operator
from guided_diffusion.measurements.base import require_linear
from tests.helpers import OPERATOR_EXAMPLES, deterministic
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
CASES |= {name: ((name, params), [(16, 16)]) for name, params in OPERATOR_EXAMPLES.items()
          if issubclass(OPERATORS[name], LinearOperator) and name not in {case[0] for case, _ in CASES.values()}}
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


def test_require_linear_lets_linear_operators_through():
    operator = get_operator("noise")
    assert require_linear(operator, "method x") is operator
