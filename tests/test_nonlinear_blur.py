"""Blur by the network of Tran et al. (2021), and blur in linear light."""

import json
import math
from functools import lru_cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from guided_diffusion.condition_methods import get_conditioning_method
from guided_diffusion.measurements import LinearOperator, get_noise, get_operator
from guided_diffusion.measurements.kernel_wizard import KernelWizard
from tests.conftest import golden_path
from tests.helpers import deterministic
from util.errors import UserError
from util.seeding import ImageRandomness

NAMES = ["a.png", "b.png", "c.png"]
SALT, RESIDUAL_FACTOR = 30000, 0.3


def randomness(names: list[str], seed: int = 0) -> ImageRandomness:
    return ImageRandomness(seed, names, purpose="operator")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# The network

@pytest.fixture(scope="session")
def official_shapes() -> dict[str, list[int]]:
    """Names and shapes of GOPRO_wVAE.pth, in its order."""
    return json.loads(golden_path("kernelwizard_keys.json").read_text())["state_dict"]


@pytest.fixture(scope="session")
def weights(official_shapes) -> dict[str, Tensor]:
    """A state dict with the official names, filled by the rule of the golden numbers; the encoder's share is zero."""
    filled = {}
    for k, (name, shape) in enumerate(official_shapes.items()):
        if name.startswith("kernel_extractor."):
            filled[name] = torch.zeros(1).expand(shape)                                 # takes no space in the file
            continue
        values = deterministic(SALT + k, tuple(shape))
        values *= math.sqrt(2 * 3 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
        if len(shape) > 1 and (".conv1." in name or ".conv2." in name):
            values *= RESIDUAL_FACTOR
        filled[name] = torch.from_numpy(values).float()
    return filled


@pytest.fixture(scope="session")
def checkpoint(weights, tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("wizard") / "GOPRO_wVAE.pth"
    torch.save(weights, file)
    return str(file)


@pytest.fixture(scope="session")
def wizard(checkpoint) -> KernelWizard:
    return build(checkpoint, False).network


def test_the_filling_is_the_recorded_one(weights):
    recorded = json.loads(golden_path("kernelwizard.json").read_text())["state_dict"]
    for (name, tensor), (recorded_name, shape, first, total, squares) in zip(weights.items(), recorded, strict=True):
        assert (name, list(tensor.shape)) == (recorded_name, shape)
        if not name.startswith("kernel_extractor."):
            np.testing.assert_allclose(tensor.flatten()[:2], first, rtol=1e-6)
            assert float(tensor.double().sum()) == pytest.approx(total, rel=1e-5, abs=1e-4)
            assert float(tensor.double().square().sum()) == pytest.approx(squares, rel=1e-5)


CASES = {"k128": (0, (128, 128)), "k128x256": (10, (128, 256)), "k256": (20, (256, 256))}


@pytest.mark.parametrize("case", CASES)
def test_golden_output_and_gradient(golden, wizard, case):
    arrays, (seed, size) = golden("kernelwizard"), CASES[case]
    code = torch.from_numpy(arrays[f"{case}_kernel"])[None]
    drawn = 1.2 * math.sqrt(3) * deterministic(31000 + seed, tuple(code.shape))
    np.testing.assert_allclose(code.numpy(), drawn, rtol=1e-6, atol=1e-7)
    x = torch.from_numpy(0.5 + 0.5 * deterministic(31001 + seed, (1, 3, *size))).float().requires_grad_()
    w = torch.from_numpy(deterministic(31002 + seed, (1, 3, *size))).float()
    out = wizard(x, code)
    gradient, = torch.autograd.grad((out * w).sum(), x)
    out = out.detach()
    rows = np.s_[96:160]
    parts = {"": np.s_[:], "_crop": np.s_[:, rows, rows], "_edge": np.s_[:, :32, -32:]}
    compared = 0
    for suffix, part in parts.items():
        for name, found in (("out", out[0][part]), ("grad", gradient[0][part])):
            key = f"{case}_{name}{'_x' if name == 'grad' and not suffix else ''}{suffix}"
            if key not in arrays:
                continue
            expected = torch.from_numpy(arrays[key])
            compared += 1
            if name == "out":
                torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
            else:
                assert (found - expected).norm() < 1e-2 * expected.norm()
    assert compared >= 2
    if case == "k128":
        adapted = wizard.adapter["model"](wizard.feature_extractor(x), code)[0].detach()
        torch.testing.assert_close(adapted, torch.from_numpy(arrays["k128_adapter_out"]), rtol=0, atol=2e-5)
    else:
        found = [float(out.double().sum()), float(out.double().norm())]
        np.testing.assert_allclose(found, arrays[f"{case}_out_sum_l2"][:2], rtol=1e-4)


@lru_cache
def build(checkpoint: str, redraw: bool):
    return get_operator("nonlinear_blur", model_path=checkpoint, redraw=redraw)


def operator_for(checkpoint: str, names: list[str], size: tuple[int, int] = (128, 128), seed: int = 0,
                 redraw: bool = False):
    """The operator (one object per `redraw`), prepared for these images."""
    operator = build(checkpoint, redraw)
    operator.prepare((len(names), 3, *size), randomness(names, seed))
    return operator


def test_the_operator_maps_ranges_and_clips(checkpoint, wizard):
    operator = operator_for(checkpoint, NAMES[:1])
    x = normal(1, 3, 128, 128, dtype=torch.float32) / 2
    y = operator(x)
    assert y.shape == x.shape and y.min() >= -1 and y.max() <= 1
    torch.testing.assert_close(y, (2 * wizard((x + 1) / 2, operator.code) - 1).clamp(-1, 1))
    assert torch.equal(y, operator(x))
    assert not any(p.requires_grad for p in operator.parameters())
    assert not isinstance(operator, LinearOperator)


def test_the_code_belongs_to_the_image(checkpoint):
    codes = operator_for(checkpoint, NAMES, (128, 256)).code
    assert codes.shape == (3, 512, 1, 2)
    assert abs(codes.std() - 1.2) < 0.06 and abs(codes.mean()) < 0.1
    for b, name in enumerate(NAMES):
        assert torch.equal(operator_for(checkpoint, [name], (128, 256)).code[0], codes[b])
    assert not torch.equal(codes[0], codes[1])
    assert not torch.equal(operator_for(checkpoint, NAMES, (128, 256), seed=1).code, codes)


def test_a_batch_equals_its_images_and_candidates_their_batch(checkpoint):
    x = normal(2, 2, 3, 128, 128, dtype=torch.float32) / 2                              # (n, B, C, H, W)
    batch = operator_for(checkpoint, NAMES[:2])
    with torch.no_grad():
        y = batch.forward_many(x)
        torch.testing.assert_close(y[1], batch(x[1]), rtol=0, atol=2e-5)
        for b in range(2):
            torch.testing.assert_close(y[0, b:b + 1], operator_for(checkpoint, [NAMES[b]])(x[0, b:b + 1]),
                                       rtol=0, atol=2e-5)


def test_redraw_changes_the_blur_at_every_call_in_the_same_way_for_any_batch(checkpoint):
    x = normal(2, 3, 128, 128, dtype=torch.float32) / 2
    with torch.no_grad():
        operator = operator_for(checkpoint, NAMES[:2], redraw=True)
        calls = [operator(x) for _ in range(2)]
        assert (calls[0] - calls[1]).abs().max() > 0.1
        single = operator_for(checkpoint, NAMES[1:2], redraw=True)
        for call in calls:
            torch.testing.assert_close(single(x[1:]), call[1:], rtol=0, atol=2e-5)


def test_the_gradient_of_the_operator_along_a_direction(checkpoint):
    """In float64, where a small step crosses few of the network's kinks."""
    operator = get_operator("nonlinear_blur", model_path=checkpoint).double()
    operator.prepare((1, 3, 128, 128), randomness(NAMES[:1]))
    x, direction, step = normal(1, 3, 128, 128) / 4, normal(1, 3, 128, 128, seed=1), 1e-8
    weight = normal(1, 3, 128, 128, seed=2)
    x.requires_grad_()
    gradient, = torch.autograd.grad((operator(x) * weight).sum(), x)
    with torch.no_grad():
        ahead, behind = ((operator(x + s * step * direction) * weight).sum() for s in (1, -1))
    assert float((gradient * direction).sum()) == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-3)


@pytest.mark.parametrize("shape, words", [
    ((1, 3, 64, 64), "64x64, expected sides that are multiples of 128"), ((1, 3, 256, 192), "256x192"),
    ((1, 1, 128, 128), "1 channels, expected 3")])
def test_images_of_other_sizes_are_refused(checkpoint, shape, words):
    operator = build(checkpoint, False)
    with pytest.raises(UserError, match=words):
        operator.prepare(shape, randomness(NAMES[:1]))


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A working directory and a repository without weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("util.config.REPOSITORY", tmp_path)
    return tmp_path


def test_missing_weights_are_an_error_that_says_where_they_come_from(nowhere):
    with pytest.raises(UserError, match="models/GOPRO_wVAE.pth not found.*VinAIResearch/blur-kernel-space-exploring"):
        get_operator("nonlinear_blur")


def test_weights_are_found_in_the_repository(nowhere, weights):
    (nowhere / "models").mkdir()
    torch.save(weights, nowhere / "models" / "GOPRO_wVAE.pth")
    (nowhere / "elsewhere").mkdir()
    assert torch.equal(get_operator("nonlinear_blur").network.recon_trunk[28].bias, weights["recon_trunk.28.bias"])


@pytest.mark.parametrize("spoil, words", [
    (lambda w: w.pop("recon_trunk.3.conv1.bias"), "missing recon_trunk.3.conv1.bias"),
    (lambda w: w.pop("kernel_extractor.model.20.conv_block.5.weight"), "missing kernel_extractor.model.20"),
    (lambda w: w.update(surplus=torch.zeros(1)), "unexpected surplus"),
    (lambda w: w.update({"kernel_extractor.model.1.weight": torch.zeros(64, 3, 7, 7)}), r"\[64, 128, 7, 7\]"),
    (lambda w: w.update({"adapter.model.up.1.bias": torch.full((64,), math.nan)}), "NaN"),
])
def test_other_weights_are_refused(tmp_path, weights, spoil, words):
    damaged = dict(weights)
    spoil(damaged)
    torch.save(damaged, tmp_path / "w.pth")
    with pytest.raises(UserError, match=words):
        get_operator("nonlinear_blur", model_path=str(tmp_path / "w.pth"))


def test_the_options_file_of_dps_names_the_weights(nowhere, checkpoint, weights):
    options = nowhere / "bkse" / "default.yml"
    options.parent.mkdir()
    options.write_text(f"KernelWizard:\n  pretrained: {checkpoint}\n  nf: 64\n")
    operator = get_operator("nonlinear_blur", opt_yml_path="./bkse/default.yml")
    assert torch.equal(operator.network.recon_trunk[28].bias, weights["recon_trunk.28.bias"])
    options.write_text("KernelWizard: {nf: 64}\n")
    for params, words in (({"opt_yml_path": "bkse/default.yml"}, "no KernelWizard.pretrained"),
                          ({"opt_yml_path": "bkse/none.yml"}, "none.yml not found.*set model_path"),
                          ({"opt_yml_path": "bkse/default.yml", "model_path": "x.pth"}, "leave one out")):
        with pytest.raises(UserError, match=words):
            get_operator("nonlinear_blur", **params)


# Linear light

def gopro(shape: tuple[int, ...], names: list[str] = NAMES, seed: int = 0, **params):
    operator = get_operator("gopro_blur", **{"kernel_size": 9, **params})
    operator.prepare(shape, randomness(names, seed))
    return operator


def by_hand(x: Tensor, shifts: np.ndarray, radius: int) -> Tensor:
    """The mean of frames in linear light by one convolution with bilinear weights, (C, H, W) -> (C, H, W)."""
    kernel = torch.zeros(2 * radius + 1, 2 * radius + 1, dtype=x.dtype)
    offsets = torch.arange(-radius, radius + 1)
    for down, right in shifts:
        rows, columns = ((1 - (offsets - s).abs()).clamp_min(0) for s in (down, right))
        kernel += rows[:, None] * columns / len(shifts)
    light = F.pad(((x + 1) / 2) ** 2.2, (radius,) * 4, mode="reflect")
    return 2 * F.conv2d(light[:, None], kernel[None, None])[:, 0] ** (1 / 2.2) - 1


@pytest.mark.parametrize("params", [{}, {"frames": 1}, {"frames": 5, "kernel_size": 4, "intensity": 1.0},
                                    {"frames": 40, "kernel_size": 23, "intensity": 0.0}])
@pytest.mark.parametrize("size", [(16, 16), (13, 21)])
def test_equation_56(params, size):
    operator = gopro((3, 3, *size), **params)
    x = 2 * torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    y = operator(x)
    for b in range(3):
        torch.testing.assert_close(y[b], by_hand(x[b], operator.shifts[b].numpy(), operator.radius))
    assert y.min() >= -1 and y.max() <= 1


def test_frames_lie_evenly_on_a_path_about_its_mean_within_the_square():
    for intensity in (0.0, 0.5, 1.0):
        names = [f"{i}.png" for i in range(40)]
        shifts = gopro((40, 3, 32, 32), names, kernel_size=15, frames=200, intensity=intensity).shifts
        assert shifts.shape == (40, 200, 2)
        assert shifts.abs().max() <= 7 + 1e-9
        assert shifts.mean(1).abs().max() < 1e-9 and shifts.std(1).amax(1).median() > 0.5
        steps = shifts.diff(dim=1).norm(dim=2)
        assert (steps.amax(1) / steps.median(1).values < 1.5).all()                     # shorter only round corners


@pytest.mark.parametrize("name", ["00323", "00565", "00638", "01053"])
def test_paths_that_touch_the_border_stay_within_it(name):
    """Scaled to the radius, they exceeded it in the last digit."""
    operator = get_operator("gopro_blur")
    operator.prepare((1, 3, 32, 32), ImageRandomness(0, [name], purpose="operator"))
    assert operator.shifts.abs().max() == operator.radius
    assert operator(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)


def test_a_whole_step_moves_the_image():
    operator = gopro((1, 3, 16, 16), NAMES[:1], frames=1)
    x = 2 * torch.rand(1, 3, 16, 16, dtype=torch.float64) - 1
    torch.testing.assert_close(operator(x), x)                                          # one frame does not move
    operator.shifts = torch.tensor([[[4.0, -3.0]]], dtype=torch.float64)
    torch.testing.assert_close(operator(x)[..., :12, 3:], x[..., 4:, :13])


def test_grey_stays_grey_and_light_adds_up():
    operator = gopro((1, 3, 24, 24), NAMES[:1], frames=2)
    operator.shifts = torch.tensor([[[0.0, 2.0], [0.0, -2.0]]], dtype=torch.float64)
    for value in (-1.0, -0.3, 1.0):
        torch.testing.assert_close(operator(torch.full((1, 3, 24, 24), value)), torch.full((1, 3, 24, 24), value))
    x = -torch.ones(1, 3, 24, 24)
    x[..., 12] = 1                                                                      # a white line on black
    seen = operator(x)[..., 10]
    torch.testing.assert_close(seen, torch.full_like(seen, 2 * 0.5 ** (1 / 2.2) - 1))   # brighter than mid-grey 0


def test_the_path_belongs_to_the_image_and_is_kept():
    batch = gopro((3, 3, 16, 16))
    x = normal(3, 3, 16, 16, dtype=torch.float32)
    y = batch(x)
    assert torch.equal(y, batch(x))
    for b, name in enumerate(NAMES):
        single = gopro((1, 3, 16, 16), [name])
        assert torch.equal(single.shifts[0], batch.shifts[b])
        assert torch.equal(single(x[b:b + 1])[0], y[b])
    assert not torch.equal(batch.shifts[0], batch.shifts[1])
    assert not torch.equal(gopro((3, 3, 16, 16), seed=1).shifts, batch.shifts)
    candidates = normal(4, 3, 3, 16, 16, seed=1)
    torch.testing.assert_close(batch.forward_many(candidates), torch.stack([batch(c) for c in candidates]))


def test_gradient_check_in_linear_light():
    operator = gopro((2, 1, 7, 6), NAMES[:2], kernel_size=5, frames=3)
    x = 1.8 * torch.rand(2, 1, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.9
    assert torch.autograd.gradcheck(operator, x.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [-1.0, -1.5, -1 + 1e-7, 1.0, 3.0])
def test_the_gradient_is_finite_in_black_and_beyond_the_range(value, dtype):
    operator = gopro((1, 3, 16, 16), NAMES[:1])
    x = torch.full((1, 3, 16, 16), value, dtype=dtype)
    x[..., 8:, :] = 0.5
    x[..., 0, 0] = value + 1e-7
    x.requires_grad_()
    y = operator(x)
    loss = get_noise("gaussian", sigma=0.1).distance(torch.zeros_like(y), y)
    gradient, = torch.autograd.grad(loss.sum() + y.sum(), x)
    assert torch.isfinite(y).all() and torch.isfinite(gradient).all()
    assert gradient.abs().max() < 100


def test_it_is_nonlinear_by_type():
    operator = gopro((1, 3, 16, 16), NAMES[:1])
    assert not isinstance(operator, LinearOperator)
    with pytest.raises(UserError, match="needs a linear operator, found 'gopro_blur'"):
        get_conditioning_method("projection").check(operator)


@pytest.mark.parametrize("params, words", [
    ({"frames": 0}, "frames is 0, expected 1 or more"), ({"kernel_size": 2}, "kernel_size is 2, expected 3"),
    ({"intensity": 1.5}, r"intensity is 1.5, expected 0 \(straight\)"), ({"frame": 3}, "did you mean 'frames'"),
    ({"kernel_size": 33}, "needs images larger than 16 pixels, found 16x16; use a kernel_size of at most 31"),
])
def test_bad_inputs_are_named(params, words):
    with pytest.raises(UserError, match=words):
        gopro((1, 3, 16, 16), NAMES[:1], **params)
