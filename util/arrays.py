"""Masks and kernels from files."""

import warnings

import numpy as np
from PIL import Image

from util.command import user_path
from util.errors import UserError
from util.img_utils import FORMATS


def read_array(file: str, what: str) -> np.ndarray:
    """Read a .npy file, or an image: (H, W) or, in colour, (H, W, 3), with the values of the file.

    Args:
        what: the key that names the file, for messages.

    Raises:
        UserError: the file is missing, or is neither an array of numbers nor an image.
    """
    path = user_path(file)
    if not path.is_file():
        raise UserError(f"{what} '{file}' not found; give the path of an image or a .npy file")
    try:
        if path.suffix.lower() == ".npy":
            with open(path, "rb") as content:           # numpy.load takes other files for archives or pickles
                array = np.lib.format.read_array(content, allow_pickle=False)
            if array.dtype.kind not in "bufi":
                pairs = "; stack real and imaginary parts along a last axis" if array.dtype.kind == "c" else ""
                raise ValueError(f"it holds {array.dtype} values, not real numbers{pairs}")
            return array
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
        with image:
            grey = image.mode in ("1", "L") or image.mode.startswith(("I", "F"))
            return np.asarray(image if grey else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError,
            Image.DecompressionBombWarning) as error:
        raise UserError(f"{what} '{file}' cannot be read ({error}); save it as a PNG or by numpy.save") from None
