"""How a prior is trained: losses and the configuration of a training."""
