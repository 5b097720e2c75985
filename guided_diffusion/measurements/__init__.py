"""Forward models and noise models: importing this package fills both registries."""

from guided_diffusion.measurements import (
    blur,
    denoise,
    gopro_blur,
    inpainting,
    noise,
    nonlinear_blur,
    phase_retrieval,
    super_resolution,
)
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
    "get_operator", "gopro_blur", "inpainting", "noise", "nonlinear_blur", "phase_retrieval", "register_noise",
    "register_operator", "require_linear", "super_resolution",
]
