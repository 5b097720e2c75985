"""The pictures of a report: embedded images, the crop that tells most, maps of spread and error, trajectories."""

import base64
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from util.errors import UserError
from util.files import content_of
from util.img_utils import load_image, to_uint8, to_unit
from util.logger import logger

LARGEST_SIDE = 1024                                 # pixels of a picture in the report; larger ones are reduced
CROP = 0.25                                         # of the shorter side
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#7a6ff0", "#56b4e9", "#888888")      # of curves
GREY = "#808589"                                    # of a plot's text and axes, to be read on white and on black

Crop = tuple[float, float, float]                   # left / width, top / height, side / shorter side


class Pictures:
    """Images on their way into a page; `unreadable` are the files that could not be read."""

    def __init__(self):
        self.unreadable: set[Path] = set()

    def load(self, file: Path) -> Tensor | None:
        """The image in a file, (3, H, W) in [-1, 1]; None where there is none, or none that can be read."""
        if not file.is_file():
            return None
        try:
            return load_image(file)
        except UserError as error:
            if file not in self.unreadable:
                logger.warning(f"{error}; left out")
            self.unreadable.add(file)
            return None

    def source(self, x: Tensor) -> str:
        """What an <img> has as its `src` to show the image `x` (3, H, W) in [-1, 1]."""
        image = Image.fromarray(to_uint8(x))
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
        return data_uri(content_of(partial(image.save, format="png", optimize=True)), "png")


def data_uri(content: bytes, kind: str) -> str:
    """A picture as an address."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def telling_crop(restored: Sequence[Tensor], others: Sequence[Tensor]) -> Crop:
    """The square in which restorations (3, H, W) differ most from each other; a single one, from the `others`.

    The centre, where their sizes differ or there is nothing to compare.
    """
    compared = [*restored, *([] if len(restored) > 1 else others[-1:])]
    if len(compared) < 2 or len({tuple(x.shape) for x in compared}) > 1:
        return (1 - CROP) / 2, (1 - CROP) / 2, CROP
    height, width = compared[0].shape[1:]
    side = max(1, round(CROP * min(height, width)))
    deviation = torch.stack([to_unit(x).nan_to_num(0) for x in compared]).var(0, correction=0).mean(0)
    windows = F.avg_pool2d(deviation[None, None], side, stride=1)[0, 0]
    top, left = divmod(int(windows.argmax()), windows.shape[1])
    return left / width, top / height, side / min(height, width)


def deviation_map(samples: Sequence[Tensor]) -> Tensor:
    """The standard deviation of samples (3, H, W) in every pixel, (H, W) on [0, 1]: root mean square over channels."""
    return torch.stack([to_unit(x) for x in samples]).var(dim=0).mean(dim=0).sqrt()


def error_map(x: Tensor, label: Tensor) -> Tensor:
    """|x - label| in every pixel, (H, W) on [0, 1]: root mean square over channels."""
    return (to_unit(x) - to_unit(label)).square().mean(dim=0).sqrt()


def coloured(values: Tensor, top: float) -> Tensor:
    """A map (H, W) of values from 0 to `top` in the colours of magma: (3, H, W) in [-1, 1]."""
    from matplotlib import colormaps

    colours = colormaps["magma"](np.clip(values.numpy() / (top or 1), 0, 1))[..., :3]
    return torch.from_numpy(colours * 2 - 1).float().movedim(-1, 0)


def plot(curves: Mapping[int, np.ndarray]) -> str:
    """Curves, by the number of their colour, over the steps to go, which fall to the right, on a logarithmic axis.

    Args:
        curves: steps, mean and band, (4, n) each.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    grey = ("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    with matplotlib.rc_context({"svg.hashsalt": "", "svg.fonttype": "none", "axes.spines.top": False,
                                "axes.spines.right": False, "grid.alpha": 0.3, **dict.fromkeys(grey, GREY)}):
        figure = Figure(figsize=(6, 2.9), layout="constrained")
        axes = figure.subplots()
        for number, (steps, mean, low, high) in curves.items():
            colour = COLOURS[number % len(COLOURS)]
            axes.fill_between(steps, low, high, color=colour, alpha=0.16, lw=0)
            axes.plot(steps, mean, color=colour)
        axes.set(yscale="log", xlabel="steps to go", xlim=(max(steps[0] for steps, *_ in curves.values()), 0))
        axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(),
                       major_formatter=FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(axis="y")
        return data_uri(content_of(partial(figure.savefig, format="svg", transparent=True, metadata=dict.fromkeys(
            ("Date", "Creator", "Format", "Type")))), "svg+xml")
