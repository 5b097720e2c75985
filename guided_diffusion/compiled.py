"""The network through torch.compile, or as it is where that does not work."""

import torch
from torch import nn

from util.logger import get_logger


def compiled(model: nn.Module, shape: tuple[int, int, int, int], device: torch.device) -> nn.Module:
    """The network compiled for images of `shape` (B, C, H, W); itself, with a warning that says why, if that fails.

    Compiling happens here, by one forward pass and one gradient. Batches of another shape, or without gradients,
    compile once more, and run as they are where that fails: no restoration ends by it.

    Args:
        model: a frozen network, model(x_t, t).
    """
    x_t, t = torch.zeros(shape, device=device), torch.zeros(shape[0], dtype=torch.int64, device=device)
    try:
        fast = torch.compile(model, dynamic=False)
        with torch.enable_grad():
            torch.autograd.grad(fast(x_t.requires_grad_(), t).sum(), x_t)
        torch._dynamo.config.suppress_errors = True                     # from now on
        return fast
    except Exception as error:      # compilers fail in many ways, none of which is the restoration's
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        get_logger().warning(f"--compile: the network runs as it is, because compiling it failed: {reason}")
        return model
