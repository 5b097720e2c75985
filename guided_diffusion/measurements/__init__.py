"""Forward models and noise models: importing this package fills both registries."""

from guided_diffusion.measurements import (
    blur,
    colorization,
    composite,
    compressed_sensing,
    denoise,
    fourier,
    gopro_blur,
    hdr,
    inpainting,
    jpeg,
    noise,
    nonlinear_blur,
    phase_retrieval,
    sr_average,
    super_resolution,
)
from guided_diffusion.measurements.base import (
    NOISES,
    OPERATORS,
    LinearOperator,
    Noise,
    Operator,
    get_noise,
    get_operator,
    register_noise,
    register_operator,
)
from guided_diffusion.measurements.measurement import Measurement

__all__ = [
    "NOISES", "OPERATORS", "LinearOperator", "Measurement", "Noise", "Operator", "blur", "colorization", "composite",
    "compressed_sensing", "denoise", "fourier", "get_noise", "get_operator", "gopro_blur", "hdr", "inpainting", "jpeg",
    "noise", "nonlinear_blur", "phase_retrieval", "register_noise", "register_operator", "sr_average",
    "super_resolution",
]
