"""Methods with a loop of their own; the classical baselines need no prior."""

from guided_diffusion.method import Method
from guided_diffusion.solvers.base import ClassicalRestorer
from guided_diffusion.solvers.classical import (
    Biharmonic,
    Lift,
    NonLocalMeans,
    PseudoInverse,
    RichardsonLucy,
    Tikhonov,
    TotalVariation,
    Wiener,
)

__all__ = [
    "Biharmonic",
    "ClassicalRestorer",
    "Lift",
    "Method",
    "NonLocalMeans",
    "PseudoInverse",
    "RichardsonLucy",
    "Tikhonov",
    "TotalVariation",
    "Wiener",
]
