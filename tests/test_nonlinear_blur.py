"""Blur by the network of Tran et al. (2021): its numbers, its codes, its weights."""

import json
import math
from functools import lru_cache

import numpy as np
import pytest
import torch

from guided_diffusion.measurements import LinearOperator, get_operator
from guided_diffusion.measurements.kernel_wizard import KernelWizard
from tests.conftest import golden_path
from tests.helpers import NAMES, deterministic, normal, randomness
from util.errors import UserError


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
    """The operator (its weights read once per `redraw`), prepared for these images."""
    return build(checkpoint, redraw).prepare((len(names), 3, *size), randomness(names, seed))


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


def test_prepared_copies_have_their_own_codes_and_share_the_weights(checkpoint):
    first, second = (operator_for(checkpoint, NAMES[:1], seed=seed) for seed in (0, 1))
    assert first.network is second.network and not torch.equal(first.code, second.code)
    assert build(checkpoint, False).code.numel() == 0


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
    operator = operator.prepare((1, 3, 128, 128), randomness(NAMES[:1]))
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
    monkeypatch.setattr("util.config.config.REPOSITORY", tmp_path)
    return tmp_path


def test_missing_weights_are_an_error_that_says_where_they_come_from(nowhere):
    with pytest.raises(UserError, match="models/GOPRO_wVAE.pth not found.*VinAIResearch/blur-kernel-space-exploring"):
        get_operator("nonlinear_blur")


def test_weights_are_found_in_the_repository(nowhere, weights, monkeypatch):
    (nowhere / "models").mkdir()
    torch.save(weights, nowhere / "models" / "GOPRO_wVAE.pth")
    (nowhere / "elsewhere").mkdir()
    monkeypatch.chdir(nowhere / "elsewhere")
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
