"""The three small tasks of the golden numbers of the classical methods, as measurements of ours."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.measurements import Measurement, get_noise, get_operator
from util.seeding import ImageRandomness

TASKS = ("gblur", "sr_average4", "inpaint")


def as_images(values: object) -> Tensor:
    """(H, W, 3) or (H W, 3) of one image -> (1, 3, H, W) float64."""
    values = torch.as_tensor(values).double()
    side = math.isqrt(len(values)) if values.dim() == 2 else len(values)
    return values.reshape(side, -1, 3).permute(2, 0, 1)[None]


def golden_measurement(arrays: dict, task: str, folder: Path, dtype: torch.dtype = torch.float32) -> Measurement:
    """The golden measurement of 16 x 16 pixels, which is on [0, 1], on our [-1, 1]; `folder` is for files."""
    y = arrays[f"y_{task}"]
    if task == "gblur":
        np.save(folder / "kernel.npy", arrays["kernel"])
        operator = get_operator("blur", kernel=str(folder / "kernel.npy"))
    elif task == "inpaint":
        np.save(folder / "mask.npy", arrays["mask"])
        operator = get_operator("inpainting", mask_opt={"mask_type": "file", "file": str(folder / "mask.npy")})
        y, observed = np.zeros_like(arrays["x0"]), y
        y[arrays["mask"]] = observed
    else:
        operator = get_operator("sr_average", scale_factor=4)
    operator = operator.prepare((1, 3, 16, 16), ImageRandomness(0, ["golden"], purpose="operator"))
    return Measurement(operator, get_noise("gaussian", sigma=0.05), (2 * as_images(y) - 1).to(dtype))
