"""The iterative pseudo-inverse: stable where A is ill-conditioned, exact where it is not, each image by itself."""

import math

import pytest
import torch
from torch import Tensor

from guided_diffusion.measurements import LinearOperator, base, get_operator
from guided_diffusion.measurements.conjugate_gradients import damped_inverse
from tests.helpers import normal, relative
from util.seeding import ImageRandomness

NAMES = ["a", "b", "c"]                                         # their motion blurs of 3 x 3 are well-conditioned


def motion_blur(size: int, kernel_size: int = 5, names: list[str] = NAMES, **params) -> LinearOperator:
    operator = get_operator("motion_blur", kernel_size=kernel_size, intensity=0.5, **params)
    return operator.prepare((len(names), 3, size, size), ImageRandomness(0, names, purpose="operator"))


@pytest.mark.parametrize("size", [16, 52])                      # by singular values, and by conjugate gradients
@pytest.mark.parametrize("rcond", [0.05, None])
def test_a_change_in_the_last_digit_changes_nothing(size, rcond):
    """White noise seen through a kernel with zeros in its spectrum: undamped, 1e-15 in y moved A^+ y by 141."""
    operator = motion_blur(size, rcond=rcond)
    y = normal(3, 3, size, size)
    x, moved = operator.pinv(y), operator.pinv(y + 1e-15 * normal(3, 3, size, size, seed=1))
    assert relative(moved, x) < 1e-10
    if rcond is not None:
        assert (moved - x).abs().max() < 1e-12 and x.norm() < y.norm() / rcond
    for i, name in enumerate(NAMES):
        alone = motion_blur(size, names=[name], rcond=rcond).pinv(y[i:i + 1])
        assert relative(alone, x[i:i + 1]) < 1e-9


class Gains(LinearOperator):
    """diag(s) on the pixels, s from 1 down to `smallest`, times `scale`."""

    def __init__(self, smallest: float, scale: float = 1.0, batch: int = 2):
        super().__init__()
        self.gains = scale * torch.logspace(0, math.log10(smallest), 64, dtype=torch.float64).view(8, 8)
        self.image_shape = (batch, 3, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.gains.to(x) * x


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_rcond_damps_relative_to_the_largest_gain(scale):
    operator, y = Gains(1e-3, scale), normal(2, 3, 8, 8)
    gain = operator._largest_gain(y)
    assert (0.9 * scale < gain).all() and (gain < scale * (1 + 1e-12)).all()
    damped = operator.gains * y / (operator.gains ** 2 + (0.05 * gain[0]) ** 2)
    assert relative(operator.damped_pinv(y, rcond=0.05), damped) < 1e-9


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-10), (torch.float32, 1e-3)])
def test_well_conditioned_operators_are_inverted_exactly(dtype, limit, scale):
    smallest = 1e-3 if dtype == torch.float64 else 0.1
    operator, x = Gains(smallest, scale), normal(2, 3, 8, 8).to(dtype)
    y = operator(x)
    assert relative(operator(operator.pinv(y)), y) < limit
    assert relative(operator.pinv(y), x) < 30 * limit


def test_identities_of_a_well_conditioned_kernel_above_the_size_of_matrices():
    operator = motion_blur(52, kernel_size=3)
    x = normal(3, 3, 52, 52)
    y, inverse = operator(x), operator.pinv(normal(3, 3, 52, 52, seed=1))
    assert relative(operator(operator.pinv(y)), y) < 1e-10
    assert relative(operator.pinv(operator(inverse)), inverse) < 1e-8
    assert relative(operator.project(x, normal(3, 3, 52, 52, seed=1)) - x,
                    operator.pinv(normal(3, 3, 52, 52, seed=1) - y)) < 1e-10


def test_the_fallback_for_ill_conditioned_kernels(monkeypatch):
    """What 1000 iterations do not resolve is solved with rcond 1e-2: A A+ A = A to about that."""
    solved = []
    monkeypatch.setattr(base, "damped_inverse", lambda *given: solved.append(damped_inverse(*given)) or solved[-1])
    operator = motion_blur(52, kernel_size=25, names=NAMES[:1])
    x = normal(1, 3, 52, 52)
    y = operator(x)
    inverse = operator.pinv(y)
    fine, converged = solved[0]
    assert len(solved) == 2 and not converged.any() and fine.isfinite().all()
    torch.testing.assert_close(inverse, operator.damped_pinv(y, rcond=1e-2))
    assert relative(operator(inverse), y) < 2e-2 and inverse.norm() < 2 * x.norm()
    single = operator.pinv(y.float())
    assert single.dtype == torch.float32 and relative(single.double(), inverse) < 1e-2


def test_images_of_one_batch_end_by_themselves():
    """An image that is solved at once, one that takes long and one that is zero, together and alone."""
    operator, y = Gains(1e-2, batch=3), normal(2, 3, 8, 8)
    y = torch.cat([y[:1], torch.zeros_like(y[:1]), (operator.gains == 1) * y[1:]])
    together = operator.pinv(y)
    for i in range(3):
        torch.testing.assert_close(Gains(1e-2, batch=1).pinv(y[i:i + 1]), together[i:i + 1], rtol=0, atol=1e-9)
    assert (together[1] == 0).all()


def test_the_host_looks_at_values_once_in_25_iterations(monkeypatch):
    looks, truth = [], torch.Tensor.__bool__
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda tensor: looks.append(1) or truth(tensor))
    operator = motion_blur(52, kernel_size=9, names=NAMES[:1])
    operator.pinv(operator(normal(1, 3, 52, 52)))
    assert 2 <= len(looks) <= 2 + (1000 + 3000) / 25
