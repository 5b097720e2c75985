"""Identities of the forward models: adjoint, pseudo-inverse, projection, precision.

The official `transpose` (the identity for blur and inpainting, nearest-neighbour upsampling for super-resolution) and
`project` (data and measurement exchanged) are defects: ours are tested against the definitions.
"""

import pytest
import torch

from guided_diffusion.measurements import OPERATORS, LinearOperator, get_operator
from tests.helpers import NAMES, normal, relative
from tests.operator_cases import CASES, every_case, prepared
from util.seeding import ImageRandomness


def test_every_linear_operator_has_a_case():
    linear = {name for name in OPERATORS if issubclass(OPERATORS[name], LinearOperator)}
    assert {case[0] for case, _ in CASES.values()} >= linear


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


@pytest.mark.parametrize("case", ["noise", "sr2", "sr4", "box", "random", "grey", "average3", "hadamard", "dct",
                                  "cartesian", "radial", "points"])
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
    streams = ImageRandomness(0, NAMES, purpose="operator")
    double = get_operator(name, **params).double().prepare(operator.image_shape, streams)
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
    operator = operator.prepare(operator.image_shape, ImageRandomness(1, NAMES, purpose="operator"))
    with torch.inference_mode():
        operator(x)
    x.requires_grad_()
    after = operator(x)
    after.sum().backward()
    assert not torch.allclose(before, after)
    torch.testing.assert_close(x.grad, operator.transpose(torch.ones_like(x)))
