"""Conditioning methods: what plugs into the ancestral sampling loop."""

from guided_diffusion.condition_methods.base import (
    CONDITIONING_METHODS,
    ConditioningMethod,
    register_conditioning_method,
)
from guided_diffusion.condition_methods.diffpir import PlugAndPlayRestoration
from guided_diffusion.condition_methods.dmps import NoisePerturbedLikelihood
from guided_diffusion.condition_methods.dpps import PosteriorProximalSampling
from guided_diffusion.condition_methods.dsg import SphericalGaussianGuidance
from guided_diffusion.condition_methods.fast_dips import FastDips
from guided_diffusion.condition_methods.identity import Identity
from guided_diffusion.condition_methods.ilvr import IterativeLatentVariableRefinement
from guided_diffusion.condition_methods.mcg import ManifoldConstraintGradient
from guided_diffusion.condition_methods.pigdm import PseudoinverseGuidance
from guided_diffusion.condition_methods.posterior_sampling import PosteriorSampling, PosteriorSamplingPlus
from guided_diffusion.condition_methods.projection import Projection
from guided_diffusion.condition_methods.tmpd import TweedieMomentProjection

__all__ = [
    "CONDITIONING_METHODS",
    "ConditioningMethod",
    "FastDips",
    "Identity",
    "IterativeLatentVariableRefinement",
    "ManifoldConstraintGradient",
    "NoisePerturbedLikelihood",
    "PlugAndPlayRestoration",
    "PosteriorProximalSampling",
    "PosteriorSampling",
    "PosteriorSamplingPlus",
    "Projection",
    "PseudoinverseGuidance",
    "SphericalGaussianGuidance",
    "TweedieMomentProjection",
    "get_conditioning_method",
    "register_conditioning_method",
]


def get_conditioning_method(name: str, **params) -> ConditioningMethod:
    """Build a registered method from the YAML's `params`; UserError on an unknown name or parameter."""
    return CONDITIONING_METHODS.build(name, **params)
