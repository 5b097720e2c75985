"""The singular value decomposition A = U S V^T of a forward model, as functions on image-shaped coefficients."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from guided_diffusion.measurements.conjugate_gradients import LinearMap

KEPT = 16                                           # decompositions of axes and of operators, each with its copies
RANK = 1e-12                                        # singular values below this fraction of the largest count as 0


@lru_cache(maxsize=8 * KEPT)
def _copy(factor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return factor.to(device, dtype)


def on(factor: Tensor, like: Tensor) -> Tensor:
    """A factor on the device and in the dtype of `like`; copied from another device once, so that no step waits."""
    return factor.to(like.dtype) if factor.device == like.device else _copy(factor, like.device, like.dtype)


@dataclass(frozen=True, eq=False)
class SVD:
    """A = U S V^T of a prepared operator, images (B, C, H, W) -> measurements (B, ...).

    There are as many coefficients as pixels, and they have the shape of an image, in an order that suits the operator:
    V is orthogonal, and the columns that go with s = 0 span the null space of A. U has orthonormal columns where s > 0
    and zeros elsewhere. The functions compute in the dtype and on the device of what they are given, from factors in
    float64. Signs, and bases of what shares one s, are arbitrary: nothing should depend on them.

    Attributes:
        singular: s, 0 or more, float64; broadcasts to (B, C, H, W).
        v, vt: V and V^T, (B, C, H, W) -> the same shape.
        u, ut: U, (B, C, H, W) -> (B, ...), and U^T.
    """

    singular: Tensor
    v: LinearMap
    vt: LinearMap
    u: LinearMap
    ut: LinearMap

    @cached_property
    def inverse(self) -> Tensor:
        """1 / s, and 0 where s is 0; float64."""
        return torch.where(self.singular > 0, 1 / self.singular, 0)

    def forward(self, x: Tensor) -> Tensor:
        """A x: (B, C, H, W) -> (B, ...)."""
        return self.u(on(self.singular, x) * self.vt(x))

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y: (B, ...) -> (B, C, H, W)."""
        return self.v(on(self.inverse, y) * self.ut(y))


@dataclass(frozen=True, eq=False)
class Axis:
    """The decomposition of the matrix (m, n) of one axis, m <= n: `u` (m, n), zero beyond m, `s` (n,), `v` (n, n)."""

    u: Tensor
    s: Tensor
    v: Tensor


@lru_cache(maxsize=KEPT)
def axis(matrix: Callable[..., Tensor], *arguments) -> Axis:
    """The decomposition of matrix(*arguments), (m, n) in float64 on the CPU with m <= n; kept."""
    u, s, vt = torch.linalg.svd(matrix(*arguments))
    missing = len(vt) - len(s)
    pad = torch.nn.functional.pad
    return Axis(pad(u, (0, missing)), pad(s, (0, missing)), vt.mT)


def separable(axes: Mapping[int, Axis], rcond: float = RANK) -> SVD:
    """The SVD of an A that applies a matrix to each of some axes: singular values are the products of the axes'.

    Args:
        axes: dimension (-3 for channels, -2, -1) -> the decomposition of its matrix.
        rcond: singular values below this fraction of the largest count as 0.
    """
    return _separable(tuple(axes.items()), rcond)


@lru_cache(maxsize=KEPT)
def _separable(items: tuple[tuple[int, Axis], ...], rcond: float) -> SVD:
    axes, singular = dict(items), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for dim, factors in items:
        shape = [1, 1, 1, 1]
        shape[dim] = -1
        singular = singular * factors.s.view(shape)
    singular = torch.where(singular >= rcond * singular.max(), singular, 0)
    seen = singular > 0

    def along(x: Tensor, matrices: Mapping[int, Tensor]) -> Tensor:
        for dim, matrix in matrices.items():
            x = (x.movedim(dim, -1) @ on(matrix, x).mT).movedim(-1, dim)
        return x

    u, ut, v, vt = ({dim: part(factors) for dim, factors in axes.items()} for part in (
        lambda f: f.u, lambda f: f.u.mT, lambda f: f.v, lambda f: f.v.mT))
    return SVD(singular, lambda c: along(c, v), lambda x: along(x, vt),
               lambda c: along(on(seen, c) * c, u), lambda y: on(seen, y) * along(y, ut))
