"""What a restoration costs: `python -m guided_diffusion.benchmark`."""
