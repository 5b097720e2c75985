"""Forward models and noise models: importing this package fills both registries."""

from guided_diffusion.measurements import blur, denoise, inpainting, noise, super_resolution
from guided_diffusion.measurements.base import (
    NOISES,
    OPERATORS,
    LinearOperator,
    Measurement,
    Noise,
    Operator,
    get_noise,
    get_operator,
    register_noise,
    register_operator,
    require_linear,
)

__all__ = [
    "NOISES", "OPERATORS", "LinearOperator", "Measurement", "Noise", "Operator", "blur", "denoise", "get_noise",
    "get_operator", "inpainting", "noise", "register_noise", "register_operator", "require_linear", "super_resolution",
]
