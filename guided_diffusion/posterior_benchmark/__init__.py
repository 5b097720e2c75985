"""How far samples are from the posterior, where the posterior is known exactly."""
