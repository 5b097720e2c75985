"""What a few evaluations tell of an operator and a noise model that somebody wrote, before anything is restored."""

import torch
from torch import Tensor

from guided_diffusion.measurements.base import LinearOperator, Noise, Operator, kind_of
from guided_diffusion.measurements.conjugate_gradients import dot
from guided_diffusion.measurements.measurement import Measurement
from util.errors import UserError
from util.seeding import ImageRandomness

ACCURACY = 1e-3                                     # relative, of what holds exactly but for rounding


@torch.no_grad()
def check_measurement(measurement: Measurement) -> None:
    """Raise UserError unless operator and noise of a measurement are sound: finite, what a method begins with and what
    is shown are images, and a `LinearOperator` is linear, with `transpose` its adjoint."""
    operator, y = measurement.operator, measurement.y
    u, v = (_white(operator, y, purpose) for purpose in "uv")
    clean = operator(u.clamp(-1, 1))
    if not clean.isfinite().all():
        raise UserError(f"operator '{operator.name}' gives NaN or infinity for images in [-1, 1]; mend its forward")
    if not y.isfinite().all():
        raise UserError(f"noise '{measurement.noiser.name}' gives NaN or infinity; mend its forward")
    _check_variances(measurement.noiser, clean)
    if isinstance(operator, LinearOperator):
        _check_linear(operator, u, v)
    for name in ("initial_guess", "lift"):
        found = tuple(getattr(measurement, name)().shape)
        if found != measurement.image_shape:
            raise UserError(f"operator '{operator.name}': {name} gives {list(found)}, expected "
                            f"{list(measurement.image_shape)}, the shape of the images")


def _check_variances(noise: Noise, clean: Tensor) -> None:
    """UserError unless what a noise model says of its size is None, or 0 or more for each entry of `clean`."""
    for name in ("variance", "expected_square"):
        found = getattr(noise, name)(clean)
        where = f"noise '{noise.name}': {name} gives"
        if found is not None and (not isinstance(found, Tensor) or found.shape != clean.shape):
            raise UserError(f"{where} {kind_of(found)}, expected one number for each entry of its argument, "
                            f"{kind_of(clean)}, such as torch.full_like(prediction, sigma ** 2)")
        if found is not None and not (found.isfinite() & (found >= 0)).all():
            raise UserError(f"{where} numbers that are negative or not finite, expected variances")


def _check_linear(operator: LinearOperator, u: Tensor, v: Tensor) -> None:
    """UserError unless A(u - 2 v) = A u - 2 A v and <A u, A u> = <u, A^T A u>, up to ACCURACY; u, v (B, C, H, W)."""
    au = operator(u)
    square = dot(au.double(), au.double())
    error = (operator(u - 2 * v) - au + 2 * operator(v)).double()
    if (dot(error, error) > ACCURACY ** 2 * square).any():
        raise UserError(f"operator '{operator.name}' is no linear one: for white noise u and v, A(u - 2 v) is not "
                        "A u - 2 A v; subclass Operator in place of LinearOperator, or move what is random into draw()")
    try:
        adjoint = operator.transpose(au)
    except RuntimeError as error:
        if type(operator).transpose is not LinearOperator.transpose:
            raise
        raise UserError(f"operator '{operator.name}': no adjoint can be derived from forward ({error}); make that of "
                        "differentiable functions of torch, or write transpose") from error
    if not isinstance(adjoint, Tensor) or adjoint.shape != u.shape:
        raise UserError(f"operator '{operator.name}': transpose gives {kind_of(adjoint)}, expected the shape of the "
                        f"images, {list(u.shape)}")
    other = dot(u.double(), adjoint.double())
    if ((other - square).abs() > ACCURACY * square).any():
        raise UserError(f"operator '{operator.name}': transpose is not the adjoint of forward: <A u, A u> is "
                        f"{square[0]:.4g}, <u, A^T A u> {other[0]:.4g}; mend it, or leave it out: it is derived from a "
                        "forward of differentiable functions of torch")


def _white(operator: Operator, y: Tensor, purpose: str) -> Tensor:
    """White noise in the shape of the images, (B, C, H, W), like y."""
    zeros = y.new_zeros(operator.image_shape)
    names = [f"trial {b}" for b in range(len(zeros))]
    return ImageRandomness(0, names, purpose=purpose, device=y.device).randn_like(zeros)
