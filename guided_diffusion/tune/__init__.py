"""The best settings for a task: `python -m guided_diffusion.tune`."""
