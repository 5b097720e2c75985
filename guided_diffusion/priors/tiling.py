"""Priors for photographs: any size, and images larger than the network can take at once.

Both wrap a network behind its own call, model(x_t, t) -> predicted noise and variance channels, so every sampler,
method and operator works with them, and gradients flow through them.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from util.errors import UserError

OVERLAP = 0.375                                     # of a window's side, by default


class PaddedPrior(nn.Module):
    """A network for images of any size: padded at the bottom and on the right by reflection, and cropped back.

    Images are padded to two multiples at least, as a network that has one value left per channel cannot normalise it.

    Args:
        model: the network; sides must be multiples of `multiple`.
    """

    def __init__(self, model: Callable, multiple: int):
        super().__init__()
        self.model, self.multiple = model, multiple

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, C, H, W), (B,) -> (B, C or 2C, H, W)."""
        height, width = x_t.shape[2:]
        for dim in (-2, -1):
            x_t = reflect(x_t, dim, self.multiple * max(2, math.ceil(x_t.shape[dim] / self.multiple)))
        return self.model(x_t, t)[..., :height, :width]


def reflect(x: Tensor, dim: int, size: int) -> Tensor:
    """Extend axis `dim` to `size` by reflection at its end, as often as it takes; the edge pixel is not repeated."""
    while (missing := size - x.shape[dim]) > 0:
        side = x.shape[dim]
        first = min(1, side - 1)
        mirrored = x.flip(dim).narrow(dim, first, min(missing, side - first))
        x = torch.cat([x, mirrored], dim)
    return x


class TiledPrior(nn.Module):
    """A network for images that are larger than it can take: its predictions in overlapping windows, blended.

    Every call looks at all windows of the same noisy image and averages what they predict for a pixel, with weights
    that sum to one and fall to zero towards a window's border (as MultiDiffusion, Bar-Tal et al., 2023, eq. 5). So
    there is one image all the way, with one measurement, and no seam. With gradients enabled a window's activations
    are computed again in the backward pass, so that the memory needed is that of one window.

    Args:
        model: the network, for images of up to `tile` x `tile`.
        tile: side of a window.
        overlap: of neighbouring windows, at least, in pixels; 3/8 of the tile when omitted.

    Raises:
        UserError: tile is less than 2, or overlap is not between 0 and tile.
    """

    def __init__(self, model: Callable, tile: int, overlap: int | None = None):
        super().__init__()
        overlap = int(OVERLAP * tile) if overlap is None else overlap
        if tile < 2 or not 0 <= overlap < tile:
            raise UserError(f"a tile of {tile} with an overlap of {overlap}: expected a tile of 2 or more pixels, and "
                            "an overlap of 0 or more that is less than the tile")
        self.model, self.tile, self.overlap = model, tile, overlap

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, C, H, W), (B,) -> (B, C or 2C, H, W)."""
        rows, columns = (self.windows(side, x_t) for side in x_t.shape[2:])
        if len(rows) == len(columns) == 1:
            return self.model(x_t, t)
        blended = None
        for top, down in rows:
            for left, across in columns:
                window = (..., slice(top, top + len(down)), slice(left, left + len(across)))
                prediction = self._predict(x_t[window].contiguous(), t) * (down[:, None] * across)
                if blended is None:
                    blended = prediction.new_zeros(*prediction.shape[:2], *x_t.shape[2:])
                blended[window] += prediction
        return blended

    def _predict(self, x_t: Tensor, t: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x_t.requires_grad:
            return checkpoint(self.model, x_t, t, use_reentrant=False, preserve_rng_state=False)
        return self.model(x_t, t)

    def windows(self, side: int, like: Tensor) -> tuple[tuple[int, Tensor], ...]:
        """The first pixel of each window along an axis of `side` pixels, and its weights, which sum to 1 everywhere.

        From a border that lies inside the image, a weight is 0 over a sixth of the overlap, where predictions are
        worst, and then rises as sin^2.
        """
        return _windows(side, min(self.tile, side), self.overlap, like.dtype, like.device)


@lru_cache(maxsize=16)                              # so that weights go to the device once, not at every step
def _windows(side: int, length: int, overlap: int, dtype: torch.dtype,
             device: torch.device) -> tuple[tuple[int, Tensor], ...]:
    """`TiledPrior.windows` of `length` pixels."""
    count = math.ceil((side - length) / max(length - overlap, 1)) + 1
    starts = [round(i * (side - length) / max(count - 1, 1)) for i in range(count)]
    margin = overlap // 6
    depth = torch.arange(length, dtype=torch.float64) + 0.5 - margin                # of a pixel below the border
    rise = (depth / max(overlap - margin, 1)).clamp(0, 1).mul(math.pi / 2).sin() ** 2
    whole = torch.ones_like(rise)
    profiles = [(rise if start > 0 else whole) * (rise.flip(0) if start + length < side else whole)
                for start in starts]
    total = torch.zeros(side, dtype=torch.float64)
    for start, profile in zip(starts, profiles, strict=True):
        total[start:start + length] += profile
    return tuple((start, (profile / total[start:start + length]).to(device, dtype))
                 for start, profile in zip(starts, profiles, strict=True))
