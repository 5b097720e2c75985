"""Diffusion posterior sampling for image restoration; the names of a notebook, loaded when they are first used."""

from importlib import import_module

__all__ = ["Degraded", "Restoration", "UserError", "degrade", "load_prior", "observe", "restore"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module("guided_diffusion.notebook"), name)
