"""Images at the file border: files <-> float32 tensors in [-1, 1]. The only file that knows 255.

The map between [-1, 1] and 8 bits is fixed, u = 255 (x + 1) / 2, so that a saved picture has the same brightness as
the tensor that was scored.
"""

import io
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torch.nn import functional as F

from util.errors import UserError

PIXEL_STEP = 2 / 255                                # one 8-bit level on [-1, 1]
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


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


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all: temporary name in the same folder, fsync, rename.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path}: {reason}; choose another folder with --save_dir") from None


def save_image(path: Path, x: Tensor) -> None:
    """Save an image (3, H, W) in [-1, 1] as PNG, atomically."""
    _save(path, Image.fromarray(to_uint8(x)))


def _save(path: Path, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def load_image(path: Path, size: int | None = None) -> Tensor:
    """Read an image file as RGB (3, H, W) float32 in [-1, 1].

    Grey, palette and CMYK images become RGB, alpha is dropped, 16-bit PNG and grey TIFF keep their depth, and the EXIF
    orientation is applied. With `size` the image is cropped to its central square and resized (antialiased bicubic)
    to `size` x `size`.

    Raises:
        UserError: the file is missing, no image, truncated, or too large to be decoded safely.
    """
    try:
        content = path.read_bytes()
        if not content:
            raise ValueError("the file is empty")
        x = _decode(content, crop=size is not None)
    except UserError:
        raise
    except Exception as error:      # decoders raise a dozen types for damaged files; none of them means success
        reason = str(getattr(error, "strerror", None) or error or type(error).__name__).splitlines()[0]
        reason = "not an image, or a damaged one" if reason.startswith("cannot identify") else reason
        raise UserError(f"cannot read image {path}: {reason[:120]}") from None
    return x if size is None else resize(x, size)


def _decode(content: bytes, crop: bool) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if _is_16_bit_colour_png(content):
                return _centre_square(_decode_16_bit_colour(content)) if crop else _decode_16_bit_colour(content)
            image = ImageOps.exif_transpose(image)
            if crop:
                side = min(image.size)
                left, top = (image.width - side) // 2, (image.height - side) // 2
                image = image.crop((left, top, left + side, top + side))
            if image.mode.startswith("I"):                              # grey, 16 bits
                levels = np.asarray(image).astype(np.int64)
                if levels.min() < 0 or levels.max() > 65535:
                    raise ValueError("32-bit integer images have no known value range; save it with 8 or 16 bits")
                return _to_tensor(np.stack([levels] * 3, axis=2), 65535)
            if image.mode == "F":
                raise ValueError("floating-point images have no known value range; save it with 8 or 16 bits")
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            return from_uint8(np.asarray(image.convert("RGB")))


def _is_16_bit_colour_png(content: bytes) -> bool:
    # the header chunk of a PNG holds the bit depth at byte 24 and the colour type at byte 25: 2 = RGB, 6 = RGBA
    return content.startswith(b"\x89PNG\r\n\x1a\n") and content[24] == 16 and content[25] in (2, 6)


def _decode_16_bit_colour(content: bytes) -> Tensor:
    from torchvision.io import ImageReadMode, decode_png

    levels = decode_png(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)
    top = 255 if levels.dtype == torch.uint8 else 65535
    return levels.float() / (top / 2) - 1                               # (3, H, W)


def _centre_square(x: Tensor) -> Tensor:
    height, width = x.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return x[:, top:top + side, left:left + side]


def resize(x: Tensor, size: int) -> Tensor:
    """A square image (3, S, S) in [-1, 1] -> (3, size, size), antialiased bicubic; untouched when S is `size`."""
    if x.shape[1:] == (size, size):
        return x
    resized = F.interpolate(x[None], size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized[0].clamp(-1, 1)


def save_grid(path: Path, rows: list[list[Tensor]], captions: list[list[str]], header: list[str]) -> None:
    """Save a table of pictures as PNG, each with a line of text below it and each column with a title.

    Args:
        rows: images (3, H, W) in [-1, 1], all of one size; small ones are enlarged to about 256 pixels.
        captions: a text per picture, in the layout of `rows`.
        header: a title per column.
    """
    height, width = rows[0][0].shape[1:]
    zoom = max(1, round(256 / max(height, width)))
    cell_width, cell_height, gap, line = width * zoom, height * zoom, 12, 30
    columns = len(header)
    canvas = Image.new("RGB", (gap + columns * (cell_width + gap), 2 * gap + line + len(rows) * (cell_height + line)),
                       "white")
    draw = ImageDraw.Draw(canvas)
    title, text = (ImageFont.load_default(size=max(9, min(size, cell_width // 11))) for size in (19, 16))
    for j, label in enumerate(header):
        draw.text((gap + j * (cell_width + gap) + cell_width // 2, gap + line // 2), label, "black", title, "mm")
    for i, (row, texts) in enumerate(zip(rows, captions, strict=True)):
        for j, (x, label) in enumerate(zip(row, texts, strict=True)):
            left, top = gap + j * (cell_width + gap), gap + line + i * (cell_height + line)
            picture = Image.fromarray(to_uint8(x)).resize((cell_width, cell_height), Image.Resampling.BICUBIC)
            canvas.paste(picture, (left, top))
            while draw.textlength(label, text) > cell_width and len(label) > 2:
                label = label[:-2] + "…"
            draw.text((left + cell_width // 2, top + cell_height + line // 2), label, "#444444", text, "mm")
    _save(path, canvas)
