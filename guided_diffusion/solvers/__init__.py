"""Methods with a loop of their own; the classical baselines need no prior."""

from guided_diffusion.method import Method
from guided_diffusion.solvers.admm_tv import TotalVariationADMM
from guided_diffusion.solvers.base import ClassicalRestorer, Solver
from guided_diffusion.solvers.bks_generic import BlurKernelSpaceGeneric
from guided_diffusion.solvers.bks_stylegan2 import BlurKernelSpaceStyleGAN2
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
from guided_diffusion.solvers.daps import DecoupledAnnealing
from guided_diffusion.solvers.dcps import DivideAndConquer
from guided_diffusion.solvers.ddnm import NullSpaceModel
from guided_diffusion.solvers.ddrm import DenoisingDiffusionRestoration
from guided_diffusion.solvers.exact import ExactPosterior
from guided_diffusion.solvers.fps_smc import FilteringPosteriorSampling
from guided_diffusion.solvers.mcgdiff import MonteCarloGuidedDiffusion
from guided_diffusion.solvers.phase_retrieval import ErrorReduction, HybridInputOutput, OversamplingSmoothness
from guided_diffusion.solvers.pnp_admm import PlugAndPlayADMM
from guided_diffusion.solvers.pnp_dm import SplitGibbs
from guided_diffusion.solvers.red_diff import RegularisedByDenoising
from guided_diffusion.solvers.sitcom import StepwiseTripleConsistency

__all__ = [
    "Biharmonic",
    "BlurKernelSpaceGeneric",
    "BlurKernelSpaceStyleGAN2",
    "ClassicalRestorer",
    "DecoupledAnnealing",
    "DenoisingDiffusionRestoration",
    "DivideAndConquer",
    "ErrorReduction",
    "ExactPosterior",
    "FilteringPosteriorSampling",
    "HybridInputOutput",
    "Lift",
    "Method",
    "MonteCarloGuidedDiffusion",
    "NonLocalMeans",
    "NullSpaceModel",
    "OversamplingSmoothness",
    "PlugAndPlayADMM",
    "PseudoInverse",
    "RegularisedByDenoising",
    "RichardsonLucy",
    "Solver",
    "SplitGibbs",
    "StepwiseTripleConsistency",
    "Tikhonov",
    "TotalVariation",
    "TotalVariationADMM",
    "Wiener",
]
