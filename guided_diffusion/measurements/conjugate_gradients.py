"""Iterative linear algebra on batches, every image by itself: power iterations and conjugate gradients."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

LinearMap = Callable[[Tensor], Tensor]              # (B, ...) -> (B, ...)

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}                         # of the relative residual
POWER_ITERATIONS = 8


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each image, (B, ...) and (B, ...) -> (B,)."""
    return (a * b).flatten(1).sum(1)


def norm(a: Tensor) -> Tensor:
    """The Euclidean norm of each image, (B, ...) -> (B,), above 0."""
    return dot(a, a).sqrt().clamp_min(torch.finfo(a.dtype).tiny)


def column(values: Tensor, like: Tensor) -> Tensor:
    """One value per image (B,), to be multiplied with `like` (B, ...): (B, 1, ...)."""
    return values.view(-1, *[1] * (like.dim() - 1))


def largest_eigenvalue(apply: LinearMap, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """The largest eigenvalue of a symmetric positive semi-definite map for each image, (B,), from below.

    Args:
        apply: the map, (B, ...) -> the same shape; linear in each image by itself.
        shape: (B, ...).
        like: has the dtype and the device.
    """
    wave = torch.sin(12.9898 * torch.arange(math.prod(shape[1:]), dtype=torch.float64, device=like.device)) + 1
    v = wave.to(like).view(1, *shape[1:]).expand(shape)                         # has a part in every pattern
    for _ in range(POWER_ITERATIONS):
        v = apply(v / column(norm(v), v))
    return norm(v)


def conjugate_gradients(apply: LinearMap, b: Tensor, tolerance: float, max_iterations: int,
                        start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The solution x of apply(x) = b for each image, and which images (B,) have converged.

    Each image ends when its own ||b - apply(x)|| is at most `tolerance` times that at the start, ||b|| for zeros; the
    host asks every 25 iterations whether all have, the only times that it waits for the device.

    Args:
        apply: a symmetric positive definite map, (B, ...) -> the same shape; linear in each image by itself.
        b: (B, ...).
        max_iterations: 1 or more; with 25 or fewer the host never asks.
        start: where to begin, in the shape of b; zeros when omitted.
    """
    x = torch.zeros_like(b) if start is None else start
    direction = residual = b if start is None else b - apply(start)
    gamma, tiny = dot(residual, residual), torch.finfo(b.dtype).tiny
    target = gamma * tolerance ** 2
    for i in range(max_iterations):
        active = gamma > target
        if i and i % 25 == 0 and not active.any():
            break
        image = apply(direction)
        step = column(torch.where(active, gamma / dot(direction, image).clamp_min(tiny), 0), x)
        x, residual = x + step * direction, residual - step * image
        gamma, previous = torch.where(active, dot(residual, residual), gamma), gamma
        direction = residual + column(gamma / previous.clamp_min(tiny), x) * direction
    return x, gamma <= target


def damped_inverse(forward: LinearMap, transpose: LinearMap, y: Tensor, damping: Tensor,
                   max_iterations: int) -> tuple[Tensor, Tensor]:
    """(A^T A + damping^2 I)^-1 A^T y of each image by `conjugate_gradients`, and which images (B,) have converged.

    Each image ends at its own relative residual of 1e-12 in float64 or 1e-5 in float32.

    Args:
        forward, transpose: A and A^T.
        y: (B, ...).
        damping: (B,), 0 or more.
        max_iterations: 1 or more.
    """
    return conjugate_gradients(lambda x: transpose(forward(x)) + column(damping ** 2, x) * x, transpose(y),
                               TOLERANCE[y.dtype], max_iterations)
