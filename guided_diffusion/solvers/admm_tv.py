"""ADMM-TV: total variation by the alternating direction method of multipliers, a baseline of DPS (eq. 68)."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from guided_diffusion.gaussian_diffusion import Sampler
from guided_diffusion.measurements.conjugate_gradients import column, conjugate_gradients, norm
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.method import register_conditioning_method
from guided_diffusion.solvers.base import Iteration, Solver, unit_measurement
from util.config.registry import Count, Positive
from util.seeding import ImageRandomness

RELAXATION = 1.8
INNER_ITERATIONS = 5                                # of conjugate gradients, from the last x
BALANCE_EVERY, IMBALANCE = 10, 3.0                  # iterations, and how far apart two residuals may lie

LEAST_STEP = 1e-3                                   # root mean square below which an image counts as flat


@register_conditioning_method("admm_tv")
class TotalVariationADMM(Solver):
    """argmin_x ||y - A x||^2 / 2 + lam sum_ij |(D x)_ij|, D x the two forward differences of every pixel, by ADMM.

        x <- (A^T A + rho D^T D)^-1 (A^T y + rho D^T (z - u))       conjugate gradients
        v <- 1.8 D x - 0.8 z + u                                    over-relaxed (Boyd et al., 2011, section 3.4.3)
        z <- v max(0, 1 - lam / (rho |v|)),   u <- v - z            |v| of a pixel's two differences: isotropic

    from x = A^T y, z = D x, u = 0; on [0, 1], every colour channel by itself, zero differences beyond the border. An
    image stops at ||D x - z|| <= tolerance max(||D x||, ||z||) and ||D^T (z - z_before)|| <= tolerance ||D^T u||, flat
    images at absolute values. The result is clipped.

    The DPS paper takes rho = 0.14, 0.01 for super-resolution and inpainting, where scico keeps it; there thousands of
    iterations end far from the minimum. So rho is where an image begins: every 10 iterations it doubles or halves where
    one residual is more than 3 times the other (section 3.4.1). The minimum does not depend on it. The paper does not
    say how many iterations it took. Computed in float64.

    Args:
        lam: weight of the total variation, on [0, 1].
        rho: penalty of D x - z.
        iterations: at most.
        tolerance: of the residuals; 2e-6 leaves the objective within 1e-6 of its minimum.
    """

    needs_prior = False
    needs_linear = True

    def __init__(self, lam: Positive = 2.7e-2, rho: Positive = 1.4e-1, iterations: Count = 2000,
                 tolerance: Positive = 2e-6):
        self.lam, self.rho, self.iterations, self.tolerance = lam, rho, iterations, tolerance

    def num_steps(self, sampler: Sampler) -> int:
        """The largest number of iterations."""
        return self.iterations

    def iterates(self, prior: Callable | None, sampler: Sampler, measurement: Measurement,
                 randomness: ImageRandomness) -> Iterator[tuple[Iteration, Tensor]]:
        operator = measurement.operator
        back_projection = operator.transpose(unit_measurement(operator, measurement.y.double()))
        x = back_projection
        z = differences(x)
        u, rho = torch.zeros_like(z), x.new_full((len(x),), self.rho)
        running, flat = torch.ones_like(rho, dtype=torch.bool), LEAST_STEP * math.sqrt(x[0].numel())
        for i in range(self.iterations):
            weight = column(rho, x)

            def normal(v: Tensor, weight: Tensor = weight) -> Tensor:
                return operator.transpose(operator(v)) + weight * divergence(differences(v))

            b = back_projection + weight * divergence(z - u)
            x_next, _ = conjugate_gradients(normal, b, 1e-12, INNER_ITERATIONS, x)
            d = differences(x_next)
            v = RELAXATION * d + (1 - RELAXATION) * z + u
            length = v.square().sum(2, keepdim=True).sqrt().clamp_min(torch.finfo(v.dtype).tiny)
            z_next = v * (1 - self.lam / (column(rho, v) * length)).clamp_min(0)
            primal = norm(d - z_next) / torch.maximum(norm(d), norm(z_next)).clamp_min(flat)
            dual = norm(divergence(z_next - z)) / torch.maximum(norm(divergence(v - z_next)), flat * self.lam / rho)
            x, z, u = (torch.where(column(running, new), new, old)              # what has converged stays as it is
                       for new, old in ((x_next, x), (z_next, z), (v - z_next, u)))
            running = running & ((primal > self.tolerance) | (dual > self.tolerance))
            last = i == self.iterations - 1
            if i % BALANCE_EVERY == BALANCE_EVERY - 1:
                last = last or not running.any()
                factor = torch.where(primal > IMBALANCE * dual, 2.0, torch.where(dual > IMBALANCE * primal, 0.5, 1.0))
                rho, u = rho * factor, u / column(factor, u)
            image = (2 * x.clamp(0, 1) - 1).to(measurement.y)
            yield Iteration(0 if last else self.iterations - 1 - i, image), image
            if last:
                return


def differences(x: Tensor) -> Tensor:
    """D x: the steps to the right and downwards, 0 from the last column and row; (B, C, H, W) -> (B, C, 2, H, W)."""
    return torch.stack([F.pad(x.diff(dim=-1), (0, 1)), F.pad(x.diff(dim=-2), (0, 0, 0, 1))], dim=2)


def divergence(z: Tensor) -> Tensor:
    """D^T z: (B, C, 2, H, W) -> (B, C, H, W)."""
    right, down = z[:, :, 0, :, :-1], z[:, :, 1, :-1]
    return -F.pad(right, (1, 1)).diff(dim=-1) - F.pad(down, (0, 0, 1, 1)).diff(dim=-2)
