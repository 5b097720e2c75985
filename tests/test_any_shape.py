"""Operators of which `forward` is all that is written, with measurements of any shape, from the command line."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from guided_diffusion.measurements import OPERATORS, LinearOperator, Operator, get_operator, register_operator
from tests.helpers import NAMES, normal, relative
from util.seeding import ImageRandomness


class Pairs(LinearOperator):
    """Every third frequency as pairs of real numbers: (B, C, H, W) -> (B, C, H, W/2 + 1, 2)."""

    def forward(self, x):
        spectrum = torch.fft.rfft2(x, norm="ortho")
        index = torch.arange(spectrum[0, 0].numel(), device=x.device).view(spectrum.shape[-2:])
        return torch.view_as_real((index % 3 == 0) * spectrum)


class Numbers(LinearOperator):
    """Sums over rows, of all channels, as a vector: (B, C, H, W) -> (B, H)."""

    def forward(self, x):
        return x.sum(dim=(1, 3))


class Fewer(LinearOperator):
    """Every second row: (B, C, H, W) -> (B, C, H/2, W)."""

    def forward(self, x):
        return x[..., ::2, :]


class Powers(Operator):
    """The power of each frequency, of the grey image: (B, C, H, W) -> (B, H, W)."""

    def forward(self, x):
        return torch.fft.fft2(x.mean(dim=1), norm="ortho").abs() ** 2


class Complex(LinearOperator):
    def forward(self, x):
        return torch.fft.fft2(x)


class Alone(LinearOperator):
    def forward(self, x):
        return x.mean(dim=(1, 2, 3))


class Askew(LinearOperator):
    def forward(self, x):
        return x

    def lift(self, y):
        return y[..., 1:]


OWN = {"pairs": Pairs, "numbers": Numbers, "fewer": Fewer, "powers": Powers}
REFUSED = {"complex": (Complex, "torch.view_as_real"), "alone": (Alone, "two axes or more"),
           "askew": (Askew, "lift gives [1, 3, 32, 31], expected [1, 3, 32, 32]")}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(OPERATORS, "_classes", dict(OPERATORS._classes))
    for name, cls in {**OWN, **{name: cls for name, (cls, _) in REFUSED.items()}}.items():
        register_operator(name)(cls)


def prepared(name: str) -> Operator:
    return get_operator(name).prepare((3, 3, 8, 6), ImageRandomness(0, NAMES, purpose="operator"))


@pytest.mark.parametrize("name", OWN)
def test_where_to_begin_is_an_image_of_each_measurement(name):
    operator, x = prepared(name), normal(3, 3, 8, 6)
    y = operator(x)
    guess = operator.initial_guess(y)
    assert guess.shape == x.shape and torch.equal(operator.lift(y), guess)
    if not isinstance(operator, LinearOperator):
        assert (guess == 0).all()
        return
    torch.testing.assert_close(operator.initial_guess(2 * y)[1], 2 * guess[1])
    best, *others = ((y - operator(scale * guess)).flatten(1).norm(dim=1) for scale in (1, 0.9, 1.1))
    assert all((other > best).all() for other in others)               # of all multiples the best one
    if name == "fewer":                                                 # A A^T = I
        torch.testing.assert_close(guess, operator.pinv(y))
    assert relative(operator(operator.pinv(y)), y) < 1e-10
    assert (operator.initial_guess(torch.zeros_like(y)) == 0).all()


METHODS = {"pairs": "ps dpps lift pinv mcg projection tikhonov", "numbers": "dpps pinv", "fewer": "dpps",
           "powers": "dpps lift"}


@pytest.mark.parametrize("name, method", [(name, method) for name in METHODS for method in METHODS[name].split()])
def test_forward_is_enough(run, name, method):
    status, _, err = run("--set", f"measurement.operator={{name: {name}}}", "--limit", "1",
                         "--set", f"conditioning={{method: {method}}}")
    assert status == 0, err
    folder = Path(f"results/{name}/{method}")
    with open(folder / "metrics.csv", newline="") as file:
        row, = csv.DictReader(file)
    assert all(math.isfinite(float(row[key])) for key in ("psnr", "psnr_input", "distance", "chi_square"))
    for kind in ("recon", "input"):
        with Image.open(folder / kind / "astronaut.png") as image:
            assert image.size == (32, 32)


@pytest.mark.parametrize("name", ["pairs", "powers"])
def test_measurements_of_any_shape_are_saved_loaded_and_taken_as_they_are(run, name):
    task = ["--set", f"measurement.operator={{name: {name}}}", "--set", "conditioning={method: ps}", "--limit", "1"]
    assert run(*task, "--save_measurements", "--save_dir", "a")[0] == 0
    folder = Path("a", name, "ps")
    status, _, err = run("--load_measurements", str(folder / "measurements"), "--save_dir", "b", "--set",
                         "conditioning={method: ps}")
    assert status == 0, err
    Path("photos").mkdir()
    with np.load(folder / "measurements" / "astronaut.npz") as file:
        np.save("photos/astronaut.npy", file["y"])
    status, _, err = run(*task, "--data", "photos", "--set", "measurement.observed=true", "--save_dir", "c")
    assert status == 0, err
    first, *others = ((Path(place, name, "ps", "recon", "astronaut.png")).read_bytes() for place in "abc")
    assert all(other == first for other in others)


@pytest.mark.parametrize("name", REFUSED)
def test_measurements_that_nothing_can_take_are_refused_before_anything_runs(run, name):
    status, _, err = run("--set", f"measurement.operator={{name: {name}}}")
    assert status == 2 and "Traceback" not in err and not Path("results").exists()
    line, = [line for line in err.splitlines() if line.startswith("error: ")]
    assert f"operator '{name}'" in line and REFUSED[name][1] in line


def test_complex_files_say_what_to_do(run):
    Path("photos").mkdir()
    np.save("photos/a.npy", np.zeros((3, 32, 17), complex))
    status, _, err = run("--data", "photos", "--set", "measurement.observed=true",
                         "--set", "measurement.operator={name: pairs}")
    assert status == 1 and "complex128 values, not real numbers; stack real and imaginary parts along a last" in err
