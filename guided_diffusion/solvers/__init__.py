"""Methods with a loop of their own; the classical baselines need no prior."""

from guided_diffusion.method import Method
from guided_diffusion.solvers.admm_tv import TotalVariationADMM
from guided_diffusion.solvers.base import ClassicalRestorer, Solver
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
from guided_diffusion.solvers.ddnm import NullSpaceModel
from guided_diffusion.solvers.ddrm import DenoisingDiffusionRestoration
from guided_diffusion.solvers.exact import ExactPosterior
from guided_diffusion.solvers.fps_smc import FilteringPosteriorSampling
from guided_diffusion.solvers.mcgdiff import MonteCarloGuidedDiffusion
from guided_diffusion.solvers.pnp_admm import PlugAndPlayADMM

__all__ = [
    "Biharmonic",
    "ClassicalRestorer",
    "DenoisingDiffusionRestoration",
    "ExactPosterior",
    "FilteringPosteriorSampling",
    "Lift",
    "Method",
    "MonteCarloGuidedDiffusion",
    "NonLocalMeans",
    "NullSpaceModel",
    "PlugAndPlayADMM",
    "PseudoInverse",
    "RichardsonLucy",
    "Solver",
    "Tikhonov",
    "TotalVariation",
    "TotalVariationADMM",
    "Wiener",
]
