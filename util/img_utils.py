"""Images at the file border: files <-> float32 tensors in [-1, 1]. The only file that knows 255.

The map between [-1, 1] and 8 bits is fixed, u = 255 (x + 1) / 2, so that a saved picture has the same brightness as
the tensor that was scored.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torch.nn import functional as F

from util.errors import UserError, printable
from util.files import content_of, write_atomically
from util.logger import logger

PIXEL_STEP = 2 / 255                                # one 8-bit level on [-1, 1]
FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")    # Pillow would run other programs for some others
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
TIFF_DEPTH_TAG, TIFF_COLOUR_TAG = 258, 262          # BitsPerSample, PhotometricInterpretation
WHITE_IS_ZERO = 0                                   # value of the second
NO_RANGE = "have no known value range; save it as unsigned 8 or 16 bits"
GRID_CELL = 256                                     # pixels of a picture in a grid: small ones are enlarged to about
LARGEST_GRID_CELL = 512                             # the first, large ones reduced to the second
COMPRESSION = 4                                     # zlib's: a third of the time of its usual 6, files 4 % larger


def to_uint8(x: Tensor) -> np.ndarray:
    """An image (3, H, W) in [-1, 1] -> (H, W, 3) uint8; values outside the range are clamped, NaN becomes 0."""
    levels = to_unit(x.detach()).nan_to_num(0).mul(255).round().to(torch.uint8)
    return levels.permute(1, 2, 0).cpu().numpy()


def from_uint8(levels: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [-1, 1]; the inverse of `to_uint8`."""
    return _to_tensor(levels, 255)


def to_unit(x: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped: the scale on which images are scored."""
    return (x.float() / 2 + 0.5).clamp(0, 1)


def _to_tensor(levels: np.ndarray, top: int) -> Tensor:
    return torch.from_numpy(levels.astype(np.float32)).permute(2, 0, 1).contiguous() / (top / 2) - 1


def save_image(path: Path, x: Tensor, alpha: Tensor | None = None) -> None:
    """Save an image (3, H, W) in [-1, 1] as PNG, atomically.

    Args:
        alpha: its opacity (h, w) in [0, 1], resized to H x W where it has another size; the PNG is RGBA with it.
    """
    image = Image.fromarray(to_uint8(x))
    if alpha is not None:
        opacity = _resized(alpha[None], x.shape[1:])[0].clamp(0, 1)
        image.putalpha(Image.fromarray(opacity.mul(255).round().to(torch.uint8).cpu().numpy()))
    _save(path, image)


def _save(path: Path, image: Image.Image) -> None:
    write_atomically(path, content_of(partial(image.save, format="png", compress_level=COMPRESSION)))


def is_whole_png(path: Path) -> bool:
    """Whether a file is a PNG from beginning to end, by the checksums of its parts."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
        return True
    except Exception:               # damaged files raise a dozen types
        return False


def load_image(path: Path, size: int | None = None) -> Tensor:
    """Read an image file as RGB (3, H, W) float32 in [-1, 1].

    Grey, palette and CMYK images become RGB, alpha is dropped, 16-bit PNG and grey TIFF keep their depth, and the EXIF
    orientation is applied; of several frames or pages the first is read, and a warning says so. With `size` the image
    is cropped to its central square and resized (antialiased bicubic) to `size` x `size`.

    Raises:
        UserError: the file is missing, no image, truncated, or too large to be decoded safely; its numbers have no
            known range, or it is a TIFF with 16-bit colours.
    """
    with _opened(path) as image:
        x = _decode(image, path)
    return x if size is None else central_square(x, size)


def load_alpha(path: Path) -> Tensor | None:
    """The opacity of an image file, (H, W) float32 in [0, 1]; None for images without transparency.

    Raises:
        UserError: as `load_image`.
    """
    with _opened(path) as image:
        if "A" not in image.getbands() and "transparency" not in image.info or image.mode.startswith("I"):
            return None
        alpha = np.asarray(ImageOps.exif_transpose(image).convert("RGBA").getchannel("A"))
        return torch.from_numpy(alpha.astype(np.float32)) / 255


@cache
def _tell_of_frames(path: str, frames: int) -> None:
    if frames > 1:
        logger.warning(f"{path} has {frames} frames or pages: the first is read")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture in a file; one UserError for whatever goes wrong with it in the block."""
    with _readable(printable(path)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as image:
            if image.format != "MPO":               # of many phones: a JPEG with a preview or a gain map
                _tell_of_frames(printable(path), getattr(image, "n_frames", 1))
            yield image


@contextmanager
def _readable(image: str) -> Iterator[None]:
    """UserError, which names the image, for whatever goes wrong in the block."""
    try:
        yield
    except Exception as error:      # decoders raise a dozen types for damaged files; none of them means success
        reason = (str(getattr(error, "strerror", None) or error) or type(error).__name__).splitlines()[0]
        reason = "no image of 8 or 16 bits, or a damaged one" if reason.startswith("cannot identify") else reason
        raise UserError(f"cannot read image {image}: {reason[:120]}") from None


def _decode(image: Image.Image, path: Path) -> Tensor:
    # the header chunk of a PNG holds the bit depth at byte 24 and the colour type at byte 25; Pillow reads 8 bits of
    # colours, and of grey with alpha
    with open(path, "rb") as file:
        head = file.read(26)
    if image.format == "PNG" and head[24] == 16 and head[25] in (2, 4, 6):
        from torchvision.io import ImageReadMode, decode_png

        content = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        levels = decode_png(content, ImageReadMode.RGB, apply_exif_orientation=True)
        return _to_tensor(levels.permute(1, 2, 0).numpy(), 65535)
    return _from_pillow(image)


def from_pillow(image: Image.Image) -> Tensor:
    """A picture of Pillow as (3, H, W) float32 in [-1, 1], as `load_image` reads it from a file; of colours with more
    than 8 bits Pillow keeps 8.

    Raises:
        UserError: as `load_image`.
    """
    with _readable(f"of mode {image.mode}"):
        if not all(image.size):
            raise ValueError("it has no pixels")
        return _from_pillow(image)


def _from_pillow(image: Image.Image) -> Tensor:
    tags = image.tag_v2 if image.format == "TIFF" else {}
    if len(depths := tags.get(TIFF_DEPTH_TAG, ())) >= 3 and max(depths) > 8:
        raise ValueError("16-bit colours are read from PNG files, not from TIFF; save it as PNG")
    inverted = tags.get(TIFF_COLOUR_TAG) == WHITE_IS_ZERO
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):                                      # grey, 16 bits
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"whole numbers outside 0 to 65535 {NO_RANGE}")
        return _to_tensor(np.stack([65535 - levels if inverted else levels] * 3, axis=2), 65535)
    if image.mode == "F":
        raise ValueError(f"floating-point images {NO_RANGE}")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return from_uint8(np.asarray(image.convert("RGB")))


def central_square(x: Tensor, size: int) -> Tensor:
    """The centre of an image (3, H, W) in [-1, 1] -> (3, size, size), antialiased bicubic where it has another size."""
    side = min(x.shape[1:])
    top, left = ((extent - side) // 2 for extent in x.shape[1:])
    square = x[:, top:top + side, left:left + side]
    return square if side == size else _resized(square, (size, size)).clamp(-1, 1)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) -> (C, *size), antialiased bicubic."""
    if x.shape[1:] == size:
        return x
    return F.interpolate(x[None], size=size, mode="bicubic", antialias=True, align_corners=False)[0]


def save_grid(path: Path, rows: list[list[Tensor]], captions: list[list[str]], header: list[str]) -> None:
    """Save a table of pictures as PNG, each with a line of text below it and each column with a title.

    Args:
        rows: images (3, H, W) in [-1, 1], of any size; small ones are enlarged to about 256 pixels, large ones
            reduced to 512.
        captions: a text per picture, in the layout of `rows`.
        header: a title per column.
    """
    gap, line = 12, 30
    pictures = [[_fit_cell(x) for x in row] for row in rows]
    cell_width, cell_height = (max(picture.size[i] for row in pictures for picture in row) for i in (0, 1))
    columns = len(header)
    canvas = Image.new("RGB", (gap + columns * (cell_width + gap), 2 * gap + line + len(rows) * (cell_height + line)),
                       "white")
    draw = ImageDraw.Draw(canvas)
    title, text = (ImageFont.load_default(size=max(9, min(size, cell_width // 11))) for size in (19, 16))
    for j, label in enumerate(header):
        draw.text((gap + j * (cell_width + gap) + cell_width // 2, gap + line // 2), label, "black", title, "mm")
    for i, (row, texts) in enumerate(zip(pictures, captions, strict=True)):
        for j, (picture, label) in enumerate(zip(row, texts, strict=True)):
            left, top = gap + j * (cell_width + gap), gap + line + i * (cell_height + line)
            canvas.paste(picture, (left + (cell_width - picture.width) // 2, top + (cell_height - picture.height) // 2))
            while draw.textlength(label, text) > cell_width and len(label) > 2:
                label = label[:-2] + "…"
            draw.text((left + cell_width // 2, top + cell_height + line // 2), label, "#444444", text, "mm")
    _save(path, canvas)


def _fit_cell(x: Tensor) -> Image.Image:
    height, width = x.shape[1:]
    longest = max(height, width)
    zoom = LARGEST_GRID_CELL / longest if longest > LARGEST_GRID_CELL else max(1, round(GRID_CELL / longest))
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    return Image.fromarray(to_uint8(x)).resize(size, Image.Resampling.BICUBIC)


def save_map(path: Path, values: Tensor, title: str) -> None:
    """Save a map (H, W) of values, 0 or more, as a colour-mapped PNG with a bar that gives their scale."""
    from matplotlib.figure import Figure

    values = values.cpu().nan_to_num(0).numpy()
    figure = Figure()                               # a layout by constraints would draw everything twice
    figure.subplots_adjust(0.02, 0.02, 0.98, 0.9)
    axes = figure.subplots()
    figure.colorbar(axes.imshow(values, cmap="magma", vmin=0, vmax=float(values.max()) or 1.0), shrink=0.8)
    axes.set_axis_off()
    axes.set_title(title, fontsize="medium")
    write_atomically(path, content_of(partial(figure.savefig, format="png", dpi=150, metadata={"Software": None})))
