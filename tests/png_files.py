"""PNG files that Pillow cannot write: with 16 bits per colour, of a size that they do not have, with any chunk."""

import struct
import zlib

import numpy as np

COLOURS = {2: 4, 3: 2, 4: 6}                # channels -> PNG's colour type: grey and alpha, RGB, RGB and alpha


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, rows: bytes, bits: int = 8, channels: int = 3, more: bytes = b"") -> bytes:
    """A PNG that says that it has this size; `rows` are its pixels, `more` are chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, bits, COLOURS[channels], 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


def png_16_bit(levels: np.ndarray, more: bytes = b"") -> bytes:
    """Encode (H, W, 2, 3 or 4) uint16; `more` as in `png`."""
    height, width, channels = levels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    return png(width, height, rows, bits=16, channels=channels, more=more)
