"""What a restoration costs, by runs of the program: `python -m guided_diffusion.benchmark`."""
