"""The pictures of a report: embedded images, the crop that tells most, maps of spread and error, trajectories."""

import base64
import hashlib
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from util.errors import UserError
from util.img_utils import load_image, to_uint8, to_unit, write_atomically
from util.logger import get_logger
from util.report.data import Curve
from util.report.markup import Markup, element, join
from util.report.place import pictures_folder

LARGEST_SIDE = 1024                                 # pixels of a picture in the report; larger ones are reduced
EMBEDDED = 48 * 2 ** 20                             # bytes of pictures inside the page; further ones lie beside it
CROP = 0.25                                         # of the shorter side
PLOT = (720, 300, 56, 12, 16, 40)                   # width, height, margins left, right, top, bottom
FACTORS = ((1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9), (1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1,))
COLOURS = 8                                         # of lines, in report.css

Crop = tuple[float, float, float]                   # left / width, top / height, side / shorter side


class Pictures:
    """Images on their way into the page at `page`: as data URIs, or, past `EMBEDDED` bytes, as files beside it.

    Attributes:
        unreadable: the files that could not be read.
    """

    def __init__(self, page: Path):
        self.folder, self.embedded = pictures_folder(page), 0
        self.unreadable: set[Path] = set()

    def load(self, file: Path) -> Tensor | None:
        """The image in a file, (3, H, W) in [-1, 1]; None where there is none, or none that can be read."""
        if not file.is_file():
            return None
        try:
            return load_image(file)
        except UserError as error:
            if file not in self.unreadable:
                get_logger().warning(f"{error}; left out")
            self.unreadable.add(file)
            return None

    def source(self, x: Tensor) -> str:
        """What an <img> has as its `src` to show the image `x` (3, H, W) in [-1, 1]."""
        image, buffer = Image.fromarray(to_uint8(x)), io.BytesIO()
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, format="png", optimize=True)
        content = buffer.getvalue()
        if self.embedded + len(content) <= EMBEDDED:
            self.embedded += len(content)
            return f"data:image/png;base64,{base64.b64encode(content).decode()}"
        name = f"{hashlib.sha256(content).hexdigest()[:20]}.png"
        write_atomically(self.folder / name, content)
        return quote(f"{self.folder.name}/{name}")


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


def fixed_crop(left: int, top: int, side: int, shape: Sequence[int]) -> Crop:
    """A square given in pixels of an image (3, H, W), moved and reduced so that it lies inside."""
    height, width = shape[1:]
    side = min(side, height, width)
    return min(left, width - side) / width, min(top, height - side) / height, side / min(height, width)


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


def plot(curves: Mapping[str, Curve], colours: Mapping[str, int], label: str) -> Markup:
    """Curves over the steps to go, which fall to the right, on a logarithmic axis: inline SVG.

    Args:
        colours: number of each curve's colour.
        label: what it shows, for those who cannot see it.
    """
    width, height, left, right, top, bottom = PLOT
    most = max(int(curve.steps[0]) for curve in curves.values()) or 1
    low = min(float(curve.low.min()) for curve in curves.values())
    high = max(float(curve.high.max()) for curve in curves.values())
    ticks = round_numbers(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    span = math.log10(high) - math.log10(low) or 1.0

    def x(steps: np.ndarray) -> np.ndarray:
        return left + (1 - np.asarray(steps) / most) * (width - left - right)

    def y(values: np.ndarray) -> np.ndarray:
        return top + (math.log10(high) - np.log10(values)) / span * (height - top - bottom)

    parts = []
    for tick in ticks:
        parts += [_line(left, width - right, float(y(tick)), "grid"), _text(left - 8, float(y(tick)) + 4, f"{tick:g}",
                                                                            "end")]
    for tick in step_ticks(most):
        parts.append(_text(float(x(tick)), height - bottom + 18, str(tick), "middle"))
    parts.append(_text((left + width - right) / 2, height - 6, "steps to go", "middle"))
    for name, curve in curves.items():
        colour = f"c{colours[name] % COLOURS}"
        band = [*zip(x(curve.steps), y(curve.high), strict=True),
                *reversed([*zip(x(curve.steps), y(curve.low), strict=True)])]
        parts.append(element("polygon", {"class": f"band {colour}", "points": _points(band)}))
    for name, curve in curves.items():
        colour = f"c{colours[name] % COLOURS}"
        line = zip(x(curve.steps), y(curve.mean), strict=True)
        parts.append(element("polyline", {"class": f"line {colour}", "points": _points(line)},
                             element("title", {}, name)))
    return element("svg", {"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": label}, *parts)


def step_ticks(most: int) -> range:
    """At most seven round numbers from 0 to `most`, equally far apart."""
    apart = next(m * 10 ** e for e in itertools.count() for m in (1, 2, 5) if m * 10 ** e * 6 >= most)
    return range(0, most + 1, apart)


def round_numbers(low: float, high: float) -> list[float]:
    """At most seven round numbers, as fine as that allows: the last one up to `low`, and those up to `high`."""
    for factors in FACTORS:
        found = [float(f"{m}e{e}") for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
                 for m in factors]
        found = [max(n for n in found if n <= low), *(n for n in found if low < n <= high)]
        if len(found) <= 7:
            return found
    return found[::math.ceil(len(found) / 7)]


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in places)


def _line(left: float, right: float, y: float, kind: str) -> Markup:
    return element("line", {"class": kind, "x1": left, "x2": right, "y1": f"{y:.1f}", "y2": f"{y:.1f}"})


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return element("text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}, text)


def key(colours: Mapping[str, int]) -> Markup:
    """The names of a plot's curves beside their colours."""
    return element("p", {"class": "key"}, join(*(
        element("span", {"class": f"c{number % COLOURS}"}, name) for name, number in colours.items())))
