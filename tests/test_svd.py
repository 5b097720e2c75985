"""The exact SVDs of the linear operators, in float64: A = U S V^T, orthogonal factors, the values of a dense SVD."""

import numpy as np
import pytest
import torch
from torch import Tensor

from guided_diffusion.measurements import LinearOperator, get_noise
from guided_diffusion.measurements.svd import _copy, on
from tests.helpers import normal, relative
from tests.operator_cases import CASES, prepared
from util.errors import UserError

WITHOUT = {"motion_blur", "composite", "blur"}      # `blur` has one for some kernels: see below


@pytest.fixture(params=[case for case, ((name, _), _) in CASES.items() if name not in WITHOUT])
def operator(request) -> LinearOperator:
    """Every linear operator that has an SVD, for three images."""
    (name, params), sizes = CASES[request.param]
    return prepared(name, params, sizes[-1])


def test_factors_of_the_same_device_are_not_kept():
    """Those of a mask are new at every step."""
    before = _copy.cache_info().currsize
    factor = torch.rand(4).double()
    assert torch.equal(on(factor, torch.zeros(1)), factor.float()) and _copy.cache_info().currsize == before


def separable_kernel(tmp_path) -> LinearOperator:
    np.save(tmp_path / "kernel.npy", np.outer([1, 5, 2], [3, 1, 4]) / 64)
    return prepared("blur", {"kernel": str(tmp_path / "kernel.npy")}, (9, 12))


def test_the_factors_give_the_operator(operator):
    svd, x = operator.svd(), normal(*operator.image_shape)
    y = operator(x)
    assert relative(svd.forward(x), y) < 1e-12
    assert relative(svd.v(svd.singular * svd.ut(y)), operator.transpose(y)) < 1e-12
    assert svd.forward(x.float()).dtype == torch.float32


def test_the_factors_are_orthogonal(operator):
    svd, c = operator.svd(), normal(*operator.image_shape)
    assert relative(svd.vt(svd.v(c)), c) < 1e-12 and relative(svd.v(svd.vt(c)), c) < 1e-12
    torch.testing.assert_close(svd.vt(c).norm(), c.norm(), rtol=1e-12, atol=0)
    seen = (svd.singular > 0).to(c) * c
    assert relative(svd.ut(svd.u(c)), seen) < 1e-12
    assert (svd.ut(operator(c))[(svd.singular == 0).expand_as(c)] == 0).all()


def matrices(operator: LinearOperator) -> Tensor:
    """The matrix of each image, (B, m, n), column by column."""
    shape = operator.image_shape
    units = torch.eye(torch.Size(shape[1:]).numel(), dtype=torch.float64).view(-1, 1, *shape[1:])
    return torch.stack([operator(unit.expand(shape)).flatten(1) for unit in units], dim=2)


@pytest.mark.parametrize("case", ["noise", "sr4", "random", "gaussian_matrices", "grey", "average3", "hadamard", "dct",
                                  "cartesian", "radial", "points"])
def test_the_singular_values_are_those_of_the_matrix(case):
    """Sorted, with as many zeros as the null space has dimensions."""
    (name, params), _ = CASES[case]
    operator = prepared(name, params, {"average3": (6, 9)}.get(case, (8, 8)))
    dense = matrices(operator)
    values = torch.linalg.svdvals(dense)
    found = operator.svd().singular.expand(operator.image_shape).flatten(1).sort(descending=True).values
    torch.testing.assert_close(found[:, :values.shape[1]], values, rtol=1e-9, atol=1e-12)
    assert (found[:, values.shape[1]:] == 0).all()


def test_the_pseudo_inverse(operator):
    y = operator(normal(*operator.image_shape))
    assert relative(operator.svd().pinv(y), operator.pinv(y)) < 1e-6


def test_a_given_kernel_that_is_a_product_of_profiles(tmp_path):
    operator = separable_kernel(tmp_path)
    svd, x = operator.svd(), normal(3, 3, 9, 12)
    assert relative(svd.forward(x), operator(x)) < 1e-12
    torch.testing.assert_close(svd.singular.flatten().sort().values,
                               torch.linalg.svdvals(matrices(operator)[0, :108, :108]).sort().values)


def test_no_channel_is_treated_like_another():
    """A grey image blurred stays grey: the released code scrambles the filters of the channels by 34 %."""
    operator = prepared("gaussian_blur", {"kernel_size": 5, "intensity": 1.5}, (12, 10))
    grey = normal(3, 1, 12, 10).expand(3, 3, 12, 10)
    y = operator.svd().forward(grey)
    assert relative(y, operator(grey)) < 1e-12
    torch.testing.assert_close(y, y[:, :1].expand_as(y), rtol=0, atol=1e-14)


@pytest.mark.parametrize("case", [case for case, ((name, _), _) in CASES.items() if name in WITHOUT])
def test_operators_without_an_svd_say_why(case):
    (name, params), sizes = CASES[case]
    with pytest.raises(UserError, match=f"'{name}' has no singular value"):
        prepared(name, params, sizes[0]).svd()


def test_white_noise():
    assert get_noise("clean").white_sigma == 0
    assert get_noise("gaussian", sigma=0.1, range=[0, 1]).white_sigma == 0.2
    assert get_noise("poisson").white_sigma is None
