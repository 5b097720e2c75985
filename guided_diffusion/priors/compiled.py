"""The network through torch.compile, or as it is where that does not work."""

import torch
from torch import nn

from guided_diffusion.priors.tiling import TiledPrior
from util.logger import logger


def compiled(model: nn.Module, batch_size: int, image_size: int | None, device: torch.device) -> nn.Module:
    """The network compiled for batches of square images; itself, with a warning that says why, if that fails.

    Compiling happens here, by one forward pass and one gradient. Batches of another shape, or without gradients,
    compile once more, and run as they are where that fails: no restoration ends by it. Of a `TiledPrior` the network
    in its windows is compiled.

    Args:
        model: a frozen network, model(x_t, t).
        image_size: side of the images in pixels, None for images of any size.
    """
    if isinstance(model, TiledPrior):
        model.model = compiled(model.model, batch_size, min(image_size or model.tile, model.tile), device)
        return model
    if image_size is None:
        return _as_it_is(model, "it is compiled for one size, and these images may have several; --tile gives them one")
    shape = (batch_size, 3, image_size, image_size)
    x_t, t = torch.zeros(shape, device=device), torch.zeros(batch_size, dtype=torch.int64, device=device)
    try:
        fast = torch.compile(model, dynamic=False)
        with torch.enable_grad():
            torch.autograd.grad(fast(x_t.requires_grad_(), t).sum(), x_t)
        torch._dynamo.config.suppress_errors = True                     # from now on
        return fast
    except Exception as error:      # compilers fail in many ways, none of which is the restoration's
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return _as_it_is(model, f"compiling it failed: {reason}")


def _as_it_is(model: nn.Module, reason: str) -> nn.Module:
    logger.warning(f"--compile: the network runs as it is, because {reason}")
    return model
