"""Every linear operator with parameters and image sizes, prepared for a batch of images."""

import tempfile

import numpy as np
import pytest

from guided_diffusion.measurements import OPERATORS, LinearOperator, get_operator
from tests.helpers import NAMES, OPERATOR_EXAMPLES
from util.seeding import ImageRandomness

BOX, PROB = [4, 9], [0.3, 0.7]
FOLDER = tempfile.TemporaryDirectory()
KERNEL = f"{FOLDER.name}/kernel.npy"
np.save(KERNEL, np.array([[1, 2, 1], [2, 16, 4], [1, 3, 2]]) / 32)


def inpainting(mask_type: str, **more) -> tuple[str, dict]:
    options = {"mask_type": mask_type, "mask_len_range": BOX, "mask_prob_range": PROB, "margin": [1, 2], **more}
    return "inpainting", {"mask_opt": options}


CASES = {                                       # id -> (name, parameters), sizes
    "noise": (("noise", {}), [(8, 8), (5, 7)]),
    "sr2": (("super_resolution", {"scale_factor": 2}), [(8, 8), (10, 6)]),
    "sr4": (("super_resolution", {"scale_factor": 4}), [(16, 16), (12, 20)]),
    "sr8": (("super_resolution", {"scale_factor": 8}), [(32, 16)]),
    "sr16": (("super_resolution", {"scale_factor": 16}), [(32, 16), (16, 16)]),
    "box": (inpainting("box"), [(16, 16), (13, 17)]),
    "random": (inpainting("random"), [(16, 16), (13, 17)]),
    "both": (inpainting("both"), [(16, 16), (13, 17)]),
    "extreme": (inpainting("extreme"), [(16, 16), (13, 17)]),
    "gaussian_fft": (("gaussian_blur", {"kernel_size": 9, "intensity": 1.0, "convolution": "fft"}),
                     [(16, 16), (13, 17)]),
    "gaussian_matrices": (("gaussian_blur", {"kernel_size": 9, "intensity": 1.0}), [(16, 16), (13, 17)]),
    "gaussian_direct": (("gaussian_blur", {"kernel_size": 5, "intensity": 3.0, "convolution": "direct"}),
                        [(16, 16), (3, 8)]),
    "motion_fft": (("motion_blur", {"kernel_size": 9, "intensity": 0.5, "convolution": "fft"}), [(16, 16), (13, 17)]),
    "motion_direct": (("motion_blur", {"kernel_size": 5, "intensity": 0.5, "convolution": "direct"}),
                      [(16, 16), (3, 8)]),
    "motion_wide": (("motion_blur", {"kernel_size": 25, "intensity": 0.5}), [(13, 17)]),
    "kernel": (("blur", {"kernel": KERNEL}), [(16, 16), (13, 17)]),
    "grey": (("colorization", {}), [(8, 8), (5, 7)]),
    "average2": (("sr_average", {"scale_factor": 2}), [(8, 8), (10, 6)]),
    "average3": (("sr_average", {"scale_factor": 3}), [(9, 15)]),
    "hadamard": (("compressed_sensing", {"ratio": 0.25}), [(16, 16), (8, 32)]),
    "dct": (("compressed_sensing", {"ratio": 0.4, "transform": "dct"}), [(16, 16), (13, 17)]),
    "cartesian": (("fourier", {"acceleration": 2.0}), [(16, 16), (13, 17)]),
    "radial": (("fourier", {"sampling": "radial", "centre": 0.0}), [(16, 16), (13, 16)]),
    "points": (("fourier", {"sampling": "random", "centre": 0.2}), [(16, 16), (13, 17)]),
    "composite": (("composite", {"operators": [
        {"name": "gaussian_blur", "kernel_size": 5, "intensity": 1.0}, {"name": "sr_average", "scale_factor": 2}]}),
        [(16, 16), (14, 10)]),
    "composite_of_masks": (("composite", {"operators": [
        {"name": "inpainting", **inpainting("random")[1]}, {"name": "colorization"},
        {"name": "inpainting", **inpainting("box")[1]}]}), [(16, 16), (13, 17)]),
}
CASES |= {name: ((name, params), [(16, 16)]) for name, params in OPERATOR_EXAMPLES.items()
          if issubclass(OPERATORS[name], LinearOperator) and name not in {case[0] for case, _ in CASES.values()}}
CASES_AND_SIZES = [pytest.param(*case, size, id=f"{name}-{size[0]}x{size[1]}")
                   for name, (case, sizes) in CASES.items() for size in sizes]
ONE_SIZE = [pytest.param(*case, sizes[0], id=name) for name, (case, sizes) in CASES.items()]
LAST_SIZE = [pytest.param(*case, sizes[-1], id=name) for name, (case, sizes) in CASES.items()]        # seldom square
every_case = pytest.mark.parametrize(("name", "params", "size"), CASES_AND_SIZES)
every_operator = pytest.mark.parametrize(("name", "params", "size"), ONE_SIZE)


def prepared(name: str, params: dict, size: tuple[int, int], names: list[str] = NAMES, channels: int = 3,
             seed: int = 0) -> LinearOperator:
    randomness = ImageRandomness(seed, names, purpose="operator")
    return get_operator(name, **params).prepare((len(names), channels, *size), randomness)
