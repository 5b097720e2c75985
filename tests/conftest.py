"""What several test files share: one thread, and the golden reference numbers."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"                 # of the programs that tests start
torch.set_num_threads(1)                            # networks of a few pixels: threads would wait for each other

SHIPPED = Path(__file__).parent / "golden"
BESIDE_CHECKOUT = Path(__file__).parents[2] / "shared" / "golden"


def golden_path(name: str) -> Path:
    """The golden file `name`, shipped or in the folder of reference numbers; skips the test where it is absent."""
    folders = [SHIPPED, Path(os.environ.get("DPS_GOLDEN", BESIDE_CHECKOUT))]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"{name} is not in {folders[1]}; set DPS_GOLDEN to the folder of golden numbers")


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """golden(name) -> the arrays of a golden .npz file, "operators" or "operators.npz"."""
    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(golden_path(name if name.endswith(".npz") else f"{name}.npz")) as arrays:
            return dict(arrays)
    return load
